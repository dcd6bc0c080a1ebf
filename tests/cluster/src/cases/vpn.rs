//! A VPN that routes the cluster's addresses: both stay reachable, whatever comes first.

use std::{
    fs,
    net::IpAddr,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Case;
use crate::{
    cluster, laptop,
    laptop::at,
    process::{eventually, sh, wait},
    residue,
    vpn::{self, HOST, Vpn, route_to},
};

pub(super) const CASES: &[Case] = &[
    ("vpn::a_conflict_moves_behind_virtual_addresses", conflict),
    ("vpn::vnat_all_and_vnat_service", asked),
    ("vpn::an_allowed_part_is_the_clusters", allowed),
    ("vpn::refused_conflicts_say_what_to_do", refused),
    ("vpn::it_comes_and_goes_while_connected", comes_and_goes),
    ("vpn::by_mark_as_wg_quick", wg_quick),
    ("vpn::that_owns_the_default_route", default_route),
    ("vpn::marks_of_others_are_left_alone", marks),
    ("vpn::never_inside_also_and_the_reverse", most_specific),
    ("vpn::that_brings_a_name_server", name_server),
];

const TITLE: &str = "<title>Emoji Vote</title>";

fn page(url: &str, title: &str) -> Result<()> {
    let page = sh(&format!("curl -sS -m 10 '{url}'"))?.success().with_context(|| url.to_owned())?;
    ensure!(page.contains(title), "{url}: {page}");
    Ok(())
}

/// How `tpx status` says that a subnet is reached: its mode and the reason.
fn mode(cidr: &str) -> Result<(String, String)> {
    let status = laptop::status()?.context("not connected")?;
    let rows = status["datapath"]["subnets"].as_array().cloned().unwrap_or_default();
    let row = rows.iter().find(|row| row["cidr"] == cidr).with_context(|| format!("{cidr} is not in {rows:?}"))?;
    let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok((text("mode"), text("because")))
}

fn is_virtual(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.octets()[..2] == [246, 246])
}

fn resolve4(name: &str) -> Result<IpAddr> {
    let said = sh(&format!("getent ahostsv4 {name}"))?.success()?;
    Ok(said.split_whitespace().next().context("no address")?.parse()?)
}

fn conflict() -> Result<()> {
    laptop::quit()?;
    let _vpn = Vpn::private()?;
    let before = route_to(HOST.parse::<IpAddr>()?)?;
    let said = laptop::connect_with(&[])?;
    for word in ["10.96.0.0/16", "10.244.0.0/24", "10.0.0.0/8", vpn::DEVICE, "246.246.0.0/16"] {
        ensure!(said.contains(word), "connect does not say {word}: {said}");
    }
    for cidr in ["10.96.0.0/16", "10.244.0.0/24"] {
        let (mode, because) = mode(cidr)?;
        ensure!(mode == "virtual" && because.contains("10.0.0.0/8") && because.contains(vpn::DEVICE), "{because}");
    }
    page("http://web-app.emojivoto", TITLE)?;
    page(&format!("http://{HOST}"), vpn::TITLE)?;
    let ip = resolve4("web-app.emojivoto")?;
    ensure!(is_virtual(ip), "the name's address is not virtual: {ip}");
    // The application sees the address that it asked for.
    let saw = laptop::probe(at(ip, 80), &["--get", "/"])?;
    ensure!(saw.peer == Some(at(ip, 80)) && saw.body.as_deref().is_some_and(|b| b.contains("200 OK")), "{saw:?}");
    // The very addresses of the cluster belong to the VPN.
    let service = cluster::service("emojivoto", "web-app")?;
    page(&format!("http://{}", service.v4), vpn::TITLE)?;
    // No conflict in IPv6.
    page(&format!("http://[{}]", service.v6), TITLE)?;
    let after = route_to(HOST.parse::<IpAddr>()?)?;
    ensure!(before == after, "the VPN's route has changed: {before} is now {after}");
    // Refused stays refused behind a virtual address.
    let echo = resolve4("echo.default")?;
    let refused = laptop::probe(at(echo, 1009), &[])?;
    ensure!(!refused.connected && refused.errno == Some(rustix::io::Errno::CONNREFUSED.raw_os_error()), "{refused:?}");
    // Stable: the same name has the same address after another connect.
    laptop::connect_with(&[])?;
    ensure!(resolve4("web-app.emojivoto")? == ip, "the virtual address has changed");
    laptop::quit()?;
    residue::nothing_left()?;
    page(&format!("http://{HOST}"), vpn::TITLE)
}

fn asked() -> Result<()> {
    laptop::connect_with(&["--vnat", "all"])?;
    for cidr in ["10.96.0.0/16", "10.244.0.0/24", "fd10:96::/112", "fd10:244::/64"] {
        ensure!(mode(cidr)?.0 == "virtual", "{cidr}: {:?}", mode(cidr)?);
    }
    page("http://web-app.emojivoto", TITLE)?;
    ensure!(sh("curl -6 -sS -m 10 http://web-app.emojivoto")?.success()?.contains(TITLE));
    ensure!(is_virtual(resolve4("web-0.web.stateful")?), "a pod's name must be virtual as well");
    laptop::connect_with(&["--vnat", "service"])?;
    ensure!(mode("10.96.0.0/16")?.0 == "virtual" && mode("10.244.0.0/24")?.0 == "direct");
    ensure!(is_virtual(resolve4("web-app.emojivoto")?));
    page("http://web-app.emojivoto", TITLE)?;
    let pod = cluster::pod("emojivoto", "app=web")?;
    ensure!(resolve4("web-0.web.stateful")?.to_string().starts_with("10.244."), "pods keep their addresses");
    page(&format!("http://{}:8080", pod.v4), TITLE)?;
    // The address behind is found from the virtual one.
    let ip = resolve4("web-app.emojivoto")?;
    let name = sh(&format!("dig +short +time=5 -x {ip}"))?.success()?;
    ensure!(name.trim() == "web-app.emojivoto.svc.cluster.local.", "{name}");
    laptop::quit()?;
    residue::nothing_left()
}

fn allowed() -> Result<()> {
    laptop::quit()?;
    let _vpn = Vpn::private()?;
    laptop::connect_with(&["--allow-conflicting-subnets", "10.128.0.0/9"])?;
    ensure!(mode("10.244.0.0/24")?.0 == "direct" && mode("10.96.0.0/16")?.0 == "virtual");
    let pod = cluster::pod("emojivoto", "app=web")?;
    page(&format!("http://{}:8080", pod.v4), TITLE)?;
    let route = route_to(pod.v4)?;
    ensure!(route.contains("dev tpx0"), "{route}");
    page("http://web-app.emojivoto", TITLE)?;
    page(&format!("http://{HOST}"), vpn::TITLE)?;
    laptop::quit()?;
    residue::nothing_left()
}

fn refused() -> Result<()> {
    laptop::quit()?;
    let _vpn = Vpn::private()?;
    std::fs::write("/tmp/refuse.yml", "routing:\n  autoResolveConflicts: false\n")?;
    let ended = sh("tpx --config /tmp/refuse.yml connect")?;
    ensure!(!ended.status.success(), "{ended:?}");
    for word in ["10.0.0.0/8", vpn::DEVICE, "--vnat", "--allow-conflicting-subnets", "autoResolveConflicts"] {
        ensure!(ended.stderr.contains(word), "{word} is not in {}", ended.stderr);
    }
    residue::nothing_left()
}

/// A download that takes long enough for something to happen.
struct Download(Child);

impl Download {
    const SIZE: u64 = 60 << 20;

    fn start(url: &str) -> Result<Self> {
        let url = format!("{url}/bytes?n={}&sum=no", Self::SIZE);
        let limits = ["-sS", "-m", "60", "--limit-rate", "8M", "-o", "/dev/null", "-w", "%{size_download}"];
        Ok(Self(Command::new("curl").args(limits).arg(url).stdout(Stdio::piped()).spawn()?))
    }

    fn finish(mut self) -> Result<()> {
        let status = wait(&mut self.0, Duration::from_secs(60))?;
        let mut said = String::new();
        if let Some(out) = &mut self.0.stdout {
            std::io::Read::read_to_string(out, &mut said)?;
        }
        ensure!(status.success() && said == Self::SIZE.to_string(), "the download broke: {status}, {said} bytes");
        Ok(())
    }
}

fn comes_and_goes() -> Result<()> {
    laptop::connect_with(&[])?;
    ensure!(mode("10.96.0.0/16")?.0 == "direct");
    let service = cluster::service("emojivoto", "web-app")?;
    let direct = Download::start(&format!("http://{}", service.v4))?;
    std::thread::sleep(Duration::from_millis(500));
    let vpn = Vpn::private()?;
    eventually(Duration::from_secs(5), || {
        ensure!(mode("10.96.0.0/16")?.0 == "virtual", "it did not move");
        Ok(())
    })?;
    let through_vpn = Download::start(&format!("http://{HOST}"))?;
    ensure!(is_virtual(resolve4("web-app.emojivoto")?));
    page("http://web-app.emojivoto", TITLE)?;
    page(&format!("http://{}", service.v4), vpn::TITLE)?;
    let through_virtual = Download::start("http://web-app.emojivoto")?;
    direct.finish().context("a download that began before the VPN")?;
    through_vpn.finish().context("a download through the VPN")?;
    drop(vpn);
    eventually(Duration::from_secs(5), || {
        ensure!(mode("10.96.0.0/16")?.0 == "direct", "it did not move back");
        Ok(())
    })?;
    ensure!(resolve4("web-app.emojivoto")? == service.v4, "direct again");
    page(&format!("http://{}", service.v4), TITLE)?;
    through_virtual.finish().context("a download by a virtual address that outlived the VPN")?;
    laptop::quit()?;
    residue::nothing_left()
}

/// A VPN beside which nothing of the cluster has to move: both are reachable and the VPN's own set-up stays.
fn beside(vpn: &Vpn) -> Result<()> {
    let _ = vpn;
    let rules = || sh("ip rule | grep -v tpx | grep -E 'suppress|51820|fwmark 0xca6c' || true")?.success();
    let (before, route) = (rules()?, route_to("203.0.113.80".parse::<IpAddr>()?)?);
    laptop::connect_with(&[])?;
    page("http://web-app.emojivoto", TITLE)?;
    page("http://203.0.113.80", vpn::TITLE)?;
    let pod = cluster::pod("emojivoto", "app=web")?;
    page(&format!("http://{}:8080", pod.v4), TITLE)?;
    sh(&format!("ping -c 1 -W 5 {}", pod.v4))?.success()?;
    ensure!(rules()? == before && route_to("203.0.113.80".parse::<IpAddr>()?)? == route, "the VPN's rules changed");
    laptop::quit()?;
    residue::nothing_left()?;
    page("http://203.0.113.80", vpn::TITLE)
}

fn wg_quick() -> Result<()> {
    laptop::quit()?;
    beside(&Vpn::wg_quick()?)
}

fn default_route() -> Result<()> {
    laptop::quit()?;
    beside(&Vpn::default_route()?)
}

/// wg-quick's, Tailscale's and kube-proxy's bits of a socket's mark stay, and are not tpx's.
fn marks() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let script = "import socket, sys
for mark in (0xca6c, 0xff0000, 0x4000, 0x8000):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
    s.settimeout(10)
    s.connect((sys.argv[1], 80))
    after = s.getsockopt(socket.SOL_SOCKET, socket.SO_MARK)
    assert after & 0xffffff == mark, hex(after)
    s.close()
print('ok')";
    let said = crate::process::run(Command::new("python3").args(["-c", script, &service.v4.to_string()]))?.success()?;
    ensure!(said.trim() == "ok", "{said}");
    Ok(())
}

/// Three real cases; the orders of flags are in `tpx-core`'s property tests.
fn most_specific() -> Result<()> {
    let rows = |flags: &[&str]| -> Result<Value> {
        laptop::connect_with(flags)?;
        laptop::status()?.context("not connected")
    };
    let to = |ip: &str| route_to(ip.parse::<IpAddr>()?);
    // A part of an also-proxied subnet that is never proxied, and a part of that which is.
    rows(&["--also-proxy", "192.168.0.0/16,192.168.7.7/32", "--never-proxy", "192.168.7.0/24"])?;
    ensure!(to("192.168.1.1")?.contains("tpx0") && to("192.168.7.7")?.contains("tpx0"), "also");
    ensure!(!to("192.168.7.8")?.contains("tpx0"), "never inside also");
    rows(&["--never-proxy", "192.168.7.0/24", "--also-proxy", "192.168.7.7/32", "--also-proxy", "192.168.0.0/16"])?;
    ensure!(to("192.168.1.1")?.contains("tpx0") && to("192.168.7.7")?.contains("tpx0"), "also, in another order");
    ensure!(!to("192.168.7.8")?.contains("tpx0"), "never inside also, in another order");
    // One service of the cluster that must stay outside.
    let service = cluster::service("emojivoto", "web-app")?;
    rows(&["--never-proxy", &format!("{}/32", service.v4)])?;
    ensure!(!to(&service.v4.to_string())?.contains("tpx0"), "a service that is never proxied");
    let other = cluster::service("default", "echo")?;
    ensure!(to(&other.v4.to_string())?.contains("tpx0"), "the others are");
    laptop::quit()?;
    residue::nothing_left()
}

/// resolv.conf as it was, when dropped.
struct ResolvConf(String);

impl ResolvConf {
    const PATH: &str = "/etc/resolv.conf";

    fn replace(text: &str) -> Result<Self> {
        let before = fs::read_to_string(Self::PATH)?;
        // As VPNs do it: another file takes its place.
        fs::write("/etc/resolv.conf.new", text)?;
        fs::rename("/etc/resolv.conf.new", Self::PATH)?;
        Ok(Self(before))
    }
}

impl Drop for ResolvConf {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, &self.0);
    }
}

/// It writes its name server into resolv.conf while connected.
fn name_server() -> Result<()> {
    laptop::connect_with(&[])?;
    let servers = || -> Result<Vec<String>> {
        let status = laptop::status()?.context("not connected")?;
        ensure!(status["datapath"]["problem"].is_null(), "{status}");
        Ok(serde_json::from_value(status["dns"]["name_servers"].clone())?)
    };
    let before = servers()?;
    // Nobody answers there: what is answered is answered by tpx.
    let vpn = ResolvConf::replace("nameserver 203.0.113.77\noptions timeout:1 attempts:1\n")?;
    eventually(Duration::from_secs(10), || {
        let now = servers()?;
        ensure!(now.first().is_some_and(|first| first == "203.0.113.77"), "{now:?}");
        // Who does not read the file again asks the old one.
        ensure!(before.iter().all(|server| now.contains(server)), "{now:?} without {before:?}");
        Ok(())
    })?;
    for server in ["203.0.113.77", &before[0]] {
        let said = sh(&format!("dig +short +time=3 +tries=1 @{server} web-app.emojivoto"))?.success()?;
        ensure!(said.trim().parse::<IpAddr>().is_ok(), "{server}: {said}");
    }
    ensure!(sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?.contains(TITLE));
    drop(vpn);
    eventually(Duration::from_secs(10), || {
        let now = servers()?;
        ensure!(now.first() == before.first(), "{now:?}");
        Ok(())
    })?;
    ensure!(sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?.contains(TITLE));
    ensure!(sh("curl -sS -m 10 http://www.internet.test/")?.success()?.contains("The Internet"));
    laptop::quit()?;
    residue::nothing_left()
}

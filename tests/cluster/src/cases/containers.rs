//! Containers: a namespace behind a bridge, as Docker makes it, with a public name server in its resolv.conf.

use std::{
    fs::{self, File},
    net::{IpAddr, UdpSocket},
    os::fd::AsFd as _,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::Case;
use crate::{
    cluster, laptop,
    laptop::at,
    process::{Ended, eventually, sh},
};

pub(super) const CASES: &[Case] = &[("containers::reach_the_cluster", reach)];
/// Those that need the express lane.
pub(super) const EXPRESS: &[Case] =
    &[("containers::behind_a_closed_firewall", closed), ("containers::behind_virtual_addresses", virtually)];

/// What a host may do to containers: no packet gets in or through but what finds neighbours.
const FIREWALL: &str = "\
table inet tpx_test {
    chain input {
        type filter hook input priority 0;
        iifname docker0 icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        iifname docker0 drop
    }
    chain forward { type filter hook forward priority 0; iifname docker0 drop; }
}";

/// A container and its bridge, until it is dropped. The laptop forwards meanwhile.
struct Container {
    forwarding: [(&'static str, String); 2],
}

impl Container {
    const SWITCHES: [&str; 2] = ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"];

    fn start() -> Result<Self> {
        let was = |path| Ok::<_, std::io::Error>((path, fs::read_to_string(path)?));
        let [four, six] = Self::SWITCHES;
        let container = Self { forwarding: [was(four)?, was(six)?] };
        for path in Self::SWITCHES {
            fs::write(path, "1")?;
        }
        // `ip netns exec` shows this file under its usual name.
        fs::create_dir_all("/etc/netns/box")?;
        fs::write("/etc/netns/box/resolv.conf", "nameserver 198.51.100.53\n")?;
        for line in [
            "ip netns add box",
            "ip link add docker0 type bridge",
            "ip addr add 172.17.0.1/16 dev docker0",
            "ip addr add fd17::1/64 dev docker0 nodad",
            "ip link set docker0 up",
            "ip link add box0 type veth peer name eth0 netns box",
            "ip link set box0 master docker0 up",
            "ip -n box addr add 172.17.0.2/16 dev eth0",
            "ip -n box addr add fd17::2/64 dev eth0 nodad",
            "ip -n box link set eth0 up",
            "ip -n box link set lo up",
            "ip -n box route add default via 172.17.0.1",
            "ip -n box route add default via fd17::1",
        ] {
            sh(line)?.success().context(line)?;
        }
        Ok(container)
    }

    fn sh(&self, line: &str) -> Result<Ended> {
        sh(&format!("ip netns exec box {line}"))
    }

    fn page(&self, url: &str) -> Result<()> {
        let page = self.sh(&format!("curl -sS -m 20 {url}"))?.success().with_context(|| url.to_owned())?;
        ensure!(page.contains("Emoji Vote"), "{url}: {page}");
        Ok(())
    }

    /// A datagram that comes back.
    fn datagram(&self, to: IpAddr, size: usize) -> Result<()> {
        let asking = thread::spawn(move || {
            move_into_link_name_space(File::open("/run/netns/box")?.as_fd(), Some(LinkNameSpaceType::Network))?;
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
            socket.set_read_timeout(Some(Duration::from_secs(3)))?;
            let (payload, mut answer) = (vec![7; size], vec![0; 65_536]);
            // The first may be lost, as on any network.
            let echoed = (0..3).any(|_| {
                socket.send_to(&payload, at(to, 7)).is_ok()
                    && socket.recv_from(&mut answer).is_ok_and(|(count, _)| answer[..count] == payload)
            });
            ensure!(echoed, "{size} bytes did not come back from {to}");
            Ok(())
        });
        asking.join().ok().context("panicked")?
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = sh(
            "ip link del box0; ip link del docker0; ip netns del box; rm -r /etc/netns; nft delete table inet tpx_test",
        );
        for (path, was) in &self.forwarding {
            let _ = fs::write(path, was);
        }
    }
}

fn containers() -> Result<Value> {
    Ok(laptop::status()?.context("not connected")?["datapath"]["containers"].clone())
}

/// The bridge comes after the connection.
fn reach() -> Result<()> {
    laptop::connect_with(&[])?;
    let container = Container::start()?;
    let (web, echo) = (cluster::service("emojivoto", "web-app")?, cluster::service("default", "echo")?);
    if laptop::is_tun() {
        // By address only, because this laptop forwards; and status says so.
        ensure!(containers()?["problem"].as_str().is_some_and(|why| why.contains("by address only")));
        container.page(&format!("http://{}", web.v4))?;
        let name = container.sh("getent ahosts web-app.emojivoto")?;
        ensure!(!name.status.success(), "{name:?}");
        return Ok(());
    }
    eventually(Duration::from_secs(5), || {
        let now = containers()?;
        ensure!(now["bridges"][0] == "docker0" && now["problem"].is_null(), "{now}");
        Ok(())
    })?;
    everything(&container)?;
    container.page(&format!("http://{}", web.v4))?;
    container.page(&format!("http://[{}]", web.v6))?;
    for ip in [echo.v4, echo.v6] {
        for size in [10, 5_000, 60_000] {
            container.datagram(ip, size)?;
        }
    }
    // What is not the cluster's is what it always was.
    let public = container.sh("getent hosts www.internet.test")?.success()?;
    let same = sh("getent hosts www.internet.test")?.success()?;
    ensure!(public.split_whitespace().next() == same.split_whitespace().next(), "{public} instead of {same}");
    let nothing = container.sh("getent hosts nothing.internet.test")?;
    ensure!(nothing.code() == 2, "{nothing:?}");
    // The name server itself is asked over TCP as well.
    let many = container.sh("getent ahostsv4 many.internet.test")?.success()?;
    ensure!(many.lines().filter(|line| line.contains("STREAM")).count() == 60, "{many}");
    // Whose flow it is.
    let slow = format!("http://{}/bytes?n=20000000&sum=no", web.v4);
    let line = format!("ip netns exec box curl -sS -m 60 --limit-rate 4M -o /dev/null '{slow}'");
    let transfer = thread::spawn(move || sh(&line));
    let shown = eventually(Duration::from_secs(4), || {
        let text = sh("tpx flows")?.success()?;
        ensure!(text.contains("container 172.17.0.2 (docker0)"), "{text}");
        Ok(())
    });
    transfer.join().ok().context("panicked")??.success()?;
    shown
}

/// By name: TCP, ping, bulk, and what is refused.
fn everything(container: &Container) -> Result<()> {
    let resolved = container.sh("getent ahosts web-app.emojivoto")?.success()?;
    ensure!(resolved.contains("STREAM"), "{resolved}");
    container.page("http://web-app.emojivoto")?;
    container.page("http://web-app")?;
    let bytes = container
        .sh("curl -sS -m 60 'http://web-app.emojivoto/bytes?n=50000000&sum=no' -o /dev/null -w %{size_download}")?;
    ensure!(bytes.stdout.trim() == "50000000", "{bytes:?}");
    let refused = container.sh("curl -sS -m 10 http://nobody.default")?;
    ensure!(refused.code() == 7, "nobody.default must be refused: {refused:?}");
    let pod = cluster::pod("default", "app=echo")?;
    for ip in [pod.v4, pod.v6] {
        container.sh(&format!("ping -c 1 -W 5 {ip}"))?.success()?;
    }
    Ok(())
}

fn closed() -> Result<()> {
    laptop::connect()?;
    let container = Container::start()?;
    fs::write("/tmp/firewall.nft", FIREWALL)?;
    sh("nft -f /tmp/firewall.nft")?.success()?;
    everything(&container)
}

/// Names resolve to virtual addresses.
fn virtually() -> Result<()> {
    laptop::connect_with(&["--vnat", "all"])?;
    let container = Container::start()?;
    let said = container.sh("getent ahostsv4 web-app.emojivoto")?.success()?;
    ensure!(said.starts_with("246.246."), "{said}");
    container.page("http://web-app.emojivoto")?;
    let echo: IpAddr = container
        .sh("getent ahostsv4 echo.default")?
        .success()?
        .split_whitespace()
        .next()
        .context("no address")?
        .parse()?;
    container.datagram(echo, 5_000)?;
    drop(container);
    laptop::quit()
}

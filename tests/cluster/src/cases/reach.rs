//! Every kind of program reaches the service, and sees the cluster's address as its peer.

use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::{
    cluster, laptop,
    laptop::at,
    process::{as_user, run, sh, sh_as},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("reach::curl_by_name_service_and_pod_in_both_families", curl),
    ("reach::a_static_go_program", go),
    ("reach::python", python),
    ("reach::a_setuid_program", setuid),
    ("reach::io_uring", io_uring),
    ("reach::non_blocking", non_blocking),
    ("reach::a_v4_mapped_address", v4_mapped),
    ("reach::another_user_of_the_machine", another_user),
    ("reach::a_command_while_connected", command),
    ("reach::quit_ends_it_at_once", quit),
    ("reach::twenty_times_in_and_out", again_and_again),
];

const TITLE: &str = "<title>Emoji Vote</title>";

fn curl() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let pod = cluster::pod("emojivoto", "app=web")?;
    for url in [
        "http://web-app.emojivoto".to_owned(),
        "http://web-app.emojivoto:80".to_owned(),
        "http://web-app.emojivoto.svc".to_owned(),
        "http://web-app.emojivoto.svc.cluster.local".to_owned(),
        "http://web-app".to_owned(),
        format!("http://{}", service.v4),
        format!("http://[{}]", service.v6),
        format!("http://{}:8080", pod.v4),
        format!("http://[{}]:8080", pod.v6),
    ] {
        let page = sh(&format!("curl -sS -m 10 '{url}'"))?.success().context(url.clone())?;
        ensure!(page.contains(TITLE), "{url}: {page}");
    }
    for family in ["-4", "-6"] {
        let page = sh(&format!("curl -sS -m 10 {family} http://web-app.emojivoto"))?.success()?;
        ensure!(page.contains(TITLE), "curl {family}: {page}");
    }
    Ok(())
}

fn go() -> Result<()> {
    laptop::connect()?;
    let program = std::env::var("TPX_GO_DIAL").context("TPX_GO_DIAL names the Go program")?;
    let service = cluster::service("emojivoto", "web-app")?;
    for target in [format!("{}:80", service.v4), format!("[{}]:80", service.v6), "web-app.emojivoto:80".into()] {
        let said = run(Command::new(&program).arg(&target))?.success()?;
        ensure!(said.contains("200 OK"), "{target}: {said}");
        ensure!(
            said.starts_with(&format!("{}:80", service.v4)) || said.starts_with(&format!("[{}]:80", service.v6)),
            "the peer is not the cluster's address: {said}"
        );
    }
    Ok(())
}

fn python() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let script = "import socket, sys, urllib.request
s = socket.create_connection((sys.argv[1], 80), 10)
print(s.getpeername()[0])
print(urllib.request.urlopen('http://web-app.emojivoto', timeout=10).read().decode())";
    let said = run(Command::new("python3").args(["-c", script, &service.v4.to_string()]))?.success()?;
    ensure!(said.starts_with(&service.v4.to_string()) && said.contains(TITLE), "{said}");
    Ok(())
}

/// LD_PRELOAD never reaches a program whose effective user differs from its real one; the cgroup hooks do.
fn setuid() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    // A folder of the laptop's own that is not mounted nosuid.
    let copy = "/etc/tpx-probe-setuid";
    let original = sh("command -v tpx-probe")?.success()?;
    fs::copy(original.trim(), copy)?;
    fs::set_permissions(copy, fs::Permissions::from_mode(0o4755))?;
    let ended = run(as_user("dev").arg(copy).arg(at(service.v4, 80).to_string()).args(["--get", "/"]));
    fs::remove_file(copy)?;
    let saw = laptop::saw(&ended?)?;
    ensure!((saw.uid, saw.effective_uid) == (1000, 0), "it did not run setuid: {saw:?}");
    ensure!(saw.peer == Some(at(service.v4, 80)) && saw.body.unwrap_or_default().contains("200 OK"));
    Ok(())
}

fn each_family(how: &[&str]) -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    for ip in [service.v4, service.v6] {
        let saw = laptop::probe(at(ip, 80), &[how, &["--get", "/"]].concat())?;
        ensure!(saw.connected && saw.peer == Some(at(ip, 80)), "{saw:?}");
        ensure!(saw.body.as_deref().unwrap_or_default().contains("200 OK"), "{saw:?}");
    }
    Ok(())
}

fn io_uring() -> Result<()> {
    each_family(&["--how", "io-uring"])
}

fn non_blocking() -> Result<()> {
    each_family(&["--how", "non-blocking"])
}

fn v4_mapped() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let mapped = at(format!("::ffff:{}", service.v4).parse()?, 80);
    let saw = laptop::probe(mapped, &["--get", "/"])?;
    ensure!(saw.connected && saw.peer == Some(mapped), "{saw:?}");
    ensure!(saw.body.unwrap_or_default().contains("200 OK"));
    Ok(())
}

fn another_user() -> Result<()> {
    laptop::connect()?;
    let page = sh_as("mallory", "curl -sS -m 10 http://web-app.emojivoto")?.success()?;
    ensure!(page.contains(TITLE), "the workstation's scope is every process: {page}");
    Ok(())
}

fn command() -> Result<()> {
    laptop::quit()?;
    let ended = sh("tpx connect -n emojivoto -- sh -c 'curl -sS -m 10 http://web-app; exit 23'")?;
    ensure!(ended.code() == 23 && ended.stdout.contains(TITLE), "{ended:?}");
    residue::nothing_left()
}

fn quit() -> Result<()> {
    laptop::connect()?;
    let service = cluster::service("emojivoto", "web-app")?;
    ensure!(laptop::probe(at(service.v4, 80), &[])?.connected);
    laptop::quit()?;
    let saw = laptop::probe(at(service.v4, 80), &["--patience", "1000"])?;
    ensure!(!saw.connected, "still there after quit: {saw:?}");
    let name = sh("curl -sS -m 5 http://web-app.emojivoto")?;
    ensure!(name.code() == 6, "the name must not resolve any more: {name:?}");
    residue::nothing_left()
}

fn again_and_again() -> Result<()> {
    laptop::quit()?;
    let before = laptop::network_state()?;
    for _ in 0..20 {
        laptop::connect()?;
        laptop::quit()?;
    }
    residue::nothing_left()?;
    let after = laptop::network_state()?;
    ensure!(before == after, "the network is not as before:\n{before}\n---\n{after}");
    Ok(())
}

//! What a connection tells about itself: why an address goes where it goes, what an environment means here, what is
//! configured and by whom.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Case;
use crate::{
    cluster, laptop,
    process::{eventually, run, sh},
};

pub(super) const CASES: &[Case] = &[
    ("look::explain_an_address", address),
    ("look::explain_a_name", name),
    ("look::explain_a_process", process),
    ("look::environments_follow_the_names", environment),
    ("look::flows_have_names_and_processes", flows),
    ("look::the_configuration_names_its_sources", configuration),
    ("look::bad_configuration_leaves_nothing", bad),
];

fn json(line: &str) -> Result<Value> {
    let said = sh(&format!("{line} --format json"))?.success()?;
    serde_json::from_str(&said).with_context(|| format!("{line} said {said}"))
}

fn address() -> Result<()> {
    laptop::connect_with(&[])?;
    let service = cluster::service("emojivoto", "web-app")?;
    for ip in [service.v4, service.v6] {
        let explained = json(&format!("tpx explain {ip}"))?;
        let entry = &explained["addresses"][0];
        let road = if laptop::is_tun() { "floor" } else { "express" };
        ensure!(entry["tcp"] == road && entry["udp"] == road && entry["icmp"] == "floor", "{entry}");
        ensure!(entry["rule"]["subnet"]["role"] == "services", "{entry}");
        ensure!(explained["names"][ip.to_string()] == "web-app.emojivoto", "{explained}");
    }
    let text = sh(&format!("tpx explain {}", service.v4))?.success()?;
    for word in ["10.96.0.0/16", "services", "web-app.emojivoto", "without tpx"] {
        ensure!(text.contains(word), "{word} is not in {text}");
    }
    let loopback = json("tpx explain 127.0.0.1")?;
    ensure!(loopback["addresses"][0]["tcp"] == "host", "{loopback}");
    Ok(())
}

fn name() -> Result<()> {
    laptop::connect_with(&["--vnat", "service"])?;
    let explained = json("tpx explain web-app.emojivoto:80")?;
    ensure!(explained["name"]["answered_by"] == "the cluster", "{explained}");
    ensure!(explained["name"]["candidates"][0] == "web-app.emojivoto.svc.cluster.local", "{explained}");
    let service = cluster::service("emojivoto", "web-app")?;
    let entries = explained["addresses"].as_array().context("no addresses")?;
    let virtual4 = entries.iter().find(|e| e["address"].as_str().is_some_and(|a| a.starts_with("246.246.")));
    let virtual4 = virtual4.with_context(|| format!("no virtual address in {explained}"))?;
    ensure!(virtual4["translation"]["behind"] == service.v4.to_string() && virtual4["port"] == 80, "{virtual4}");
    let real = json(&format!("tpx explain {}", service.v4))?;
    ensure!(real["addresses"][0]["translation"]["under"] == virtual4["address"], "{real}");
    Ok(())
}

fn process() -> Result<()> {
    laptop::connect_with(&[])?;
    let explained = json(&format!("tpx explain {}", std::process::id()))?;
    ensure!(explained["process"]["own_network"] == true, "{explained}");
    let none = sh("tpx explain 4194304")?;
    ensure!(none.code() == 2 && none.stderr.contains("no process 4194304"), "{none:?}");
    Ok(())
}

fn environment() -> Result<()> {
    laptop::connect_with(&["--vnat", "service"])?;
    let service = cluster::service("emojivoto", "web-app")?;
    let pod = cluster::pod("emojivoto", "app=web")?;
    let line = format!("URL=http://{}:80 POD={} NET=10.96.0.0/16", service.v4, pod.v4);
    let translated = json(&format!("tpx env translate {line}"))?;
    let url = translated["URL"].as_str().context("no URL")?;
    ensure!(url.starts_with("http://246.246.") && url.ends_with(":80"), "{translated}");
    ensure!(translated["POD"] == pod.v4.to_string() && translated["NET"] == "10.96.0.0/16", "{translated}");
    ensure!(sh(&format!("curl -sS -m 10 {url}"))?.success()?.contains("<title>Emoji Vote</title>"));
    let piped = sh(&format!("printf '# pod\\nA={}\\n' | tpx env translate", service.v4))?.success()?;
    ensure!(piped.starts_with("# pod\nA=246.246."), "{piped}");
    Ok(())
}

fn flows() -> Result<()> {
    laptop::connect_with(&["--vnat", "service"])?;
    // A connection on which nobody says anything.
    let mut held = Command::new("curl")
        .args(["-sS", "-m", "30", "telnet://web-app.emojivoto:80"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let found = eventually(Duration::from_secs(15), || {
        let dump = json("tpx maps dump flows vnat scopes")?;
        let rows = dump["flows"].as_array().cloned().unwrap_or_default();
        let row = rows.into_iter().find(|row| row["process"]["pid"] == held.id());
        Ok((row.context("the flow is not listed")?, dump))
    });
    held.kill()?;
    held.wait()?;
    let (row, dump) = found?;
    ensure!(row["process"]["name"] == "curl" && row["protocol"] == "tcp", "{row}");
    let ip = row["destination"].as_str().and_then(|at| at.rsplit_once(':')).context("no destination")?.0;
    ensure!(dump["names"][ip.trim_matches(['[', ']'])] == "web-app.emojivoto", "{dump}");
    ensure!(dump["vnat"].as_array().is_some_and(|rows| !rows.is_empty()), "{dump}");
    ensure!(dump["scopes"][0]["scope"] == "workstation" && dump.get("rules").is_none(), "{dump}");
    let watched = sh("timeout 3 tpx maps dump flows --watch --format json | head -n 2 | wc -l")?.success()?;
    ensure!(watched.trim() == "2", "{watched}");
    Ok(())
}

fn configuration() -> Result<()> {
    laptop::quit()?;
    std::fs::write("/tmp/look.yml", "dns:\n  lookupTimeout: 3s\n")?;
    let connect = ["--config", "/tmp/look.yml", "connect", "-n", "emojivoto", "--never-proxy", "10.96.255.0/24"];
    run(Command::new("tpx").args(connect))?.success()?;
    let view = json("tpx config view")?;
    ensure!(view["config"]["dns"]["lookupTimeout"] == "3s", "{view}");
    ensure!(view["sources"]["dns.lookupTimeout"] == "/tmp/look.yml:2:18", "{view}");
    ensure!(view["sources"]["routing.neverProxySubnets"] == "--never-proxy", "{view}");
    ensure!(view["sources"]["routing.autoResolveConflicts"] == "default", "{view}");
    let explained = json("tpx explain 10.96.255.7")?;
    ensure!(explained["addresses"][0]["tcp"] == "host", "{explained}");
    laptop::quit()
}

fn bad() -> Result<()> {
    laptop::quit()?;
    std::fs::write("/tmp/bad.yml", "routing:\n  virtualSubnets: 10.0.0.0/8\n")?;
    for (arguments, said) in [
        (
            "--config /tmp/bad.yml connect",
            "/tmp/bad.yml:2:3: routing.virtualSubnets: unknown key; did you mean routing.virtualSubnet?",
        ),
        ("connect --vnat services", "did you mean service?"),
        ("connect --also-proxy 10.0.0.0/33", "--also-proxy: \"10.0.0.0/33\" is no subnet"),
    ] {
        let ended = sh(&format!("tpx {arguments}"))?;
        ensure!(ended.code() == 2 && ended.stderr.contains(said) && ended.stderr.lines().count() == 1, "{ended:?}");
        crate::residue::nothing_left()?;
    }
    // What only the connection finds out: the range collides with the cluster's own.
    std::fs::write("/tmp/bad.yml", "routing:\n  virtualSubnet: 10.96.0.0/16\n")?;
    let ended = sh("tpx --config /tmp/bad.yml connect")?;
    ensure!(ended.code() == 2 && ended.stderr.contains("routing.virtualSubnet"), "{ended:?}");
    crate::residue::nothing_left()
}

//! Names: every form of a cluster name over UDP and TCP, everything else from *internet*, and no cluster name there.
//!
//! `TPX_QUERY_LOG` names the file in which *internet* writes down every question it was asked.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt as _, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::{
    cluster::{self, kubectl},
    laptop,
    process::{eventually, run, sh},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("dns::every_form_over_udp_and_tcp", forms),
    ("dns::services_and_addresses_by_record", records),
    ("dns::missing_names_and_missing_types", missing),
    ("dns::the_rest_comes_from_internet", outside),
    ("dns::resolvers_that_programs_use", resolvers),
    ("dns::a_thousand_at_once", many),
    ("dns::mapped_namespaces_hide_the_others", mapped),
    ("dns::resolv_conf_is_not_touched", resolv_conf),
    ("dns::after_quit_nothing_is_answered", after_quit),
];

/// What *internet* wrote down since.
struct QueryLog {
    path: String,
    start: usize,
}

impl QueryLog {
    fn from_now() -> Result<Self> {
        let path = std::env::var("TPX_QUERY_LOG").context("TPX_QUERY_LOG names the file of internet's questions")?;
        let start = fs::read(&path).with_context(|| path.clone())?.len();
        Ok(Self { path, start })
    }

    fn text(&self) -> Result<String> {
        let bytes = fs::read(&self.path)?;
        Ok(String::from_utf8_lossy(bytes.get(self.start..).context("the log shrank")?).to_lowercase())
    }

    /// No cluster name was asked there, and the log is alive: a question of our own does appear.
    fn nothing_leaked(&self) -> Result<()> {
        let witness = format!("witness-{}-{}.internet.test", std::process::id(), self.start);
        sh(&format!("dig +tries=1 {witness} A"))?;
        let text = eventually(Duration::from_secs(2), || {
            let text = self.text()?;
            ensure!(text.contains(&witness), "internet's log does not show {witness}");
            Ok(text)
        })?;
        for part in ["emojivoto", ".svc", "cluster.local", "stateful", "echo", ".pod", "10.in-addr.arpa", "0.1.d.f.ip6"]
        {
            ensure!(!text.contains(part), "{part} leaked:\n{text}");
        }
        Ok(())
    }
}

/// dig's answer section, values only.
fn dig(arguments: &str) -> Result<BTreeSet<String>> {
    let said = sh(&format!("dig +short +tries=2 +time=6 {arguments}"))?.success()?;
    Ok(said.lines().map(str::to_owned).collect())
}

/// The status in dig's header.
fn dig_status(arguments: &str) -> Result<String> {
    let said = sh(&format!("dig +tries=2 +time=6 {arguments}"))?.success()?;
    let status = said.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    Ok(status.with_context(|| format!("dig {arguments}: {said}"))?.to_owned())
}

const TRANSPORTS: [&str; 2] = ["+notcp", "+tcp"];

fn set(values: &[String]) -> BTreeSet<String> {
    values.iter().cloned().collect()
}

fn each_way(name: &str, v4: &[String], v6: &[String]) -> Result<()> {
    for transport in TRANSPORTS {
        for (record_type, expected) in [("A", v4), ("AAAA", v6)] {
            let got = dig(&format!("{transport} {name} {record_type}"))?;
            ensure!(got == set(expected), "{name} {record_type} {transport}: {got:?}, not {expected:?}");
        }
    }
    Ok(())
}

/// The two pods of the StatefulSet: name, IPv4, IPv6.
fn stateful_pods() -> Result<Vec<(String, String, String)>> {
    let pods = kubectl(&["-n", "stateful", "get", "pods"])?;
    let mut found = Vec::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default();
        if !["web-0", "web-1"].contains(&name) {
            continue;
        }
        let ips: Vec<&str> =
            pod["status"]["podIPs"].as_array().into_iter().flatten().filter_map(|entry| entry["ip"].as_str()).collect();
        let of = |v6: bool| ips.iter().find(|ip| ip.contains(':') == v6).map(|ip| (*ip).to_owned());
        found.push((name.to_owned(), of(false).context("no IPv4")?, of(true).context("no IPv6")?));
    }
    ensure!(found.len() == 2, "expected web-0 and web-1: {found:?}");
    Ok(found)
}

fn forms() -> Result<()> {
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    let web = cluster::service("emojivoto", "web-app")?;
    let (v4, v6) = ([web.v4.to_string()], [web.v6.to_string()]);
    for name in [
        "web-app",
        "web-app.emojivoto",
        "web-app.emojivoto.",
        "WEB-App.EmojiVoto",
        "web-app.emojivoto.svc",
        "web-app.emojivoto.svc.cluster.local",
    ] {
        each_way(name, &v4, &v6)?;
    }
    let pods = stateful_pods()?;
    let v4: Vec<String> = pods.iter().map(|pod| pod.1.clone()).collect();
    let v6: Vec<String> = pods.iter().map(|pod| pod.2.clone()).collect();
    for suffix in ["", ".svc", ".svc.cluster.local"] {
        each_way(&format!("web.stateful{suffix}"), &v4, &v6)?;
        for (pod, v4, v6) in &pods {
            each_way(&format!("{pod}.web.stateful{suffix}"), std::slice::from_ref(v4), std::slice::from_ref(v6))?;
        }
    }
    let dashed = v4[0].replace('.', "-");
    for suffix in ["", ".cluster.local"] {
        let got = dig(&format!("{dashed}.stateful.pod{suffix} A"))?;
        ensure!(got == set(&v4[..1]), "pod name: {got:?}");
    }
    log.nothing_leaked()
}

fn records() -> Result<()> {
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    let web = cluster::service("emojivoto", "web-app")?;
    for transport in TRANSPORTS {
        for suffix in ["", ".svc", ".svc.cluster.local"] {
            let got = dig(&format!("{transport} _http._tcp.web.stateful{suffix} SRV"))?;
            for pod in ["web-0", "web-1"] {
                let end = format!(" 8080 {pod}.web.stateful.svc.cluster.local.");
                ensure!(got.iter().any(|line| line.ends_with(&end)), "SRV {suffix} {transport}: {got:?}");
            }
        }
        for address in [web.v4, web.v6] {
            let got = dig(&format!("{transport} -x {address}"))?;
            ensure!(got == set(&["web-app.emojivoto.svc.cluster.local.".to_owned()]), "{address}: {got:?}");
        }
    }
    let said = sh("dig +noall +answer web-app.emojivoto A")?.success()?;
    let words: Vec<&str> = said.split_whitespace().collect();
    let ttl: u32 = words.get(1).context("no answer")?.parse()?;
    ensure!(words[0] == "web-app.emojivoto." && (1..=30).contains(&ttl), "owner and TTL: {said}");
    log.nothing_leaked()
}

fn missing() -> Result<()> {
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    for transport in TRANSPORTS {
        for name in [
            "nobody-here.emojivoto",
            "nobody-here.emojivoto.svc",
            "nobody-here.emojivoto.svc.cluster.local",
            "web-app.no-such-namespace.svc",
            "web-app.emojivoto.cluster.local",
            "web-7.web.stateful",
        ] {
            let status = dig_status(&format!("{transport} {name} A"))?;
            ensure!(status == "NXDOMAIN", "{name} {transport}: {status}");
        }
        for record_type in ["TXT", "MX", "TYPE65400"] {
            let arguments = format!("{transport} web-app.emojivoto {record_type}");
            let status = dig_status(&arguments)?;
            ensure!(status == "NOERROR" && dig(&arguments)?.is_empty(), "{arguments}: {status}");
        }
    }
    let said = sh("dig nobody-here.emojivoto A")?.success()?;
    ensure!(said.contains("SOA"), "the SOA is missing: {said}");
    log.nothing_leaked()
}

fn outside() -> Result<()> {
    let names = ["example.test A", "www.internet.test A", "www.internet.test AAAA", "text.internet.test TXT"];
    laptop::quit()?;
    let mut before = Vec::new();
    for name in names {
        before.push(dig(name)?);
    }
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    for (name, before) in names.iter().zip(&before) {
        for transport in TRANSPORTS {
            let now = dig(&format!("{transport} {name}"))?;
            ensure!(&now == before && !now.is_empty(), "{name} {transport}: {now:?}, before {before:?}");
        }
    }
    let cut = sh("dig +ignore +noedns many.internet.test A")?.success()?;
    ensure!(cut.lines().any(|line| line.contains("flags:") && line.contains(" tc")), "not truncated: {cut}");
    ensure!(dig("+noedns many.internet.test A")?.len() == 60, "not whole over TCP");
    let status = dig_status("no-such-name.internet.test A")?;
    ensure!(status == "NXDOMAIN", "{status}");
    let text = log.text()?;
    for (transport, name) in [("udp", "www.internet.test"), ("tcp", "www.internet.test"), ("tcp", "many.internet.test")]
    {
        let seen = text.lines().any(|line| line.contains(&format!(" {transport} ")) && line.contains(name));
        ensure!(seen, "internet was not asked for {name} over {transport}:\n{text}");
    }
    log.nothing_leaked()
}

fn resolvers() -> Result<()> {
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    let web = cluster::service("emojivoto", "web-app")?;
    let (v4, v6) = (web.v4.to_string(), web.v6.to_string());
    for name in ["web-app", "web-app.emojivoto", "web-app.emojivoto.svc", "web-app.emojivoto.svc.cluster.local"] {
        let said = sh(&format!("getent ahosts {name}"))?.success()?;
        ensure!(said.contains(&v4) && said.contains(&v6), "getent {name}: {said}");
        let script = "import socket, sys
for entry in socket.getaddrinfo(sys.argv[1], 80, type=socket.SOCK_STREAM): print(entry[4][0])";
        let said = run(Command::new("python3").args(["-c", script, name]))?.success()?;
        ensure!(said.lines().any(|line| line == v4) && said.lines().any(|line| line == v6), "Python {name}: {said}");
    }
    let go = std::env::var("TPX_GO_DIAL").context("TPX_GO_DIAL names the Go program")?;
    for name in ["web-app", "web-app.emojivoto", "web-app.emojivoto.svc.cluster.local", "web-0.web.stateful"] {
        let port = if name.ends_with("stateful") { 8080 } else { 80 };
        let said = run(Command::new(&go).arg(format!("{name}:{port}")))?.success()?;
        ensure!(said.contains("200 OK"), "Go {name}: {said}");
    }
    let said = sh(&format!("getent hosts {v4}"))?.success()?;
    ensure!(said.contains("web-app.emojivoto.svc.cluster.local"), "getent hosts: {said}");
    // The resolver library over TCP.
    let said = sh("RES_OPTIONS=use-vc getent ahosts web-app.emojivoto")?.success()?;
    ensure!(said.contains(&v4), "use-vc: {said}");
    let missing = sh("getent ahosts nobody-here.emojivoto")?;
    ensure!(missing.code() == 2, "a missing name must be missing, not a failure: {missing:?}");
    log.nothing_leaked()
}

fn many() -> Result<()> {
    laptop::connect()?;
    let log = QueryLog::from_now()?;
    let script = "import socket, sys
from concurrent.futures import ThreadPoolExecutor
def ask(index):
    name = 'web-app.emojivoto' if index % 2 else 'www.internet.test'
    return {entry[4][0] for entry in socket.getaddrinfo(name, 80, socket.AF_INET, socket.SOCK_STREAM)}
with ThreadPoolExecutor(100) as pool: answers = list(pool.map(ask, range(1000)))
print(len(answers), len({frozenset(a) for a in answers[0::2]}), *set.union(*answers[1::2]))";
    let said = run(Command::new("python3").args(["-c", script]))?.success()?;
    let web = cluster::service("emojivoto", "web-app")?;
    ensure!(said.trim() == format!("1000 1 {}", web.v4), "{said}");
    log.nothing_leaked()
}

fn mapped() -> Result<()> {
    laptop::quit()?;
    run(Command::new("tpx").args(["connect", "-n", "emojivoto", "--mapped-namespaces", "emojivoto"]))?.success()?;
    let log = QueryLog::from_now()?;
    let web = cluster::service("emojivoto", "web-app")?;
    let checked = (|| {
        each_way("web-app.emojivoto", &[web.v4.to_string()], &[web.v6.to_string()])?;
        for name in ["web.stateful.svc", "web.stateful.svc.cluster.local", "web-0.web.stateful.svc"] {
            for transport in TRANSPORTS {
                let status = dig_status(&format!("{transport} {name} A"))?;
                ensure!(status == "NXDOMAIN", "{name} {transport}: {status}");
            }
        }
        let status = laptop::status()?.context("no status")?;
        let mapped = &status["mapped_namespaces"];
        ensure!(*mapped == serde_json::json!(["emojivoto"]), "status must say what is mapped: {status}");
        log.nothing_leaked()
    })();
    laptop::quit()?;
    checked
}

fn resolv_conf() -> Result<()> {
    laptop::quit()?;
    let state = || -> Result<_> {
        let meta = fs::metadata("/etc/resolv.conf")?;
        Ok((fs::read("/etc/resolv.conf")?, meta.ino(), meta.mtime(), meta.mtime_nsec()))
    };
    let before = state()?;
    laptop::connect()?;
    sh("getent ahosts web-app.emojivoto")?.success()?;
    ensure!(state()? == before, "resolv.conf changed while connected");
    laptop::quit()?;
    ensure!(state()? == before, "resolv.conf changed by quitting");
    Ok(())
}

fn after_quit() -> Result<()> {
    laptop::connect()?;
    let outside = dig("www.internet.test A")?;
    ensure!(dig_status("web-app.emojivoto A")? == "NOERROR");
    laptop::quit()?;
    residue::nothing_left()?;
    ensure!(dig("www.internet.test A")? == outside, "the laptop's own names");
    for transport in TRANSPORTS {
        let status = dig_status(&format!("{transport} web-app.emojivoto A"))?;
        ensure!(status == "NXDOMAIN", "internet answers again, and does not know it: {status}");
    }
    Ok(())
}

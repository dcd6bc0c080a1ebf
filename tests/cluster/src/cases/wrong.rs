//! What can go wrong before anything works: one line, its own exit code, nothing left behind.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context as _, Result, ensure};

use super::Case;
use crate::{
    laptop,
    process::{Ended, eventually, run, sh, sh_as},
    residue,
};

/// Longest that a daemon takes to listen.
const SOON: Duration = Duration::from_secs(10);

pub(super) const CASES: &[Case] = &[
    ("wrong::not_connected", not_connected),
    ("wrong::an_unreachable_api_server", unreachable),
    ("wrong::an_unknown_context", context),
    ("wrong::a_broken_kubeconfig", kubeconfig),
    ("wrong::expired_credentials", expired),
    ("wrong::no_manager", no_manager),
    ("wrong::a_manager_of_another_version", other_version),
    ("wrong::an_unknown_namespace", namespace),
    ("wrong::no_root_and_no_daemon", no_root),
    ("wrong::no_bpf", no_bpf),
    ("wrong::no_sk_lookup", no_sk_lookup),
    ("wrong::a_second_connect", second),
    ("wrong::usage", usage),
];

/// One line on stderr besides progress, with what and what next, and the right exit code; the same as JSON.
fn fails(arguments: &str, code: i32, words: &[&str]) -> Result<()> {
    judge(&sh(&format!("tpx {arguments}"))?, code, words).with_context(|| format!("tpx {arguments}"))?;
    let json = sh(&format!("tpx {arguments} --format json"))?;
    let document: serde_json::Value = serde_json::from_str(&json.stdout).with_context(|| format!("{json:?}"))?;
    let text = |key: &str| document["error"][key].as_str().unwrap_or_default().to_owned();
    ensure!(json.code() == code && !text("what").is_empty() && !text("next").is_empty(), "{json:?}");
    residue::nothing_left()
}

fn judge(ended: &Ended, code: i32, words: &[&str]) -> Result<()> {
    let lines: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    ensure!(ended.code() == code, "exit code {} instead of {code}: {ended:?}", ended.code());
    ensure!(lines.len() == 1 && ended.stderr.ends_with(&format!("{}\n", lines[0])), "not one line: {ended:?}");
    for word in words {
        ensure!(lines[0].contains(word), "{word:?} is not in {:?}", lines[0]);
    }
    Ok(())
}

/// The lab's kubeconfig with one text replaced, at a path of its own.
fn changed(name: &str, from: &str, to: &str) -> Result<String> {
    let text = fs::read_to_string(std::env::var("KUBECONFIG")?)?;
    ensure!(text.contains(from), "kubeconfig has no {from}");
    let path = format!("/tmp/kubeconfig-{name}");
    fs::write(&path, text.replace(from, to))?;
    Ok(path)
}

fn not_connected() -> Result<()> {
    laptop::quit()?;
    for command in ["status", "list-namespaces", "maps dump"] {
        fails(command, 3, &["not connected", "tpx connect"])?;
    }
    let quit = sh("tpx quit")?.success()?;
    ensure!(quit.contains("Not connected"));
    ensure!(sh("tpx version")?.success()?.contains("not connected"));
    Ok(())
}

fn unreachable() -> Result<()> {
    laptop::quit()?;
    let path = changed("unreachable", "172.31.78.1:6443", "127.0.0.1:1")?;
    fails(&format!("connect --kubeconfig {path}"), 5, &["cannot reach the API server", "refused", "kubectl"])
}

fn context() -> Result<()> {
    laptop::quit()?;
    fails("connect --context nowhere", 5, &["no context \"nowhere\"", "--context"])
}

fn kubeconfig() -> Result<()> {
    laptop::quit()?;
    fs::write("/tmp/kubeconfig-broken", "clusters: [")?;
    fails("connect --kubeconfig /tmp/kubeconfig-broken", 5, &["kubeconfig"])?;
    fails("connect --kubeconfig /tmp/kubeconfig-missing", 5, &["kubeconfig-missing", "--kubeconfig"])
}

fn expired() -> Result<()> {
    laptop::quit()?;
    fails("connect --kubeconfig /run/lab/kubeconfig-expired", 5, &["credentials", "log in again"])
}

fn no_manager() -> Result<()> {
    laptop::quit()?;
    fails("connect --manager-namespace nowhere", 6, &["nowhere", "tpx manager install"])
}

fn other_version() -> Result<()> {
    laptop::quit()?;
    let image = std::env::var("TPX_OTHER_MANAGER").context("TPX_OTHER_MANAGER names the image")?;
    sh(&format!("tpx manager install --manager-namespace tpx-other --image {image}"))?.success()?;
    // It is the newer one.
    let own = tpx_version()?;
    let words = ["version", own.as_str(), "version 99.", "; install tpx 99."];
    let result = fails("connect --manager-namespace tpx-other", 6, &words);
    sh("tpx manager uninstall --manager-namespace tpx-other")?.success()?;
    result
}

fn tpx_version() -> Result<String> {
    let said = sh("tpx --version")?.success()?;
    Ok(said.trim().trim_start_matches("tpx ").to_owned())
}

fn namespace() -> Result<()> {
    laptop::quit()?;
    fails("connect -n nowhere", 2, &["no namespace \"nowhere\"", "kubectl get namespaces"])?;
    fails("connect --mapped-namespaces emojivoto,nowhere", 2, &["no namespace \"nowhere\""])
}

fn no_root() -> Result<()> {
    laptop::quit()?;
    judge(&sh_as("mallory", "tpx connect")?, 7, &["privileged daemon", "sudo"])?;
    residue::nothing_left()
}

/// Root without the right to load programs, as in a container: the floor carries everything, and says why. Who insists
/// on the express lane hears the privileged daemon's own words.
fn no_bpf() -> Result<()> {
    laptop::quit()?;
    let without = ["--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin", "--", "tpx", "connect"];
    let connect = |datapath: &str| run(Command::new("setpriv").args(without).args(["--datapath", datapath]));
    judge(&connect("ebpf")?, 7, &["CAP_BPF", "--datapath"])?;
    residue::nothing_left()?;
    connect("auto")?.success()?;
    let status = laptop::status()?.context("not connected")?;
    let because = status["datapath"]["because"].as_str().unwrap_or_default().to_owned();
    ensure!(status["datapath"]["road"] == "tun" && because.contains("CAP_BPF"), "{status}");
    ensure!(sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?.contains("Emoji Vote"));
    laptop::quit()?;
    residue::nothing_left()
}

/// A kernel without sk_lookup, as the privileged daemon pretends: the same, and `status` names what is missing.
fn no_sk_lookup() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let mut rootd = Command::new("tpx-rootd").args(["serve", "--owner", "0", "--without", "sk_lookup,tcx"]).spawn()?;
    let result = (|| {
        eventually(SOON, || Ok(fs::metadata("/run/tpx/rootd.sock").map(drop)?))?;
        judge(&sh("tpx connect --datapath ebpf")?, 7, &["sk_lookup", "--datapath"])?;
        sh("tpx connect -n emojivoto --datapath auto")?.success()?;
        let status = laptop::status()?.context("not connected")?;
        ensure!(status["datapath"]["road"] == "tun", "{status}");
        let missing: Vec<_> = status["datapath"]["missing"].as_array().into_iter().flatten().collect();
        let named = |name: &str| missing.iter().any(|m| m["feature"] == name && m["fallback"].as_str().is_some());
        ensure!(missing.len() == 2 && named("sk_lookup") && named("tcx"), "{status}");
        ensure!(sh("tpx status")?.success()?.contains("sk_lookup programs (Linux 5.9"));
        ensure!(sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?.contains("Emoji Vote"));
        laptop::quit()
    })();
    rootd.kill()?;
    rootd.wait()?;
    result.and_then(|()| residue::nothing_left())
}

fn second() -> Result<()> {
    laptop::connect()?;
    judge(&sh("tpx connect")?, 4, &["already connected", "tpx quit"])?;
    ensure!(laptop::status()?.is_some(), "the first connection ended");
    Ok(())
}

fn usage() -> Result<()> {
    for wrong in ["connect --nonsense", "--name a/b status", "frobnicate"] {
        let ended = sh(&format!("tpx {wrong}"))?;
        ensure!(ended.code() == 2 && !ended.stderr.is_empty(), "tpx {wrong}: {ended:?}");
    }
    Ok(())
}

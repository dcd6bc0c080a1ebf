//! From running daemons to a cluster with its workloads ready.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::config::{Lab, NODE_POD_CIDR, NODE_POD_CIDR6, Part, RUN_LAB};
use super::exec::{self, As};
use super::{marked, state};
use crate::image;
use crate::run::{self, step, wait_for};

/// What `lab up` installs, in this order.
const MANIFESTS: [&str; 2] = [include_str!("manifests/dns.yaml"), include_str!("manifests/demo.yaml")];

/// Waits for the cluster, which starts by itself, and puts DNS and the demo workloads into it.
pub(crate) fn start(lab: &Lab) -> Result<()> {
    thread::scope(|scope| {
        let images = scope.spawn(|| -> Result<()> {
            marked(lab, Part::Node, "containerd", Duration::from_secs(10))?;
            let socket = format!("/proc/{}/root/run/containerd/containerd.sock", state::pid(lab, Part::Node)?);
            wait_for("containerd's socket", Duration::from_secs(30), || Ok(fs::exists(&socket)?))?;
            import(lab, &image::archives()?)?;
            Ok(fs::write(format!("/proc/{}/root{RUN_LAB}/images", state::pid(lab, Part::Node)?), "")?)
        });
        step(&lab.says("API server"), || {
            marked(lab, Part::Node, "kube-controller-manager", Duration::from_secs(60))?;
            wait_for("the API server", Duration::from_secs(60), || {
                Ok(kubectl(lab, &["get", "--raw", "/readyz"]).is_ok())
            })
        })?;
        step(&lab.says("workloads applied"), || apply(lab))?;
        images.join().map_err(|_| anyhow::anyhow!("the import panicked"))?.context("images")
    })?;
    step(&lab.says("workloads ready"), || {
        kubectl(
            lab,
            &["wait", "--for=condition=Available", "deployment", "--all", "--all-namespaces", "--timeout=120s"],
        )?;
        kubectl(lab, &["rollout", "status", "statefulset/web", "--namespace=stateful", "--timeout=120s"])?;
        kubectl(lab, &["wait", "--for=condition=Ready", &format!("node/{}", lab.cluster().node), "--timeout=60s"])
    })?;
    Ok(())
}

fn apply(lab: &Lab) -> Result<()> {
    // kubelet would make the node itself, but without the ranges of its pods, which real clusters always have.
    let name = lab.cluster().node;
    let node = serde_json::json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": NODE_POD_CIDR, "podCIDRs": [NODE_POD_CIDR, NODE_POD_CIDR6]},
    });
    let all = [&[node.to_string().as_str()], &MANIFESTS[..]].concat().join("\n---\n");
    let mut last = None;
    // The first seconds of an API server: namespaces and defaults are still being made.
    for _ in 0..20 {
        match feed_kubectl(lab, &["apply", "--server-side", "--force-conflicts", "-f", "-"], &all) {
            Ok(_) => return Ok(()),
            Err(error) => last = Some(error),
        }
        thread::sleep(Duration::from_millis(300));
    }
    Err(last.context("never tried")?)
}

fn inside(lab: &Lab, words: &[&str]) -> Result<Command> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    exec::command(lab, Part::Node, &As { user: None, profile: None }, &words)
}

/// kubectl in the node, with its output.
pub(crate) fn kubectl(lab: &Lab, arguments: &[&str]) -> Result<String> {
    feed_kubectl(lab, arguments, "")
}

fn feed_kubectl(lab: &Lab, arguments: &[&str], text: &str) -> Result<String> {
    let mut command = inside(lab, &[&["kubectl"], arguments].concat())?;
    run::feed(&mut command, text)
}

/// What runs an archive's images: started again when these change, because their names stay the same.
const RUNS: [(&str, &str, &str); 4] = [
    ("workload.tar", "emojivoto", "deployment/web"),
    ("workload.tar", "default", "deployment/echo"),
    ("workload.tar", "stateful", "statefulset/web"),
    ("tpx-manager.tar", "tpx-system", "deployment/traffic-manager"),
];

/// Imports archives and remembers which ones they were.
fn import(lab: &Lab, archives: &[PathBuf]) -> Result<()> {
    for archive in archives {
        let path = archive.to_string_lossy().into_owned();
        let mut command = inside(lab, &["ctr", "images", "import", &path])?;
        run::output(&mut command).with_context(|| format!("cannot import {path}"))?;
    }
    Ok(fs::write(lab.state().join("images"), image::stamp()?)?)
}

/// Imports the archives that are not those that the lab has, and restarts what runs them.
pub(crate) fn refresh_images(lab: &Lab) -> Result<()> {
    let known = fs::read_to_string(lab.state().join("images")).unwrap_or_default();
    let now = image::stamp()?;
    let changed: Vec<PathBuf> = now
        .lines()
        .filter(|line| !known.lines().any(|k| k == *line))
        .filter_map(|line| Some(line.split_once(' ')?.1.split_once(' ')?.1.into()))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    step(&lab.says("images into the lab"), || {
        import(lab, &changed)?;
        for (_, namespace, what) in
            RUNS.iter().filter(|(archive, ..)| changed.iter().any(|path| path.ends_with(archive)))
        {
            // The manager is only there once somebody has installed it.
            if kubectl(lab, &["get", what, "-n", namespace]).is_ok() {
                kubectl(lab, &["rollout", "restart", what, "-n", namespace])?;
                kubectl(lab, &["rollout", "status", what, "-n", namespace, "--timeout=60s"])?;
            }
        }
        Ok(())
    })
}

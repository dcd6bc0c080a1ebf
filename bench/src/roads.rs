//! The roads: how each is opened, where a client finds it, and which processes it is made of.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::{Background, DEVELOPER, Lab, Part};
use crate::procs::{Finder, Process};
use crate::report::Road;

/// Where the two services are on one road: the web server and the echo, and the part of the lab that can reach them.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) web: String,
    pub(crate) echo: String,
}

/// The services' own addresses.
pub(crate) fn cluster_ips(lab: &Lab) -> Result<Ends> {
    let address = |namespace: &str, service: &str, port: u16| -> Result<String> {
        let path = "jsonpath={.spec.clusterIP}";
        let said = lab.run(Part::Node, &["kubectl", "get", "service", "-n", namespace, service, "-o", path])?;
        Ok(format!("{}:{port}", said.trim()))
    };
    Ok(Ends { web: address("emojivoto", "web-app", 80)?, echo: address("default", "echo", 7)? })
}

/// The part in which a road's client runs.
pub(crate) fn part(road: Road) -> Part {
    if road == Road::Direct { Part::Node } else { Part::Laptop }
}

/// Both services through `kubectl port-forward`, which takes a process for each.
pub(crate) struct Forwards {
    web: Background,
    echo: Background,
    pub(crate) ends: Ends,
    /// The two.
    pub(crate) processes: Vec<Process>,
}

impl Forwards {
    pub(crate) fn start(lab: &Lab, finder: &Finder) -> Result<Forwards> {
        let forward = |namespace: &str, service: &str, port: u16| {
            let (service, port) = (format!("svc/{service}"), format!(":{port}"));
            let words = ["kubectl", "port-forward", "--namespace", namespace, "--address=127.0.0.1", &service, &port];
            lab.start(Part::Laptop, DEVELOPER, &words, |line| {
                line.strip_prefix("Forwarding from ")?.split(' ').next().map(str::to_owned)
            })
        };
        let (web, web_at) = forward("emojivoto", "web-app", 80)?;
        let (echo, echo_at) = forward("default", "echo", 7)?;
        let processes = finder.all("kubectl", |program, first| program == "kubectl" && first == "port-forward")?;
        ensure!(processes.len() == 2, "there are {} kubectl port-forward instead of two", processes.len());
        Ok(Forwards { web, echo, ends: Ends { web: web_at, echo: echo_at }, processes })
    }

    pub(crate) fn are_alive(&mut self) -> bool {
        self.web.is_alive() && self.echo.is_alive()
    }
}

/// tpx's own processes, while it is connected.
pub(crate) fn tpx(finder: &Finder) -> Result<Vec<Process>> {
    Ok(vec![
        finder.one("tpx", |program, first| program == "tpx" && first == "userd")?,
        finder.one("tpx-rootd", |program, _| program == "tpx-rootd")?,
        finder.one("tpx-manager", |program, _| program == "tpx-manager")?,
    ])
}

/// Waits until none of tpx's processes on the laptop is left: the privileged daemon stays a while for whoever comes next.
pub(crate) fn no_daemons(finder: &Finder) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = finder.all("", |program, _| matches!(program, "tpx" | "tpx-rootd"))?;
        if left.is_empty() {
            return Ok(());
        }
        ensure!(begin.elapsed() < GONE, "{} processes of tpx do not end", left.len());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Longer than the privileged daemon waits.
const GONE: Duration = Duration::from_secs(15);

/// What every port-forward goes through.
pub(crate) fn cluster(finder: &Finder) -> Result<Vec<Process>> {
    let kube = |name: &str, daemon: &str| finder.one(name, |program, first| program == "kubeall" && first == daemon);
    Ok(vec![
        kube("API server", "kube-apiserver")?,
        kube("kubelet", "kubelet")?,
        finder.one("containerd", |program, _| program == "containerd")?,
    ])
}

/// CPU seconds by name that processes used while `work` ran.
pub(crate) fn cpu<T>(processes: &[Process], work: impl FnOnce() -> Result<T>) -> Result<(T, BTreeMap<String, f64>)> {
    let before = processes.iter().map(Process::cpu).collect::<Result<Vec<_>>>()?;
    let done = work()?;
    let mut used = BTreeMap::new();
    for (process, before) in processes.iter().zip(before) {
        *used.entry(process.name.clone()).or_insert(0.0) += process.cpu().context("during the load")? - before;
    }
    Ok((done, used))
}

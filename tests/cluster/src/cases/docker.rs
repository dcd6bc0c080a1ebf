//! A real Docker on the laptop: its bridges, its rules of the firewall, its name server inside of containers.

use std::{
    fs::{self, File},
    net::IpAddr,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::Case;
use crate::{
    cluster, laptop,
    process::{Ended, eventually, run, sh, wait},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("docker::containers_see_the_cluster", containers),
    ("docker::one_container_is_a_scope", scope),
    ("docker::a_container_on_the_hosts_network_is_a_scope", host_network),
    ("docker::containers_that_are_no_scope", missing),
];

/// Where the laptop has Docker's programs, and those of the firewall that it calls.
const PROGRAMS: &str = "/run/lab/packages/usr";
/// What it writes.
const STATE: &str = "/run/lab/docker";
const SOCKET: &str = "/run/docker.sock";
const FORWARDING: &str = "/proc/sys/net/ipv4/ip_forward";
/// The page that says on whose node it was made.
const WHERE: &str = "http://web-app.emojivoto/where";

/// dockerd, with an image that has the laptop's own programs; ends when dropped, and everything of it goes.
struct Docker {
    daemon: Child,
    forwarding: String,
}

impl Docker {
    fn start() -> Result<Self> {
        let forwarding = fs::read_to_string(FORWARDING)?;
        fs::create_dir_all(format!("{STATE}/bin"))?;
        // What Docker calls by these names is, with these names, one program.
        for name in ["iptables", "ip6tables"] {
            let link = format!("{STATE}/bin/{name}");
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(format!("{PROGRAMS}/sbin/xtables-nft-multi"), link)?;
        }
        let log = File::create(format!("{STATE}/log"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let daemon = Command::new(format!("{PROGRAMS}/sbin/dockerd"))
            .args(["--data-root", &format!("{STATE}/data"), "--exec-root", &format!("{STATE}/exec")])
            .args(["--pidfile", &format!("{STATE}/pid"), "--host", &format!("unix://{SOCKET}")])
            .args(["--storage-driver", "overlay2", "--exec-opt", "native.cgroupdriver=cgroupfs"])
            .env("PATH", format!("{STATE}/bin:{PROGRAMS}/bin:{PROGRAMS}/sbin:{path}"))
            .env("XTABLES_LIBDIR", format!("{PROGRAMS}/lib/{}-linux-gnu/xtables", std::env::consts::ARCH))
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start dockerd")?;
        let docker = Self { daemon, forwarding };
        eventually(Duration::from_secs(20), || sh("docker version")?.success()).with_context(|| {
            fs::read_to_string(format!("{STATE}/log")).unwrap_or_default().lines().last().unwrap_or_default().to_owned()
        })?;
        sh("d=$(mktemp -d) && cd $d && ln -s usr/bin usr/lib usr/lib64 usr/sbin . && mkdir usr tmp etc && \
            echo root:x:0:0:root:/:/bin/sh >etc/passwd && tar -c . | docker import - box && rm -r $d")?
        .success()?;
        Ok(docker)
    }

    /// Starts a container that waits.
    fn container(&self, name: &str, flags: &str) -> Result<()> {
        sh(&format!("docker run --detach --name {name} --init=false -v /usr:/usr:ro {flags} box sleep 600"))?
            .success()
            .map(drop)
    }

    fn exec(&self, name: &str, line: &str) -> Result<Ended> {
        run(Command::new("docker").args(["exec", name, "sh", "-c", line]))
    }

    fn address(&self, name: &str) -> Result<IpAddr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}";
        let said = run(Command::new("docker").args(["inspect", "--format", format, name]))?.success()?;
        said.trim().parse().with_context(|| said.clone())
    }

    /// The node that serves a container, by name.
    fn node(&self, name: &str) -> Result<String> {
        let said = self.exec(name, &format!("curl -sS -m 10 {WHERE}"))?.success().context("curl")?;
        ["node1", "node2"]
            .into_iter()
            .find(|node| said.contains(*node))
            .map(str::to_owned)
            .with_context(|| said.clone())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = sh("docker rm --force $(docker ps --all --quiet); docker network prune --force");
        if let Some(pid) = i32::try_from(self.daemon.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = wait(&mut self.daemon, Duration::from_secs(15));
        let _ = sh(&format!(
            "ip link del docker0; for family in ip ip6; do for table in nat filter; do nft delete table $family $table; done; \
             done; rmdir /sys/fs/cgroup/docker; umount {STATE}/data/overlay2 {STATE}/exec/netns/*; rm -rf {STATE} {SOCKET}"
        ));
        let _ = fs::write(FORWARDING, &self.forwarding);
    }
}

fn connect(words: &[&str]) -> Result<Ended> {
    run(Command::new("tpx").args(["connect", "-n", "emojivoto"]).args(words))
}

fn scope_of(name: &str) -> Result<Value> {
    let said = run(Command::new("tpx").args(["status", "--use", name, "--format", "json"]))?.success()?;
    Ok(serde_json::from_str::<Value>(&said)?["scope"].clone())
}

/// On the usual bridge, whose containers have the host's name server, and on one of a network of the user's, whose containers
/// have Docker's, which asks on from inside of them.
fn containers() -> Result<()> {
    laptop::quit()?;
    let before = laptop::network_state()?;
    let docker = Docker::start()?;
    docker.container("usual", "")?;
    laptop::connect_with(&[])?;
    sh("docker network create --subnet 172.28.0.0/24 mine")?.success()?;
    docker.container("mine", "--network mine")?;
    docker.container("beside", "--network mine")?;
    let web = cluster::service("emojivoto", "web-app")?;
    for name in ["usual", "mine"] {
        let page = |url: &str| -> Result<()> {
            let said = docker.exec(name, &format!("curl -sS -m 10 {url}"))?.success();
            let said = said.with_context(|| format!("{url} in {name}"))?;
            ensure!(said.contains("<title>Emoji Vote</title>"), "{url} in {name}: {said}");
            Ok(())
        };
        eventually(Duration::from_secs(5), || page("http://web-app.emojivoto"))?;
        page("http://web-app")?;
        page(&format!("http://{}", web.v4))?;
        let refused = docker.exec(name, "curl -sS -m 10 http://nobody.default")?;
        ensure!(refused.code() == 7, "{name}: {refused:?}");
        // The internet, by Docker's own address translation, and its names.
        let internet = docker.exec(name, "curl -sS -m 10 http://www.internet.test/")?.success()?;
        ensure!(internet.contains("The Internet"), "{name}: {internet}");
        ensure!(docker.exec(name, "getent hosts nothing.internet.test")?.code() == 2);
    }
    // Docker's names of containers are nobody's business.
    let beside = docker.exec("mine", "getent hosts beside")?.success()?;
    ensure!(beside.starts_with(&docker.address("beside")?.to_string()), "{beside}");
    laptop::quit()?;
    ensure!(docker.exec("usual", "curl -sS -m 5 http://web-app.emojivoto")?.code() == 6, "it is there after quit");
    ensure!(docker.exec("usual", "curl -sS -m 10 http://www.internet.test/")?.success()?.contains("The Internet"));
    drop(docker);
    residue::nothing_left()?;
    let after = laptop::network_state()?;
    ensure!(before == after, "before:\n{before}\nafter:\n{after}");
    Ok(())
}

/// One container in the second cluster, while the workstation, other containers included, is in the first.
fn scope() -> Result<()> {
    laptop::quit()?;
    sh("tpx manager install --context second")?.success()?;
    let docker = Docker::start()?;
    docker.container("box", "")?;
    docker.container("other", "")?;
    docker.container("inside", "--network container:box")?;
    connect(&["--context", "second", "--name", "boxed", "--scope", "container:box"])?.success()?;
    let at = docker.address("box")?;
    let now = scope_of("boxed")?;
    ensure!(now["kind"] == "container" && now["name"] == "box" && now["addresses"][0] == at.to_string(), "{now}");
    let shown = sh("tpx status")?.success()?;
    ensure!(shown.contains(&format!("container box, at {at}")) && shown.contains("behind docker0"), "{shown}");
    let outside = |line: &str| -> Result<()> {
        let ended = sh(line)?;
        ensure!(ended.code() == 6, "{line}: {ended:?}");
        Ok(())
    };
    // Alone: neither this machine nor another container.
    ensure!(docker.node("box")? == "node2" && docker.node("inside")? == "node2");
    outside(&format!("curl -sS -m 5 {WHERE}"))?;
    outside(&format!("docker exec other curl -sS -m 5 {WHERE}"))?;
    let flows = sh("tpx flows --ended --use boxed")?.success()?;
    ensure!(flows.contains(&format!("container {at} (docker0)")), "{flows}");
    // Beside the workstation, in the other cluster.
    laptop_connects()?;
    for (name, node) in [("box", "node2"), ("other", "node1"), ("inside", "node2")] {
        ensure!(docker.node(name)? == node, "{name} is not in {node}'s cluster");
    }
    ensure!(sh(&format!("curl -sS -m 10 {WHERE}"))?.success()?.contains("node1"));
    // Somebody else gets its address while it is stopped.
    sh("docker stop --time 0 box")?.success()?;
    eventually(Duration::from_secs(10), || {
        let now = scope_of("boxed")?;
        ensure!(now["addresses"].as_array().is_some_and(Vec::is_empty), "{now}");
        Ok(())
    })?;
    ensure!(sh("tpx status --use boxed")?.success()?.contains("which does not run"));
    docker.container("thief", "")?;
    ensure!(docker.address("thief")? == at, "nobody has {at}");
    ensure!(docker.node("thief")? == "node1", "who got the address got the cluster");
    sh("docker start box")?.success()?;
    let moved = docker.address("box")?;
    ensure!(moved != at);
    eventually(Duration::from_secs(10), || {
        let now = scope_of("boxed")?;
        ensure!(now["addresses"][0] == moved.to_string(), "{now}");
        ensure!(docker.node("box")? == "node2", "it is not in its cluster again");
        Ok(())
    })?;
    ensure!(docker.node("thief")? == "node1");
    run(Command::new("tpx").args(["quit", "--use", "boxed"]))?.success()?;
    ensure!(docker.node("box")? == "node1", "without its scope it is the workstation's");
    laptop::quit()?;
    outside(&format!("docker exec box curl -sS -m 5 {WHERE}"))?;
    drop(docker);
    residue::nothing_left()
}

fn laptop_connects() -> Result<()> {
    connect(&["--context", "lab"])?.success().map(drop)
}

/// Its processes are the host's, so that it is a scope as a cgroup is.
fn host_network() -> Result<()> {
    laptop::quit()?;
    let docker = Docker::start()?;
    docker.container("near", "--network host")?;
    connect(&["--name", "near", "--scope", "container:near"])?.success()?;
    let now = scope_of("near")?;
    ensure!(now["kind"] == "cgroup" && now["cgroup"].as_str().is_some_and(|path| path.contains("/docker/")), "{now}");
    ensure!(docker.node("near")? == "node1");
    ensure!(sh(&format!("curl -sS -m 5 {WHERE}"))?.code() == 6, "the name resolves outside");
    laptop::quit()?;
    drop(docker);
    residue::nothing_left()
}

fn missing() -> Result<()> {
    laptop::quit()?;
    let refused = |scope: &str, code: i32, words: &[&str]| -> Result<()> {
        let ended = connect(&["--name", "box", "--scope", scope])?;
        ensure!(ended.code() == code && ended.stdout.is_empty(), "{scope}: {ended:?}");
        let last = ended.stderr.lines().last().unwrap_or_default();
        for word in words {
            ensure!(last.contains(word), "{scope}: {word:?} is not in {last:?}");
        }
        Ok(())
    };
    // The program is there, and nobody answers.
    refused("container:box", 2, &["docker does not say where container box is", "docker ps"])?;
    let docker = Docker::start()?;
    refused("container:nobody", 2, &["No such container: nobody", "docker ps"])?;
    docker.container("still", "")?;
    sh("docker stop --time 0 still")?.success()?;
    refused("container:still", 2, &["does not run", "docker start still"])?;
    docker.container("alone", "--network none")?;
    refused("container:alone", 7, &["not behind a bridge", "no address"])?;
    let tun = connect(&["--name", "box", "--scope", "container:still", "--datapath", "tun"])?;
    ensure!(tun.code() == 2 && tun.stderr.contains("only the eBPF datapath"), "{tun:?}");
    ensure!(laptop::status()?.is_none());
    drop(docker);
    residue::nothing_left()
}

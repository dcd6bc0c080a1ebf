//! What may happen to a connection from outside, at any moment: processes are killed while it is made and while it ends,
//! what it has put on the host is removed by hand, others race with it. Nothing with an effect is left, the laptop's own
//! traffic goes on, and the next connection works.

use std::{
    fs,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::{
    Case,
    crash::{kill, own_traffic},
};
use crate::{
    cluster, laptop,
    laptop::at,
    process::{Ended, eventually, sh, wait},
    residue,
};

pub(super) const CASES: &[Case] = &[
    ("faults::killed_while_connecting", connecting),
    ("faults::killed_while_leaving", leaving),
    ("faults::two_race", race),
    ("faults::the_privileged_daemon_is_restarted", restarted),
    ("faults::the_privileged_daemon_does_not_come_back", not_restarted),
    ("faults::rules_and_routes_are_flushed", flushed),
    ("faults::the_device_is_deleted", device),
];
/// Those that need programs.
pub(super) const EXPRESS: &[Case] = &[("faults::the_cgroup_is_removed", cgroup)];

/// Longest that anything here may take to come right.
const LONG: Duration = Duration::from_secs(30);
/// Steps of time at which processes are killed. A connection takes about ten of them.
const STEP: Duration = Duration::from_millis(40);
const STEPS: u32 = 12;

/// A command that goes on beside the test.
fn start(words: &[&str]) -> Result<Child> {
    let mut command = Command::new("tpx");
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().context("start tpx")
}

fn ended(mut child: Child) -> Result<Ended> {
    let stderr = child.stderr.take();
    let status = wait(&mut child, LONG)?;
    let stderr = stderr.map(std::io::read_to_string).transpose()?.unwrap_or_default();
    Ok(Ended { status, stdout: String::new(), stderr })
}

/// Kills the daemon whose command line contains `what`, if it is there already, or still.
fn kill_daemon(what: &str) -> Result<bool> {
    let found = laptop::daemons()?.into_iter().find(|(_, line)| line.contains(what));
    found.map_or(Ok(false), |(pid, _)| Ok(kill(pid).is_ok()))
}

fn reaches() -> Result<()> {
    let service = cluster::service("emojivoto", "web-app")?;
    ensure!(laptop::probe(at(service.v4, 80), &["--patience", "5000"])?.connected, "the cluster is not reached");
    let page = sh("curl -sS -m 10 http://web-app.emojivoto")?.success()?;
    ensure!(page.contains("Emoji Vote"), "{page}");
    Ok(())
}

fn connecting() -> Result<()> {
    let mut killed = 0;
    for victim in ["tpx connect", " userd", "tpx-rootd"] {
        for step in 0..STEPS {
            laptop::quit()?;
            residue::nothing_left()?;
            let mut child = start(&["connect", "-n", "emojivoto"])?;
            thread::sleep(STEP * step);
            let hit = match victim {
                "tpx connect" => child.try_wait()?.is_none() && kill(child.id()).is_ok(),
                daemon => kill_daemon(daemon)?,
            };
            killed += u32::from(hit);
            let what = || format!("{victim} killed after {:?}", STEP * step);
            let ended = ended(child).with_context(what)?;
            // Whoever was not hit says in one line what has happened, or has succeeded before or in spite of it.
            if victim != "tpx connect" && !ended.status.success() {
                ensure!(ended.code() > 0 && ended.stderr.contains("tpx"), "{}: {ended:?}", what());
            }
            laptop::quit().with_context(what)?;
            residue::nothing_left().with_context(what)?;
        }
        own_traffic()?;
    }
    ensure!(killed >= STEPS, "only {killed} were killed");
    laptop::connect()?;
    reaches()
}

fn leaving() -> Result<()> {
    for victim in [" userd", "tpx-rootd"] {
        for step in 0..4 {
            laptop::connect()?;
            let child = start(&["quit"])?;
            thread::sleep(STEP / 8 * step);
            kill_daemon(victim)?;
            let what = || format!("{victim} killed {:?} into quit", STEP / 8 * step);
            ended(child).with_context(what)?;
            residue::nothing_left().with_context(what)?;
        }
        own_traffic()?;
    }
    laptop::connect()?;
    reaches()
}

/// One wins, the other one says why not; under one name and under two.
fn race() -> Result<()> {
    for names in [["default", "default"], ["default", "other"]] {
        laptop::quit()?;
        residue::nothing_left()?;
        let both = names.map(|name| start(&["connect", "-n", "emojivoto", "--name", name]));
        let mut all = Vec::new();
        for child in both {
            all.push(ended(child?)?);
        }
        let (won, lost): (Vec<_>, Vec<_>) = all.iter().partition(|ended| ended.status.success());
        ensure!(won.len() == 1 && lost.len() == 1, "{names:?}: {all:?}");
        ensure!(lost[0].code() > 0 && !lost[0].stderr.trim().is_empty(), "{names:?}: {lost:?}");
        reaches().with_context(|| format!("{names:?}"))?;
    }
    laptop::quit()?;
    residue::nothing_left()
}

/// A privileged daemon that stays, as a service's does.
fn service() -> Result<Child> {
    let child = Command::new("tpx-rootd").args(["serve", "--owner", "0"]).stderr(Stdio::null()).spawn()?;
    eventually(LONG, || Ok(std::os::unix::net::UnixStream::connect("/run/tpx/rootd.sock").map(drop)?))?;
    Ok(child)
}

fn restarted() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let mut first = service()?;
    laptop::connect()?;
    reaches()?;
    let daemon = laptop::daemon(" userd")?;
    first.kill()?;
    first.wait()?;
    residue::no_datapath()?;
    own_traffic()?;
    let mut second = service()?;
    let result = (|| {
        eventually(LONG, || laptop::status()?.context("not connected"))?;
        reaches()?;
        ensure!(laptop::daemon(" userd")? == daemon, "it is another daemon");
        own_traffic()?;
        laptop::quit()
    })();
    second.kill()?;
    second.wait()?;
    result.and_then(|()| residue::nothing_left())
}

fn not_restarted() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let mut service = service()?;
    laptop::connect()?;
    service.kill()?;
    service.wait()?;
    residue::no_datapath()?;
    own_traffic()?;
    let said = sh("tpx status")?;
    ensure!(said.code() != 0 && said.stderr.contains("the privileged daemon has gone"), "{said:?}");
    eventually(LONG, || {
        ensure!(laptop::daemons()?.is_empty(), "still waiting");
        Ok(())
    })?;
    residue::nothing_left()?;
    laptop::connect()?;
    reaches()
}

fn flushed() -> Result<()> {
    for damage in [
        "for t in 7071 7171; do ip route flush table $t; ip -6 route flush table $t; done",
        "for f in -4 -6; do for p in $(ip $f rule | sed -n 's/^\\([0-9]*\\):.*lookup 7[0-3]7[0-9].*/\\1/p'); do \
         ip $f rule del pref $p; done; done",
    ] {
        laptop::connect()?;
        reaches()?;
        let damaged = sh(damage)?;
        ensure!(damaged.code() <= 2, "{damaged:?}");
        eventually(LONG, reaches).with_context(|| damage.to_owned())?;
        own_traffic()?;
    }
    laptop::quit()?;
    residue::nothing_left()
}

/// It cannot be mended: the connection is made anew.
fn device() -> Result<()> {
    laptop::connect()?;
    let daemon = laptop::daemon(" userd")?;
    sh("ip link del tpx0")?.success()?;
    own_traffic()?;
    eventually(LONG, || {
        laptop::status()?.context("not connected")?;
        reaches()
    })?;
    ensure!(laptop::daemon(" userd")? == daemon, "it is another daemon");
    laptop::quit()?;
    residue::nothing_left()
}

/// The scope's cgroup is removed while it is served; nobody is in it any more, and the end is as ever.
fn cgroup() -> Result<()> {
    laptop::quit()?;
    let group = "/sys/fs/cgroup/tpx-test-scope";
    fs::create_dir(group)?;
    let inside = || -> Result<()> {
        let page = sh(&format!("echo 0 > {group}/cgroup.procs; exec curl -sS -m 10 http://web-app.emojivoto"))?;
        ensure!(page.success()?.contains("Emoji Vote"));
        Ok(())
    };
    let problem = || Ok::<_, anyhow::Error>(laptop::status()?.context("it ended")?["datapath"]["problem"].clone());
    let result = sh(&format!("tpx connect -n emojivoto --scope cgroup:{group}"))?.success().and_then(|_| inside());
    let removed = eventually(LONG, || Ok(fs::remove_dir(group)?));
    result.and(removed)?;
    own_traffic()?;
    eventually(LONG, || {
        let now = problem()?;
        ensure!(now.as_str().is_some_and(|why| why.contains(group) && why.contains("gone")), "{now}");
        Ok(())
    })?;
    // As when a service is restarted.
    fs::create_dir(group)?;
    let again = eventually(LONG, || {
        ensure!(problem()?.is_null(), "{}", problem()?);
        inside()
    });
    let removed = eventually(LONG, || Ok(fs::remove_dir(group)?));
    again.and(removed)?;
    laptop::quit()?;
    residue::nothing_left()?;
    laptop::connect()?;
    reaches()
}

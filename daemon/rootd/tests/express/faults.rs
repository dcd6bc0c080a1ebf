//! kill -9 of tpx-rootd at each step of a session: wherever it dies, nothing with an effect is left, and the next one works.
//!
//! The steps are its system calls; strace(1) kills it at one of them, from outside. A first session counts them; then
//! each session dies a few calls further on.

use std::{
    collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, os::unix::process::ExitStatusExt as _, process::Command,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{io::Errno, process::Signal};
use serde_json::Value;

use crate::{
    cases::{fails, ok, to, to6},
    lab::{Lab, OWNER, Process, active, app, cgroup, eventually},
};

/// The calls that change the host or are seen by others, and how many of each a session may die at.
const STEPS: [(&str, usize); 9] = [
    ("bpf", 20),
    ("sendto", 14),
    ("sendmsg", 4),
    ("ioctl", 4),
    ("setsockopt", 5),
    ("bind", 3),
    ("listen", 2),
    ("close", 8),
    ("unlink", 1),
];

pub(crate) fn at_each_step(lab: &Lab) -> Result<()> {
    let counts = count(lab)?;
    let (mut points, mut killed) = (0, 0);
    for (call, most) in STEPS {
        let total = *counts.get(call).with_context(|| format!("a session has no {call}: {counts:?}"))?;
        let stride = total.div_ceil(most);
        for nth in (1..=total).step_by(stride) {
            let hit = die(lab, call, nth).with_context(|| format!("killed at {call} {nth} of {total}"))?;
            (points, killed) = (points + 1, killed + usize::from(hit));
        }
    }
    // What the loop is worth: a session has hundreds of steps.
    ensure!(points >= 40, "only {points} points in {counts:?}");
    ensure!(killed * 4 >= points * 3, "only {killed} of {points} times it was killed");
    Ok(())
}

/// How often a session makes each of the calls.
fn count(lab: &Lab) -> Result<BTreeMap<String, usize>> {
    let log = lab.folder().join("calls");
    let mut rootd = traced(lab, &["-o", log.to_str().context("path")?])?;
    rootd.expect("serving user")?;
    session(lab)?;
    ensure!(rootd.ended()?.success());
    let text = fs::read_to_string(log)?;
    let mut counts = BTreeMap::new();
    // `PID call(...) = result`; an unfinished call has another line for its end, without the bracket.
    for call in text.lines().filter_map(|line| line.split_whitespace().nth(1)?.split_once('(')) {
        *counts.entry(call.0.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

/// A session whose tpx-rootd is killed at a call's `nth` time; whether it was.
fn die(lab: &Lab, call: &str, nth: usize) -> Result<bool> {
    let inject = format!("inject={call}:signal=KILL:when={nth}");
    let mut rootd = traced(lab, &["-o", "/dev/null", "-e", &inject])?;
    if rootd.expect("serving user").is_ok() {
        // It fails, or not, as far as the killed one got.
        let _ = session(lab);
    }
    let status = rootd.ended()?;
    // Threads share the calls in one way or another: the last ones are not met each time.
    let killed = status.signal() == Some(Signal::KILL.as_raw());
    ensure!(killed || status.success(), "{status}");
    eventually("nothing with an effect is left", || {
        let left = active().map_err(|e| e.to_string())? + &programs().map_err(|e| e.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    })?;
    fails(&to(80), Errno::NETUNREACH)?;
    fails(&to6(80), Errno::NETUNREACH)?;
    let (_rootd, _user) = lab.both().context("the next one")?;
    ok(&app(&["connect", &to(80)])?)?;
    Ok(killed)
}

/// A user daemon comes, an application connects, both go.
fn session(lab: &Lab) -> Result<()> {
    let mut user = lab.user_as(OWNER)?;
    let result = user.expect("ready").and_then(|_| app(&["connect", &to(80), "1"]));
    user.signal(Signal::TERM).ok();
    user.ended()?;
    result.map(drop)
}

/// tpx-rootd under strace; it leaves when the session does.
fn traced(lab: &Lab, options: &[&str]) -> Result<Process> {
    let mut strace = Command::new("strace");
    let calls = STEPS.map(|(call, _)| call).join(",");
    strace.args(["-f", "-qqq", "-e", &format!("trace={calls}")]).args(options).arg(env!("CARGO_BIN_EXE_tpx-rootd"));
    strace.arg("serve").arg("--socket").arg(lab.socket()).args(["--owner", &OWNER.to_string(), "--exit-when-idle"]);
    Process::start(&mut strace)
}

/// What is attached to this namespace or to the cases' cgroup. A program that is attached nowhere has no effect.
fn programs() -> Result<String> {
    let (netns, cgroup) = (fs::metadata("/proc/self/ns/net")?.ino(), fs::metadata(cgroup())?.ino());
    let shown = Command::new("bpftool").args(["-j", "link", "show"]).output().context("bpftool is missing")?;
    let links: Value = serde_json::from_slice(&shown.stdout)?;
    let ours = |link: &&Value| link["netns_ino"] == netns || link["cgroup_id"] == cgroup;
    Ok(links.as_array().into_iter().flatten().filter(ours).map(|link| format!("link {}; ", link["id"])).collect())
}

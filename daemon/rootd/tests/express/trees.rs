//! Sessions beside each other, and process trees.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use crate::{
    cases::{knocks, ok, to},
    lab::{Lab, OWNER, Process, STRANGER, active, app, cgroup, eventually, left, role},
};

/// A user daemon with a process tree, and where that is.
fn tree(lab: &Lab) -> Result<(Process, String)> {
    let user = lab.user_in(OWNER, "tree")?;
    let line = user.expect("ready")?;
    Ok((user, line.strip_prefix("ready ").context("no cgroup")?.to_owned()))
}

/// A process that enters a tree: what it says first.
fn enter(lab: &Lab, uid: u32, tree: &str, then: &[&str]) -> Result<Process> {
    let around = cgroup();
    enter_from(lab, uid, around.to_str().context("no text")?, tree, then)
}

fn enter_from(lab: &Lab, uid: u32, from: &str, tree: &str, then: &[&str]) -> Result<Process> {
    let (uid, socket) = (uid.to_string(), lab.socket());
    role(&[&["enter", &uid, socket.to_str().context("no text")?, from, tree], then].concat())
}

/// Where a process is, below what the run has made.
fn group_of(process: &Process) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{}/cgroup", process.id()))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::")).context("no cgroup2")?.to_owned();
    let top = cgroup().file_name().context("no name")?.to_string_lossy().into_owned();
    Ok(group.split_once(&top).with_context(|| format!("{group} is outside of {top}"))?.1.to_owned())
}

pub(crate) fn beside(lab: &Lab) -> Result<()> {
    let _rootd = lab.rootd(&[])?;
    let (one, first) = tree(lab)?;
    let (two, second) = tree(lab)?;
    for (user, other, tree) in [(&one, &two, &first), (&two, &one, &second)] {
        let line = enter(lab, OWNER, tree, &["connect", &to(80)])?.expect("ok ")?;
        ok(&line)?;
        ensure!((knocks(user, 80), knocks(other, 80)) == (1, 0), "{tree}");
    }
    // Everybody else is in no cluster.
    ensure!(app(&["connect", &to(80)])?.starts_with("errno "));
    drop(one);
    eventually("its cgroup is gone", || if Path::new(&first).exists() { Err(first.clone()) } else { Ok(()) })?;
    ok(&enter(lab, OWNER, &second, &["connect", &to(80)])?.expect("ok ")?)?;
    drop(two);
    eventually("both are gone", || {
        left().map_err(|e| e.to_string()).and_then(|l| if l.is_empty() { Ok(()) } else { Err(l) })
    })
}

pub(crate) fn one_workstation(lab: &Lab) -> Result<()> {
    let _rootd = lab.rootd(&[])?;
    // By the floor: the run must not touch the root of the machine's cgroups.
    let first = lab.user_in(OWNER, "floor")?;
    first.expect("ready")?;
    let mut second = lab.user_in(OWNER, "floor")?;
    second.expect("the workstation is in a cluster already, by process")?;
    ensure!(!second.ended()?.success());
    let (_user, tree) = tree(lab)?;
    ok(&enter(lab, OWNER, &tree, &["connect", &to(80)])?.expect("ok ")?).map(drop)
}

pub(crate) fn who_enters(lab: &Lab) -> Result<()> {
    let _rootd = lab.rootd(&[])?;
    let (_user, tree) = tree(lab)?;
    let _scoped = lab.user()?;
    enter(lab, STRANGER, &tree, &["connect", &to(80)])?.expect("another user, not you")?;
    let mine = cgroup();
    for path in [mine.to_str().context("no text")?, "/sys/fs/cgroup", "/etc/passwd", &format!("{tree}/../..")] {
        enter(lab, OWNER, path, &["connect", &to(80)])?.expect("no session of yours has a process tree at")?;
    }
    // From the root of the machine's cgroups: who is not around the tree may be confined, and stays so.
    enter_from(lab, OWNER, "", &tree, &["connect", &to(80)])?
        .expect("it may be confined to another part of the machine")?;
    // Root may.
    ok(&enter_from(lab, 0, "", &tree, &["connect", &to(80)])?.expect("ok ")?).map(drop)
}

/// SIGTERM moves who is inside.
pub(crate) fn terminated(lab: &Lab) -> Result<()> {
    let mut rootd = lab.rootd(&[])?;
    let (_user, tree) = tree(lab)?;
    let sitter = enter(lab, OWNER, &tree, &["sit"])?;
    sitter.expect("sitting")?;
    ensure!(group_of(&sitter)?.starts_with("/tpx-tree-"), "{}", group_of(&sitter)?);
    rootd.signal(Signal::TERM)?;
    ensure!(rootd.ended()?.success());
    ensure!(!Path::new(&tree).exists() && group_of(&sitter)?.is_empty(), "{}", group_of(&sitter)?);
    Ok(())
}

/// The next tpx-rootd removes what a killed one has left, and who was inside lives on.
pub(crate) fn killed(lab: &Lab) -> Result<()> {
    let mut rootd = lab.rootd(&[])?;
    let (mut user, dead) = tree(lab)?;
    let sitter = enter(lab, OWNER, &dead, &["sit"])?;
    sitter.expect("sitting")?;
    rootd.kill()?;
    rootd.ended()?;
    user.ended()?;
    eventually("nothing has an effect", || {
        active().map_err(|e| e.to_string()).and_then(|l| if l.is_empty() { Ok(()) } else { Err(l) })
    })?;
    ensure!(Path::new(&dead).exists());
    let _next = lab.rootd(&[])?;
    ensure!(left()?.is_empty() && group_of(&sitter)?.is_empty(), "{} {}", left()?, group_of(&sitter)?);
    let (_user, tree) = tree(lab)?;
    ok(&enter(lab, OWNER, &tree, &["connect", &to(80)])?.expect("ok ")?).map(drop)
}

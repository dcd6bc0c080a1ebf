//! What is known about a running lab: each part's first process, told from a later process with the same id by its start time.

use std::fs::{self, File};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};

use super::config::{Lab, Part};

/// One `up` or `down` of a lab at a time; held until dropped.
pub(crate) fn lock(lab: &Lab) -> Result<OwnedFd> {
    let dir = lab.state();
    let parent = dir.parent().context("the state folder has no parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let file = File::create(parent.join(format!("{}.lock", lab.name)))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file.into())
}

/// Remembers the first process of a part.
pub(crate) fn remember(lab: &Lab, part: Part, pid: u32) -> Result<()> {
    let begin = start_time(pid).context("the part's first process ended at once; its log says why")?;
    Ok(fs::write(lab.state().join(format!("{}.pid", part.as_str())), format!("{pid} {begin}\n"))?)
}

/// The first process of a part.
pub(crate) fn pid(lab: &Lab, part: Part) -> Result<u32> {
    known(lab, part).with_context(|| format!("the lab {} is not up: cargo xtask lab up", lab.name))
}

fn known(lab: &Lab, part: Part) -> Option<u32> {
    let text = fs::read_to_string(lab.state().join(format!("{}.pid", part.as_str()))).ok()?;
    let (pid, begin) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    (start_time(pid)? == begin.parse::<u64>().ok()?).then_some(pid)
}

/// Whether all parts live and the last `up` came to its end.
pub(crate) fn is_up(lab: &Lab) -> bool {
    lab.state().join("up").exists() && lab.parts().iter().all(|part| known(lab, *part).is_some())
}

/// Field 22 of /proc/PID/stat; the name before it may contain anything. A zombie counts as gone.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    if state == "Z" { None } else { fields.nth(18)?.parse().ok() }
}

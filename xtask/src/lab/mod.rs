//! The lab: a real Kubernetes, a laptop and a rest of the world in namespaces of one machine.

mod cgroup;
mod config;
mod exec;
mod files;
mod internet;
mod kube;
mod laptop;
mod links;
mod mounts;
mod node;
mod pki;
mod second;
mod state;
mod status;
mod supervise;

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

pub(crate) use config::{Lab, Part, WORKLOAD};
pub(crate) use exec::As;

use crate::run::{step, wait_for};
use crate::sys::{self, Entry};
use crate::{elevate, image, setup};

/// Builds what a lab is made of, where it is missing.
pub(crate) fn build(lab: &Lab, with_second: bool) -> Result<()> {
    if state::is_up(lab) && (!with_second || state::is_up(&lab.second()?)) {
        return Ok(());
    }
    setup::need_lab()?;
    image::need()
}

/// Brings the lab up, and the second cluster beside it where that is wanted; what is up gets newer images only.
pub(crate) fn up(lab: &Lab, with_second: bool) -> Result<()> {
    match lab.first() {
        Some(first) => ensure!(state::is_up(&first), "the lab {} is not up: cargo xtask lab up --second", first.name),
        // What is left of a second cluster has lost its cable.
        None if !state::is_up(lab) => remove(&lab.second()?)?,
        None => {}
    }
    if !with_second {
        return up_one(lab);
    }
    let second = lab.second()?;
    thread::scope(|scope| {
        let beside = scope.spawn(|| up_one(&second));
        let first = up_one(lab);
        let beside = beside.join().map_err(|_| anyhow!("bringing it up panicked"))?;
        if first.is_err() {
            remove(&second)?;
        }
        first.and(beside)
    })
}

fn up_one(lab: &Lab) -> Result<()> {
    let begin = Instant::now();
    let _lock = state::lock(lab)?;
    if state::is_up(lab) {
        println!("lab {}: already up", lab.name);
        return kube::refresh_images(lab);
    }
    clean(lab)?;
    if let Err(error) = bring_up(lab) {
        let logs = lab.state().join("log");
        // The logs stay for whoever has to find out why; everything that runs goes.
        cgroup::destroy(lab)?;
        let where_to = format!("the lab did not come up and was taken down again; its logs are in {}", logs.display());
        return Err(error.context(where_to));
    }
    println!("lab {}: up after {:.1} s", lab.name, begin.elapsed().as_secs_f32());
    Ok(())
}

fn bring_up(lab: &Lab) -> Result<()> {
    step(&lab.says("certificates and configuration"), || {
        fs::create_dir_all(lab.state().join("log"))?;
        fs::create_dir_all(lab.state().join("bin"))?;
        fs::copy(image::workload_program(), internet::workload(lab)).context("cannot copy the workload program")?;
        fs::write(lab.query_log(), "")?;
        pki::write(&lab.pki(), lab.cluster())?;
        files::write(lab)
    })?;
    step(&lab.says("namespaces"), || {
        for part in lab.parts() {
            start(lab, *part)?;
        }
        for part in lab.parts() {
            marked(lab, *part, "network", Duration::from_secs(15))?;
        }
        if let Some(first) = lab.first() {
            return second::join(&first, lab);
        }
        let laptop = state::pid(lab, Part::Laptop)?;
        links::cluster(state::pid(lab, Part::Node)?, laptop, lab.cluster())?;
        links::internet(state::pid(lab, Part::Internet)?, laptop)
    })?;
    kube::start(lab)?;
    Ok(fs::write(lab.state().join("up"), "")?)
}

/// Takes the lab down and the second cluster with it, also what is left of one that never came up.
pub(crate) fn down(lab: &Lab) -> Result<()> {
    let both = if lab.first().is_none() { vec![lab.second()?, lab.clone()] } else { vec![lab.clone()] };
    let there = |lab: &Lab| Ok::<_, anyhow::Error>(lab.state().exists() || cgroup::exists(lab)?);
    if !both.iter().map(there).collect::<Result<Vec<_>>>()?.contains(&true) {
        println!("lab {}: not up", lab.name);
        return Ok(());
    }
    step(&format!("lab {}: down", lab.name), || both.iter().try_for_each(remove))
}

fn remove(lab: &Lab) -> Result<()> {
    let _lock = state::lock(lab)?;
    clean(lab)?;
    lab.first().map_or(Ok(()), |first| second::leave(&first, lab))
}

fn clean(lab: &Lab) -> Result<()> {
    cgroup::destroy(lab)?;
    if lab.state().exists() {
        fs::remove_dir_all(lab.state()).with_context(|| format!("cannot remove {}", lab.state().display()))?;
    }
    Ok(())
}

/// Prints what is up and where.
pub(crate) fn status(lab: &Lab, json: bool) -> Result<i32> {
    status::print(lab, json)
}

/// Runs a program in a part of the lab.
pub(crate) fn exec(lab: &Lab, part: Part, who: &As, program: &[OsString]) -> Result<i32> {
    exec::run(lab, part, who, program)
}

/// Loads images that were built since the lab last did.
pub(crate) fn refresh_images(lab: &Lab) -> Result<()> {
    let second = lab.second().ok();
    for lab in std::iter::once(lab).chain(&second) {
        let _lock = state::lock(lab)?;
        if state::is_up(lab) {
            kube::refresh_images(lab)?;
        }
    }
    Ok(())
}

/// Starts the first process of a part in its cgroups and namespaces.
fn start(lab: &Lab, part: Part) -> Result<()> {
    let log = File::options().create(true).append(true).open(lab.log(part.as_str()))?;
    let mut command = elevate::own();
    command
        .args(["lab-init", part.as_str(), "--name", &lab.name])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    sys::enter(&mut command, Entry { cgroups: cgroup::create(lab, part)?, fresh: true, ..Entry::default() });
    let child = sys::spawn_in_new_pid_namespace(&mut command)?;
    state::remember(lab, part, child.id())
}

/// What such a process does.
pub(crate) fn init(lab: &Lab, part: Part) -> Result<()> {
    match part {
        Part::Node => node::init(lab),
        Part::Laptop => laptop::init(lab),
        Part::Internet => internet::init(lab),
    }
}

/// Waits until the part has said so (`supervise::mark`).
fn marked(lab: &Lab, part: Part, what: &str, limit: Duration) -> Result<()> {
    let alive = || {
        state::pid(lab, part).map_err(|_| {
            let log = fs::read_to_string(lab.log(part.as_str())).unwrap_or_default();
            anyhow!("the first process of {} ended:\n{log}", part.as_str())
        })
    };
    wait_for(&format!("{what} of {}", part.as_str()), limit, || {
        Ok(Path::new(&format!("/proc/{}/root{}/{what}", alive()?, config::RUN_LAB)).exists())
    })
}

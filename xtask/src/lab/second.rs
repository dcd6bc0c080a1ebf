//! The second cluster: a node alone, beside a lab whose laptop gets a cable to it and a context for it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::config::{Lab, Part, RUN_LAB};
use super::{links, marked, state};
use crate::run::wait_for;

/// The lists of a kubeconfig.
const LISTS: [&str; 3] = ["clusters", "users", "contexts"];

/// Joins the second cluster to the laptop, which may still be coming up.
pub(crate) fn join(first: &Lab, second: &Lab) -> Result<()> {
    wait_for("the laptop", Duration::from_secs(30), || Ok(state::pid(first, Part::Laptop).is_ok()))?;
    marked(first, Part::Laptop, "network", Duration::from_secs(15))?;
    cut(first, second)?;
    links::cluster(state::pid(second, Part::Node)?, state::pid(first, Part::Laptop)?, second.cluster())?;
    let mut all = kubeconfig(first)?;
    let more = kubeconfig(second)?;
    for list in LISTS {
        let (Some(Value::Array(all)), Some(Value::Array(more))) = (all.get_mut(list), more.get(list)) else {
            bail!("a kubeconfig has no {list}");
        };
        all.extend(more.iter().cloned());
    }
    show(first, &all)
}

/// Takes the context away again from a laptop that has it.
pub(crate) fn leave(first: &Lab, second: &Lab) -> Result<()> {
    let Ok(laptop) = state::pid(first, Part::Laptop) else { return Ok(()) };
    if !fs::exists(format!("/proc/{laptop}/root{RUN_LAB}/kubeconfig"))? {
        return Ok(());
    }
    show(first, &kubeconfig(first)?)?;
    cut(first, second)
}

/// Takes away the cable of a node that is gone, if it is still there.
fn cut(first: &Lab, second: &Lab) -> Result<()> {
    let (laptop, link) = (state::pid(first, Part::Laptop)?, second.cluster().link);
    let end = format!("/proc/{laptop}/root/sys/class/net/{link}");
    match links::cut(laptop, link) {
        // It goes by itself as well.
        Err(_) if !fs::exists(&end)? => Ok(()),
        done => done,
    }
}

/// What the lab's laptop gets when it comes up.
fn kubeconfig(lab: &Lab) -> Result<Value> {
    Ok(serde_json::from_slice(&fs::read(lab.pki().join("laptop.kubeconfig"))?)?)
}

/// Replaces the laptop's kubeconfig, whoever reads it meanwhile.
fn show(lab: &Lab, config: &Value) -> Result<()> {
    let file = format!("/proc/{}/root{RUN_LAB}/kubeconfig", state::pid(lab, Part::Laptop)?);
    let new = format!("{file}.new");
    fs::write(&new, serde_json::to_string_pretty(config)?).with_context(|| format!("cannot write {new}"))?;
    fs::set_permissions(&new, Permissions::from_mode(0o644))?;
    Ok(fs::rename(&new, &file)?)
}

//! Under which conditions the numbers hold: machine, versions, date, noise.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::lab::{LIMIT, Lab, Part, finish};
use crate::rounds::Subject;

/// Numbers without these say nothing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Conditions {
    /// RFC 3339, UTC.
    pub(crate) date: String,
    pub(crate) kernel: String,
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    /// Runnable processes in the minute before the run and in its last: more than the run's own is noise.
    pub(crate) load_before: Option<f64>,
    pub(crate) load_after: Option<f64>,
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
    pub(crate) measured: BTreeSet<Subject>,
    /// The checkout's commit; `+` when it has changes.
    pub(crate) commit: String,
    pub(crate) tpx: String,
    pub(crate) kubectl: String,
    pub(crate) kubernetes: String,
    pub(crate) containerd: String,
}

impl Conditions {
    pub(crate) fn now(lab: &Lab, rounds: usize, quick: bool, measured: BTreeSet<Subject>) -> Conditions {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let json = |words: &[&str]| -> Value {
            serde_json::from_str(&lab.run(Part::Laptop, words).unwrap_or_default()).unwrap_or_default()
        };
        let word = |value: &Value| value.as_str().unwrap_or(UNKNOWN).to_owned();
        let versions = json(&["kubectl", "version", "--output=json"]);
        let containerd = lab.run(Part::Node, &["containerd", "--version"]).unwrap_or_default();
        Conditions {
            date: OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_else(|_| UNKNOWN.into()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: model(&read("/proc/cpuinfo")).unwrap_or(UNKNOWN).to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            load_before: load(),
            load_after: None,
            rounds,
            quick,
            measured,
            commit: commit(),
            tpx: word(&json(&["tpx", "version", "--format=json"])["client"]),
            kubectl: word(&versions["clientVersion"]["gitVersion"]),
            kubernetes: word(&versions["serverVersion"]["gitVersion"]),
            containerd: containerd.split_whitespace().nth(2).unwrap_or(UNKNOWN).to_owned(),
        }
    }

    /// Called at the end of the run.
    pub(crate) fn ended(&mut self) {
        self.load_after = load();
    }
}

const UNKNOWN: &str = "unknown";

fn load() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

fn commit() -> String {
    let git = |words: &[&str]| finish(Command::new("git").args(words).current_dir(env!("CARGO_MANIFEST_DIR")), LIMIT);
    match (git(&["rev-parse", "--short", "HEAD"]), git(&["status", "--porcelain", "--untracked-files=no"])) {
        (Ok(commit), Ok(changes)) => format!("{}{}", commit.trim(), if changes.is_empty() { "" } else { "+" }),
        _ => UNKNOWN.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::model;

    #[test]
    fn the_model_is_the_first_processors() {
        assert_eq!(model("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: other\n"), Some("AMD EPYC"));
        assert_eq!(model("processor\t: 0\n"), None);
    }
}

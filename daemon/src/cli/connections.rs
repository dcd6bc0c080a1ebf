//! Which connections run, and which of them a command is about.

use std::{
    fs,
    path::Path,
    process::ExitCode,
    str::FromStr,
    time::{Duration, SystemTime},
};

use regex::Regex;

use super::{output::Output, render, simple};
use crate::{
    cgroup,
    failure::{Failure, Kind},
    ipc::Client,
    paths,
    userd::status::{Scope, Status},
};

/// The connection that `tpx connect` makes unless told otherwise.
pub(crate) const DEFAULT: &str = "default";
/// The environment variable with the value of `--use`; set for what runs inside of `tpx run`.
pub(crate) const VARIABLE: &str = "TPX_USE";
/// How old a socket must be before it counts as left behind: a daemon that has just made its own may not listen yet.
const SETTLED: Duration = Duration::from_secs(10);

/// How long one of many may take to say how it is.
const ANSWER: Duration = Duration::from_secs(3);

/// Connection names become file names.
pub(crate) fn name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 63 || text.starts_with('.') || !text.chars().all(fine) {
        return Err("use 1 to 63 letters, digits, '-', '_' or '.', not starting with '.'".into());
    }
    Ok(text.to_owned())
}

/// The value of `--use`: a name, or an expression that a name matches.
#[derive(Debug, Clone)]
pub(crate) struct Used(Regex);

impl Used {
    /// What means this name and no other.
    pub(crate) fn exactly(name: &str) -> String {
        format!("^{}$", name.replace('.', "\\."))
    }

    /// What was asked for, as a name where it is one.
    fn wanted(&self) -> String {
        let text = self.0.as_str();
        let plain = text.trim_start_matches('^').trim_end_matches('$').replace("\\.", ".");
        if Self::exactly(&plain) == text { plain } else { text.to_owned() }
    }
}

/// The value of `--use` where nobody has typed one.
///
/// # Errors
/// When it is none.
pub(crate) fn from_environment() -> Result<Option<Used>, Failure> {
    match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => text.parse().map(Some).map_err(|why: String| {
            let what = format!("{VARIABLE}={text:?}: {why}");
            Failure::new(Kind::Usage, what, "unset the variable, or name a connection with --use")
        }),
        _ => Ok(None),
    }
}

impl FromStr for Used {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Regex::new(text).map(Self).map_err(|_| "this is neither a name nor a regular expression".into())
    }
}

/// The connection that a command is about: the one that `--use` names, else the only one, else the default one. Whether
/// it runs is left to the command.
///
/// # Errors
/// When several could be meant, or others run than those that were meant; the error lists them.
pub(crate) fn chosen(used: Option<&Used>) -> Result<String, Failure> {
    let running = running()?;
    match choose(used, &running) {
        Choice::One(name) => Ok(name.to_owned()),
        Choice::Several(names) => Err(ambiguous(&names)),
        Choice::None if running.is_empty() => Ok(used.map_or_else(|| DEFAULT.to_owned(), Used::wanted)),
        Choice::None => Err(Failure::new(
            Kind::NotConnected,
            format!("no connection matches {:?}", used.map_or("", |used| used.0.as_str())),
            format!("choose one of these with --use: {}", described(&running)),
        )),
    }
}

/// The names of the connections that run, sorted. Sockets that dead daemons left are removed.
///
/// # Errors
/// When the folder of sockets cannot be read.
pub(crate) fn running() -> Result<Vec<String>, Failure> {
    let internal = |e: std::io::Error| Failure::internal(format!("cannot look for connections: {e}"));
    let directory = paths::runtime_dir().map_err(internal)?;
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(internal)? {
        let path = entry.map_err(internal)?.path();
        let Some(name) = path.file_name().and_then(|file| file.to_str()?.strip_suffix(".sock")) else { continue };
        match Client::connect(&path) {
            Ok(Some(_)) => names.push(name.to_owned()),
            Ok(None) if is_settled(&path) => drop(fs::remove_file(&path)),
            Ok(None) | Err(_) => {}
        }
    }
    names.sort();
    Ok(names)
}

fn is_settled(path: &Path) -> bool {
    let made = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    made.is_ok_and(|made| SystemTime::now().duration_since(made).is_ok_and(|age| age > SETTLED))
}

/// The states of these connections, as far as they answer. One that is still connecting does not.
pub(crate) fn statuses(names: &[String]) -> Vec<Status> {
    let status = |name: &String| simple::ask_status(&mut simple::open(name).ok().flatten()?.within(ANSWER)).ok();
    names.iter().filter_map(status).collect()
}

/// The connection whose cluster a process sees: that of the innermost scope around it.
pub(crate) fn of_process(pid: u32) -> Result<Option<String>, Failure> {
    let below = cgroup::of(pid).ok().flatten();
    Ok(around(below.as_deref(), &statuses(&running()?), Scope::is_of_processes))
}

/// The innermost of these connections around a directory, among those whose scope is meant.
fn around(below: Option<&str>, statuses: &[Status], is_meant: fn(&Scope) -> bool) -> Option<String> {
    let root = tpx_datapath::linux::cgroup::root().ok();
    let directory = root.zip(below).map(|(root, below)| root.join(below.trim_start_matches('/')));
    let meant = statuses.iter().filter(|status| is_meant(&status.scope));
    cgroup::innermost(directory.as_deref(), meant.map(|status| (&status.name, status.scope.cgroup()))).cloned()
}

/// A process tree of `tpx run`.
pub(crate) struct Tree {
    /// The name of its connection; `None`: another user's, or it has just ended.
    pub(crate) connection: Option<String>,
}

/// The process tree that this process is in. The cgroup's name says so, also of other users' trees, as under sudo.
pub(crate) fn own_tree() -> Result<Option<Tree>, Failure> {
    let below = cgroup::of(std::process::id()).ok().flatten().unwrap_or_default();
    if !is_in_tree(&below) {
        return Ok(None);
    }
    let is_tree = |scope: &Scope| matches!(scope, Scope::Tree { .. });
    Ok(Some(Tree { connection: around(Some(&below), &statuses(&running()?), is_tree) }))
}

fn is_in_tree(below: &str) -> bool {
    Path::new(below).iter().any(tpx_datapath::linux::cgroup::is_tree)
}

/// `tpx status` where several run and none is chosen: a line for each.
pub(crate) fn list(out: &Output, names: &[String]) -> ExitCode {
    let statuses = statuses(names);
    out.result(&serde_json::json!({ "connections": statuses }), || render::connections(&statuses));
    ExitCode::SUCCESS
}

fn ambiguous(names: &[&str]) -> Failure {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let next = "choose one with --use NAME, or see `tpx status`";
    Failure::new(Kind::Usage, format!("{} connections run: {}", names.len(), described(&names)), next)
}

/// The names, with what each sees of which cluster.
fn described(names: &[String]) -> String {
    let statuses = statuses(names);
    let describe = |name: &String| match statuses.iter().find(|status| status.name == *name) {
        Some(status) => format!("{name} ({}, context {})", status.scope, status.kubernetes.context),
        None => format!("{name} (connecting)"),
    };
    names.iter().map(describe).collect::<Vec<_>>().join(", ")
}

/// What `--use` comes to among the connections that run.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    /// This one.
    One(&'a str),
    /// Any of these could be meant.
    Several(Vec<&'a str>),
    /// There is none, or none that was meant.
    None,
}

/// Chooses among `running`. A name wins over an expression that matches it and others.
fn choose<'a>(used: Option<&Used>, running: &'a [String]) -> Choice<'a> {
    let called = |wanted: &str| running.iter().map(String::as_str).find(|name| *name == wanted);
    let all = running.iter().map(String::as_str);
    let fits: Vec<&str> = match used {
        Some(Used(pattern)) => match called(pattern.as_str()) {
            Some(name) => vec![name],
            None => all.filter(|name| pattern.is_match(name)).collect(),
        },
        None => called(DEFAULT).filter(|_| running.len() > 1).map_or_else(|| all.collect(), |name| vec![name]),
    };
    match &fits[..] {
        [] => Choice::None,
        [one] => Choice::One(one),
        _ => Choice::Several(fits),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names() {
        assert!(name("shop-2").is_ok());
        for bad in ["", "a/b", "..", ".hidden", "a b", &"x".repeat(64)] {
            assert!(name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_only_one_or_the_default_one_is_meant() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let none: Option<&str> = None;
        let used = |text: &str| text.parse::<Used>().unwrap();
        for (text, running, wanted) in [
            (none, "", Choice::None),
            (none, "run-1", Choice::One("run-1")),
            (none, "default run-1", Choice::One("default")),
            (none, "run-1 run-2", Choice::Several(vec!["run-1", "run-2"])),
            (Some("run-1"), "run-1 run-12", Choice::One("run-1")),
            (Some("run"), "default run-1", Choice::One("run-1")),
            (Some("run-.*"), "run-1 run-2", Choice::Several(vec!["run-1", "run-2"])),
            (Some("^un"), "run-1", Choice::None),
            (Some("default"), "", Choice::None),
        ] {
            assert_eq!(choose(text.map(used).as_ref(), &names(running)), wanted, "{text:?} among {running}");
        }
        assert!("(".parse::<Used>().is_err());
    }

    #[test]
    fn a_tree_is_known_by_its_cgroup() {
        assert!(is_in_tree("/user.slice/tpx-tree-1-0") && is_in_tree("/a/tpx-tree-1-0/app.scope"));
        assert!(!is_in_tree("/user.slice/tpx-tree.scope") && !is_in_tree("/") && !is_in_tree(""));
    }

    #[test]
    fn a_name_is_said_as_it_is() {
        let wanted = |text: &str| text.parse::<Used>().unwrap().wanted();
        for name in ["run-1", "a.b", "default"] {
            assert_eq!((wanted(name), wanted(&Used::exactly(name))), (name.to_owned(), name.to_owned()));
        }
        assert_eq!(wanted("^run"), "^run");
    }
}

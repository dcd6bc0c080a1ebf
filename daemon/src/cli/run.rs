//! `tpx run`: a connection for one command and what it starts.

use std::{
    io::IsTerminal as _,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitCode},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tpx_core::plan::Scope;

use super::{
    RunArgs, child, connect,
    connections::{self, Used},
    env_file,
    output::Output,
    render, simple,
};
use crate::{
    cgroup,
    config::UserFile,
    failure::{Failure, Kind},
    ipc::{Reply, Request, Variable},
    paths,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx run -- curl web-app.emojivoto              this curl sees the cluster, nothing else does
  tpx run --context staging -n shop -- bash      a shell in staging, beside one in production
  tpx run --env-file pod.env -- ./shop           with a pod's environment
  tpx run --name ide -- code .                   an editor that goes on after the command has ended
  tpx quit --use ide                             ends its connection before the editor ends";

/// How long a tree may take to become empty after its command has ended: children that end with it are no leftovers.
const ENDING: Duration = Duration::from_millis(300);
const POLL: Duration = Duration::from_millis(5);
/// How many leftover processes are named.
const NAMED: usize = 3;

/// Runs `tpx run`.
pub(crate) fn run(out: &Output, file: UserFile, args: RunArgs) -> Result<ExitCode, Failure> {
    let RunArgs { join, name, env_file, quiet, command } = args;
    let mut variables = Vec::new();
    for path in &env_file {
        variables.extend(env_file::read(path)?);
    }
    let name = name.unwrap_or_else(|| paths::made_up_name(std::process::id()));
    let socket = join.rootd_socket.clone();
    let progress = out.discreet_progress(quiet);
    let status = connect::join(join, file, &name, (Scope::Tree, None), &progress)?;
    drop(progress);
    if !quiet {
        let is_watched = std::io::stderr().is_terminal();
        eprintln!("{}", if is_watched { render::connected(&status) } else { render::running(&status) });
    }
    let cgroup = status.scope.cgroup().ok_or_else(|| Failure::internal("the process tree has no cgroup"))?;
    let daemon = process_file(status.user_daemon.pid);
    let started = translated(&name, variables).and_then(|variables| {
        let own = std::env::current_exe().map_err(|e| Failure::internal(e.to_string()))?;
        let mut enter = Command::new(own);
        enter.arg("enter").arg("--socket").arg(&socket).arg("--cgroup").arg(cgroup).arg("--").args(&command);
        enter.envs(variables.into_iter().map(|variable| (variable.name, variable.value)));
        enter.env(connections::VARIABLE, Used::exactly(&name));
        child::run(enter, daemon).map_err(|e| Failure::internal(format!("cannot start the command: {e}")))
    });
    if started.as_ref().is_ok_and(|ended| ended.outlived) {
        out.warning(&lost(&name, &status.user_daemon.log));
    }
    // The exit code is the command's, whatever becomes of the connection.
    if let Err(failure) = leave(out, &name, cgroup, quiet) {
        out.warning(&failure);
    }
    started.map(|ended| ExitCode::from(child::code(ended.status)))
}

/// The file of a process, which tells of its end. Where the kernel has none, nobody hears of it.
fn process_file(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()
}

/// Said when the command has ended: before, the terminal is its own.
fn lost(name: &str, log: &str) -> Failure {
    let what = format!("connection {name} ended before the command did, which went on without the cluster");
    Failure::new(Kind::NotConnected, what, format!("{log} says why"))
}

/// Variables with the addresses that they have here.
fn translated(name: &str, variables: Vec<Variable>) -> Result<Vec<Variable>, Failure> {
    if variables.is_empty() {
        return Ok(variables);
    }
    match simple::client(name)?.ask(&Request::TranslateEnv { variables }, &mut |_| {})? {
        Reply::Env(variables) => Ok(variables),
        other => Err(simple::unexpected(&other)),
    }
}

/// Ends the connection, unless the command has left processes that need it.
fn leave(out: &Output, name: &str, cgroup: &Path, quiet: bool) -> Result<(), Failure> {
    let until = Instant::now() + ENDING;
    while !cgroup::is_empty(cgroup) && Instant::now() < until {
        thread::sleep(POLL);
    }
    let left = cgroup::processes(cgroup);
    if left.is_empty() || simple::open(name)?.is_none() {
        return simple::end(&out.discreet_progress(quiet), name).map(drop);
    }
    let names: Vec<String> = left.iter().take(NAMED).map(|pid| described(*pid)).collect();
    let more = if left.len() > NAMED { ", ..." } else { "" };
    let processes = if left.len() == 1 { "process" } else { "processes" };
    eprintln!(
        "The command left {} {processes} running ({}{more}): connection {name} stays until the last has ended, or until \
         `tpx quit --use {name}`",
        left.len(),
        names.join(", ")
    );
    Ok(())
}

fn described(pid: u32) -> String {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    format!("{} {pid}", name.trim())
}

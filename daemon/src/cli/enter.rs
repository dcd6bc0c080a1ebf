//! What `tpx run` and its user daemon start inside of a process tree.
//!
//! `tpx enter`: moves this process into a process tree, then becomes the command. One process throughout: the command
//! has the pid, the terminal and the open files that `tpx run` gave to it.

use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use clap::Args;
use tokio::runtime::Runtime;
use tpx_datapath::remote;

use super::child;
use crate::{
    failure::{Failure, Kind, chain},
    userd::probe::Probe,
};

/// Arguments of `tpx enter`.
#[derive(Args)]
pub(crate) struct EnterArgs {
    /// The privileged daemon's socket
    #[arg(long)]
    socket: PathBuf,
    /// The tree's directory in the cgroup2 tree
    #[arg(long)]
    cgroup: PathBuf,
    /// What to become
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Enters and becomes the command; returns only when that fails.
pub(crate) fn run(args: &EnterArgs) -> Result<ExitCode, Failure> {
    let runtime = runtime()?;
    runtime.block_on(remote::enter(&args.socket, &args.cgroup)).map_err(|e| {
        let what = format!("cannot enter the process tree: {}", chain(&e));
        Failure::new(Kind::Host, what, "the connection may have ended meanwhile: see `tpx status`")
    })?;
    drop(runtime);
    let (program, arguments) = args.command.split_first().ok_or_else(|| Failure::internal("there is no command"))?;
    let error = Command::new(program).args(arguments).exec();
    eprintln!("error: cannot run {}: {error}; check the command after `--`", program.display());
    Ok(ExitCode::from(child::not_started(&error)))
}

/// `tpx probe`: what does not work goes to standard error.
pub(crate) fn probe(probe: &Probe) -> Result<ExitCode, Failure> {
    Ok(match runtime()?.block_on(probe.here()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("{what}");
            ExitCode::FAILURE
        }
    })
}

/// Without threads: what enters a process tree has to be one process and nothing else.
fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| Failure::internal(e.to_string()))
}

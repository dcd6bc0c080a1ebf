//! `tpx connect`: starts what must run, asks the user daemon to connect, and runs a command if there is one.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use super::{ConnectArgs, launch, output::Output, render, simple};
use crate::{
    failure::{Failure, Kind},
    ipc::{ConnectParams, Reply, Request},
    userd::status::Status,
};

/// Runs `tpx connect`.
pub(crate) fn run(out: &Output, name: &str, args: ConnectArgs) -> Result<ExitCode, Failure> {
    if let Some(mut client) = simple::open(name)? {
        return Err(already(simple::ask_status(&mut client).ok().as_ref()));
    }
    let progress = out.progress();
    let _rootd = launch::rootd(&args.rootd_socket, &progress)?;
    let mut client = launch::userd(name)?;
    let params = ConnectParams {
        namespace: args.namespace,
        context: args.kube.context,
        kubeconfig: args.kube.kubeconfig,
        mapped_namespaces: args.mapped_namespaces,
        manager_namespace: args.kube.manager_namespace,
        rootd_socket: args.rootd_socket,
    };
    let status = match client.ask(&Request::Connect(params), &mut |step| progress.step(step))? {
        Reply::Status(status) => *status,
        other => return Err(simple::unexpected(&other)),
    };
    drop(progress);
    if args.command.is_empty() {
        out.result(&status, || render::connected(&status));
        return Ok(ExitCode::SUCCESS);
    }
    while_connected(out, name, &status, &args.command)
}

fn while_connected(out: &Output, name: &str, status: &Status, command: &[String]) -> Result<ExitCode, Failure> {
    eprintln!("{}", render::connected(status));
    let ran = Command::new(&command[0]).args(&command[1..]).status();
    if let Some(client) = simple::open(name)? {
        simple::stop(out, client)?;
    }
    match ran {
        // As shells do: 128 and the signal's number.
        Ok(status) => Ok(ExitCode::from(
            status.code().or_else(|| status.signal().map(|n| 128 + n)).and_then(|n| u8::try_from(n).ok()).unwrap_or(1),
        )),
        Err(e) => Err(Failure::new(
            Kind::Usage,
            format!("cannot run {}: {e}", command[0]),
            "check the command after `--`; the connection was ended",
        )),
    }
}

fn already(status: Option<&Status>) -> Failure {
    let to = status.map_or_else(|| "a cluster".into(), |s| format!("context {}", s.kubernetes.context));
    Failure::new(
        Kind::AlreadyConnected,
        format!("already connected to {to}"),
        "run `tpx quit` first, or `tpx status` to see it",
    )
}

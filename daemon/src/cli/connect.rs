//! `tpx connect`: starts what must run, asks the user daemon to connect, and runs a command if there is one.

use std::{
    os::unix::process::ExitStatusExt as _,
    process::{Command, ExitCode},
};

use tpx_core::config::{Config, Source};

use super::{ConnectArgs, launch, output::Output, render, simple};
use crate::{
    config::UserFile,
    failure::{Failure, Kind},
    ipc::{ConnectParams, Reply, Request},
    userd::status::Status,
};

pub(super) const EXAMPLES: &str = "\
Examples:
  tpx connect
  tpx connect --context staging -n shop
  tpx connect --mapped-namespaces shop,billing
  tpx connect --vnat service --vnat pods            both behind virtual addresses
  tpx connect --allow-conflicting-subnets 10.128.0.0/9
                                                    here the cluster wins over the VPN
  tpx connect --also-proxy 203.0.113.0/24 --never-proxy 203.0.113.128/25
  tpx connect --deny namespace:prod --deny port:25  connections there are refused
  tpx connect --datapath tun                        no eBPF program is loaded
  tpx connect -- curl web-app.emojivoto";

/// Runs `tpx connect`.
pub(crate) fn run(out: &Output, name: &str, file: UserFile, args: ConnectArgs) -> Result<ExitCode, Failure> {
    let settings = args.routing.layer()?.over(file.layer);
    let config = Config::from(settings.clone());
    config.check()?;
    if let Some(mut client) = simple::open(name)? {
        return Err(already(simple::ask_status(&mut client).ok().as_ref()));
    }
    let progress = out.progress();
    let level = &config.log_root_daemon;
    let log = (level.origin.source != Source::Default).then_some(level.value);
    let _rootd = launch::rootd(&args.rootd_socket, log, &progress)?;
    let mut client = launch::userd(name)?;
    let params = ConnectParams {
        namespace: args.namespace,
        context: args.kube.context,
        kubeconfig: args.kube.kubeconfig,
        mapped_namespaces: args.mapped_namespaces,
        manager_namespace: args.kube.manager_namespace,
        rootd_socket: args.rootd_socket,
        settings: Box::new(settings),
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

//! `tpx connect`: starts what must run, asks the user daemon to connect, and runs a command if there is one.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
};

use tpx_core::{
    config::{Config, Datapath, Source},
    plan::Scope,
    scope::ScopeSelector,
};

use super::{
    ConnectArgs, JoinArgs, child, connections, launch,
    output::{Output, Progress},
    render, scope, simple,
};
use crate::{
    config::UserFile,
    failure::{Failure, Kind},
    ipc::{ConnectParams, Reply, Request},
    userd::{
        road,
        status::{self, Status},
    },
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
  tpx connect --name db --scope unit:postgresql     only that service's processes see the cluster
  tpx connect --name box --scope container:devbox   only that container sees the cluster
  tpx connect -- curl web-app.emojivoto";

/// Runs `tpx connect`.
pub(crate) fn run(out: &Output, file: UserFile, args: ConnectArgs) -> Result<ExitCode, Failure> {
    let ConnectArgs { join: wanted, name, scope, command } = args;
    if let Some(tree) = connections::own_tree()? {
        return Err(inside(tree.connection.as_deref()));
    }
    let resolved = scope::resolve(&scope)?;
    let container = if let ScopeSelector::Container(name) = scope { Some(name) } else { None };
    let progress = out.progress();
    let status = join(wanted, file, &name, (resolved, container), &progress)?;
    drop(progress);
    if command.is_empty() {
        out.result(&status, || render::connected(&status));
        return Ok(ExitCode::SUCCESS);
    }
    while_connected(out, &name, &status, &command)
}

/// Joins a cluster by a user daemon of its own; returns when the datapath carries traffic.
///
/// # Errors
/// Whatever stands in the way; then nothing is left behind.
pub(super) fn join(
    args: JoinArgs,
    file: UserFile,
    name: &str,
    (scope, container): (Scope, Option<String>),
    progress: &Progress,
) -> Result<Status, Failure> {
    let settings = args.routing.layer()?.over(file.layer);
    let config = Config::from(settings.clone());
    config.check()?;
    if scope.is_tree() && config.datapath.value == Datapath::Tun {
        return Err(road::no_scope(Kind::Usage, &format!("{} says tun", config.datapath.origin)));
    }
    check_free(name, &scope)?;
    let level = &config.log_root_daemon;
    let log = (level.origin.source != Source::Default).then_some(level.value);
    let _rootd = launch::rootd(&args.rootd_socket, log, progress)?;
    let mut client = launch::userd(name)?;
    let params = ConnectParams {
        namespace: args.namespace,
        context: args.kube.context,
        kubeconfig: args.kube.kubeconfig,
        mapped_namespaces: args.mapped_namespaces,
        manager_namespace: args.kube.manager_namespace,
        rootd_socket: args.rootd_socket,
        scope,
        container,
        settings: Box::new(settings),
    };
    match client.ask(&Request::Connect(params), &mut |step| progress.step(step))? {
        Reply::Status(status) => Ok(*status),
        other => Err(simple::unexpected(&other)),
    }
}

/// Names are unique, and so is the connection of the whole workstation.
fn check_free(name: &str, scope: &Scope) -> Result<(), Failure> {
    let running = connections::running()?;
    let statuses = connections::statuses(&running);
    let everywhere = |status: &&Status| status.scope == status::Scope::Workstation;
    if *scope == Scope::Workstation
        && let Some(other) = statuses.iter().find(everywhere)
    {
        return Err(Failure::new(
            Kind::AlreadyConnected,
            format!("this workstation is already connected to context {} ({})", other.kubernetes.context, other.name),
            "run `tpx quit` first, or `tpx run -- CMD` to show another cluster to one command",
        ));
    }
    if running.iter().any(|other| other == name) {
        return Err(Failure::new(
            Kind::AlreadyConnected,
            format!("a connection called {name} runs already"),
            format!("choose another name with --name, or end it with `tpx quit --use {name}`"),
        ));
    }
    Ok(())
}

/// A daemon that starts in a process tree is one of its processes: it would see that tree's cluster in the place of the host's
/// network, and keep the tree's connection for ever. (That of a `tpx run` in a `tpx run` does as well, but ends before.)
fn inside(tree: Option<&str>) -> Failure {
    let which = tree.map(|name| format!(", connection {name}")).unwrap_or_default();
    Failure::new(
        Kind::Usage,
        format!("this is the inside of `tpx run`{which}: what connects here would be a part of it"),
        "run `tpx connect` in another terminal, or `tpx run -- CMD` here for one more cluster",
    )
}

fn while_connected(out: &Output, name: &str, status: &Status, words: &[OsString]) -> Result<ExitCode, Failure> {
    eprintln!("{}", render::connected(status));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    let ran = child::run(command, None).map(|ended| ended.status);
    simple::end(&out.progress(), name)?;
    match ran {
        Ok(status) => Ok(ExitCode::from(child::code(status))),
        Err(e) => {
            let what = format!("cannot run {}: {e}", words[0].display());
            out.failure(&Failure::new(Kind::Usage, what, "check the command after `--`; the connection was ended"));
            Ok(ExitCode::from(child::not_started(&e)))
        }
    }
}

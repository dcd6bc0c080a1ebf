//! Commands that ask the user daemon one question.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use super::{
    connections::{self, Used},
    output::{Output, Progress},
    render,
};
use crate::{
    failure::{Failure, Kind},
    ipc::{Client, Reply, Request},
    paths,
    userd::status::Status,
};

/// Longest that an orderly end may take before `tpx quit` stops waiting for it.
const QUIT: Duration = Duration::from_secs(10);

/// `tpx status`: of the connection that is meant; without `--use`, where none is the usual one, of all.
pub(crate) fn status(out: &Output, used: Option<&Used>) -> Result<ExitCode, Failure> {
    if used.is_none() {
        let running = connections::running()?;
        if running.len() > 1 {
            return Ok(connections::list(out, &running));
        }
    }
    let status = ask_status(&mut client(&connections::chosen(used)?)?)?;
    out.result(&status, || render::status(&status));
    Ok(ExitCode::SUCCESS)
}

/// What became of one connection.
#[derive(Serialize)]
struct Ended {
    name: String,
    was_connected: bool,
}

/// `tpx quit`: also fine when nothing is connected.
pub(crate) fn quit(out: &Output, used: Option<&Used>) -> Result<ExitCode, Failure> {
    let name = connections::chosen(used)?;
    let was_connected = end(&out.progress(), &name)?;
    out.result(&Ended { name, was_connected }, || {
        if was_connected { "Disconnected".into() } else { "Not connected".into() }
    });
    Ok(ExitCode::SUCCESS)
}

/// `tpx quit --all`.
pub(crate) fn quit_all(out: &Output) -> Result<ExitCode, Failure> {
    let mut ended = Vec::new();
    for name in connections::running()? {
        ended.push(Ended { was_connected: end(&out.progress(), &name)?, name });
    }
    out.result(&serde_json::json!({ "connections": ended }), || match &ended[..] {
        [] => "Not connected".into(),
        ended => {
            format!("Disconnected {}", ended.iter().map(|ended| ended.name.as_str()).collect::<Vec<_>>().join(", "))
        }
    });
    Ok(ExitCode::SUCCESS)
}

/// Ends a connection; whether there was one. It may end by itself meanwhile.
pub(crate) fn end(progress: &Progress, name: &str) -> Result<bool, Failure> {
    let Some(client) = open(name)? else { return Ok(false) };
    match stop(progress, client) {
        Err(_) if open(name)?.is_none() => Ok(true),
        stopped => stopped.map(|()| true),
    }
}

/// Ends a user daemon and waits until it has gone.
fn stop(progress: &Progress, mut client: Client) -> Result<(), Failure> {
    progress.step("Disconnecting");
    client.ask_to_end(&mut |step| progress.step(step))?;
    client.wait_closed(QUIT);
    Ok(())
}

#[derive(Serialize)]
struct Versions {
    client: String,
    user_daemon: Option<String>,
    root_daemon: Option<String>,
    traffic_manager: Option<String>,
}

/// `tpx version`: works unconnected, then with the client's own version only.
pub(crate) fn version(out: &Output, used: Option<&Used>) -> Result<ExitCode, Failure> {
    // Who asks for the version of this program needs no choice.
    let several = used.is_none() && connections::running()?.len() > 1;
    let client = if several { None } else { open(&connections::chosen(used)?)? };
    let status = client.map(|mut client| ask_status(&mut client)).transpose()?;
    let versions = Versions {
        client: tpx_api::VERSION.into(),
        user_daemon: status.as_ref().map(|s| s.user_daemon.version.clone()),
        root_daemon: status.as_ref().map(|s| s.root_daemon.version.clone()),
        traffic_manager: status.as_ref().map(|s| s.manager.version.clone()),
    };
    out.result(&versions, || {
        let none = if several { "several connections run: choose one with --use" } else { "not connected" };
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| none.into());
        render::pairs(&[
            ("Client", versions.client.clone()),
            ("User daemon", shown(&versions.user_daemon)),
            ("Root daemon", shown(&versions.root_daemon)),
            ("Traffic manager", shown(&versions.traffic_manager)),
        ])
    });
    Ok(ExitCode::SUCCESS)
}

/// `tpx list-namespaces`.
pub(crate) fn list_namespaces(out: &Output, name: &str) -> Result<ExitCode, Failure> {
    match client(name)?.ask(&Request::ListNamespaces, &mut |_| {})? {
        Reply::Namespaces(rows) => out.result(&rows, || render::namespaces(&rows)),
        other => return Err(unexpected(&other)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for the state.
pub(crate) fn ask_status(client: &mut Client) -> Result<Status, Failure> {
    match client.ask(&Request::Status, &mut |_| {})? {
        Reply::Status(status) => Ok(*status),
        other => Err(unexpected(&other)),
    }
}

/// The user daemon called `name`, if it runs.
pub(crate) fn open(name: &str) -> Result<Option<Client>, Failure> {
    let socket = paths::socket(name).map_err(|e| Failure::internal(e.to_string()))?;
    Client::connect(&socket)
}

/// A reply of the wrong type.
pub(crate) fn unexpected(reply: &Reply) -> Failure {
    Failure::internal(format!("the user daemon answered something else: {reply:?}"))
}

/// The user daemon called `name`.
///
/// # Errors
/// When it does not run.
pub(crate) fn client(name: &str) -> Result<Client, Failure> {
    open(name)?.ok_or_else(|| Failure::new(Kind::NotConnected, "not connected", "run `tpx connect`"))
}

//! Commands that ask the user daemon one question.

use std::{process::ExitCode, time::Duration};

use serde::Serialize;

use super::{output::Output, render};
use crate::{
    failure::{Failure, Kind},
    ipc::{Client, Reply, Request},
    paths,
    userd::status::Status,
};

/// Longest that an orderly end may take before `tpx quit` stops waiting for it.
const QUIT: Duration = Duration::from_secs(10);

/// `tpx status`.
pub(crate) fn status(out: &Output, name: &str) -> Result<ExitCode, Failure> {
    let status = ask_status(&mut client(name)?)?;
    out.result(&status, || render::status(&status));
    Ok(ExitCode::SUCCESS)
}

/// `tpx quit`: also fine when nothing is connected.
pub(crate) fn quit(out: &Output, name: &str) -> Result<ExitCode, Failure> {
    let was = match open(name)? {
        Some(client) => {
            stop(out, client)?;
            true
        }
        None => false,
    };
    out.result(&serde_json::json!({ "name": name, "was_connected": was }), || {
        if was { "Disconnected".into() } else { "Not connected".into() }
    });
    Ok(ExitCode::SUCCESS)
}

/// Ends a user daemon and waits until it has gone.
pub(crate) fn stop(out: &Output, mut client: Client) -> Result<(), Failure> {
    let progress = out.progress();
    progress.step("Disconnecting");
    client.ask(&Request::Quit, &mut |step| progress.step(step))?;
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
pub(crate) fn version(out: &Output, name: &str) -> Result<ExitCode, Failure> {
    let status = match open(name)? {
        Some(mut client) => Some(ask_status(&mut client)?),
        None => None,
    };
    let versions = Versions {
        client: tpx_api::VERSION.into(),
        user_daemon: status.as_ref().map(|s| s.user_daemon.version.clone()),
        root_daemon: status.as_ref().map(|s| s.root_daemon.version.clone()),
        traffic_manager: status.as_ref().map(|s| s.manager.version.clone()),
    };
    out.result(&versions, || {
        let shown = |version: &Option<String>| version.clone().unwrap_or_else(|| "not connected".into());
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

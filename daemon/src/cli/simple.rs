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
    /// Why it could not be ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

/// `tpx quit`: also fine when nothing is connected.
pub(crate) fn quit(out: &Output, used: Option<&Used>) -> Result<ExitCode, Failure> {
    let name = connections::chosen(used)?;
    let was_connected = end(&out.progress(), &name)?;
    out.result(&Ended { name, was_connected, error: None }, || {
        if was_connected { "Disconnected".into() } else { "Not connected".into() }
    });
    Ok(ExitCode::SUCCESS)
}

/// `tpx quit --all`: one that does not end is in no other's way. The exit code is that of the first.
pub(crate) fn quit_all(out: &Output) -> Result<ExitCode, Failure> {
    let progress = out.progress();
    let ended = end_all(connections::running()?, |name| end(&progress, name));
    drop(progress);
    out.result(&serde_json::json!({ "connections": ended }), || all_ended(&ended));
    let failures: Vec<Failure> = ended.into_iter().filter_map(|ended| ended.error).collect();
    if out.is_text() {
        failures.iter().for_each(|failure| out.failure(failure));
    }
    Ok(failures.first().map_or(ExitCode::SUCCESS, |failure| ExitCode::from(failure.kind.exit_code())))
}

fn end_all(names: Vec<String>, mut end: impl FnMut(&str) -> Result<bool, Failure>) -> Vec<Ended> {
    let one = |name: String| match end(&name) {
        Ok(was_connected) => Ended { name, was_connected, error: None },
        Err(Failure { kind, what, next }) => {
            let error = Failure::new(kind, format!("cannot end {name}: {what}"), next);
            Ended { name, was_connected: true, error: Some(error) }
        }
    };
    names.into_iter().map(one).collect()
}

fn all_ended(all: &[Ended]) -> String {
    let names: Vec<&str> = all.iter().filter(|one| one.error.is_none()).map(|one| one.name.as_str()).collect();
    match &names[..] {
        [] if all.is_empty() => "Not connected".into(),
        [] => "Nothing was disconnected".into(),
        names => format!("Disconnected {}", names.join(", ")),
    }
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
    // An expression that matches none is the name of none.
    if connections::name(name).is_err() {
        return Ok(None);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_does_not_end_is_in_nobodys_way() {
        let names = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let fails = |name: &str| match name {
            "b" | "d" => Err(Failure::new(Kind::Host, format!("{name} is stuck"), "wait")),
            _ => Ok(true),
        };
        let ended = end_all(names("a b c d"), fails);
        assert_eq!(all_ended(&ended), "Disconnected a, c");
        let errors: Vec<String> = ended.iter().filter_map(|one| Some(one.error.as_ref()?.to_string())).collect();
        assert_eq!(errors, ["cannot end b: b is stuck; wait", "cannot end d: d is stuck; wait"]);
        assert_eq!(all_ended(&end_all(names("b"), fails)), "Nothing was disconnected");
        assert_eq!(all_ended(&[]), "Not connected");
    }
}

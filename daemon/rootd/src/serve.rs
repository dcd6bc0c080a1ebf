//! The life of the daemon: take connections, notice the end, leave the host as it was.

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::{Instant, sleep},
};

use crate::{
    conversation::converse,
    sessions::{Hosts, Sessions},
    socket::Socket,
};

/// How long `--exit-when-idle` waits for the first connection.
const IDLE: Duration = Duration::from_secs(30);
/// How long it waits for the next one when none is left: who started it looks first whether it listens.
const ALONE: Duration = Duration::from_millis(300);
/// Most connections at one time.
const CONNECTIONS: usize = 32;

/// Serves until SIGTERM or SIGINT, or, `when_idle`, until the last connection has ended or none came in time. The host is
/// then reverted.
///
/// # Errors
/// When signals cannot be caught or the host cannot be reverted.
pub(crate) async fn serve<M: Hosts>(socket: Socket, sessions: Sessions<M>, when_idle: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    // Started through sudo, the terminal may close while the session goes on.
    let _hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let sessions = Arc::new(sessions);
    let mut conversations = JoinSet::new();
    let idle = sleep(IDLE);
    tokio::pin!(idle);
    let end = loop {
        tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) if conversations.len() < CONNECTIONS => {
                    conversations.spawn(converse(Arc::clone(&sessions), stream));
                    idle.as_mut().reset(far());
                }
                Ok(_) => tracing::warn!("more than {CONNECTIONS} connections: turned one away"),
                Err(e) => {
                    tracing::warn!("accept: {e}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            Some(ended) = conversations.join_next() => {
                // What a broken conversation has left half done is not known: only the end of the process undoes it all.
                if let Err(e) = ended {
                    break Err(anyhow::Error::new(e).context("a conversation broke down"));
                }
                if conversations.is_empty() {
                    idle.as_mut().reset(Instant::now() + ALONE);
                }
            },
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            () = &mut idle, if when_idle => {
                tracing::info!("nobody needs this any more");
                break Ok(());
            }
        }
    };
    drop(socket);
    conversations.shutdown().await;
    sessions.revert_all().await.context("cannot undo everything")?;
    end
}

/// A time that does not come.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

#[cfg(test)]
mod noting;
#[cfg(test)]
mod tests;

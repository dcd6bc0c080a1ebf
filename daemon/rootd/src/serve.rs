//! The life of the daemon: take connections, notice the end, leave the host as it was.

use std::{
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tpx_core::plan::Plan;
use tpx_datapath::{
    Host,
    linux::{Bridges, Handover},
    remote::protocol::{Session, Status},
};

use crate::{pace::Pace, session::converse, socket::Socket};

/// How long `--exit-when-idle` waits for the first connection.
const IDLE: Duration = Duration::from_secs(30);
/// How long it waits for the next one when none is left: who started it looks first whether it listens.
const ALONE: Duration = Duration::from_millis(300);
/// How long a new connection waits for a session that is about to end.
const GRACE: Duration = Duration::from_millis(500);
/// Most connections at one time.
const CONNECTIONS: usize = 32;

/// Changes of the host that are carried out at once, and the time between more of them. A host's routes may change
/// several times a second for a while.
const BURST: u32 = 32;
const INTERVAL: Duration = Duration::from_millis(250);

/// What all connections share.
pub(crate) struct Service<H> {
    /// The host. Whoever changes it holds this lock from the request to the reply.
    pub(crate) host: tokio::sync::Mutex<H>,
    /// The only user that is served, besides root.
    pub(crate) owner: u32,
    /// Gives each connection its number.
    pub(crate) connections: AtomicU64,
    session: watch::Sender<Option<Claim>>,
    bridges: watch::Receiver<Bridges>,
    state: Mutex<State>,
    pace: Mutex<Pace>,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    unavailable: Option<String>,
}

/// Which connection has the session.
#[derive(Debug, Clone, Copy)]
struct Claim {
    connection: u64,
    session: Session,
}

impl<H> Service<H> {
    /// Serves `owner` with `host`, whose `bridges` are shown.
    pub(crate) fn new(host: H, bridges: watch::Receiver<Bridges>, owner: u32, unavailable: Option<String>) -> Self {
        Self {
            host: tokio::sync::Mutex::new(host),
            owner,
            connections: AtomicU64::new(0),
            session: watch::Sender::new(None),
            bridges,
            state: Mutex::new(State { plan: None, unavailable }),
            pace: Mutex::new(Pace::new(BURST, INTERVAL, std::time::Instant::now())),
        }
    }

    /// Gives the session to `connection`, unless another one has it.
    pub(crate) async fn claim(&self, connection: u64, session: Session) -> Result<(), Session> {
        if let Some(other) = self.rival(connection).await {
            return Err(other);
        }
        let mut rival = None;
        self.session.send_if_modified(|held| match held {
            Some(c) if c.connection != connection => {
                rival = Some(c.session);
                false
            }
            held => {
                *held = Some(Claim { connection, session });
                true
            }
        });
        rival.map_or(Ok(()), Err)
    }

    /// The session of another connection, after giving it a moment to end: its process may have been killed just now.
    pub(crate) async fn rival(&self, connection: u64) -> Option<Session> {
        let mut held = self.session.subscribe();
        let free = |held: &Option<Claim>| held.is_none_or(|c| c.connection == connection);
        let _ = timeout(GRACE, held.wait_for(free)).await;
        let held = *held.borrow();
        held.filter(|c| c.connection != connection).map(|c| c.session)
    }

    /// Whether `connection` has the session.
    pub(crate) fn holds(&self, connection: u64) -> bool {
        self.session.borrow().is_some_and(|c| c.connection == connection)
    }

    /// Ends the session; the host has been reverted.
    pub(crate) fn release(&self) {
        self.set_plan(None);
        self.session.send_replace(None);
    }

    /// Takes a claim back that never became a session.
    pub(crate) fn give_up(&self) {
        self.session.send_replace(None);
    }

    pub(crate) fn set_plan(&self, plan: Option<Plan>) {
        self.state().plan = plan;
    }

    pub(crate) fn has_plan(&self) -> bool {
        self.state().plan.is_some()
    }

    /// Remembers why the express lane is not available, or that it is.
    pub(crate) fn set_unavailable(&self, why: Option<String>) {
        self.state().unavailable = why;
    }

    pub(crate) fn status(&self) -> Status {
        let state = self.state();
        Status {
            pid: std::process::id(),
            owner: self.owner,
            session: self.session.borrow().map(|c| c.session),
            plan: state.plan.clone(),
            unavailable: state.unavailable.clone(),
            bridges: self.bridges.borrow().clone(),
        }
    }

    /// How long a request that changes the host has to wait.
    pub(crate) fn take_turn(&self, now: std::time::Instant) -> Duration {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves until SIGTERM or SIGINT, or, `when_idle`, until the last connection has ended or none came in time. The host is
/// then reverted.
///
/// # Errors
/// When signals cannot be caught or the host cannot be reverted.
pub(crate) async fn serve<H>(socket: Socket, service: Service<H>, when_idle: bool) -> anyhow::Result<()>
where
    H: Host<Handover = Handover> + 'static,
{
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    // Started through sudo, the terminal may close while the session goes on.
    let _hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let service = Arc::new(service);
    let mut conversations = JoinSet::new();
    let idle = sleep(IDLE);
    tokio::pin!(idle);
    let end = loop {
        tokio::select! {
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) if conversations.len() < CONNECTIONS => {
                    conversations.spawn(converse(Arc::clone(&service), stream));
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
    service.host.lock().await.revert().await.context("cannot undo everything")?;
    end
}

/// A time that does not come.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

#[cfg(test)]
mod tests;

//! One connection: questions in order, and the end that undoes everything.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    net::UnixStream,
    time::{sleep, timeout},
};
use tpx_core::plan::{Plan, Road};
use tpx_datapath::{
    Host, HostError,
    linux::Handover,
    remote::{
        Receiver, Sender, WireError,
        protocol::{Denied, Failure, Reply, Request, Session, VERSION, Welcome, quotable},
        split_without_files,
    },
};

use crate::serve::Service;

/// How long the first request may take to begin, and any request to arrive once it has begun.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a caller without a session may say nothing. Long enough for a cluster to be made ready before the plan.
const LOOKING: Duration = Duration::from_secs(600);
/// How long a caller may take to read an answer.
const READING: Duration = Duration::from_secs(5);

/// Talks with one caller until it goes away, and reverts the host if it had the session.
pub(crate) async fn converse<H>(service: Arc<Service<H>>, stream: UnixStream)
where
    H: Host<Handover = Handover>,
{
    let caller = match stream.peer_cred() {
        Ok(c) => Session { uid: c.uid(), pid: c.pid().and_then(|p| u32::try_from(p).ok()).unwrap_or(0) },
        Err(e) => return tracing::warn!("SO_PEERCRED: {e}"),
    };
    let (mut sender, receiver) = split_without_files(stream);
    if caller.uid != service.owner && caller.uid != 0 {
        tracing::warn!("denied: process {} of user {}", caller.pid, caller.uid);
        let _ = timeout(READING, sender.send(&Reply::Denied(Denied { owner: service.owner }), &[])).await;
        return;
    }
    let connection = service.connections.fetch_add(1, Ordering::Relaxed);
    let mut conversation = Conversation { service: &service, caller, connection, sender };
    if let Err(e) = conversation.run(receiver).await {
        tracing::warn!("process {}: {}", caller.pid, quotable(&e.to_string()));
    }
    if service.holds(connection) {
        tracing::info!("process {} is gone: reverting", caller.pid);
        if let Err(e) = service.host.lock().await.revert().await {
            tracing::error!("{e}");
        }
        service.release();
    }
}

struct Conversation<'a, H> {
    service: &'a Service<H>,
    caller: Session,
    connection: u64,
    sender: Sender,
}

impl<H> Conversation<'_, H>
where
    H: Host<Handover = Handover>,
{
    async fn run(&mut self, mut receiver: Receiver) -> Result<(), WireError> {
        let mut greeted = false;
        loop {
            // Who has the session may be silent for days.
            let idle = match (greeted, self.service.holds(self.connection)) {
                (false, _) => Some(PROMPT),
                (true, false) => Some(LOOKING),
                (true, true) => None,
            };
            let request = match receiver.receive_within(idle, PROMPT).await {
                Ok(Some((request, _))) => request,
                Ok(None) => return Ok(()),
                Err(e) => {
                    let _ = self.say(&Reply::Failed(Failure::protocol(e.to_string()))).await;
                    return Err(e);
                }
            };
            match request {
                Request::Hello(hello) => {
                    self.welcome().await?;
                    if hello.version != VERSION {
                        return Ok(());
                    }
                    greeted = true;
                }
                _ if !greeted => {
                    return self.say(&Reply::Failed(Failure::protocol("say hello first"))).await;
                }
                Request::Apply(plan) => self.apply(*plan).await?,
                Request::Revert => self.revert().await?,
                Request::Status => {
                    let status = self.service.status();
                    self.say(&Reply::Status(Box::new(status))).await?;
                }
            }
        }
    }

    async fn welcome(&mut self) -> Result<(), WireError> {
        let session = self.service.rival(self.connection).await;
        let unavailable = self.service.status().unavailable;
        let mut features = vec![Welcome::TUN.into(), Welcome::DNS.into()];
        if unavailable.is_none() {
            features.push(Welcome::EXPRESS_TCP.into());
        }
        let release = env!("CARGO_PKG_VERSION").into();
        self.say(&Reply::Welcome(Welcome { version: VERSION, release, features, unavailable, session })).await
    }

    async fn apply(&mut self, plan: Plan) -> Result<(), WireError> {
        // Before anything else: a bad plan neither waits for a session nor takes one.
        if let Err(e) = plan.check() {
            let refused = HostError::Refused(e.to_string());
            tracing::warn!("process {}: {}", self.caller.pid, quotable(&refused.to_string()));
            return self.say(&Reply::Failed((&refused).into())).await;
        }
        if let Err(other) = self.service.claim(self.connection, self.caller).await {
            return self.say(&Reply::Busy(other)).await;
        }
        self.pace().await;
        let applied = self.service.host.lock().await.apply(&plan).await;
        match applied {
            Ok(handover) => {
                tracing::info!("applied {} subnets for process {}", plan.steer.len(), self.caller.pid);
                // The floor alone says nothing about the programs.
                if plan.road == Road::Express {
                    self.service.set_unavailable(None);
                }
                self.service.set_plan(Some(plan));
                let (layout, files) = handover.into_fds();
                let files: Vec<_> = files.iter().map(|f| f.as_fd()).collect();
                self.send(&Reply::Applied(layout), &files).await
            }
            Err(e) => {
                tracing::warn!("not applied: {}", quotable(&e.to_string()));
                if !self.service.has_plan() {
                    self.service.give_up();
                }
                if let HostError::Unsupported(why) = &e {
                    self.service.set_unavailable(Some(why.clone()));
                }
                self.say(&Reply::Failed((&e).into())).await
            }
        }
    }

    async fn revert(&mut self) -> Result<(), WireError> {
        if !self.service.holds(self.connection) {
            return self.say(&Reply::Reverted).await;
        }
        self.pace().await;
        let reverted = self.service.host.lock().await.revert().await;
        let reply = reverted.map_or_else(|e| Reply::Failed((&e).into()), |()| Reply::Reverted);
        // The answer first: the end of the session may be the end of the process.
        let said = self.say(&reply).await;
        self.service.release();
        said
    }

    /// Waits for the turn of a request that changes the host.
    async fn pace(&self) {
        let wait = self.service.take_turn(Instant::now());
        if !wait.is_zero() {
            tracing::debug!("process {}: too many changes, this one waits {wait:?}", self.caller.pid);
            sleep(wait).await;
        }
    }

    async fn say(&mut self, reply: &Reply) -> Result<(), WireError> {
        self.send(reply, &[]).await
    }

    async fn send(&mut self, reply: &Reply, files: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        timeout(READING, self.sender.send(reply, files)).await.unwrap_or(Err(WireError::Slow))
    }
}

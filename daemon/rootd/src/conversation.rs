//! One connection: questions in order, and the end that undoes everything.

use std::{
    fs,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::{
    net::UnixStream,
    runtime::Handle,
    task::spawn_blocking,
    time::{sleep, timeout},
};
use tpx_core::plan::{Plan, Road, Scope};
use tpx_datapath::{
    Host as _, HostError,
    linux::{Handover, Process},
    remote::{
        Receiver, Sender, WireError,
        protocol::{Denied, Enter, Failure, Reply, Request, VERSION, Welcome, quotable},
        split_without_files,
    },
};

use crate::sessions::{Hosts, NoSession, Sessions, SharedHost};

/// How long the first request may take to begin, and any request to arrive once it has begun.
const PROMPT: Duration = Duration::from_secs(5);
/// How long a caller without a session may say nothing. Long enough for a cluster to be made ready before the plan.
const LOOKING: Duration = Duration::from_secs(600);
/// Or it is one of a PID namespace that cannot be seen from here.
const ENDED: &str = "the process that asked has ended";
/// How long a caller may take to read an answer.
const READING: Duration = Duration::from_secs(5);

/// Talks with one caller until it goes away, and reverts the host if it had a session.
pub(crate) async fn converse<M: Hosts>(sessions: Arc<Sessions<M>>, stream: UnixStream) {
    let caller = match stream.peer_cred() {
        Ok(c) => Caller::new(c.uid(), c.pid().and_then(|p| u32::try_from(p).ok()).unwrap_or(0)),
        Err(e) => return tracing::warn!("SO_PEERCRED: {e}"),
    };
    let (mut sender, receiver) = split_without_files(stream);
    if caller.uid != sessions.owner && caller.uid != 0 {
        tracing::warn!("denied: process {} of user {}", caller.pid, caller.uid);
        let _ = timeout(READING, sender.send(&Reply::Denied(Denied { owner: sessions.owner }), &[])).await;
        return;
    }
    let (uid, pid) = (caller.uid, caller.pid);
    let connection = sessions.connections.fetch_add(1, Ordering::Relaxed);
    let mut conversation = Conversation { sessions: &sessions, caller, connection, sender };
    if let Err(e) = conversation.run(receiver).await {
        tracing::warn!("process {pid}: {}", quotable(&e.to_string()));
    }
    if let Some(host) = sessions.host(connection) {
        tracing::info!("process {pid} of user {uid} is gone: reverting");
        if let Err(e) = revert::<M>(host).await {
            tracing::error!("{e}");
        }
        sessions.release(connection);
    }
}

/// Who has connected.
pub(crate) struct Caller {
    /// Its user.
    pub(crate) uid: u32,
    /// Its number, for people.
    pub(crate) pid: u32,
    /// Held from the beginning, so that nobody else is moved in its place.
    pub(crate) process: Option<Arc<Process>>,
}

impl Caller {
    fn new(uid: u32, pid: u32) -> Self {
        let process = Process::open(pid).ok();
        // It may have ended before it was held, and its number have gone to another user's.
        let same = fs::metadata(format!("/proc/{pid}")).is_ok_and(|m| m.uid() == uid);
        Self { uid, pid, process: process.filter(|_| same).map(Arc::new) }
    }
}

/// Changes a host on a thread of its own: what takes the kernel long does not keep the other sessions waiting.
async fn apply<M: Hosts>(host: SharedHost<M::Host>, plan: Plan) -> Result<Handover, HostError> {
    work(async move { host.lock().await.apply(&plan).await }).await
}

/// As [`apply`].
async fn revert<M: Hosts>(host: SharedHost<M::Host>) -> Result<(), HostError> {
    work(async move { host.lock().await.revert().await }).await
}

async fn work<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    let runtime = Handle::current();
    match spawn_blocking(move || runtime.block_on(work)).await {
        Ok(done) => done,
        // Only a panic ends such work early.
        Err(e) => std::panic::resume_unwind(e.into_panic()),
    }
}

struct Conversation<'a, M: Hosts> {
    sessions: &'a Arc<Sessions<M>>,
    caller: Caller,
    connection: u64,
    sender: Sender,
}

impl<M: Hosts> Conversation<'_, M> {
    async fn run(&mut self, mut receiver: Receiver) -> Result<(), WireError> {
        let mut greeted = false;
        loop {
            // Who has a session may be silent for days.
            let idle = match (greeted, self.sessions.holds(self.connection)) {
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
                    let status = self.sessions.status(self.connection);
                    self.say(&Reply::Status(Box::new(status))).await?;
                }
                Request::Tables => self.tables().await?,
                Request::Enter(Enter { cgroup }) => {
                    let entered = self.enter(cgroup).await;
                    self.say(&entered.map_or_else(|e| self.failed(&e), |()| Reply::Entered)).await?;
                }
            }
        }
    }

    async fn welcome(&mut self) -> Result<(), WireError> {
        let unavailable = self.sessions.unavailable();
        let mut features = vec![Welcome::TUN.into(), Welcome::DNS.into()];
        if unavailable.is_none() {
            features.push(Welcome::EXPRESS_TCP.into());
        }
        if self.sessions.stays {
            features.push(Welcome::STAYS.into());
        }
        let (missing, sessions) = (self.sessions.missing.clone(), self.sessions.list());
        let release = env!("CARGO_PKG_VERSION").into();
        self.say(&Reply::Welcome(Welcome { version: VERSION, release, features, unavailable, missing, sessions })).await
    }

    async fn apply(&mut self, plan: Plan) -> Result<(), WireError> {
        // Before anything else: a bad plan neither waits for a session nor takes one.
        if let Err(e) = plan.check() {
            let refused = self.failed(&HostError::Refused(e.to_string()));
            return self.say(&refused).await;
        }
        if plan.scope == Scope::Tree && self.caller.process.is_none() {
            let refused = self.failed(&HostError::Refused(ENDED.into()));
            return self.say(&refused).await;
        }
        let host = match self.sessions.claim(self.connection, &self.caller, &plan.scope).await {
            Ok(host) => host,
            Err(NoSession::Busy(other)) => return self.say(&Reply::Busy(other)).await,
            Err(why) => {
                let refused = self.failed(&HostError::Refused(why.to_string()));
                return self.say(&refused).await;
            }
        };
        self.pace().await;
        match apply::<M>(host, plan.clone()).await {
            Ok(handover) => {
                tracing::info!("applied {} subnets for process {}", plan.steer.len(), self.caller.pid);
                // The floor alone says nothing about the programs.
                if plan.road == Road::Express {
                    self.sessions.set_unavailable(None);
                }
                self.sessions.set_plan(self.connection, plan, handover.scope.as_deref());
                let (layout, files) = handover.into_fds();
                let files: Vec<_> = files.iter().map(|f| f.as_fd()).collect();
                self.send(&Reply::Applied(layout), &files).await?;
                // Files under way are this process's, and there cannot be many: who does not take them gets no more.
                timeout(READING, self.sender.taken()).await.unwrap_or(Err(WireError::Slow))
            }
            Err(e) => {
                self.sessions.give_up(self.connection);
                if let HostError::Unsupported(why) = &e {
                    self.sessions.set_unavailable(Some(why.clone()));
                }
                let failed = self.failed(&e);
                self.say(&failed).await
            }
        }
    }

    /// The kernel waits for all threads of the machine meanwhile, so this is paced as well.
    async fn enter(&self, cgroup: PathBuf) -> Result<(), HostError> {
        let process = self.caller.process.clone().ok_or_else(|| HostError::Refused(ENDED.into()))?;
        let (sessions, uid) = (Arc::clone(self.sessions), self.caller.uid);
        let wait = sessions.take_turn_to_enter(uid, &cgroup, Instant::now())?;
        sleep(wait).await;
        work(async move { sessions.enter(uid, &cgroup, &process) }).await
    }

    async fn revert(&mut self) -> Result<(), WireError> {
        let Some(host) = self.sessions.host(self.connection) else {
            return self.say(&Reply::Reverted).await;
        };
        self.pace().await;
        let reverted = revert::<M>(host).await;
        let reply = reverted.map_or_else(|e| Reply::Failed((&e).into()), |()| Reply::Reverted);
        // The answer first: the end of the session may be the end of the process.
        let said = self.say(&reply).await;
        self.sessions.release(self.connection);
        said
    }

    async fn tables(&mut self) -> Result<(), WireError> {
        let tables = match self.sessions.host(self.connection) {
            Some(host) => work(async move { M::tables(&*host.lock().await) }).await,
            None => Err(HostError::Refused("there is no session to look at".into())),
        };
        let reply = tables.map_or_else(|e| self.failed(&e), |tables| Reply::Tables(Box::new(tables)));
        self.say(&reply).await
    }

    /// Logs a failure and makes an answer of it.
    fn failed(&self, e: &HostError) -> Reply {
        tracing::warn!("process {}: {}", self.caller.pid, quotable(&e.to_string()));
        Reply::Failed(e.into())
    }

    /// Waits for the turn of a request that changes the host.
    async fn pace(&self) {
        let wait = self.sessions.take_turn(self.connection, Instant::now());
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

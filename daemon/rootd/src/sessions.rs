//! The sessions of all connections: each has a slot and a host of its own, so that what one does and how it ends is
//! nothing to the others.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use tokio::{sync::watch, time::timeout};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::{
    Host, HostError, Tables,
    linux::{Bridges, Handover, Process, Slot},
    remote::protocol::{Missing, Session, Status},
};

use crate::{conversation::Caller, pace::Pace};

/// How long a new session waits for one that is about to end: its process may have been killed just now.
const GRACE: Duration = Duration::from_millis(500);

/// Changes of the host that are carried out at once for one session, and the time between more of them. A host's routes
/// may change several times a second for a while.
pub(crate) const BURST: u32 = 32;
/// See [`BURST`].
pub(crate) const INTERVAL: Duration = Duration::from_millis(250);

/// What sessions are made of.
pub(crate) trait Hosts: Send + Sync + 'static {
    /// Does the work of one session.
    type Host: Host<Handover = Handover> + 'static;

    /// A host for `slot`, of a session of process `caller`.
    fn make(&self, slot: Slot, caller: Option<Arc<Process>>) -> Self::Host;

    /// The bridges whose containers a host serves, as they come and go.
    fn bridges(&self, host: &Self::Host) -> watch::Receiver<Bridges>;

    /// What stands in the maps of a host's programs.
    ///
    /// # Errors
    /// [`HostError`].
    fn tables(host: &Self::Host) -> Result<Tables, HostError>;

    /// Moves a process into the cgroup of a session.
    ///
    /// # Errors
    /// [`HostError`].
    fn enter(&self, cgroup: &Path, process: &Process, uid: u32) -> Result<(), HostError>;
}

/// What all connections share.
pub(crate) struct Sessions<M: Hosts> {
    hosts: M,
    /// The only user that is served, besides root.
    pub(crate) owner: u32,
    /// Gives each connection its number.
    pub(crate) connections: AtomicU64,
    /// What the kernel lacks.
    pub(crate) missing: Vec<Missing>,
    /// Whether the process stays when it has no sessions.
    pub(crate) stays: bool,
    table: watch::Sender<Table<M::Host>>,
    state: Mutex<State>,
}

/// By connection.
type Table<H> = BTreeMap<u64, Entry<H>>;

struct Entry<H> {
    session: Session,
    slot: Slot,
    /// Whoever changes it holds this lock from the request to the reply.
    host: SharedHost<H>,
    bridges: watch::Receiver<Bridges>,
    /// What was applied last; `None` before the first success.
    plan: Option<Plan>,
    /// The cgroup that was made for it.
    tree: Option<PathBuf>,
}

/// A session's host.
pub(crate) type SharedHost<H> = Arc<tokio::sync::Mutex<H>>;

struct State {
    unavailable: Option<String>,
    /// When each slot was given back, as a count: the next session takes the one that is free for the longest time.
    freed: [u64; SLOTS],
    /// Of all sessions that a slot has after each other: whoever begins anew does not begin with a new burst.
    paces: [Pace; SLOTS],
}

const SLOTS: usize = Slot::COUNT as usize;

/// Why there is no session for a plan.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoSession {
    /// There can be one for the workstation, and this has it.
    #[error("the workstation is in a cluster already")]
    Busy(Session),
    /// No slot is free.
    #[error("{} process trees are in clusters already, and there is no room for more; end one of them first", SLOTS - 1)]
    Full,
    /// The connection has a session of the other kind.
    #[error("the workstation and a process tree cannot be exchanged while one is in use; revert first")]
    OtherKind,
}

impl<M: Hosts> Sessions<M> {
    /// Without sessions yet. `unavailable`: why there is no express lane.
    pub(crate) fn new(hosts: M, owner: u32, unavailable: Option<String>) -> Self {
        Self {
            hosts,
            owner,
            connections: AtomicU64::new(0),
            missing: Vec::new(),
            stays: false,
            table: watch::Sender::new(BTreeMap::new()),
            state: Mutex::new(State {
                unavailable,
                freed: [0; SLOTS],
                paces: std::array::from_fn(|_| Pace::new(BURST, INTERVAL, Instant::now())),
            }),
        }
    }

    /// To be told to whoever says hello.
    pub(crate) fn on_a_kernel_without(self, missing: Vec<Missing>) -> Self {
        Self { missing, ..self }
    }

    /// Whether the process stays when it has no sessions.
    pub(crate) fn staying(self, stays: bool) -> Self {
        Self { stays, ..self }
    }

    /// The host of `connection`'s session for plans of this scope; a new session if it has none.
    ///
    /// # Errors
    /// [`NoSession`].
    pub(crate) async fn claim(
        &self,
        connection: u64,
        caller: &Caller,
        scope: &Scope,
    ) -> Result<SharedHost<M::Host>, NoSession> {
        let mut changes = self.table.subscribe();
        let free = |table: &Table<M::Host>| table.contains_key(&connection) || self.slot_for(table, scope).is_ok();
        let _ = timeout(GRACE, changes.wait_for(free)).await;
        drop(changes);
        let mut claimed = Err(NoSession::Full);
        self.table.send_if_modified(|table| {
            if let Some(entry) = table.get(&connection) {
                let same = (entry.slot == Slot::FIRST) != scope.is_tree();
                claimed = if same { Ok(Arc::clone(&entry.host)) } else { Err(NoSession::OtherKind) };
                return false;
            }
            let slot = match self.slot_for(table, scope) {
                Ok(slot) => slot,
                Err(why) => {
                    claimed = Err(why);
                    return false;
                }
            };
            let host = self.hosts.make(slot, caller.process.clone());
            let bridges = self.hosts.bridges(&host);
            let host = Arc::new(tokio::sync::Mutex::new(host));
            claimed = Ok(Arc::clone(&host));
            let (uid, pid, scope) = (caller.uid, caller.pid, scope.to_string());
            let session = Session { uid, pid, slot: slot.index(), scope };
            table.insert(connection, Entry { session, slot, host, bridges, plan: None, tree: None });
            true
        });
        claimed
    }

    fn slot_for(&self, table: &Table<M::Host>, scope: &Scope) -> Result<Slot, NoSession> {
        let holder = |slot: Slot| table.values().find(|entry| entry.slot == slot);
        if !scope.is_tree() {
            return holder(Slot::FIRST).map_or(Ok(Slot::FIRST), |entry| Err(NoSession::Busy(entry.session.clone())));
        }
        let freed = self.state().freed;
        let free = Slot::all().filter(|slot| *slot != Slot::FIRST && holder(*slot).is_none());
        free.min_by_key(|slot| freed[slot.index() as usize]).ok_or(NoSession::Full)
    }

    /// Whether `connection` has a session.
    pub(crate) fn holds(&self, connection: u64) -> bool {
        self.table.borrow().contains_key(&connection)
    }

    /// The host of a session, if `connection` has one.
    pub(crate) fn host(&self, connection: u64) -> Option<SharedHost<M::Host>> {
        self.table.borrow().get(&connection).map(|entry| Arc::clone(&entry.host))
    }

    /// Ends the session of a connection; its host has been reverted.
    pub(crate) fn release(&self, connection: u64) {
        self.table.send_if_modified(|table| {
            let Some(entry) = table.remove(&connection) else {
                return false;
            };
            let mut state = self.state();
            let last = state.freed.iter().max().copied().unwrap_or(0);
            state.freed[entry.slot.index() as usize] = last + 1;
            true
        });
    }

    /// Takes a claim back that never became a session.
    pub(crate) fn give_up(&self, connection: u64) {
        if self.table.borrow().get(&connection).is_none_or(|entry| entry.plan.is_none()) {
            self.release(connection);
        }
    }

    /// Remembers what was applied for `connection`, and the cgroup that it is in force in.
    pub(crate) fn set_plan(&self, connection: u64, plan: Plan, cgroup: Option<&Path>) {
        self.table.send_if_modified(|table| {
            if let Some(entry) = table.get_mut(&connection) {
                entry.session.scope = cgroup.map_or_else(|| plan.scope.to_string(), |path| path.display().to_string());
                entry.tree = cgroup.filter(|_| plan.scope == Scope::Tree).map(Path::to_owned);
                entry.plan = Some(plan);
            }
            false
        });
    }

    /// How long whoever wants to enter the process tree at `cgroup` has to wait.
    ///
    /// # Errors
    /// [`HostError::Refused`] when no session of the user's has one there.
    pub(crate) fn take_turn_to_enter(&self, uid: u32, cgroup: &Path, now: Instant) -> Result<Duration, HostError> {
        let slot = {
            let table = self.table.borrow();
            let own = |entry: &&Entry<M::Host>| entry.tree.as_deref() == Some(cgroup);
            table.values().find(own).filter(|entry| uid == entry.session.uid || uid == 0).map(|entry| entry.slot)
        };
        let refused = || HostError::Refused(format!("no session of yours has a process tree at {}", cgroup.display()));
        let slot = slot.ok_or_else(refused)?;
        Ok(self.state().paces[slot.index() as usize].take(now))
    }

    /// Moves a process into the process tree at `cgroup`, which is a session's of its user.
    ///
    /// # Errors
    /// [`HostError`].
    pub(crate) fn enter(&self, uid: u32, cgroup: &Path, process: &Process) -> Result<(), HostError> {
        self.hosts.enter(cgroup, process, uid)
    }

    /// Remembers why the express lane is not available, or that it is.
    pub(crate) fn set_unavailable(&self, why: Option<String>) {
        self.state().unavailable = why;
    }

    /// Why it is not available.
    pub(crate) fn unavailable(&self) -> Option<String> {
        self.state().unavailable.clone()
    }

    /// All sessions, by slot.
    pub(crate) fn list(&self) -> Vec<Session> {
        let mut list: Vec<_> = self.table.borrow().values().map(|entry| entry.session.clone()).collect();
        list.sort_by_key(|session| session.slot);
        list
    }

    /// What is going on, for who asks.
    pub(crate) fn status(&self, connection: u64) -> Status {
        let (plan, bridges) = {
            let table = self.table.borrow();
            let first = || table.values().min_by_key(|entry| entry.slot);
            let entry = table.get(&connection).or_else(first);
            let bridges = entry.map(|entry| entry.bridges.borrow().clone());
            (entry.and_then(|entry| entry.plan.clone()), bridges.unwrap_or_default())
        };
        let (pid, owner) = (std::process::id(), self.owner);
        Status { pid, owner, sessions: self.list(), plan, unavailable: self.unavailable(), bridges }
    }

    /// How long a request that changes the host of `connection` has to wait.
    pub(crate) fn take_turn(&self, connection: u64, now: Instant) -> Duration {
        let slot = self.table.borrow().get(&connection).map(|entry| entry.slot);
        slot.map_or(Duration::ZERO, |slot| self.state().paces[slot.index() as usize].take(now))
    }

    /// Ends all sessions.
    ///
    /// # Errors
    /// The last of what went wrong; the others are logged.
    pub(crate) async fn revert_all(&self) -> Result<(), HostError> {
        let hosts: Vec<_> = self.table.borrow().iter().map(|(id, entry)| (*id, Arc::clone(&entry.host))).collect();
        let mut done = Ok(());
        for (connection, host) in hosts {
            let reverted = host.lock().await.revert().await;
            if let Err(e) = &reverted {
                tracing::error!("{e}");
                done = reverted;
            }
            self.release(connection);
        }
        done
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Hosts that only take notes, and a daemon that serves them.

use std::{
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Mutex,
};

use async_trait::async_trait;
use tokio::{sync::watch, task::JoinHandle};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::{
    Host, HostError, RuleRow, Tables,
    linux::{Bridge, Bridges, Handover, Hook, Layout, Process, Slot},
};

use super::*;
use crate::socket;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Note {
    Applied(usize),
    Reverted,
    /// By a process tree, with its slot.
    TreeApplied(u32),
    TreeReverted(u32),
    Entered(PathBuf, u32),
}

#[derive(Clone, Default)]
pub(super) struct Notebook(Arc<Mutex<Vec<Note>>>);

impl Notebook {
    fn add(&self, note: Note) {
        self.0.lock().unwrap().push(note);
    }

    pub(super) fn read(&self) -> Vec<Note> {
        self.0.lock().unwrap().clone()
    }

    pub(super) async fn wait_for(&self, expected: &[Note]) {
        for _ in 0..200 {
            if self.read() == expected {
                return;
            }
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(self.read(), expected);
    }
}

/// Refuses an empty plan, cannot do two subnets, and applies all others; four keep this thread for a while.
pub(super) struct NotingHost(Notebook, Slot);

/// How long an apply of four subnets takes.
pub(super) const SLOW: Duration = Duration::from_millis(1500);

pub(super) struct NotingHosts(pub(super) Notebook);

impl Hosts for NotingHosts {
    type Host = NotingHost;

    fn make(&self, slot: Slot, caller: Option<Arc<Process>>) -> NotingHost {
        assert!(caller.is_none_or(|caller| caller.id() == std::process::id()));
        NotingHost(self.0.clone(), slot)
    }

    fn bridges(&self, _host: &NotingHost) -> watch::Receiver<Bridges> {
        bridges()
    }

    fn tables(host: &NotingHost) -> Result<Tables, HostError> {
        let cidr = format!("10.{}.0.0/16", host.1.index()).parse().unwrap();
        Ok(Tables { rules: vec![RuleRow { cidr, action: "steer".into() }], ..Tables::default() })
    }

    fn enter(&self, cgroup: &Path, process: &Process, _uid: u32) -> Result<(), HostError> {
        self.0.add(Note::Entered(cgroup.into(), process.id()));
        Ok(())
    }
}

/// Where the tree of a slot is said to be.
pub(super) fn tree_at(slot: u32) -> PathBuf {
    format!("/sys/fs/cgroup/tpx-tree-{slot}-0").into()
}

#[async_trait]
impl Host for NotingHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        match plan.steer.len() {
            0 => return Err(HostError::Refused("nothing to steer".into())),
            2 => return Err(HostError::Unsupported("this kernel has no BPF".into())),
            4 => std::thread::sleep(SLOW),
            _ => {}
        }
        let slot = self.1.index();
        let tree = plan.scope.is_tree();
        self.0.add(if tree { Note::TreeApplied(slot) } else { Note::Applied(plan.steer.len()) });
        let layout = Layout {
            slot,
            scope: match &plan.scope {
                Scope::Workstation | Scope::Containers(_) => None,
                Scope::Cgroup(path) => Some(path.clone()),
                Scope::Tree => Some(tree_at(slot)),
            },
            vnet_hdr: true,
            mtu: 1500,
            express: true,
            dns: vec![("10.9.8.7".parse().unwrap(), "246.246.255.53:53".parse().unwrap())],
            unsteered_name_servers: vec![],
            resolved: false,
        };
        let files = (0..layout.files()).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect();
        Ok(Handover::from_fds(layout, files).unwrap())
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        let slot = self.1;
        self.0.add(if slot == Slot::FIRST { Note::Reverted } else { Note::TreeReverted(slot.index()) });
        Ok(())
    }
}

/// A daemon that serves.
pub(super) struct Running {
    pub(super) directory: tempfile::TempDir,
    pub(super) notes: Notebook,
    pub(super) task: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    pub(super) fn start(owner: u32, when_idle: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let notes = Notebook::default();
        let socket = socket::bind(&directory.path().join("s"), rustix::process::getuid().as_raw()).unwrap();
        let service = Sessions::new(NotingHosts(notes.clone()), owner, None).staying(!when_idle);
        let task = tokio::spawn(serve(socket, service, when_idle));
        Self { directory, notes, task }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("s")
    }
}

pub(super) fn bridges() -> watch::Receiver<Bridges> {
    let docker = Bridge { name: "docker0".into(), problem: None };
    watch::Sender::new(Bridges { bridges: vec![docker], hook: Some(Hook::Tcx), problem: None }).subscribe()
}

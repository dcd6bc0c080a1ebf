//! The user daemon's end: a [`Host`] whose work is done by tpx-rootd.

use std::{
    future::Future,
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tpx_core::plan::Plan;

use super::{
    protocol::{Enter, FailureKind, Hello, Reply, Request, Session, Status, VERSION, Welcome},
    wire::{Receiver, Sender, WireError, split},
};
use crate::{Host, HostError, Tables, linux::Handover};

/// How long the first answer may take.
const HELLO: Duration = Duration::from_secs(5);
/// How long any other may take. Loading programs takes a second at most.
const REPLY: Duration = Duration::from_secs(30);

/// Why there is no conversation with tpx-rootd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nothing listens.
    #[error("tpx-rootd is not running ({} does not answer)", path.display())]
    NotRunning {
        /// Where it should.
        path: PathBuf,
    },
    /// It serves somebody else.
    #[error("tpx-rootd serves {}, not you", owner_name(*owner))]
    Denied {
        /// Whom, when it said so.
        owner: Option<u32>,
    },
    /// Another session serves the whole workstation.
    #[error("the workstation is in a cluster already, by process {} of user {}", session.pid, session.uid)]
    Busy {
        /// Which one.
        session: Session,
    },
    /// It is of another release.
    #[error("tpx-rootd {release} speaks protocol version {theirs} and tpx {ours}")]
    VersionMismatch {
        /// Version of this end.
        ours: u32,
        /// Version of tpx-rootd.
        theirs: u32,
        /// Release of tpx-rootd.
        release: String,
    },
    /// It does not behave.
    #[error("tpx-rootd did not answer properly: {0}")]
    Broken(#[source] WireError),
}

impl ConnectError {
    /// What the user can do about it.
    #[must_use]
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::NotRunning { .. } => "start it with `sudo tpx-rootd serve --owner $(id -u)`",
            Self::Denied { .. } => "ask that user to `tpx quit`, or have an administrator change its --owner",
            Self::Busy { .. } => "end that session with `tpx quit`, or use a process tree (`tpx run`) beside it",
            Self::VersionMismatch { .. } => "install both from the same release and restart tpx-rootd",
            Self::Broken(_) => "see its log (`journalctl -u tpx-rootd`)",
        }
    }
}

fn owner_name(owner: Option<u32>) -> String {
    owner.map_or_else(|| "another user".into(), |uid| format!("user {uid}"))
}

impl From<WireError> for ConnectError {
    fn from(e: WireError) -> Self {
        Self::Broken(e)
    }
}

impl From<io::Error> for ConnectError {
    fn from(e: io::Error) -> Self {
        Self::Broken(e.into())
    }
}

/// tpx-rootd, from afar. Everything it applied is undone when this is dropped.
#[derive(Debug)]
pub struct RemoteHost {
    sender: Sender,
    replies: mpsc::Receiver<(Reply, Vec<OwnedFd>)>,
    lost: watch::Receiver<bool>,
    reader: JoinHandle<()>,
    welcome: Welcome,
}

impl RemoteHost {
    /// Connects for a session.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(path: &Path) -> Result<Self, ConnectError> {
        let (sender, receiver, welcome) = greet(path).await?;
        Ok(Self::new(sender, receiver, welcome))
    }

    fn new(sender: Sender, mut receiver: Receiver, welcome: Welcome) -> Self {
        let (tx, replies) = mpsc::channel(1);
        let (gone, lost) = watch::channel(false);
        // Reads all the time, so that a loss is noticed while nothing is asked.
        let reader = tokio::spawn(async move {
            loop {
                let reply = match receiver.receive().await {
                    Ok(Some(reply)) => reply,
                    Ok(None) => break,
                    Err(e) => {
                        tracing::warn!("tpx-rootd: {e}");
                        break;
                    }
                };
                if tx.send(reply).await.is_err() {
                    break;
                }
            }
            let _ = gone.send(true);
        });
        Self { sender, replies, lost, reader, welcome }
    }

    /// What tpx-rootd said about itself.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Whether it is gone.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.reader.is_finished()
    }

    /// Ends when tpx-rootd is gone. What it applied is gone with it.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut lost = self.lost.clone();
        async move {
            let _ = lost.wait_for(|gone| *gone).await;
        }
    }

    /// What is going on.
    ///
    /// # Errors
    /// [`HostError::System`] when tpx-rootd is gone or does not understand.
    pub async fn status(&mut self) -> Result<Status, HostError> {
        match self.ask(&Request::Status).await? {
            (Reply::Status(status), _) => Ok(*status),
            (other, _) => Err(unexpected(other)),
        }
    }

    /// What stands in the kernel's maps that only the privileged daemon writes.
    ///
    /// # Errors
    /// [`HostError`].
    pub async fn tables(&mut self) -> Result<Tables, HostError> {
        match self.ask(&Request::Tables).await? {
            (Reply::Tables(tables), _) => Ok(*tables),
            (other, _) => Err(unexpected(other)),
        }
    }

    async fn ask(&mut self, request: &Request) -> Result<(Reply, Vec<OwnedFd>), HostError> {
        let lost = |source| HostError::System { what: "tpx-rootd".into(), source };
        let answer = async {
            if self.reader.is_finished() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"));
            }
            self.sender.send(request, &[]).await.map_err(|e| match e {
                WireError::Io(e) => e,
                e => io::Error::other(e),
            })?;
            self.replies.recv().await.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended"))
        };
        match timeout(REPLY, answer).await {
            Ok(answer) => answer.map_err(lost),
            Err(_) => {
                // A late answer would be taken for that of the next request: this conversation is over.
                self.reader.abort();
                self.replies.close();
                Err(lost(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl Drop for RemoteHost {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[async_trait]
impl Host for RemoteHost {
    type Handover = Handover;

    async fn apply(&mut self, plan: &Plan) -> Result<Handover, HostError> {
        // The other end asks the same again; a plan that is too long to be read there would cost the session.
        plan.check().map_err(|e| HostError::Refused(e.to_string()))?;
        match self.ask(&Request::Apply(Box::new(plan.clone()))).await? {
            (Reply::Applied(layout), files) => Handover::from_fds(layout, files)
                .map_err(|e| HostError::System { what: "tpx-rootd".into(), source: io::Error::other(e) }),
            (Reply::Busy(session), _) => {
                let busy = ConnectError::Busy { session };
                Err(HostError::Refused(format!("{busy}; {}", busy.next_step())))
            }
            (other, _) => Err(unexpected(other)),
        }
    }

    async fn revert(&mut self) -> Result<(), HostError> {
        match self.ask(&Request::Revert).await? {
            (Reply::Reverted, _) => Ok(()),
            (other, _) => Err(unexpected(other)),
        }
    }
}

fn unexpected(reply: Reply) -> HostError {
    match reply {
        Reply::Failed(failure) => failure.into(),
        other => HostError::System {
            what: "tpx-rootd".into(),
            source: io::Error::new(io::ErrorKind::InvalidData, format!("an answer to another question: {other:?}")),
        },
    }
}

/// Asks what is going on, without a session.
///
/// # Errors
/// [`ConnectError`], but never [`ConnectError::Busy`].
pub async fn look(path: &Path) -> Result<(Welcome, Status), ConnectError> {
    let (mut sender, mut receiver, welcome) = greet(path).await?;
    sender.send(&Request::Status, &[]).await?;
    match within(REPLY, receiver.receive()).await? {
        (Reply::Status(status), _) => Ok((welcome, *status)),
        (other, _) => Err(io::Error::other(unexpected(other)).into()),
    }
}

/// Moves the calling process into a process tree that another process has a session for: `cgroup` is what its
/// [`Handover::scope`] says. What the process starts from then on belongs to the tree as well.
///
/// # Errors
/// [`HostError::Refused`] when there is no such tree or it is another user's; [`HostError::System`] otherwise.
pub async fn enter(socket: &Path, cgroup: &Path) -> Result<(), HostError> {
    let lost =
        |e: ConnectError| HostError::System { what: "enter the process tree".into(), source: io::Error::other(e) };
    let (mut sender, mut receiver, _) = greet(socket).await.map_err(lost)?;
    let request = Request::Enter(Enter { cgroup: cgroup.into() });
    sender.send(&request, &[]).await.map_err(|e| lost(e.into()))?;
    match within(REPLY, receiver.receive()).await.map_err(lost)? {
        (Reply::Entered, _) => Ok(()),
        (other, _) => Err(unexpected(other)),
    }
}

async fn greet(path: &Path) -> Result<(Sender, Receiver, Welcome), ConnectError> {
    let stream = UnixStream::connect(path).await.map_err(|e| match e.kind() {
        io::ErrorKind::PermissionDenied => ConnectError::Denied { owner: None },
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ConnectError::NotRunning { path: path.into() },
        _ => e.into(),
    })?;
    let (mut sender, mut receiver) = split(stream);
    // A refusal is there before the question; then sending may fail, and reading tells why.
    let sent = sender.send(&Request::Hello(Hello { version: VERSION }), &[]).await;
    let reply = within(HELLO, receiver.receive()).await;
    match reply {
        Ok((Reply::Welcome(w), _)) if w.version == VERSION => sent.map(|()| (sender, receiver, w)).map_err(Into::into),
        Ok((Reply::Welcome(w), _)) => {
            Err(ConnectError::VersionMismatch { ours: VERSION, theirs: w.version, release: w.release })
        }
        Ok((Reply::Denied(d), _)) => Err(ConnectError::Denied { owner: Some(d.owner) }),
        Ok((Reply::Failed(f), _)) if f.kind == FailureKind::Protocol => Err(io::Error::other(f.message).into()),
        Ok((other, _)) => Err(io::Error::other(unexpected(other)).into()),
        Err(e) => Err(e),
    }
}

async fn within<T>(
    limit: Duration,
    receive: impl Future<Output = Result<Option<T>, WireError>>,
) -> Result<T, ConnectError> {
    match timeout(limit, receive).await {
        Ok(Ok(Some(message))) => Ok(message),
        Ok(Ok(None)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has ended").into()),
        Ok(Err(e)) => Err(e.into()),
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

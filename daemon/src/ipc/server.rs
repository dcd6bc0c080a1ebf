//! The user daemon's side.

use std::{io, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use super::{MAX_LINE, Reply, Request};

/// After an error on the socket itself, so that a lasting one does not spin.
const PAUSE: Duration = Duration::from_millis(100);
/// Longest that a client may take for its line.
const LINE: Duration = Duration::from_secs(2);

/// A listening socket whose file is removed with it.
pub(crate) struct Bound {
    listener: UnixListener,
    path: std::path::PathBuf,
}

/// Binds the socket, replacing one that a dead daemon left.
///
/// # Errors
/// When another daemon listens there, or the folder cannot be written.
pub(crate) fn bind(path: &Path) -> Result<Bound> {
    let listener = match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                bail!("another user daemon listens on {}", path.display());
            }
            std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
            UnixListener::bind(path)
        }
        other => other,
    }
    .with_context(|| format!("bind {}", path.display()))?;
    Ok(Bound { listener, path: path.to_owned() })
}

impl Bound {
    /// The next request. A client of another user, or one that sends something else, is dropped. Never ends: a daemon that
    /// has no file left for a client still carries what it carries.
    pub(crate) async fn next(&self) -> (Request, Exchange) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("cannot accept on {}: {e}", self.path.display());
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let own = rustix::process::geteuid().as_raw();
            if !stream.peer_cred().is_ok_and(|peer| peer.uid() == own) {
                continue;
            }
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            let mut bounded = (&mut stream).take(MAX_LINE as u64);
            let read = bounded.read_until(b'\n', &mut line);
            match tokio::time::timeout(LINE, read).await {
                Ok(Ok(n)) if n > 0 => {}
                _ => continue,
            }
            let mut exchange = Exchange { stream: stream.into_inner() };
            match serde_json::from_slice(&line) {
                Ok(request) => return (request, exchange),
                Err(e) => {
                    let failure = crate::failure::Failure::new(
                        crate::failure::Kind::Usage,
                        format!("the user daemon does not understand this request: {e}"),
                        "is it of another version? `tpx quit`, then connect again",
                    );
                    let _ = exchange.send(&Reply::Failed(failure)).await;
                }
            }
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One request's answer channel.
pub(crate) struct Exchange {
    stream: UnixStream,
}

impl Exchange {
    /// Sends one line.
    pub(crate) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut line = serde_json::to_vec(reply)?;
        line.push(b'\n');
        self.stream.write_all(&line).await
    }

    /// Resolves when the command line has gone, e.g. by Ctrl-C.
    pub(crate) async fn closed(&mut self) {
        let mut rest = [0; 64];
        while matches!(self.stream.read(&mut rest).await, Ok(n) if n > 0) {}
    }
}

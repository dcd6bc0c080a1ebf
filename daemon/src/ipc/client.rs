//! The command line's side.

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use super::{Reply, Request};
use crate::failure::{Failure, chain};

/// A connection to a user daemon. Blocking: the command line does one thing at a time.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

/// What to do while waiting: called with each progress line.
pub(crate) type Waiting<'a> = &'a mut dyn FnMut(&str);

impl Client {
    /// Connects; `None` when no daemon listens there.
    ///
    /// # Errors
    /// When the socket exists but cannot be used.
    pub(crate) fn connect(socket: &Path) -> Result<Option<Self>, Failure> {
        match UnixStream::connect(socket) {
            Ok(stream) => Ok(Some(Self { stream: BufReader::new(stream) })),
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
            Err(e) => Err(Failure::internal(format!("{}: {e}", socket.display()))),
        }
    }

    /// Waits no longer than this for anything.
    pub(crate) fn within(self, at_most: Duration) -> Self {
        let _ = self.stream.get_ref().set_read_timeout(Some(at_most));
        self
    }

    /// Asks the daemon to end. One that goes away without an answer has ended as well.
    ///
    /// # Errors
    /// The daemon's own [`Failure`].
    pub(crate) fn ask_to_end(&mut self, waiting: Waiting<'_>) -> Result<(), Failure> {
        self.exchange(&Request::Quit, waiting).map_or(Ok(()), |reply| reply.map(drop))
    }

    /// Sends a request and returns the final reply.
    ///
    /// # Errors
    /// The daemon's own [`Failure`], or one that says how it was lost.
    pub(crate) fn ask(&mut self, request: &Request, waiting: Waiting<'_>) -> Result<Reply, Failure> {
        self.exchange(request, waiting).unwrap_or_else(|e| {
            Err(Failure::internal(format!("the user daemon went away before it answered: {}", chain(&e))))
        })
    }

    fn exchange(&mut self, request: &Request, waiting: Waiting<'_>) -> io::Result<Result<Reply, Failure>> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)?;
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match serde_json::from_str(&line)? {
                Reply::Progress(step) => waiting(&step),
                Reply::Failed(failure) => return Ok(Err(failure)),
                reply => return Ok(Ok(reply)),
            }
        }
    }

    /// Waits until the daemon has closed the connection, which it does when it has ended.
    pub(crate) fn wait_closed(mut self, at_most: Duration) {
        let _ = self.stream.get_mut().set_read_timeout(Some(at_most));
        let mut rest = String::new();
        while matches!(self.stream.read_line(&mut rest), Ok(n) if n > 0) {}
    }
}

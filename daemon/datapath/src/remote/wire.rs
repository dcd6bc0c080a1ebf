//! A Unix stream socket that carries whole messages and open files.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::Interest,
    net::UnixStream,
    time::{Instant, sleep, timeout_at},
};

use super::protocol::{FILES_MAX, FrameError, frame, missing, take};
use crate::linux::unread;

const CHUNK: usize = 16 << 10;
/// How often it is looked whether something was read: nobody tells.
const LOOK: Duration = Duration::from_millis(1);

/// The conversation is over.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The other side sent what is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// More files came than belong to a message.
    #[error("too many files in one message")]
    Files,
    /// The other side said nothing for too long, or did not finish what it began.
    #[error("the other side is too slow")]
    Slow,
    /// The socket failed, or ended inside a message.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The two directions of a connection.
#[must_use]
pub fn split(stream: UnixStream) -> (Sender, Receiver) {
    halves(stream, FILES_MAX)
}

/// The two directions of a connection whose other side has no files to send: the kernel never gives this process one,
/// and the attempt ends the conversation.
#[must_use]
pub fn split_without_files(stream: UnixStream) -> (Sender, Receiver) {
    halves(stream, 0)
}

fn halves(stream: UnixStream, files_max: usize) -> (Sender, Receiver) {
    let stream = Arc::new(stream);
    (Sender { stream: Arc::clone(&stream) }, Receiver { stream, bytes: Vec::new(), files: Vec::new(), files_max })
}

/// Sends messages.
#[derive(Debug)]
pub struct Sender {
    stream: Arc<UnixStream>,
}

impl Sender {
    /// Sends a message and copies of `files` with it. Not cancel safe: after a cancelled call the connection is of no
    /// more use.
    ///
    /// # Errors
    /// [`WireError`]; the conversation is over then.
    pub async fn send<T: Serialize + Sync>(&mut self, message: &T, files: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        if files.len() > FILES_MAX {
            return Err(WireError::Files);
        }
        let bytes = frame(message)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let files = if sent == 0 { files } else { &[] };
            sent += self
                .stream
                .async_io(Interest::WRITABLE, || {
                    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
                    let mut control = SendAncillaryBuffer::new(&mut space);
                    if !files.is_empty() && !control.push(SendAncillaryMessage::ScmRights(files)) {
                        return Err(io::Error::other("no room for the files"));
                    }
                    let rest = [IoSlice::new(&bytes[sent..])];
                    Ok(sendmsg(self.stream.as_fd(), &rest, &mut control, SendFlags::NOSIGNAL)?)
                })
                .await?;
        }
        Ok(())
    }
}

impl Sender {
    /// Waits until the other side has read everything that was sent.
    ///
    /// # Errors
    /// [`WireError`]; the conversation is over then.
    pub async fn taken(&self) -> Result<(), WireError> {
        while unread(&*self.stream)? > 0 {
            sleep(LOOK).await;
        }
        Ok(())
    }
}

/// Receives messages.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<UnixStream>,
    bytes: Vec<u8>,
    files: Vec<OwnedFd>,
    files_max: usize,
}

impl Receiver {
    /// The next message and its files; `None` when the other side has closed between two messages. Cancel safe.
    ///
    /// # Errors
    /// [`WireError`]; the conversation is over then.
    pub async fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        self.receive_by(None, None).await
    }

    /// As [`receive`](Self::receive), from another side that has to begin within `idle` (if given) and to end within
    /// `whole` after that.
    ///
    /// # Errors
    /// [`WireError`], [`WireError::Slow`] among them; the conversation is over then.
    pub async fn receive_within<T: DeserializeOwned>(
        &mut self,
        idle: Option<Duration>,
        whole: Duration,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        self.receive_by(idle.map(|idle| Instant::now() + idle), Some(whole)).await
    }

    async fn receive_by<T: DeserializeOwned>(
        &mut self,
        mut end: Option<Instant>,
        mut whole: Option<Duration>,
    ) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
        loop {
            if let Some(message) = take(&mut self.bytes)? {
                return Ok(Some((message, std::mem::take(&mut self.files))));
            }
            if !self.bytes.is_empty() {
                end = whole.take().map(|whole| Instant::now() + whole).or(end);
            }
            let read = match end {
                Some(end) => timeout_at(end, self.read()).await.map_err(|_| WireError::Slow)??,
                None => self.read().await?,
            };
            if read == 0 {
                let inside = !self.bytes.is_empty();
                return if inside { Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()) } else { Ok(None) };
            }
        }
    }

    /// Waits for some bytes of the current frame, and no more: the kernel may join bytes of one message and files of the
    /// next in one read. The length is checked before its bytes are asked for.
    async fn read(&mut self) -> Result<usize, WireError> {
        let mut chunk = [0; CHUNK];
        let wanted = missing(&self.bytes)?.min(CHUNK);
        let (length, files) = self
            .stream
            .async_io(Interest::READABLE, || receive(&self.stream, &mut chunk[..wanted], self.files_max))
            .await?;
        self.bytes.extend_from_slice(&chunk[..length]);
        let files = files.ok_or(WireError::Files)?;
        if self.files.len() + files.len() > self.files_max {
            return Err(WireError::Files);
        }
        self.files.extend(files);
        Ok(length)
    }
}

/// `None` instead of the files when there were too many for the control buffer.
fn receive(stream: &UnixStream, chunk: &mut [u8], max: usize) -> io::Result<(usize, Option<Vec<OwnedFd>>)> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX))];
    // Without room the kernel drops the files instead of installing them.
    let room = if max == 0 { 0 } else { space.len() };
    let mut control = RecvAncillaryBuffer::new(&mut space[..room]);
    let got = recvmsg(stream.as_fd(), &mut [IoSliceMut::new(chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            files.extend(some);
        }
    }
    Ok((got.bytes, (!got.flags.contains(ReturnFlags::CTRUNC)).then_some(files)))
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn pair() -> ((Sender, Receiver), (Sender, Receiver)) {
        let (a, b) = UnixStream::pair().unwrap();
        (split(a), split(b))
    }

    fn inode(file: impl AsFd) -> u64 {
        rustix::fs::fstat(file).unwrap().st_ino
    }

    #[tokio::test]
    async fn files_come_with_their_message_and_are_close_on_exec() {
        let ((mut tx, _a), (_b, mut rx)) = pair();
        let files = [File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap()];
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        tx.send(&"plain", &[]).await.unwrap();
        tx.send(&"x".repeat(200_000), &borrowed).await.unwrap();
        tx.send(&"last", &borrowed[..1]).await.unwrap();
        let (first, none): (String, _) = rx.receive().await.unwrap().unwrap();
        assert_eq!((first.as_str(), none.len()), ("plain", 0));
        let (second, two): (String, _) = rx.receive().await.unwrap().unwrap();
        assert_eq!((second.len(), two.len()), (200_000, 2));
        let (_, one): (String, _) = rx.receive().await.unwrap().unwrap();
        assert_eq!(one.len(), 1);
        for (got, sent) in two.iter().zip(&files) {
            assert_eq!(inode(got), inode(sent));
            assert!(rustix::io::fcntl_getfd(got).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        }
    }

    #[tokio::test]
    async fn an_end_between_messages_is_no_error_and_inside_one_it_is() {
        let ((mut tx, a), (_b, mut rx)) = pair();
        tx.send(&1, &[]).await.unwrap();
        drop((tx, a));
        assert!(rx.receive::<u32>().await.unwrap().is_some());
        assert!(rx.receive::<u32>().await.unwrap().is_none());

        let (mut raw, b) = UnixStream::pair().unwrap();
        let (_tx, mut rx) = split(b);
        raw.write_all(&[0, 0, 0, 9, b'"']).await.unwrap();
        drop(raw);
        let e = rx.receive::<String>().await.unwrap_err();
        assert!(matches!(e, WireError::Io(e) if e.kind() == io::ErrorKind::UnexpectedEof));
    }

    #[tokio::test]
    async fn a_length_beyond_the_bound_ends_the_conversation() {
        let (mut raw, b) = UnixStream::pair().unwrap();
        let (_tx, mut rx) = split(b);
        raw.write_all(&[0xff; 64]).await.unwrap();
        assert!(matches!(rx.receive::<String>().await, Err(WireError::Frame(FrameError::TooLong(_)))));
        assert!(rx.bytes.capacity() < CHUNK);
    }

    #[tokio::test]
    async fn more_files_than_allowed_are_refused() {
        let (a, b) = UnixStream::pair().unwrap();
        let (_tx, mut rx) = split(b);
        let null = File::open("/dev/null").unwrap();
        let many = vec![null.as_fd(); FILES_MAX + 1];
        let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(FILES_MAX + 1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
        let bytes = frame(&"x").unwrap();
        sendmsg(a.as_fd(), &[IoSlice::new(&bytes)], &mut control, SendFlags::empty()).unwrap();
        assert!(matches!(rx.receive::<String>().await, Err(WireError::Files)));
    }

    #[tokio::test]
    async fn files_for_who_wants_none_are_never_installed() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut tx, _a) = split(a);
        let (_tx, mut rx) = split_without_files(b);
        // A pipe shows that no copy of its end is left.
        let (mut reader, writer) = std::io::pipe().unwrap();
        tx.send(&"plain", &[]).await.unwrap();
        tx.send(&"x", &[writer.as_fd()]).await.unwrap();
        drop(writer);
        assert!(rx.receive::<String>().await.unwrap().is_some());
        assert!(matches!(rx.receive::<String>().await, Err(WireError::Files)));
        assert_eq!(std::io::Read::read(&mut reader, &mut [0; 1]).unwrap(), 0);
    }

    #[tokio::test]
    async fn who_is_silent_or_slow_is_dropped() {
        const IDLE: Duration = Duration::from_millis(200);
        const WHOLE: Duration = Duration::from_millis(300);
        let (mut raw, b) = UnixStream::pair().unwrap();
        let (_tx, mut rx) = split_without_files(b);
        let start = Instant::now();
        assert!(matches!(rx.receive_within::<String>(Some(IDLE), WHOLE).await, Err(WireError::Slow)));
        assert!(start.elapsed() >= IDLE);
        // Each byte of a message does not buy more time.
        let drip = tokio::spawn(async move {
            for byte in [0, 0, 1, 0].into_iter().chain([b'"'; 252]) {
                raw.write_all(&[byte]).await?;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            io::Result::Ok(())
        });
        let start = Instant::now();
        assert!(matches!(rx.receive_within::<String>(None, WHOLE).await, Err(WireError::Slow)));
        assert!(start.elapsed() >= WHOLE && start.elapsed() < 10 * WHOLE, "{:?}", start.elapsed());
        drip.abort();
    }
}

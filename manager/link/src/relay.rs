//! Moves bytes between a socket and a stream so that neither end can tell that there are two connections.
//!
//! End of file stays end of file (each direction on its own), a reset stays a reset, and a reader that stalls stalls the
//! writer: bytes are taken from the socket only when the stream has room, and the stream's window opens again only when
//! its bytes are in the socket.

mod queue;
mod socket;

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

use self::queue::Queue;
pub use self::socket::Socket;
use crate::{
    stream::{Stream, StreamError},
    traffic::Traffic,
};

/// What a relay moved, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transferred {
    /// Bytes from the socket into the stream.
    pub up: u64,
    /// Bytes from the stream into the socket.
    pub down: u64,
    /// How it ended.
    pub end: End,
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Both directions reached end of file.
    Finished,
    /// The socket was reset (or failed), so the stream was.
    Socket(String),
    /// The stream was reset or lost, so the socket was.
    Stream(StreamError),
}

/// Relays until both directions have ended. Dropping the future resets the stream and the socket.
pub async fn relay<S: Socket>(socket: S, stream: Stream) -> Transferred {
    relay_counted(socket, stream, Arc::default()).await
}

/// [`relay`]s, and counts in `traffic` (new) what was moved so far.
pub async fn relay_counted<S: Socket>(socket: S, stream: Stream, traffic: Arc<Traffic>) -> Transferred {
    let mut relay = Relay::new(socket, stream, traffic);
    let end = relay.run().await;
    relay.settle(&end);
    Transferred { up: relay.traffic.up(), down: relay.traffic.down(), end }
}

struct Relay<S: Socket> {
    socket: S,
    up: Up,
    down: Down,
    traffic: Arc<Traffic>,
    settled: bool,
    // Last, so that the stream counts as open until its halves are gone.
    _open: crate::stream::Open,
}

impl<S: Socket> Relay<S> {
    fn new(socket: S, stream: Stream, traffic: Arc<Traffic>) -> Self {
        socket.prepare();
        let (send, recv, open) = stream.into_parts();
        Self { socket, up: Up::new(send), down: Down::new(recv), traffic, settled: false, _open: open }
    }

    async fn run(&mut self) -> End {
        let Self { socket, up, down, traffic, .. } = self;
        // While the stream has no room the socket is not read, and a reset would go unseen.
        let mut broken = pin!(socket.broken());
        poll_fn(|cx| {
            if !up.finished
                && let Poll::Ready(Err(end)) = up.poll(socket, traffic, cx)
            {
                return Poll::Ready(end);
            }
            if !down.finished
                && let Poll::Ready(Err(end)) = down.poll(socket, traffic, cx)
            {
                return Poll::Ready(end);
            }
            if up.finished && down.finished {
                return Poll::Ready(End::Finished);
            }
            if up.reserved
                && let Poll::Ready(error) = broken.as_mut().poll(cx)
            {
                return Poll::Ready(socket_end(error));
            }
            Poll::Pending
        })
        .await
    }

    fn settle(&mut self, end: &End) {
        self.settled = true;
        if *end != End::Finished {
            self.up.send.send_reset(Reason::CONNECT_ERROR);
            self.socket.reset_on_close();
        }
    }
}

impl<S: Socket> Drop for Relay<S> {
    fn drop(&mut self) {
        if !self.settled {
            self.up.send.send_reset(Reason::CONNECT_ERROR);
            self.socket.reset_on_close();
        }
    }
}

/// Socket to stream.
struct Up {
    send: SendStream<Bytes>,
    buffer: BytesMut,
    /// How much to read at once; grows while the socket keeps up.
    chunk: usize,
    /// Whether the stream was asked for room. An idle stream must not hold any: the lane's window is shared.
    reserved: bool,
    finished: bool,
}

impl Up {
    const MIN_CHUNK: usize = 8 << 10;
    const MAX_CHUNK: usize = 128 << 10;

    fn new(send: SendStream<Bytes>) -> Self {
        Self { send, buffer: BytesMut::new(), chunk: Self::MIN_CHUNK, reserved: false, finished: false }
    }

    fn poll(&mut self, socket: &impl Socket, traffic: &Traffic, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            if !self.reserved {
                match socket.poll_read_ready(cx) {
                    Poll::Ready(ready) => ready.map_err(socket_end)?,
                    Poll::Pending => {
                        return match self.send.poll_reset(cx) {
                            Poll::Pending => Poll::Pending,
                            Poll::Ready(Ok(_)) => Poll::Ready(Err(End::Stream(StreamError::Reset))),
                            Poll::Ready(Err(error)) => Poll::Ready(Err(End::Stream(error.into()))),
                        };
                    }
                }
                self.send.reserve_capacity(self.chunk);
                self.reserved = true;
            }
            let mut room = self.send.capacity();
            if room == 0 {
                room = match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(room)) => room,
                    Some(Err(error)) => return Poll::Ready(Err(End::Stream(error.into()))),
                    None => return Poll::Ready(Err(End::Stream(StreamError::Reset))),
                };
            }
            let room = room.min(self.chunk);
            self.buffer.reserve(room);
            match socket.try_read(&mut (&mut self.buffer).limit(room)) {
                Ok(0) => {
                    self.send.send_data(Bytes::new(), true).map_err(stream_end)?;
                    self.buffer = BytesMut::new();
                    self.reserved = false;
                    self.finished = true;
                    return Poll::Ready(Ok(()));
                }
                Ok(read) => {
                    traffic.add_up(read);
                    self.send.send_data(self.buffer.split().freeze(), false).map_err(stream_end)?;
                    if read == self.chunk {
                        self.chunk = (self.chunk * 2).min(Self::MAX_CHUNK);
                    }
                    self.send.reserve_capacity(self.chunk);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.send.reserve_capacity(0);
                    self.reserved = false;
                }
                Err(error) => return Poll::Ready(Err(socket_end(error))),
            }
        }
    }
}

/// Stream to socket.
struct Down {
    recv: RecvStream,
    queue: Queue,
    ended: bool,
    finished: bool,
}

impl Down {
    fn new(recv: RecvStream) -> Self {
        Self { recv, queue: Queue::default(), ended: false, finished: false }
    }

    fn poll(&mut self, socket: &impl Socket, traffic: &Traffic, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        loop {
            // The window bounds the queue: nothing is given back before it is written.
            while !self.ended {
                match self.recv.poll_data(cx) {
                    Poll::Ready(Some(data)) => self.queue.push(data.map_err(stream_end)?),
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending => break,
                }
            }
            if self.queue.is_empty() {
                if !self.ended {
                    return Poll::Pending;
                }
                self.finished = true;
                return Poll::Ready(socket.shutdown_write().map_err(socket_end));
            }
            ready!(socket.poll_write_ready(cx)).map_err(socket_end)?;
            match socket.try_write_vectored(&self.queue.slices()) {
                Ok(written) => {
                    self.queue.advance(written);
                    traffic.add_down(written);
                    self.recv.flow_control().release_capacity(written).map_err(stream_end)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(socket_end(error))),
            }
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "used in map_err")]
fn socket_end(error: io::Error) -> End {
    End::Socket(error.to_string())
}

fn stream_end(error: h2::Error) -> End {
    End::Stream(error.into())
}

//! Queries over TCP (RFC 7766): pipelined, answered as they are ready.
//!
//! A client's connection has at most one connection to the original server behind it, opened for the first query that
//! goes there. Both carry whole messages unread, so zone transfers (many messages for one query) pass as well.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use futures::{SinkExt, StreamExt};
use hickory_proto::op::ResponseCode;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_util::{
    bytes::Bytes,
    codec::{Framed, LengthDelimitedCodec},
};
use tpx_core::dns::Header;

use crate::{
    reply::{self, Transport},
    server::{Shared, Verdict},
    udp::is_success,
    upstream::{self, Upstream},
};

/// Queries of one connection that may be under way; more stay unread.
const PIPELINE: usize = 64;
const PAUSE: Duration = Duration::from_millis(20);

type Messages = Framed<TcpStream, LengthDelimitedCodec>;

/// Frames of two length bytes and a message (RFC 1035, 4.2.2).
fn messages(stream: TcpStream) -> Messages {
    LengthDelimitedCodec::builder().length_field_length(2).max_frame_length(65_535).new_framed(stream)
}

pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener, name_server: Arc<Upstream>) {
    let connections = Arc::new(Semaphore::new(shared.limits.tcp_connections));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let (shared, name_server) = (shared.clone(), name_server.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = Connection::new(shared, stream, name_server).run().await {
                        tracing::debug!(%error, %client, "a connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "accepting a connection failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// The connection behind a client's.
enum Road {
    Closed,
    Connecting,
    Open { messages: Box<Messages>, answered: bool },
}

/// A query that waits for the original server.
struct Pending {
    query: Bytes,
    unless_found: Option<Vec<u8>>,
}

/// What a task of the connection has come to.
enum Done {
    Judged(Bytes, Verdict),
    Connected(io::Result<TcpStream>),
}

/// Which side spoke.
enum Event {
    Client(Option<io::Result<Bytes>>),
    Server(Option<io::Result<Bytes>>),
    Done(Done),
}

struct Connection {
    shared: Arc<Shared>,
    client: Messages,
    name_server: Arc<Upstream>,
    road: Road,
    /// By the id of the query; a client that uses one id twice at a time cannot tell the answers apart either.
    pending: BTreeMap<u16, Pending>,
    tasks: JoinSet<Done>,
    client_done: bool,
}

impl Connection {
    fn new(shared: Arc<Shared>, stream: TcpStream, name_server: Arc<Upstream>) -> Self {
        Self {
            shared,
            client: messages(stream),
            name_server,
            road: Road::Closed,
            pending: BTreeMap::new(),
            tasks: JoinSet::new(),
            client_done: false,
        }
    }

    async fn run(mut self) -> io::Result<()> {
        let idle = self.shared.limits.tcp_idle;
        loop {
            if self.client_done && self.tasks.is_empty() && self.pending.is_empty() {
                return Ok(());
            }
            let Ok(event) = timeout(idle, self.next_event()).await else { return Ok(()) };
            match event {
                Event::Client(None) => self.client_done = true,
                Event::Client(Some(message)) => self.take_query(message?),
                Event::Done(Done::Judged(query, verdict)) => self.carry_out(query, verdict).await?,
                Event::Done(Done::Connected(connected)) => self.connected(connected).await?,
                Event::Server(Some(Ok(answer))) => self.relay(answer).await?,
                Event::Server(_) => {
                    if self.server_closed().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        let may_read = !self.client_done && self.tasks.len() + self.pending.len() < PIPELINE;
        let server = async {
            match &mut self.road {
                Road::Open { messages, .. } => messages.next().await,
                Road::Closed | Road::Connecting => std::future::pending().await,
            }
        };
        tokio::select! {
            message = self.client.next(), if may_read => Event::Client(message.map(|m| m.map(|m| m.freeze()))),
            message = server => Event::Server(message.map(|m| m.map(|m| m.freeze()))),
            Some(Ok(done)) = self.tasks.join_next() => Event::Done(done),
        }
    }

    fn take_query(&mut self, query: Bytes) {
        let (shared, name_server) = (self.shared.clone(), self.name_server.clone());
        self.tasks.spawn(async move {
            let verdict = match shared.in_flight.acquire().await {
                Ok(_permit) => shared.judge(&query, Some(&name_server), Transport::Tcp).await,
                Err(_) => Verdict::Silence,
            };
            Done::Judged(query, verdict)
        });
    }

    async fn carry_out(&mut self, query: Bytes, verdict: Verdict) -> io::Result<()> {
        let unless_found = match verdict {
            Verdict::Reply(reply) => return self.send(reply.into()).await,
            // Over TCP there is somebody at the other end, and it does not speak DNS.
            Verdict::Silence => return Err(io::ErrorKind::InvalidData.into()),
            Verdict::Forward { unless_found, .. } => unless_found,
        };
        self.shared.counters.forwarded();
        let Some(header) = Header::parse(&query) else { return Ok(()) };
        self.pending.insert(header.id, Pending { query: query.clone(), unless_found });
        match &mut self.road {
            Road::Closed => self.open_road(),
            Road::Connecting => {}
            Road::Open { messages, .. } => {
                let idle = self.shared.limits.tcp_idle;
                // A failure shows as the end of that connection, where the query is still pending.
                let _ = timeout(idle, messages.send(query)).await;
            }
        }
        Ok(())
    }

    fn open_road(&mut self) {
        let (shared, name_server) = (self.shared.clone(), self.name_server.address);
        self.road = Road::Connecting;
        self.tasks.spawn(async move {
            Done::Connected(upstream::tcp(name_server, &*shared.bypass, shared.limits.forward_timeout).await)
        });
    }

    async fn connected(&mut self, connected: io::Result<TcpStream>) -> io::Result<()> {
        let mut messages = match connected {
            Ok(stream) => Box::new(messages(stream)),
            Err(error) => {
                tracing::debug!(%error, name_server = %self.name_server.address, "the name server cannot be reached");
                self.road = Road::Closed;
                return self.fail_pending().await;
            }
        };
        for pending in self.pending.values() {
            // As in `carry_out`.
            let _ = timeout(self.shared.limits.tcp_idle, messages.send(pending.query.clone())).await;
        }
        self.road = Road::Open { messages, answered: false };
        Ok(())
    }

    async fn relay(&mut self, answer: Bytes) -> io::Result<()> {
        if let Road::Open { answered, .. } = &mut self.road {
            *answered = true;
        }
        let pending = Header::parse(&answer).and_then(|header| self.pending.remove(&header.id));
        match pending.and_then(|pending| pending.unless_found) {
            Some(failure) if !is_success(&answer) => self.send(failure.into()).await,
            _ => self.send(answer).await,
        }
    }

    /// The original server ended its connection. What waits for it is asked once more over a new one, if the old one
    /// had been of use. Returns whether the client's connection ends with it.
    async fn server_closed(&mut self) -> io::Result<bool> {
        let was_of_use = matches!(self.road, Road::Open { answered: true, .. });
        self.road = Road::Closed;
        if self.pending.is_empty() {
            return Ok(self.tasks.is_empty());
        }
        if was_of_use {
            self.open_road();
        } else {
            self.fail_pending().await?;
        }
        Ok(false)
    }

    async fn fail_pending(&mut self) -> io::Result<()> {
        for pending in std::mem::take(&mut self.pending).into_values() {
            self.shared.counters.failed();
            self.send(reply::refusal_of_bytes(&pending.query, ResponseCode::ServFail).into()).await?;
        }
        Ok(())
    }

    /// Sends to the client; one that does not read loses its connection.
    async fn send(&mut self, message: Bytes) -> io::Result<()> {
        let idle = self.shared.limits.tcp_idle;
        timeout(idle, self.client.send(message)).await.map_err(|_| io::ErrorKind::TimedOut)?
    }
}

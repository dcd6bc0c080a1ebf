//! Carries UDP associations and pings: one task for each pumps both ways until either side has nothing to say for long.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, sleep_until};
use tpx_core::dial::DialFailure;
use tpx_datapath::{DatagramFlow, Echo, EchoFlow};
use tpx_link::{
    Target, Traffic,
    datagrams::Event,
    echoes::{Echo as Ping, EchoEvent, Echoes},
    lane::Lane,
};

/// An association without a datagram in either direction ends; the next datagram begins another one. Two minutes are the
/// least that RFC 4787 (REQ-5) asks for, and the limit of the manager as well.
const IDLE: Duration = Duration::from_secs(120);
/// A pinging program pauses a second by default; nobody waits for an answer longer than this.
const QUIET: Duration = Duration::from_secs(20);

/// Carries an association to `target` until it has been idle for long, or either side ends it; counts in `traffic`.
pub(crate) async fn carry_datagrams(
    mut flow: DatagramFlow,
    lane: Lane,
    target: &Target,
    session: &str,
    traffic: &Traffic,
) {
    let mut stream = match lane.datagrams(target, session).await {
        Ok(stream) => stream,
        Err(why) => {
            flow.back.unreachable(why);
            return;
        }
    };
    let mut idle = Instant::now() + IDLE;
    loop {
        tokio::select! {
            payload = flow.incoming.recv() => match payload {
                Some(payload) => {
                    let length = payload.len();
                    if stream.try_send(payload) {
                        traffic.datagram_up(length);
                    }
                }
                None => return,
            },
            event = stream.recv() => match event {
                Some(Event::Payload(payload)) => {
                    traffic.datagram_down(payload.len());
                    flow.back.send(&payload);
                }
                Some(Event::Unreachable(why)) => flow.back.unreachable(why),
                Some(Event::TooBig { mtu }) => flow.back.too_big(mtu),
                None => return,
            },
            () = sleep_until(idle) => return,
        }
        idle = Instant::now() + IDLE;
    }
}

/// Carries pings of `address` until nobody has asked for long; counts in `traffic`.
pub(crate) async fn carry_echoes(
    mut flow: EchoFlow,
    lane: Lane,
    address: std::net::IpAddr,
    session: &str,
    traffic: &Traffic,
) {
    let mut stream = lane.echoes(address, session).await;
    let mut waiting = Waiting::default();
    let mut idle = Instant::now() + QUIET;
    loop {
        tokio::select! {
            request = flow.incoming.recv() => {
                let Some(request) = request else { return };
                idle = Instant::now() + QUIET;
                match &mut stream {
                    Ok(stream) => {
                        waiting.keep(&request);
                        let length = request.payload.len();
                        if stream.try_send(Ping { sequence: request.sequence, payload: request.payload }) {
                            traffic.datagram_up(length);
                        }
                    }
                    Err(why) => flow.back.unreachable(request, *why),
                }
            }
            event = next(&mut stream) => match event {
                Some(EchoEvent::Reply(Ping { sequence, payload })) => {
                    waiting.take(sequence);
                    traffic.datagram_down(payload.len());
                    flow.back.reply(Echo { sequence, payload });
                }
                Some(EchoEvent::Unreachable { sequence: Some(sequence), why }) => {
                    if let Some(request) = waiting.take(sequence) {
                        flow.back.unreachable(request, why);
                    }
                }
                Some(EchoEvent::Unreachable { sequence: None, why }) => {
                    for request in waiting.0.drain(..) {
                        flow.back.unreachable(request, why);
                    }
                    stream = Err(why);
                }
                None => return,
            },
            () = sleep_until(idle) => return,
        }
    }
}

/// Answers pings of an address that stands for nothing.
pub(crate) async fn refuse_echoes(mut flow: EchoFlow) {
    while let Ok(Some(request)) = tokio::time::timeout(QUIET, flow.incoming.recv()).await {
        flow.back.unreachable(request, DialFailure::HostUnreachable);
    }
}

async fn next(stream: &mut Result<Echoes, DialFailure>) -> Option<EchoEvent> {
    match stream {
        Ok(stream) => stream.recv().await,
        Err(_) => pending().await,
    }
}

/// The last requests without an answer: an "unreachable" quotes the request it is about.
#[derive(Default)]
struct Waiting(std::collections::VecDeque<Echo>);

impl Waiting {
    /// As many as a fast ping has on its way.
    const MOST: usize = 64;

    fn keep(&mut self, request: &Echo) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(request.clone());
    }

    fn take(&mut self, sequence: u16) -> Option<Echo> {
        let at = self.0.iter().position(|request| request.sequence == sequence)?;
        self.0.remove(at)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn an_answer_finds_its_request_and_the_oldest_make_room() {
        let mut waiting = Waiting::default();
        for sequence in 0..100 {
            waiting.keep(&Echo { sequence, payload: Bytes::new() });
        }
        assert_eq!(waiting.take(0), None);
        assert_eq!(waiting.take(99).map(|request| request.sequence), Some(99));
        assert_eq!(waiting.take(99), None);
        assert_eq!(waiting.0.len(), Waiting::MOST - 1);
    }
}

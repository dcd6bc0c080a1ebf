//! Carries UDP associations and pings: one task for each pumps both ways until either side has nothing to say for long.

use std::{pin::pin, time::Duration};

use tokio::time::{Instant, sleep_until};
use tpx_core::dial::DialFailure;
use tpx_datapath::{DatagramFlow, Echo, EchoFlow};
use tpx_link::{
    Datagrams, Echoes, Traffic,
    datagrams::Event,
    echoes::{Echo as Ping, EchoEvent},
};

/// An association without a datagram in either direction ends; the next datagram begins another one. Two minutes are the
/// least that RFC 4787 (REQ-5) asks for, and the limit of the manager as well.
const IDLE: Duration = Duration::from_secs(120);
/// A pinging program pauses a second by default; nobody waits for an answer longer than this.
const QUIET: Duration = Duration::from_secs(20);

/// Carries an association over `stream` until it has been idle for long, either side ends it, or it is `denied`; counts in
/// `traffic`.
pub(crate) async fn carry_datagrams(
    mut flow: DatagramFlow,
    mut stream: Datagrams,
    denied: impl Future<Output = DialFailure>,
    traffic: &Traffic,
) {
    let mut denied = pin!(denied);
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
            // The next datagram begins another association, which is not carried.
            why = &mut denied => return flow.back.unreachable(why),
            () = sleep_until(idle) => return,
        }
        idle = Instant::now() + IDLE;
    }
}

/// Carries pings over `stream` until nobody has asked for long, either side ends the series, or it is `denied`; counts in
/// `traffic`. The next request begins another series.
pub(crate) async fn carry_echoes(
    mut flow: EchoFlow,
    mut stream: Echoes,
    denied: impl Future<Output = DialFailure>,
    traffic: &Traffic,
) {
    let mut denied = pin!(denied);
    let mut waiting = Waiting::default();
    let mut idle = Instant::now() + QUIET;
    let why = loop {
        tokio::select! {
            request = flow.incoming.recv() => {
                let Some(request) = request else { return };
                idle = Instant::now() + QUIET;
                waiting.keep(&request);
                let length = request.payload.len();
                if stream.try_send(Ping { sequence: request.sequence, payload: request.payload }) {
                    traffic.datagram_up(length);
                }
            }
            event = stream.recv() => match event {
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
                Some(EchoEvent::Unreachable { sequence: None, why }) => break why,
                None => return,
            },
            why = &mut denied => break why,
            () = sleep_until(idle) => return,
        }
    };
    for request in waiting.0 {
        flow.back.unreachable(request, why);
    }
    refuse_echoes(flow, why);
}

/// Answers the pings that are there with `why` nobody else does. No longer than that: the reason may pass, and the next request
/// begins another series.
pub(crate) fn refuse_echoes(mut flow: EchoFlow, why: DialFailure) {
    while let Ok(request) = flow.incoming.try_recv() {
        flow.back.unreachable(request, why);
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
    use std::{
        net::IpAddr,
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use tokio::{
        sync::{mpsc, oneshot},
        time::timeout,
    };
    use tpx_datapath::{DatagramReturn, EchoReturn};

    use super::{
        super::fake_manager::{FakeManager, target},
        *,
    };

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

    /// Where answers to a ping end up.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<(u16, DialFailure)>>>);

    impl EchoReturn for Heard {
        fn reply(&self, echo: Echo) {
            panic!("nobody answered {echo:?}");
        }

        fn unreachable(&self, request: Echo, why: DialFailure) {
            self.0.lock().unwrap().push((request.sequence, why));
        }
    }

    #[test]
    fn refused_pings_hear_the_reason_and_end_their_series() {
        let (heard, (ask, incoming)) = (Heard::default(), mpsc::channel(8));
        let at = IpAddr::from([10, 96, 0, 7]);
        for sequence in [1, 2] {
            ask.try_send(Echo { sequence, payload: Bytes::new() }).unwrap();
        }
        let flow = EchoFlow { source: at, destination: at, incoming, back: Box::new(heard.clone()) };
        refuse_echoes(flow, DialFailure::Prohibited);
        assert_eq!(*heard.0.lock().unwrap(), [1, 2].map(|sequence| (sequence, DialFailure::Prohibited)));
        assert!(ask.is_closed(), "the next request would be refused for the same reason, whatever has changed");
    }

    impl DatagramReturn for Heard {
        fn send(&self, payload: &[u8]) {
            panic!("nobody sent {payload:?}");
        }

        fn unreachable(&self, why: DialFailure) {
            self.0.lock().unwrap().push((0, why));
        }

        fn too_big(&self, mtu: u32) {
            panic!("nothing is larger than {mtu}");
        }
    }

    #[tokio::test]
    async fn an_association_that_comes_to_be_denied_hears_it_and_ends() {
        let (heard, (send, incoming)) = (Heard::default(), mpsc::channel(8));
        let stream = FakeManager::new().lane().await.datagrams(&target(53).into(), "any").await.unwrap();
        let (at, back) = (target(53), Box::new(heard.clone()));
        let flow = DatagramFlow { source: at, destination: at, incoming, back };
        let (deny, denied) = oneshot::channel();
        let denied = async { denied.await.unwrap() };
        let traffic = Arc::new(Traffic::default());
        let counted = Arc::clone(&traffic);
        let carried = tokio::spawn(async move { carry_datagrams(flow, stream, denied, &counted).await });
        send.send(Bytes::from_static(b"before")).await.unwrap();
        while traffic.datagrams_up() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(*heard.0.lock().unwrap(), []);
        deny.send(DialFailure::Prohibited).unwrap();
        timeout(Duration::from_secs(20), carried).await.unwrap().unwrap();
        assert_eq!(*heard.0.lock().unwrap(), [(0, DialFailure::Prohibited)]);
        assert!(send.is_closed(), "what follows is carried on");
    }

    #[tokio::test]
    async fn a_series_that_the_manager_refuses_ends() {
        let (heard, (ask, incoming)) = (Heard::default(), mpsc::channel(8));
        let stream = FakeManager::new().lane().await.echoes(target(0).ip(), "any").await.unwrap();
        let (at, back) = (target(0).ip(), Box::new(heard.clone()));
        ask.try_send(Echo { sequence: 7, payload: Bytes::new() }).unwrap();
        let flow = EchoFlow { source: at, destination: at, incoming, back };
        let traffic = Traffic::default();
        let carried = carry_echoes(flow, stream, std::future::pending(), &traffic);
        timeout(Duration::from_secs(20), carried).await.unwrap();
        assert_eq!(*heard.0.lock().unwrap(), [(7, DialFailure::Tunnel)]);
        assert!(ask.is_closed());
    }
}

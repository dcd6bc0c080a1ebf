//! One connection, and who waits for it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::AcqRel},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::oneshot;
use tpx_core::syngate::FlowKey;

use crate::netstack::tcp::TcpFlow;

pub(super) struct Flow {
    pub(super) key: FlowKey,
    /// Initial sequence number of the application's SYN.
    pub(super) isn: u32,
    state: Mutex<State>,
    /// It is in a batch of packets already.
    touched: AtomicBool,
}

pub(super) struct State {
    pub(super) tcp: TcpFlow,
    /// Who waits for the handshake.
    pub(super) opened: Option<oneshot::Sender<()>>,
    /// The earliest entry in the clock.
    pub(super) armed: Option<Duration>,
    read: Option<Waker>,
    write: Option<Waker>,
    broken: Option<Waker>,
}

/// What somebody waits for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Event {
    Readable,
    Writable,
    Broken,
}

impl Flow {
    pub(super) fn new(key: FlowKey, tcp: TcpFlow, opened: oneshot::Sender<()>) -> Self {
        let isn = tcp.isn();
        let state = State { tcp, opened: Some(opened), armed: None, read: None, write: None, broken: None };
        Self { key, isn, state: Mutex::new(state), touched: AtomicBool::new(false) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True the first time since [`untouch`](Self::untouch).
    pub(super) fn touch(&self) -> bool {
        !self.touched.swap(true, AcqRel)
    }

    pub(super) fn untouch(&self) {
        self.touched.store(false, std::sync::atomic::Ordering::Release);
    }
}

impl State {
    /// Waits for something.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, event: Event) -> Poll<()> {
        let ready = match event {
            Event::Readable => self.tcp.is_readable(),
            Event::Writable => self.tcp.is_writable(),
            Event::Broken => self.tcp.broken().is_some(),
        };
        if ready {
            return Poll::Ready(());
        }
        let slot = match event {
            Event::Readable => &mut self.read,
            Event::Writable => &mut self.write,
            Event::Broken => &mut self.broken,
        };
        match slot {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Those who need not wait any longer.
    pub(super) fn wakers(&mut self) -> [Option<Waker>; 3] {
        let mut ready = [None, None, None];
        if self.read.is_some() && self.tcp.is_readable() {
            ready[0] = self.read.take();
        }
        if self.write.is_some() && self.tcp.is_writable() {
            ready[1] = self.write.take();
        }
        if self.broken.is_some() && self.tcp.broken().is_some() {
            ready[2] = self.broken.take();
        }
        ready
    }
}

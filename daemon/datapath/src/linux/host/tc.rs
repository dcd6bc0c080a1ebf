//! Filters of traffic control (tc(8)) by netlink, where there are no links: taken away by their preference, which is a
//! slot's own, whoever has put them there. Blocking; the kernel answers within the call.

use std::{
    collections::BTreeMap,
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::programs::tc::qdisc_add_clsact;

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcHeader, TcMessage},
};
use rtnetlink::{
    packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

const INGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_INGRESS };
const EGRESS: TcHandle = TcHandle { major: u16::MAX, minor: TcHandle::MIN_EGRESS };

/// How many slots use the clsact of a device, where one of them has made it: the process's slots share it.
static MADE: Mutex<BTreeMap<u32, usize>> = Mutex::new(BTreeMap::new());

/// The queueing discipline that filters hang on, as long as it is used. One that somebody else has made is as good, and stays.
pub(super) struct Clsact {
    /// The device, where the discipline is ours to remove.
    made: Option<u32>,
}

impl Clsact {
    /// Makes it where it is missing.
    pub(super) fn on(device: u32, name: &str) -> Self {
        let mut made = lock_made();
        if let Some(users) = made.get_mut(&device) {
            *users += 1;
            return Self { made: Some(device) };
        }
        let new = qdisc_add_clsact(name).is_ok();
        if new {
            made.insert(device, 1);
        }
        Self { made: new.then_some(device) }
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        let Some(device) = self.made else { return };
        let mut made = lock_made();
        let Some(users) = made.get_mut(&device) else { return };
        *users -= 1;
        if *users > 0 {
            return;
        }
        made.remove(&device);
        match remove_idle_clsact(device) {
            Err(e) if e.raw_os_error() != Some(libc::ENODEV) => tracing::debug!("clsact stays: {e}"),
            _ => {}
        }
    }
}

fn lock_made() -> MutexGuard<'static, BTreeMap<u32, usize>> {
    MADE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes a device's incoming filters with this preference; whether there were some.
pub(super) fn remove_filters(device: u32, preference: u16) -> io::Result<bool> {
    let header = TcHeader { parent: INGRESS, info: u32::from(preference) << 16, ..at(device) };
    match change(RouteNetlinkMessage::DelTrafficFilter(message(header))) {
        Ok(()) => Ok(true),
        // No such filter; no clsact at all; no such device.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a device's clsact unless somebody's filters are in it.
pub(super) fn remove_idle_clsact(device: u32) -> io::Result<()> {
    if has_filters(device, INGRESS)? || has_filters(device, EGRESS)? {
        return Ok(());
    }
    let header = TcHeader { parent: TcHandle::CLSACT, handle: TcHandle { major: u16::MAX, minor: 0 }, ..at(device) };
    change(RouteNetlinkMessage::DelQueueDiscipline(message(header)))
}

fn has_filters(device: u32, parent: TcHandle) -> io::Result<bool> {
    let question = RouteNetlinkMessage::GetTrafficFilter(message(TcHeader { parent, ..at(device) }));
    let socket = send(question, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut found = false;
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let one = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match one.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(e) => return Err(e.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewTrafficFilter(_)) => found = true,
                _ => {}
            }
            let length = (one.header.length as usize).next_multiple_of(4).max(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

fn at(device: u32) -> TcHeader {
    TcHeader { index: device.cast_signed(), ..TcHeader::default() }
}

fn message(header: TcHeader) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = header;
    message
}

fn change(request: RouteNetlinkMessage) -> io::Result<()> {
    let socket = send(request, NLM_F_REQUEST | NLM_F_ACK)?;
    let (answer, _) = socket.recv_from_full()?;
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).map_err(io::Error::other)?.payload {
        // An "error" of zero is the acknowledgement.
        NetlinkPayload::Error(e) if e.code.is_none() => Ok(()),
        NetlinkPayload::Error(e) => Err(e.to_io()),
        other => Err(io::Error::new(io::ErrorKind::InvalidData, format!("no answer: {other:?}"))),
    }
}

fn send(request: RouteNetlinkMessage, flags: u16) -> io::Result<Socket> {
    let mut message = NetlinkMessage::from(request);
    message.header.flags = flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let socket = Socket::new(NETLINK_ROUTE)?;
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    Ok(socket)
}

//! Packets inside a filter of a TCP socket, and what is kept of them.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_load_bytes_relative},
    maps::{HashMap, ring_buf::RingBufEntry},
    programs::SkBuffContext,
};
use tpx_ebpf_abi::{Flow, IP_HEADER_MAX, SynRecord, Verdict};

use super::{IPPROTO_TCP, found, load};

/// BPF_HDR_START_NET: offsets count from the IP header.
const HDR_START_NET: u32 = 1;

/// A packet inside a filter of a TCP socket.
pub(crate) struct Packet<'a>(pub(crate) &'a SkBuffContext);

impl Packet<'_> {
    /// Bytes from the TCP header on.
    #[inline(always)]
    pub(crate) fn len(&self) -> u32 {
        self.0.len()
    }

    /// The packet's mark.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: the kernel's context lives as long as the program runs.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// Bytes from the TCP header on.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        // SAFETY: it is a packet's context.
        unsafe { load(self.0.as_ptr(), at) }
    }

    /// Bytes from the IP header on. Reaches that header only: the helper does not follow paged data.
    #[inline(always)]
    pub(crate) fn load_ip<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut to = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: room for N bytes; they are initialised when the helper returns 0.
        unsafe {
            let r = bpf_skb_load_bytes_relative(self.0.as_ptr(), at, to.as_mut_ptr().cast(), N as u32, HDR_START_NET);
            (r == 0).then(|| to.assume_init())
        }
    }
}

/// Fills a ring buffer record; `ip` and `tcp` are the lengths of the IP header and of all that follows, at most
/// [`IP_HEADER_MAX`] and `N` less that.
#[inline(always)]
pub(crate) fn copied<const N: usize>(
    packet: &Packet<'_>,
    entry: &mut RingBufEntry<SynRecord<N>>,
    flow: &Flow,
    ip: u32,
    tcp: u32,
) -> bool {
    let e = entry.as_mut_ptr();
    // SAFETY: the record is ours until it is submitted; the verifier checks the bounds that the caller promises.
    unsafe {
        (*e).flow = *flow;
        (*e).ip_header = ip as u16;
        (*e).len = (ip + tcp) as u16;
        let to = (&raw mut (*e).packet).cast::<u8>();
        if bpf_skb_load_bytes_relative(packet.0.as_ptr(), 0, to.cast(), ip, HDR_START_NET) != 0
            || bpf_skb_load_bytes(packet.0.as_ptr(), 0, to.add(IP_HEADER_MAX).cast(), tcp) != 0
        {
            return false;
        }
        if ip == 40 && *to >> 4 == 6 {
            // Extension headers are left out: TCP comes next.
            *to.add(6) = IPPROTO_TCP as u8;
        }
    }
    true
}

/// Whether the flow's SYNs may pass, if it is known; counts the repetition.
#[inline(always)]
pub(crate) fn seen(held: &HashMap<Flow, Verdict>, flow: &Flow) -> Option<bool> {
    let verdict = held.get_ptr_mut(flow)?;
    // SAFETY: the kernel gave a valid pointer; a lost increment between two CPUs only miscounts.
    unsafe {
        (*verdict).syns += 1;
        Some((*verdict).pass != 0)
    }
}

/// Whether the daemon has let the flow through and not taken the connection yet.
#[inline(always)]
pub(crate) fn released(held: &HashMap<Flow, Verdict>, flow: &Flow) -> bool {
    found(held.get_ptr(flow)).is_some_and(|verdict| verdict.pass != 0)
}

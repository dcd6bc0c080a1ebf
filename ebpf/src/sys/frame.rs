//! Packets on devices (tc), with the helpers that look up routes and send packets elsewhere.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT, TC_ACT_UNSPEC,
        bpf_fib_lookup,
    },
    helpers::generated::{
        bpf_clone_redirect, bpf_fib_lookup as fib_lookup, bpf_redirect, bpf_skb_change_head, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use tpx_ebpf_abi::{Station, mark};

use super::load;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `ETH_P_IP` and `ETH_P_IPV6` of linux/if_ether.h.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
/// `PACKET_HOST` of linux/if_packet.h.
const TO_THIS_HOST: u32 = 0;
const EINVAL: i64 = 22;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: u32 = 14;

/// A packet that has arrived on a device.
pub(crate) struct Frame<'a>(pub(crate) &'a TcContext);

/// Where the host's routes lead.
pub(crate) enum Route {
    /// Out of this device.
    Device(u32),
    /// To the host itself, or nowhere.
    Stays,
    /// It forwards nothing.
    NoRouter,
}

impl Frame<'_> {
    /// Whether it is addressed to this host's network card, without a VLAN's tag.
    #[inline(always)]
    pub(crate) fn is_for_this_host(&self) -> bool {
        // SAFETY: the kernel's context lives as long as the program runs; so below.
        unsafe { (*self.0.skb.skb).pkt_type == TO_THIS_HOST && (*self.0.skb.skb).vlan_present == 0 }
    }

    /// Whether it is IPv4.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        self.protocol() == IPV4
    }

    /// Whether it is IPv6.
    #[inline(always)]
    pub(crate) fn is_v6(&self) -> bool {
        self.protocol() == IPV6
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        // SAFETY: as above. The field holds 16 bits in network order.
        u16::from_be(unsafe { (*self.0.skb.skb).protocol } as u16)
    }

    /// Index of the device that it arrived on.
    #[inline(always)]
    pub(crate) fn device(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0.skb.skb).ifindex }
    }

    /// Its mark.
    #[inline(always)]
    pub(crate) fn mark(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0.skb.skb).mark }
    }

    /// Replaces our bits of its mark.
    #[inline(always)]
    pub(crate) fn set_mark(&self, ours: u32) {
        // SAFETY: as above; the program may write this word.
        unsafe { (*self.0.skb.skb).mark = mark::with(self.mark(), ours) }
    }

    /// Bytes from the device's header on.
    #[inline(always)]
    pub(crate) fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        // SAFETY: it is a packet's context.
        unsafe { load(self.0.as_ptr(), at) }
    }

    /// Where the host would route a packet that came in here.
    #[inline(always)]
    pub(crate) fn route4(&self, destination: [u8; 4]) -> Route {
        let mut space = MaybeUninit::uninit();
        let question = blank(&mut space);
        question.family = AF_INET;
        question.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination);
        self.route(question)
    }

    /// As [`route4`](Self::route4).
    #[inline(always)]
    pub(crate) fn route6(&self, destination: [u8; 16]) -> Route {
        let mut space = MaybeUninit::uninit();
        let question = blank(&mut space);
        question.family = AF_INET6;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = destination;
        question.__bindgen_anon_4.ipv6_dst =
            [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_ne_bytes);
        self.route(question)
    }

    #[inline(always)]
    fn route(&self, question: &mut bpf_fib_lookup) -> Route {
        question.ifindex = self.device();
        let size = size_of::<bpf_fib_lookup>() as i32;
        // SAFETY: the question is on our stack and `size` bytes long.
        let answer = unsafe { fib_lookup(self.0.as_ptr(), &raw mut *question, size, 0) };
        match answer as u32 {
            // Whether the next machine's network card is known does not matter here.
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => Route::Device(question.ifindex),
            BPF_FIB_LKUP_RET_FWD_DISABLED => Route::NoRouter,
            _ => Route::Stays,
        }
    }

    /// Sends it out of another device; the kernel takes the Ethernet header off where that has none.
    #[inline(always)]
    pub(crate) fn redirect(&self, device: u32) -> i32 {
        // SAFETY: the helper takes numbers.
        unsafe { bpf_redirect(device, 0) as i32 }
    }

    /// The same for a program that may outlive the device: then the packet goes on as if there were no program.
    #[inline(always)]
    pub(crate) fn redirect_if_there(&self, device: u32) -> i32 {
        // SAFETY: the helper takes the context as it came.
        let sent = unsafe { bpf_clone_redirect(self.0.skb.skb, device, 0) };
        if sent == -EINVAL { TC_ACT_UNSPEC } else { TC_ACT_SHOT }
    }

    /// Sends a packet without an Ethernet header to a station. One that cannot be sent is lost.
    #[inline(always)]
    pub(crate) fn send(&self, station: &Station) -> i32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = station.cards;
        let [m, n] = self.protocol().to_be_bytes();
        let header = [a, b, c, d, e, f, g, h, i, j, k, l, m, n];
        // SAFETY: the helpers take the context as it came, and a header on our stack.
        unsafe {
            if bpf_skb_change_head(self.0.skb.skb, ETHERNET, 0) != 0
                || bpf_skb_store_bytes(self.0.skb.skb, 0, header.as_ptr().cast(), ETHERNET, 0) != 0
            {
                return TC_ACT_SHOT;
            }
        }
        self.redirect(station.device)
    }
}

/// A question for a route that is all zeros. Word by word and in place: a call of memset() loops over the stack, which needs
/// CAP_PERFMON.
#[inline(always)]
fn blank(space: &mut MaybeUninit<bpf_fib_lookup>) -> &mut bpf_fib_lookup {
    let word = space.as_mut_ptr().cast::<u32>();
    let mut at = 0;
    while at < size_of::<bpf_fib_lookup>() / size_of::<u32>() {
        // SAFETY: inside the question, which is made of words.
        unsafe { word.add(at).write_volatile(0) };
        at += 1;
    }
    // SAFETY: all of it is written, and zeros are valid: integers, and unions of such.
    unsafe { space.assume_init_mut() }
}

//! Packets that look for their socket.

use aya_ebpf::programs::SkLookupContext;
use tpx_ebpf_abi::{Flow, slot::Slot, v4_mapped};

use super::{AF_INET, IPPROTO_TCP, words};

/// A packet that looks for its socket.
pub(crate) struct Lookup<'a>(pub(crate) &'a SkLookupContext);

impl Lookup<'_> {
    /// Whether it is TCP, else UDP.
    #[inline(always)]
    pub(crate) fn is_tcp(&self) -> bool {
        // SAFETY: the kernel's context lives as long as the program runs; so below.
        unsafe { (*self.0.lookup).protocol == IPPROTO_TCP }
    }

    /// Its destination port.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: as above. In host order.
        unsafe { (*self.0.lookup).local_port as u16 }
    }

    /// Whether it is IPv4, else IPv6.
    #[inline(always)]
    pub(crate) fn is_v4(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).family == AF_INET }
    }

    /// Its IPv4 destination.
    #[inline(always)]
    pub(crate) fn ip4(&self) -> [u8; 4] {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).local_ip4 }.to_ne_bytes()
    }

    /// Its IPv6 destination.
    #[inline(always)]
    pub(crate) fn ip6(&self) -> [u8; 16] {
        // SAFETY: as above.
        unsafe { words(&raw const (*self.0.lookup).local_ip6) }
    }

    /// The slot that its source is the own address of.
    #[inline(always)]
    pub(crate) fn source_slot(&self) -> Option<Slot> {
        // SAFETY: as above.
        unsafe {
            if self.is_v4() {
                Slot::of4((*self.0.lookup).remote_ip4.to_ne_bytes())
            } else {
                Slot::of6(words(&raw const (*self.0.lookup).remote_ip6))
            }
        }
    }

    /// Its addresses.
    #[inline(always)]
    pub(crate) fn flow(&self) -> Flow {
        // SAFETY: as above.
        let (src, dst) = unsafe {
            if self.is_v4() {
                (v4_mapped((*self.0.lookup).remote_ip4.to_ne_bytes()), v4_mapped(self.ip4()))
            } else {
                (words(&raw const (*self.0.lookup).remote_ip6), self.ip6())
            }
        };
        let [s, t, d, e] = self.ports();
        Flow { src, dst, sport: [s, t], dport: [d, e] }
    }

    /// Whether another program has found it a socket already.
    #[inline(always)]
    pub(crate) fn is_assigned(&self) -> bool {
        // SAFETY: as above.
        unsafe { !(*self.0.lookup).__bindgen_anon_1.__bindgen_anon_1.sk.is_null() }
    }

    /// Source and destination port, in network order, as the TCP header begins.
    #[inline(always)]
    pub(crate) fn ports(&self) -> [u8; 4] {
        // SAFETY: as above. Kernels before 5.18 know the source port as a word only; all fill it up with zeros.
        let source = unsafe { (&raw const (*self.0.lookup).remote_port).cast::<u32>().read_volatile() }.to_ne_bytes();
        let destination = self.port().to_be_bytes();
        [source[0], source[1], destination[0], destination[1]]
    }

    /// Index of the device it arrived on.
    #[inline(always)]
    pub(crate) fn ingress_device(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0.lookup).ingress_ifindex }
    }
}

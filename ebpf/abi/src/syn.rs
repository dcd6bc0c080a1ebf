//! A held SYN on its way to the daemon.

use crate::Flow;

/// Longest IP header that is carried: 15 words of IPv4.
pub const IP_HEADER_MAX: usize = 60;
/// Longest TCP header: 15 words.
pub const TCP_HEADER_MAX: usize = 60;
/// Room in a record for a SYN without payload, which is nearly every SYN. What follows the IP header has a power of two,
/// as in [`SYN_MAX`]: the verifiers of all kernels understand a bound that is a mask.
pub const SYN_BARE: usize = IP_HEADER_MAX + TCP_HEADER_MAX.next_power_of_two();
/// Room for a SYN with payload (TCP Fast Open). Of a longer one only the headers are carried: the client sends the
/// payload again (RFC 7413, 4.2).
pub const SYN_MAX: usize = IP_HEADER_MAX + 2048;

/// A ring buffer record as the kernel writes it; `N` is [`SYN_BARE`] or [`SYN_MAX`]. Read it with [`HeldSyn::parse`].
#[repr(C)]
pub struct SynRecord<const N: usize> {
    /// Whose SYN this is.
    pub flow: Flow,
    /// Length of the IP header, in host order.
    pub ip_header: u16,
    /// Length of IP header, TCP header and payload, in host order.
    pub len: u16,
    /// The IP header at 0, TCP header and payload at [`IP_HEADER_MAX`]; what lies between and behind means nothing.
    /// Without CAP_PERFMON the verifier allows no place that depends on the packet.
    pub packet: [u8; N],
}

/// A held SYN. Lengths and checksums inside the packet have to be computed anew before it is sent (the kernel leaves
/// them to offload, and a payload may have been cut off).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldSyn<'a> {
    /// Whose SYN this is.
    pub flow: Flow,
    /// IP header: 20 to 60 bytes (IPv4, with its options), or 40 (IPv6, without extension headers).
    pub ip: &'a [u8],
    /// TCP header with options, payload: at least 20 bytes.
    pub tcp: &'a [u8],
}

impl<'a> HeldSyn<'a> {
    /// Reads a record of the ring buffer. `None` if it is no such record.
    #[must_use]
    pub fn parse(record: &'a [u8]) -> Option<Self> {
        let (src, rest) = record.split_first_chunk()?;
        let (dst, rest) = rest.split_first_chunk()?;
        let (sport, rest) = rest.split_first_chunk()?;
        let (dport, rest) = rest.split_first_chunk()?;
        let (ip_header, rest) = rest.split_first_chunk()?;
        let (len, rest) = rest.split_first_chunk()?;
        let ip_header = usize::from(u16::from_ne_bytes(*ip_header));
        let tcp = usize::from(u16::from_ne_bytes(*len)).checked_sub(ip_header)?;
        if !(20..=IP_HEADER_MAX).contains(&ip_header) || tcp < 20 {
            return None;
        }
        Some(Self {
            flow: Flow { src: *src, dst: *dst, sport: *sport, dport: *dport },
            ip: rest.get(..ip_header)?,
            tcp: rest.get(IP_HEADER_MAX..)?.get(..tcp)?,
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::mem::{offset_of, size_of};
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    type Bare = SynRecord<SYN_BARE>;

    #[test]
    fn layout_has_no_padding() {
        assert_eq!(size_of::<Bare>(), 40 + SYN_BARE);
        assert_eq!(size_of::<SynRecord<SYN_MAX>>(), 40 + SYN_MAX);
        assert_eq!([offset_of!(Bare, ip_header), offset_of!(Bare, len), offset_of!(Bare, packet)], [36, 38, 40]);
    }

    fn record(ip_header: u16, len: u16, room: usize) -> Vec<u8> {
        let mut r = Vec::from([7; 36]);
        r.extend_from_slice(&ip_header.to_ne_bytes());
        r.extend_from_slice(&len.to_ne_bytes());
        r.resize(r.len() + room, 9);
        r
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        let r = record(20, 60, SYN_BARE);
        let syn = HeldSyn::parse(&r).unwrap();
        assert_eq!((syn.ip.len(), syn.tcp.len(), syn.flow.dport), (20, 40, [7, 7]));
    }

    #[test]
    fn refuses_lengths_that_cannot_be() {
        assert_eq!(HeldSyn::parse(&record(16, 60, SYN_BARE)), None);
        assert_eq!(HeldSyn::parse(&record(64, 120, SYN_BARE)), None);
        assert_eq!(HeldSyn::parse(&record(20, 121, SYN_BARE)), None);
        assert_eq!(HeldSyn::parse(&record(40, 59, SYN_BARE)), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            if let Some(syn) = HeldSyn::parse(&bytes) {
                prop_assert!(syn.tcp.len() + IP_HEADER_MAX + 40 <= bytes.len());
                prop_assert!(syn.ip.len() >= 20 && syn.tcp.len() >= 20);
            }
        }
    }
}

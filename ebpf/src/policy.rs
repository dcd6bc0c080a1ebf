//! What must not be reached: refused in the very call, before anything is sent.

use aya_ebpf::maps::lpm_trie::Key;
use tpx_ebpf_abi::Counter;

use crate::{
    maps::{DENY_PORTS, DENY4, DENY6, POLICY, VIRTUAL4, VIRTUAL6, count},
    sys::{Call, found},
};

/// How a call goes on.
#[derive(Clone, Copy)]
pub(crate) enum Outcome<T> {
    /// As it is.
    Same,
    /// With this address and port instead.
    Other(T, u16),
    /// Not at all; the errno to end it with.
    Denied(u32),
}

impl<T> Outcome<T> {
    /// With the address in another form.
    #[inline(always)]
    pub(crate) fn map<U>(self, form: impl FnOnce((T, u16)) -> (U, u16)) -> Outcome<U> {
        match self {
            Self::Same => Outcome::Same,
            Self::Other(ip, port) => {
                let (ip, port) = form((ip, port));
                Outcome::Other(ip, port)
            }
            Self::Denied(errno) => Outcome::Denied(errno),
        }
    }
}

impl<T> From<Option<(T, u16)>> for Outcome<T> {
    #[inline(always)]
    fn from(other: Option<(T, u16)>) -> Self {
        match other {
            Some((ip, port)) => Self::Other(ip, port),
            None => Self::Same,
        }
    }
}

/// The errno of a call to `ip`, which would enter the tunnel, if what is behind it is denied.
#[inline(always)]
pub(crate) fn denied4(call: &Call<'_>, ip: [u8; 4]) -> Option<u32> {
    denied(call, || DENY4.get(Key::new(32, found(VIRTUAL4.get_ptr(ip)).unwrap_or(ip))).is_some())
}

/// As [`denied4`].
#[inline(always)]
pub(crate) fn denied6(call: &Call<'_>, ip: [u8; 16]) -> Option<u32> {
    denied(call, || DENY6.get(Key::new(128, found(VIRTUAL6.get_ptr(ip)).unwrap_or(ip))).is_some())
}

#[inline(always)]
fn denied(call: &Call<'_>, address: impl FnOnce() -> bool) -> Option<u32> {
    let policy = found(POLICY.get_ptr(0))?;
    if policy.errno == 0 {
        return None;
    }
    let port = policy.ports != 0 && DENY_PORTS.get_ptr(call.port()).is_some();
    if !(port || address()) || !call.is_ours() {
        return None;
    }
    count(Counter::Denied);
    Some(policy.errno)
}

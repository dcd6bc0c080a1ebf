//! Whose a stream is, however short it lives: noted at `connect()` for its socket, filed under the addresses of its packets
//! as soon as the kernel has chosen a source port. The daemon takes it from there when the SYN arrives. The same for streams of
//! a process tree whose source address does not say so.

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};
use tpx_ebpf_abi::Pids;

use crate::{
    maps::{BOUND, CALLERS, CHOOSERS, OWNERS, PIDS, is_tree},
    sys::{Call, Opening, caller, found},
};

/// Remembers the caller for the socket.
#[inline(always)]
pub(crate) fn note(call: &Call<'_>) {
    if PIDS.load() != Pids::Off as u32
        && let Some(caller) = caller()
    {
        // Without room the daemon looks for the socket's process itself.
        let _ = CALLERS.insert(call.cookie(), caller, 0);
    }
}

#[sock_ops]
pub(crate) fn owner(ctx: SockOpsContext) -> u32 {
    let opening = Opening(&ctx);
    if opening.is_connecting() {
        let cookie = opening.cookie();
        if is_tree() && CHOOSERS.get_ptr(cookie).is_some() {
            let _ = BOUND.insert(opening.flow(), 1, 0);
            let _ = CHOOSERS.remove(cookie);
        }
        if let Some(caller) = found(CALLERS.get_ptr(cookie)) {
            let _ = OWNERS.insert(opening.flow(), caller, 0);
            let _ = CALLERS.remove(cookie);
        }
    }
    // Whatever else the kernel asks here: as without this program.
    1
}

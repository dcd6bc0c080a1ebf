//! socket(): sockets of a process tree are marked from the start, so that what no other program sees (ping, raw sockets,
//! the first datagram) finds the floor of its own cluster.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};

use crate::{maps::member_mark, sys::NewSocket};

#[cgroup_sock(sock_create)]
pub(crate) fn sock_create(ctx: SockContext) -> i32 {
    let socket = NewSocket(&ctx);
    if socket.is_ours() {
        socket.set_mark(member_mark());
    }
    1
}

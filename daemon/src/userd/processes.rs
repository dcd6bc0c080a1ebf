//! Which process has which socket, from /proc, as an ordinary user sees it: other users' processes stay unknown.

use std::{
    collections::{HashMap, HashSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::ipc::Process;

/// A socket of the kernel's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Socket {
    /// Its own address.
    pub own: SocketAddr,
    /// The far end; unspecified where it has none.
    pub peer: SocketAddr,
    /// Whose it is.
    pub uid: u32,
    /// What /proc/PID/fd calls it.
    pub inode: u64,
}

/// The tables of TCP and UDP in the network namespace of `process` (`self`, or a pid).
pub(super) fn sockets(process: &str) -> Vec<(&'static str, Socket)> {
    let mut found = Vec::new();
    for (protocol, table) in [("tcp", "tcp"), ("tcp", "tcp6"), ("udp", "udp"), ("udp", "udp6")] {
        let text = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        found.extend(text.lines().filter_map(parse).map(|socket| (protocol, socket)));
    }
    found
}

/// The owners of sockets, by inode. Looks at every process that this user may look at until all are found: `first` those
/// that are likely, then the youngest, and last this one, which has the most files.
pub(super) fn owners(inodes: &HashSet<u64>, first: impl IntoIterator<Item = u32>) -> HashMap<u64, Process> {
    let mut owners = HashMap::new();
    let mut look = |pid: u32| {
        for inode in inodes_of(pid) {
            if inodes.contains(&inode) && !owners.contains_key(&inode) {
                owners.insert(inode, Process { pid, name: name_of(pid).unwrap_or_default() });
            }
        }
        owners.len() == inodes.len()
    };
    if !inodes.is_empty() && !first.into_iter().any(&mut look) {
        let own = std::process::id();
        let mut pids: Vec<u32> = fs::read_dir("/proc")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        pids.sort_unstable_by_key(|pid| (*pid == own, std::cmp::Reverse(*pid)));
        pids.into_iter().any(look);
    }
    owners
}

/// The sockets that a process has open; none when it is another user's.
pub(super) fn inodes_of(pid: u32) -> Vec<u64> {
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let inode = |link: std::path::PathBuf| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok();
    files.filter_map(|file| inode(fs::read_link(file.path()).ok()?)).collect()
}

/// A process's name; `None` when there is no such process.
pub(super) fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// A line of /proc/net/{tcp,udp}{,6} (proc_pid_net(5)): `sl local_address rem_address st ... uid timeout inode`.
fn parse(line: &str) -> Option<Socket> {
    let mut fields = line.split_whitespace();
    let own = address(fields.nth(1)?)?;
    let peer = address(fields.next()?)?;
    let uid = fields.nth(4)?.parse().ok()?;
    let inode = fields.nth(1)?.parse().ok()?;
    Some(Socket { own, peer, uid, inode })
}

/// Addresses stand there as 32-bit words in the machine's byte order, ports as numbers.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    if !ip.is_ascii() {
        return None;
    }
    let word = |at: usize| Some(u32::from_str_radix(ip.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let bytes: Vec<u8> = [word(0)?, word(8)?, word(16)?, word(24)?].concat();
            Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn lines_are_read() {
        let line =
            "   0: 0100007F:1F90 0301600A:0050 01 00000000:00000000 00:00000000 00000000  1000        0 4711 1 0";
        let socket = parse(line).unwrap();
        assert_eq!(socket.own.to_string(), "127.0.0.1:8080");
        assert_eq!(socket.peer.to_string(), "10.96.1.3:80");
        assert_eq!((socket.uid, socket.inode), (1000, 4711));
        let mapped =
            "1: 0000000000000000FFFF00000100007F:0035 00000000000000000000000001000000:0001 01 0:0 0:0 0 0 0 9";
        let socket = parse(mapped).unwrap();
        assert_eq!(socket.own.to_string(), "127.0.0.1:53");
        assert_eq!(socket.peer.to_string(), "[::1]:1");
        for bad in ["", "  sl  local_address rem_address   st", "0: zz:1 0100007F:1 1 1 1 1 1 1", "0: é100007:1 x:1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn own_sockets_are_found_with_their_process() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let tables = sockets("self");
        let find = |protocol: &str, own: SocketAddr| {
            let socket = tables.iter().find(|(p, socket)| *p == protocol && socket.own == own);
            socket.unwrap_or_else(|| panic!("{own} is not in {tables:?}")).1
        };
        let tcp = find("tcp", stream.local_addr().unwrap());
        assert_eq!(tcp.peer, listener.local_addr().unwrap());
        let udp = find("udp", udp.local_addr().unwrap());
        let owners = owners(&[tcp.inode, udp.inode].into(), []);
        assert!(owners.values().all(|process| process.pid == std::process::id()), "{owners:?}");
        assert_eq!(owners.len(), 2);
        assert_eq!(name_of(std::process::id()).as_ref(), owners.values().next().map(|p| &p.name));
        assert_eq!(name_of(u32::MAX), None);
    }
}

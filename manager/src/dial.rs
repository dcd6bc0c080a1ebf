//! Dials from inside the cluster; the kernel's own errors are the answer.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{net::TcpStream, time::timeout};
use tpx_core::dial::DialFailure;
use tpx_link::{Target, proxy_status::Refusal};

/// The kernel gives up a connection attempt after about 127 s (`tcp_syn_retries` 6). This only bounds kernels that were
/// told to try for longer.
const PATIENCE: Duration = Duration::from_secs(130);
/// A name is looked up no longer than this.
const LOOKUP: Duration = Duration::from_secs(15);

/// Connects to `target`. Dropping the future gives up.
///
/// # Errors
/// Why not, as the laptop should hear it.
pub async fn dial(target: &Target) -> Result<TcpStream, Refusal> {
    let mut last = Refusal::Name;
    for address in addresses(target).await? {
        match connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => last = refusal(&error),
        }
    }
    Err(last)
}

/// Where `target` is: its address, or all that its name has.
///
/// # Errors
/// Why the name could not be looked up.
pub(crate) async fn addresses(target: &Target) -> Result<Vec<SocketAddr>, Refusal> {
    if let Some(address) = target.address() {
        return Ok(vec![address]);
    }
    let lookup = tokio::net::lookup_host((target.name().unwrap_or_default(), target.port()));
    match timeout(LOOKUP, lookup).await {
        Ok(Ok(addresses)) => Ok(addresses.collect()),
        Ok(Err(_)) => Err(Refusal::Name),
        Err(_) => Err(Refusal::Dial(DialFailure::TimedOut)),
    }
}

async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    match timeout(PATIENCE, TcpStream::connect(address)).await {
        Ok(result) => result,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// What the laptop should hear of it.
pub(crate) fn refusal(error: &io::Error) -> Refusal {
    Refusal::Dial(failure(error))
}

/// What an error of the kernel's means for a dial.
pub(crate) fn failure(error: &io::Error) -> DialFailure {
    match error.raw_os_error() {
        // A reset in the middle of the handshake is a refusal as well.
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => DialFailure::Refused,
        Some(libc::EHOSTUNREACH | libc::EHOSTDOWN) => DialFailure::HostUnreachable,
        // EINVAL, EADDRNOTAVAIL: an address that nothing can be connected to from here, such as an unscoped fe80::.
        Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EINVAL | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
            DialFailure::NetworkUnreachable
        }
        Some(libc::EACCES | libc::EPERM) => DialFailure::Prohibited,
        Some(libc::ETIMEDOUT) => DialFailure::TimedOut,
        None if error.kind() == io::ErrorKind::TimedOut => DialFailure::TimedOut,
        _ => {
            tracing::warn!(%error, "a dial failed here, not there");
            DialFailure::Tunnel
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_kept() {
        for (errno, failure) in [
            (libc::ECONNREFUSED, DialFailure::Refused),
            (libc::EHOSTUNREACH, DialFailure::HostUnreachable),
            (libc::ENETUNREACH, DialFailure::NetworkUnreachable),
            (libc::ETIMEDOUT, DialFailure::TimedOut),
            (libc::EACCES, DialFailure::Prohibited),
            (libc::EMFILE, DialFailure::Tunnel),
        ] {
            assert_eq!(refusal(&io::Error::from_raw_os_error(errno)), Refusal::Dial(failure));
        }
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::from(listener.local_addr().unwrap());
        assert!(dial(&target).await.is_ok());
        drop(listener);
        assert_eq!(dial(&target).await.unwrap_err(), Refusal::Dial(DialFailure::Refused));
    }
}

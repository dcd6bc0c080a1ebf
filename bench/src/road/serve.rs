//! The three services, the same on every road.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use tokio::net::TcpStream;
use tpx_datapath::{DatagramFlow, NetStream};

/// RFC 862.
pub(super) const ECHO: u16 = 7;
/// RFC 863.
const DISCARD: u16 = 9;
/// RFC 864, without a pattern.
const CHARGEN: u16 = 19;

/// All of them.
pub(super) const PORTS: [u16; 3] = [ECHO, DISCARD, CHARGEN];

const BUFFER: usize = 256 * 1024;

/// An end of a connection as the user daemon uses it: wait until ready, then try.
pub(super) trait End: Send + Sync + 'static {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;
    fn shutdown_write(&self) -> io::Result<()>;
}

impl End for TcpStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, buffer)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write(self, bytes)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        socket2::SockRef::from(self).shutdown(std::net::Shutdown::Write)
    }
}

impl End for NetStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_read_ready(self, cx)
    }

    fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Self::try_read(self, buffer)
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Self::poll_write_ready(self, cx)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        Self::try_write_vectored(self, &[IoSlice::new(bytes)])
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Self::shutdown_write(self)
    }
}

/// Serves a connection to `port` until the client ends it. How it ends is the client's to judge.
pub(super) async fn stream(end: impl End, port: u16) {
    let mut buffer = vec![0; BUFFER];
    let served: io::Result<()> = async {
        match port {
            CHARGEN => loop {
                write(&end, &buffer).await?;
            },
            port => loop {
                let length = read(&end, &mut buffer).await?;
                if length == 0 {
                    return end.shutdown_write();
                }
                if port == ECHO {
                    write(&end, &buffer[..length]).await?;
                }
            },
        }
    }
    .await;
    drop(served);
}

/// Sends every datagram back.
pub(super) async fn datagrams(mut flow: DatagramFlow) {
    while let Some(payload) = flow.incoming.recv().await {
        flow.back.send(&payload);
    }
}

async fn read(end: &impl End, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        poll_fn(|cx| end.poll_read_ready(cx)).await?;
        match end.try_read(buffer) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

async fn write(end: &impl End, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        poll_fn(|cx| end.poll_write_ready(cx)).await?;
        match end.try_write(bytes) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    async fn client(port: u16) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (served, _) = listener.accept().await.unwrap();
        tokio::spawn(stream(served, port));
        client
    }

    #[tokio::test]
    async fn each_port_does_its_own() {
        let limit = Duration::from_secs(20);
        let all = async {
            let mut echo = client(ECHO).await;
            echo.write_all(b"hello").await.unwrap();
            echo.shutdown().await.unwrap();
            let mut back = Vec::new();
            echo.read_to_end(&mut back).await.unwrap();
            assert_eq!(back, b"hello");

            let mut discard = client(DISCARD).await;
            discard.write_all(&vec![7; 3 << 20]).await.unwrap();
            discard.shutdown().await.unwrap();
            assert_eq!(discard.read(&mut [0]).await.unwrap(), 0);

            let mut source = client(CHARGEN).await;
            let mut much = vec![1; 3 << 20];
            source.read_exact(&mut much).await.unwrap();
        };
        tokio::time::timeout(limit, all).await.unwrap();
    }
}

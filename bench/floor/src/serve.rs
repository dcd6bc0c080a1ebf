//! The servers: a sink that acknowledges parts of the length that comes first, a source, an echo.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

pub(crate) const SINK: u16 = 1001;
pub(crate) const SOURCE: u16 = 1002;
pub(crate) const ECHO: u16 = 1003;
pub(crate) const PORTS: [u16; 3] = [SINK, SOURCE, ECHO];

const BUFFER: usize = 128 << 10;

/// Serves one connection to `port`.
pub(crate) async fn serve(port: u16, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut bytes = vec![0; BUFFER];
    loop {
        match port {
            SOURCE => stream.write_all(&bytes).await?,
            SINK => {
                let part = stream.read_u64().await?;
                let mut left = part as usize;
                while left > 0 {
                    let most = left.min(BUFFER);
                    match stream.read(&mut bytes[..most]).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        n => left -= n,
                    }
                }
                stream.write_all(&part.to_be_bytes()).await?;
            }
            _ => match stream.read(&mut bytes).await? {
                0 => return stream.shutdown().await,
                n => stream.write_all(&bytes[..n]).await?,
            },
        }
    }
}

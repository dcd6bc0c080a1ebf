//! The servers: a sink that says how much it got, a source, an echo.

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
    let mut got = 0u64;
    loop {
        if port == SOURCE {
            stream.write_all(&bytes).await?;
            continue;
        }
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            break;
        }
        got += n as u64;
        if port == ECHO {
            stream.write_all(&bytes[..n]).await?;
        }
    }
    if port == SINK {
        stream.write_all(&got.to_be_bytes()).await?;
    }
    stream.shutdown().await
}

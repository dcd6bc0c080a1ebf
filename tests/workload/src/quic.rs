//! A QUIC server that sends as many bytes as it is asked for: what HTTP/3 does, without the HTTP.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use quinn::{Connection, Endpoint, RecvStream, SendStream, ServerConfig};
use rcgen::generate_simple_self_signed;
use rustls::pki_types::PrivatePkcs8KeyDer;

/// Where it listens.
pub(crate) const PORT: u16 = 4433;
const BLOCK: usize = 64 * 1024;

/// Serves until it is dropped. A client opens a stream, sends a count (64 bits, big-endian) and reads that many bytes,
/// of which byte i of each 64 KiB block is (i * 7 + i / 256) mod 256.
pub(crate) async fn serve(address: SocketAddr) -> Result<()> {
    let own = generate_simple_self_signed(vec!["echo.default".to_owned()])?;
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
    let config = ServerConfig::with_single_cert(vec![own.cert.der().clone()], key.into())?;
    let endpoint = Endpoint::server(config, address).with_context(|| format!("cannot listen on {address}"))?;
    let block: Arc<[u8]> = (0..BLOCK).map(|i| (i * 7 + i / 256) as u8).collect();
    while let Some(incoming) = endpoint.accept().await {
        let block = Arc::clone(&block);
        tokio::spawn(async move {
            if let Ok(connection) = incoming.await {
                answer_all(connection, block).await;
            }
        });
    }
    Ok(())
}

async fn answer_all(connection: Connection, block: Arc<[u8]>) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        let block = Arc::clone(&block);
        // A client that leaves early is no concern of the server's.
        tokio::spawn(async move { answer(send, receive, &block).await.ok() });
    }
}

async fn answer(mut send: SendStream, mut receive: RecvStream, block: &[u8]) -> Result<()> {
    let mut count = [0; 8];
    receive.read_exact(&mut count).await?;
    let mut left = u64::from_be_bytes(count);
    while left > 0 {
        let part = left.min(BLOCK as u64);
        send.write_all(block.get(..part as usize).unwrap_or_default()).await?;
        left -= part;
    }
    Ok(send.finish()?)
}

//! A QUIC client that downloads bytes and says what came, as one JSON document.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use sha2::{Digest as _, Sha256};

#[derive(Parser)]
struct Args {
    /// Whom to ask.
    address: SocketAddr,
    /// For how many bytes.
    bytes: u64,
}

/// The server makes its certificate when it starts: there is nothing to compare it with.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(get(&args))
}

async fn get(args: &Args) -> Result<()> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
        .with_no_client_auth();
    let any: SocketAddr = if args.address.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let mut endpoint = Endpoint::client(any)?;
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)));
    let began = Instant::now();
    let connection = endpoint.connect(args.address, "echo.default")?.await.context("connect")?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&args.bytes.to_be_bytes()).await?;
    send.finish()?;
    let (mut sum, mut bytes) = (Sha256::new(), 0);
    while let Some(chunk) = receive.read_chunk(1 << 20, true).await? {
        bytes += chunk.bytes.len();
        sum.update(&chunk.bytes);
    }
    let sha256: String = sum.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let stats = connection.stats();
    println!(
        "{}",
        serde_json::json!({
            "bytes": bytes,
            "sha256": sha256,
            "milliseconds": began.elapsed().as_millis(),
            "mtu": stats.path.current_mtu,
            "lost": stats.path.lost_packets,
        })
    );
    connection.close(0u32.into(), b"");
    endpoint.wait_idle().await;
    Ok(())
}

//! One transport connection under a lane, and how to get one.

use std::io;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};

/// An ordered, reliable byte stream to the manager.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Carrier for T {}

/// Opens carriers of one kind to one place.
#[async_trait]
pub trait Connector: Send + Sync {
    /// Opens a new carrier. Dropping the future gives the attempt up.
    ///
    /// # Errors
    /// [`CarrierError`], with the words of whoever refused.
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError>;

    /// What this is, for people: "port-forward to tpx-system/traffic-manager-x:8081".
    fn describe(&self) -> String;
}

/// Why a carrier could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CarrierError {
    /// The other end is not there (any more): look for another one.
    #[error("{0}")]
    NotFound(String),
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Something between here and there said no, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The connection failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// Sets up a TCP connection that carries a lane, at either end.
///
/// # Errors
/// When the connection is gone already.
pub fn prepare(tcp: &tokio::net::TcpStream) -> io::Result<()> {
    crate::tcp::prepare_carrier(tcp)
}

#[async_trait]
impl Connector for std::net::SocketAddr {
    async fn connect(&self) -> Result<Box<dyn Carrier>, CarrierError> {
        let tcp = tokio::net::TcpStream::connect(self).await?;
        prepare(&tcp)?;
        Ok(Box::new(tcp))
    }

    fn describe(&self) -> String {
        format!("TCP to {self}")
    }
}

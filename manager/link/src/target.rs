//! Where a stream should lead.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use http::uri::Authority;

/// A host inside the cluster (an address, or a name that is resolved there) and a TCP or UDP port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    host: Host,
    port: u16,
}

/// The host part of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// Text that is no `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a host and port: {0:?}")]
pub struct TargetError(String);

impl Target {
    /// A name to be resolved inside the cluster. The port must not be 0.
    ///
    /// # Errors
    /// When `host` is neither a DNS name (RFC 1035 length, letters, digits, `-`, `_`, `.`) nor an address.
    pub fn new(host: &str, port: u16) -> Result<Self, TargetError> {
        let error = || TargetError(format!("{host}:{port}"));
        if port == 0 {
            return Err(error());
        }
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(Self { host: Host::Address(address.to_canonical()), port });
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if host.is_empty() || host.len() > 254 || !host.bytes().all(allowed) {
            return Err(error());
        }
        Ok(Self { host: Host::Name(host.to_ascii_lowercase()), port })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The socket address, when the target is an address.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self.host {
            Host::Address(address) => Some(SocketAddr::new(address, self.port)),
            Host::Name(_) => None,
        }
    }

    /// The name, when the target is one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.host {
            Host::Address(_) => None,
            Host::Name(name) => Some(name),
        }
    }

    /// The host alone; an IPv6 address without brackets.
    pub(crate) fn host(&self) -> String {
        match &self.host {
            Host::Address(address) => address.to_string(),
            Host::Name(name) => name.clone(),
        }
    }

    pub(crate) fn from_authority(authority: &Authority) -> Result<Self, TargetError> {
        let error = || TargetError(authority.as_str().to_owned());
        let port = authority.port_u16().ok_or_else(error)?;
        if authority.as_str().contains('@') {
            return Err(error());
        }
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        Self::new(host, port).map_err(|_| error())
    }
}

impl From<SocketAddr> for Target {
    /// A v4-mapped address becomes the IPv4 one; a scope id is dropped.
    fn from(address: SocketAddr) -> Self {
        Self { host: Host::Address(address.ip().to_canonical()), port: address.port() }
    }
}

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let authority = text.parse::<Authority>().map_err(|_| TargetError(text.to_owned()))?;
        Self::from_authority(&authority)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(address) => SocketAddr::new(*address, self.port).fmt(f),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for (text, canonical) in [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[fd00::1]:443", "[fd00::1]:443"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("Web-App.emojivoto:80", "web-app.emojivoto:80"),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), canonical);
            assert_eq!(canonical.parse::<Target>().unwrap(), target);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "host", "host:", "host:0", "host:99999", "user@host:80", ":80", "a b:80", "fd00::1:80x"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}

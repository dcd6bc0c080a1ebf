//! Dial failures as `Proxy-Status` (RFC 9209), both directions, pure.
//!
//! The manager answers a failed `CONNECT` with a status code and one `Proxy-Status` member, for example
//! `tpx-manager; error=connection_refused`. RFC 9209 knows one word for "no route"; the parameter `errno` keeps apart
//! what the kernel keeps apart.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use tpx_core::dial::DialFailure;

/// The header's name.
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What a manager calls itself in the header.
const NAME: &str = "tpx-manager";

/// Why a `CONNECT` was answered with something else than 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The dial failed.
    Dial(DialFailure),
    /// The name has no address.
    Name,
    /// The session is unknown or over: arrive again.
    Session,
    /// The request makes no sense.
    BadRequest,
}

impl Refusal {
    /// The status code of the answer (RFC 9209 section 2.3 recommends one for each error).
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::Dial(DialFailure::Refused | DialFailure::HostUnreachable | DialFailure::NetworkUnreachable)
            | Self::Name => StatusCode::BAD_GATEWAY,
            Self::Dial(DialFailure::Prohibited) => StatusCode::FORBIDDEN,
            Self::Dial(DialFailure::TimedOut) => StatusCode::GATEWAY_TIMEOUT,
            Self::Dial(DialFailure::Tunnel) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Session => StatusCode::FORBIDDEN,
            Self::BadRequest => StatusCode::BAD_REQUEST,
        }
    }

    /// The header's value.
    #[must_use]
    pub fn header(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Dial(DialFailure::Refused) => "tpx-manager; error=connection_refused",
            Self::Dial(DialFailure::HostUnreachable) => {
                "tpx-manager; error=destination_ip_unroutable; errno=EHOSTUNREACH"
            }
            Self::Dial(DialFailure::NetworkUnreachable) => {
                "tpx-manager; error=destination_ip_unroutable; errno=ENETUNREACH"
            }
            Self::Dial(DialFailure::Prohibited) => "tpx-manager; error=destination_ip_prohibited",
            Self::Dial(DialFailure::TimedOut) => "tpx-manager; error=connection_timeout",
            Self::Dial(DialFailure::Tunnel) => "tpx-manager; error=proxy_internal_error",
            Self::Name => "tpx-manager; error=dns_error",
            Self::Session => "tpx-manager; error=http_request_denied; details=\"unknown session\"",
            Self::BadRequest => "tpx-manager; error=http_request_error",
        })
    }
}

/// Reads the answer to a `CONNECT` whose status is not 2xx.
///
/// Other proxies may have added members before ours; the one closest to the target comes first (RFC 9209 section 2)
/// and the first that names an error decides. Without one the status code decides.
#[must_use]
pub fn failure(status: StatusCode, headers: &HeaderMap) -> DialFailure {
    headers
        .get_all(PROXY_STATUS)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| split(value, ','))
        .find_map(member)
        .unwrap_or(match status {
            StatusCode::GATEWAY_TIMEOUT => DialFailure::TimedOut,
            _ => DialFailure::Tunnel,
        })
}

/// One list member: `name; key=value; ...`.
fn member(text: &str) -> Option<DialFailure> {
    let mut parts = split(text, ';').map(str::trim);
    let ours = parts.next()? == NAME;
    let parameters: Vec<(&str, &str)> = parts.filter_map(|part| part.split_once('=')).collect();
    let get = |key| parameters.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    Some(match get("error")? {
        "connection_refused" => DialFailure::Refused,
        "destination_ip_unroutable" if get("errno") == Some("ENETUNREACH") => DialFailure::NetworkUnreachable,
        "destination_ip_unroutable" | "destination_unavailable" | "destination_not_found" | "dns_error" => {
            DialFailure::HostUnreachable
        }
        "destination_ip_prohibited" => DialFailure::Prohibited,
        // From another proxy it is that proxy's policy; from ours it is a session that is over.
        "http_request_denied" if !ours => DialFailure::Prohibited,
        "connection_timeout" | "dns_timeout" => DialFailure::TimedOut,
        "connection_terminated" | "connection_limit_reached" => DialFailure::Refused,
        _ => DialFailure::Tunnel,
    })
}

/// Splits at `separator` outside quoted strings (RFC 8941).
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let was_escaped = std::mem::take(&mut escaped);
        match c {
            '\\' if quoted && !was_escaped => escaped = true,
            '"' if !was_escaped => quoted = !quoted,
            c if c == separator && !quoted => return true,
            _ => {}
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, values: &[&str]) -> DialFailure {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(PROXY_STATUS, HeaderValue::from_str(value).unwrap());
        }
        failure(StatusCode::from_u16(status).unwrap(), &headers)
    }

    #[test]
    fn every_dial_failure_survives_the_way() {
        for failure in [
            DialFailure::Refused,
            DialFailure::HostUnreachable,
            DialFailure::NetworkUnreachable,
            DialFailure::Prohibited,
            DialFailure::TimedOut,
            DialFailure::Tunnel,
        ] {
            let refusal = Refusal::Dial(failure);
            assert_eq!(read(refusal.status().as_u16(), &[refusal.header().to_str().unwrap()]), failure);
            assert!(!refusal.status().is_success());
        }
    }

    #[test]
    fn what_is_no_dial_failure() {
        for (refusal, failure) in [
            (Refusal::Name, DialFailure::HostUnreachable),
            (Refusal::Session, DialFailure::Tunnel),
            (Refusal::BadRequest, DialFailure::Tunnel),
        ] {
            assert_eq!(read(refusal.status().as_u16(), &[refusal.header().to_str().unwrap()]), failure);
        }
    }

    #[test]
    fn other_proxies_are_understood() {
        assert_eq!(
            read(502, &["edge; details=\"a, error=dns_error; \\\"b\\\"\"; error=connection_refused"]),
            DialFailure::Refused
        );
        assert_eq!(read(502, &["cache; hit", "gw;error=connection_timeout"]), DialFailure::TimedOut);
        assert_eq!(read(502, &["a;error=connection_refused, b;error=connection_timeout"]), DialFailure::Refused);
        assert_eq!(read(504, &[]), DialFailure::TimedOut);
        assert_eq!(read(403, &["mesh; error=http_request_denied"]), DialFailure::Prohibited);
        assert_eq!(read(502, &["mesh; error=something_new"]), DialFailure::Tunnel);
        assert_eq!(read(200, &[";;;===,,\"", "=;error"]), DialFailure::Tunnel);
    }
}

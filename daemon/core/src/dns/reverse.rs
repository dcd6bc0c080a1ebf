//! Reverse names: which addresses a name under `in-addr.arpa` or `ip6.arpa` stands for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Name;

/// The addresses a reverse name stands for: one for a whole name, a subnet for a part of one (RFC 1035, 3.5 and
/// RFC 3596, 2.5).
///
/// Labels are read from the top as far as they are digits; what stands left of them (such as RFC 2317's `0-63`) is
/// below that subnet and ignored. `None` for other names, and for the two zones themselves.
pub fn reverse_net(name: &Name) -> Option<IpNet> {
    if name.from_top(0)? != b"arpa" {
        return None;
    }
    let digits = name.labels().rev().skip(2);
    match name.from_top(1)? {
        b"in-addr" => {
            let octets: Vec<u8> = digits.take(4).map_while(octet).collect();
            let mut address = [0; 4];
            address[..octets.len()].copy_from_slice(&octets);
            let prefix = 8 * octets.len() as u8;
            (prefix > 0).then(|| Ipv4Net::new(Ipv4Addr::from(address), prefix).ok().map(IpNet::V4))?
        }
        b"ip6" => {
            let nibbles: Vec<u8> = digits.take(32).map_while(nibble).collect();
            let address = nibbles
                .iter()
                .enumerate()
                .fold(0u128, |address, (index, &nibble)| address | u128::from(nibble) << (124 - 4 * index));
            let prefix = 4 * nibbles.len() as u8;
            (prefix > 0).then(|| Ipv6Net::new(Ipv6Addr::from(address), prefix).ok().map(IpNet::V6))?
        }
        _ => None,
    }
}

/// The one address a reverse name stands for; `None` for a part of one, and for names below one.
pub fn reverse_address(name: &Name) -> Option<IpAddr> {
    let net = reverse_net(name)?;
    let whole = if net.addr().is_ipv4() { 4 } else { 32 };
    (net.prefix_len() == net.max_prefix_len() && name.len() == whole + 2).then(|| net.addr())
}

/// The reverse name of an address (RFC 1035, 3.5 and RFC 3596, 2.5).
pub fn reverse_name(address: IpAddr) -> Name {
    let text = match address {
        IpAddr::V4(four) => {
            let [a, b, c, d] = four.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(six) => {
            let nibbles: String =
                six.octets().iter().rev().map(|byte| format!("{:x}.{:x}.", byte & 15, byte >> 4)).collect();
            nibbles + "ip6.arpa"
        }
    };
    text.parse().unwrap_or_default()
}

fn octet(label: &[u8]) -> Option<u8> {
    if label.len() > 1 && label[0] == b'0' || !label.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(label).ok()?.parse().ok()
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => (*digit as char).to_digit(16).map(|value| value as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Option<String> {
        reverse_net(&text.parse().unwrap()).map(|net| net.to_string())
    }

    #[test]
    fn version_4() {
        assert_eq!(net("7.3.96.10.in-addr.arpa").as_deref(), Some("10.96.3.7/32"));
        assert_eq!(net("7.3.96.10.IN-ADDR.ARPA.").as_deref(), Some("10.96.3.7/32"));
        assert_eq!(net("96.10.in-addr.arpa").as_deref(), Some("10.96.0.0/16"));
        assert_eq!(net("0-63.3.96.10.in-addr.arpa").as_deref(), Some("10.96.3.0/24"));
        assert_eq!(net("x.7.3.96.10.in-addr.arpa").as_deref(), Some("10.96.3.7/32"));
        assert_eq!(net("256.in-addr.arpa"), None);
        assert_eq!(net("010.in-addr.arpa"), None);
        assert_eq!(net("+1.in-addr.arpa"), None);
        assert_eq!(net("in-addr.arpa"), None);
        assert_eq!(net("arpa"), None);
        assert_eq!(net("7.3.96.10.in-addr.example"), None);
    }

    #[test]
    fn whole_names_and_addresses_are_the_same_thing() {
        for address in ["10.96.3.7", "0.0.0.0", "fd10:96::307", "::"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(reverse_address(&reverse_name(address)), Some(address));
        }
        for part in ["96.10.in-addr.arpa", "x.7.3.96.10.in-addr.arpa", "d.f.ip6.arpa", "example.com"] {
            assert_eq!(reverse_address(&part.parse().unwrap()), None, "{part}");
        }
    }

    #[test]
    fn version_6() {
        let whole = "1.".to_owned() + &"0.".repeat(27) + "1.0.d.f.ip6.arpa";
        assert_eq!(net(&whole).as_deref(), Some("fd01::1/128"));
        assert_eq!(net("1.0.D.F.ip6.arpa").as_deref(), Some("fd01::/16"));
        assert_eq!(net("10.d.f.ip6.arpa").as_deref(), Some("fd00::/8"));
        assert_eq!(net("g.ip6.arpa"), None);
        assert_eq!(net("ip6.arpa"), None);
    }
}

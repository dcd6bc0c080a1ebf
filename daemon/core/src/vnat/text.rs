//! Addresses inside text: environment variables that a pod was given.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `text` with every IPv4 and IPv6 address exchanged for what `exchange` gives; `None` leaves it as it is.
///
/// Only whole addresses count: not parts of words, names or longer numbers, and not those of subnets
/// (`10.96.0.0/16`), which name more than one address. Ports, brackets and what stands around stay. Where `/` and a
/// number follow an address in a URL (`http://10.96.0.1/8`) they are its path.
///
/// # Errors
/// The first error of `exchange`.
pub fn translate_text<E>(
    text: &str,
    mut exchange: impl FnMut(IpAddr) -> Result<Option<IpAddr>, E>,
) -> Result<String, E> {
    let bytes = text.as_bytes();
    let mut translated = String::with_capacity(text.len());
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if !is_part(bytes[at]) {
            at += 1;
            continue;
        }
        // A run of what addresses are made of; addresses are looked for inside it.
        let end = at + bytes[at..].iter().take_while(|byte| is_part(**byte)).count();
        let mut from = at;
        while let Some((start, stop, ip)) = next_address(text, from, end) {
            if let Some(other) = exchange(ip.to_canonical())? {
                translated.push_str(&text[copied..start]);
                translated.push_str(&written_like(ip, other));
                copied = stop;
            }
            from = stop;
        }
        at = end;
    }
    translated.push_str(&text[copied..]);
    Ok(translated)
}

/// An IPv4-mapped address stays one.
fn written_like(old: IpAddr, new: IpAddr) -> String {
    match (old, new) {
        (IpAddr::V6(_), IpAddr::V4(four)) => four.to_ipv6_mapped().to_string(),
        _ => new.to_string(),
    }
}

fn is_part(byte: u8) -> bool {
    byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.')
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

/// The first address in `from..end`, which ends where a run of parts ends, and where it stands.
fn next_address(text: &str, from: usize, end: usize) -> Option<(usize, usize, IpAddr)> {
    let bytes = text.as_bytes();
    (from..end).find_map(|start| {
        let fresh = start == 0 || !(is_word(bytes[start - 1]) || matches!(bytes[start - 1], b'.' | b'-'));
        // `key:fd00::1` and `a,b` begin addresses; `1.10.0.0.1` and `ip-10.0.0.1` do not.
        if !fresh {
            return None;
        }
        let six = || whole_six(text, start, end);
        let (stop, ip) = if bytes[start] == b'.' { None } else { six().or_else(|| whole_four(text, start, end)) }?;
        (!is_subnet(text, start, stop)).then_some((start, stop, ip))
    })
}

/// An IPv6 address from `start` to the run's end, but for dots and colons that end a sentence.
fn whole_six(text: &str, start: usize, end: usize) -> Option<(usize, IpAddr)> {
    let before = start.checked_sub(1).map(|at| text.as_bytes()[at]);
    // The colon of `key::1` may be part of the address or not; then it is none.
    if before == Some(b':') && text[start..].starts_with(':') {
        return None;
    }
    [
        text[start..end].len(),
        text[start..end].trim_end_matches('.').len(),
        text[start..end].trim_end_matches([':', '.']).len(),
    ]
    .into_iter()
    .find_map(|length| {
        let stop = start + length;
        let ip: Ipv6Addr = text[start..stop].parse().ok()?;
        let free = ends_word(text, stop) && text.as_bytes().get(stop) != Some(&b'%');
        free.then_some((stop, ip.into()))
    })
}

/// An IPv4 address of four numbers at `start`.
fn whole_four(text: &str, start: usize, end: usize) -> Option<(usize, IpAddr)> {
    let length = text[start..end].bytes().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').count();
    let stop = start + text[start..start + length].trim_end_matches('.').len();
    let ip: Ipv4Addr = text[start..stop].parse().ok()?;
    ends_word(text, stop).then_some((stop, ip.into()))
}

/// Whether a word may end here: no letter, digit or further label follows.
fn ends_word(text: &str, stop: usize) -> bool {
    match text.as_bytes()[stop..] {
        [] => true,
        [b'.' | b'-', next, ..] => !is_word(next),
        [next, ..] => !is_word(next),
    }
}

/// Whether `/` and a prefix length follow, and it is no URL.
fn is_subnet(text: &str, start: usize, stop: usize) -> bool {
    let before = text[..start].trim_end_matches('[');
    if before.ends_with("//") || before.ends_with('@') {
        return false;
    }
    let Some(rest) = text[stop..].strip_prefix('/') else { return false };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let length = rest[..digits].parse::<u8>();
    length.is_ok_and(|length| length <= 128) && rest.as_bytes().get(digits).is_none_or(|b| !is_word(*b) && *b != b'/')
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    /// 10.96.x.y becomes 246.246.x.y, fd10:96::x becomes fd74::x, the rest stays.
    fn translated(text: &str) -> String {
        let exchange = |ip: IpAddr| {
            Ok::<_, Infallible>(match ip {
                IpAddr::V4(four) => match four.octets() {
                    [10, 96, c, d] => Some(Ipv4Addr::new(246, 246, c, d).into()),
                    _ => None,
                },
                IpAddr::V6(six) => match six.segments() {
                    [0xfd10, 0x96, 0, 0, 0, 0, 0, last] => Some(Ipv6Addr::new(0xfd74, 0, 0, 0, 0, 0, 0, last).into()),
                    _ => None,
                },
            })
        };
        let Ok(text) = translate_text(text, exchange);
        text
    }

    #[test]
    fn addresses_are_exchanged_wherever_they_stand_whole() {
        let cases = [
            ("10.96.3.7", "246.246.3.7"),
            ("tcp://10.96.3.7:80", "tcp://246.246.3.7:80"),
            ("HOST=10.96.3.7;B=10.96.0.1", "HOST=246.246.3.7;B=246.246.0.1"),
            ("10.96.3.7,10.96.3.8 10.1.2.3", "246.246.3.7,246.246.3.8 10.1.2.3"),
            ("(see 10.96.3.7.)", "(see 246.246.3.7.)"),
            ("http://user:pw@10.96.3.7/8", "http://user:pw@246.246.3.7/8"),
            ("http://10.96.3.7/16/x", "http://246.246.3.7/16/x"),
            ("10.96.3.7:80/16", "246.246.3.7:80/16"),
            ("10.96.3.7/path", "246.246.3.7/path"),
            ("a:10.96.3.7", "a:246.246.3.7"),
            ("fd10:96::7", "fd74::7"),
            ("[fd10:96::7]:8080", "[fd74::7]:8080"),
            ("http://[fd10:96::7]/64", "http://[fd74::7]/64"),
            ("FD10:0096:0:0:0:0:0:7", "fd74::7"),
            ("fd10:96::7.", "fd74::7."),
            ("key: fd10:96::7", "key: fd74::7"),
            ("key:fd10:96::7", "key:fd74::7"),
            ("hosts=fd10:96::7,fd10:96::8", "hosts=fd74::7,fd74::8"),
            ("::ffff:10.96.3.7", "::ffff:246.246.3.7"),
            ("\"10.96.3.7\"", "\"246.246.3.7\""),
            ("ä 10.96.3.7 ö", "ä 246.246.3.7 ö"),
            ("10.96.3.7\n10.96.3.8\n", "246.246.3.7\n246.246.3.8\n"),
        ];
        for (text, expected) in cases {
            assert_eq!(translated(text), expected, "{text}");
        }
    }

    #[test]
    fn subnets_and_parts_of_words_stay() {
        for text in [
            "10.96.0.0/16",
            "NO_PROXY=10.96.0.0/16,10.96.3.7/32",
            "fd10:96::/112",
            "fd10:96::7/128",
            "1.10.96.3.7",
            "10.96.3.7.1",
            "10.96.3.7.example.com",
            "v10.96.3.7",
            "x_10.96.3.7",
            "ip-10.96.3.7",
            "10.96.3.7-rc1",
            "10.96.3.777",
            "010.96.3.7",
            "10.96.3",
            "10.96.3.7x",
            "ä10.96.3.7",
            "10.96.3.7ä",
            "fd10:96::7%eth0",
            "fd10:96::7x",
            "std::1",
            "10.97.3.7",
            "",
            ":::",
            "....",
        ] {
            assert_eq!(translated(text), text, "{text}");
        }
    }

    #[test]
    fn an_error_ends_it() {
        assert_eq!(translate_text("a 10.0.0.1 b", Err), Err("10.0.0.1".parse::<IpAddr>().unwrap()));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_nothing_else_changes(text in "[0-9a-f:./ x\\[\\]%ä-]{0,60}") {
            let Ok(same) = translate_text(&text, |_| Ok::<_, Infallible>(None));
            prop_assert_eq!(&same, &text);
            let _ = translated(&text);
        }

        #[test]
        fn any_address_between_blanks_is_found(ip: IpAddr) {
            let mut seen = Vec::new();
            let text = format!("x={ip} y=[{ip}]:80");
            let Ok(_) = translate_text(&text, |ip| { seen.push(ip); Ok::<_, Infallible>(None) });
            prop_assert_eq!(seen, vec![ip.to_canonical(); 2]);
        }
    }
}

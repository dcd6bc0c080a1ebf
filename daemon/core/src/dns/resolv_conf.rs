//! resolv.conf(5): which name servers the host was told to ask. Read, never written.

use std::net::{IpAddr, Ipv4Addr};

/// What resolv.conf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The name servers in the order they are asked; never empty, at most [`ResolvConf::MAX_NAME_SERVERS`].
    pub name_servers: Vec<NameServer>,
    /// Suffixes that the resolver library tries, in order; `domain` counts as a list of one.
    pub search: Vec<String>,
    /// Options as they stand there (`ndots:2`, `use-vc`), in order.
    pub options: Vec<String>,
}

/// A name server's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    /// Where it is.
    pub address: IpAddr,
    /// The zone of a link-local IPv6 address: an interface's name or index (RFC 4007, 11).
    pub scope: Option<String>,
}

impl ResolvConf {
    /// Further `nameserver` lines are ignored (MAXNS in `<resolv.h>`).
    pub const MAX_NAME_SERVERS: usize = 3;
}

/// What a missing file means: the name server on this machine.
impl Default for ResolvConf {
    fn default() -> Self {
        Self { name_servers: vec![local_server()], search: Vec::new(), options: Vec::new() }
    }
}

fn local_server() -> NameServer {
    NameServer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), scope: None }
}

/// Reads a resolv.conf the way the resolver library does: lines it does not understand are skipped, a keyword starts
/// its line, the last `domain` or `search` wins, `options` add up. No usable `nameserver` line means 127.0.0.1.
pub fn parse_resolv_conf(text: &str) -> ResolvConf {
    let mut conf = ResolvConf { name_servers: Vec::new(), search: Vec::new(), options: Vec::new() };
    for line in text.lines() {
        // Comments start in the first column. Blanks before a keyword hide it as well.
        let Some((keyword, value)) = line.split_once([' ', '\t']) else { continue };
        let mut words = value.split([' ', '\t', '\r']).filter(|word| !word.is_empty());
        match keyword {
            "nameserver" if conf.name_servers.len() < ResolvConf::MAX_NAME_SERVERS => {
                conf.name_servers.extend(words.next().and_then(name_server));
            }
            "domain" => conf.search = words.next().map(str::to_owned).into_iter().collect(),
            "search" => conf.search = words.map(str::to_owned).collect(),
            "options" => conf.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    if conf.name_servers.is_empty() {
        conf.name_servers.push(local_server());
    }
    conf
}

fn name_server(word: &str) -> Option<NameServer> {
    // A comment may follow the address without a blank.
    let word = word.split([';', '#']).next()?;
    let (address, scope) = match word.split_once('%') {
        Some((address, scope)) if !scope.is_empty() => (address, Some(scope)),
        Some(_) => return None,
        None => (word, None),
    };
    let address: IpAddr = address.parse().ok()?;
    if scope.is_some() && address.is_ipv4() {
        return None;
    }
    Some(NameServer { address, scope: scope.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn servers(text: &str) -> Vec<String> {
        parse_resolv_conf(text)
            .name_servers
            .into_iter()
            .map(|server| match server.scope {
                Some(scope) => format!("{}%{scope}", server.address),
                None => server.address.to_string(),
            })
            .collect()
    }

    #[test]
    fn an_ordinary_file() {
        let conf = parse_resolv_conf(
            "# made by NetworkManager\n; old comment\nsearch corp.example  lab.example\nnameserver 10.255.255.53\n\
             nameserver\t2001:db8::53\noptions edns0 trust-ad\noptions ndots:2\n",
        );
        assert_eq!(conf.search, ["corp.example", "lab.example"]);
        assert_eq!(conf.options, ["edns0", "trust-ad", "ndots:2"]);
        let addresses: Vec<String> = conf.name_servers.iter().map(|server| server.address.to_string()).collect();
        assert_eq!(addresses, ["10.255.255.53", "2001:db8::53"]);
    }

    #[test]
    fn no_server_means_this_machine() {
        assert_eq!(parse_resolv_conf(""), ResolvConf::default());
        assert_eq!(servers("search x\n"), ["127.0.0.1"]);
        assert_eq!(servers("nameserver none\nnameserver\nnameserver 1.2.3.4.5\n"), ["127.0.0.1"]);
    }

    #[test]
    fn only_three_servers_count_and_broken_ones_do_not() {
        let text = "nameserver x\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 1.1.1.1\nnameserver 4.4.4.4\n";
        assert_eq!(servers(text), ["1.1.1.1", "2.2.2.2", "1.1.1.1"]);
    }

    #[test]
    fn keywords_start_their_line() {
        assert_eq!(servers(" nameserver 1.1.1.1\n#nameserver 2.2.2.2\nnameservers 3.3.3.3\n"), ["127.0.0.1"]);
        assert_eq!(servers("nameserver   1.1.1.1   # office\r\nnameserver 2.2.2.2#home\r\n"), ["1.1.1.1", "2.2.2.2"]);
    }

    #[test]
    fn zones_of_link_local_addresses() {
        assert_eq!(servers("nameserver fe80::1%eth0\nnameserver fe80::2%3\n"), ["fe80::1%eth0", "fe80::2%3"]);
        assert_eq!(servers("nameserver fe80::1%\nnameserver 10.0.0.1%eth0\n"), ["127.0.0.1"]);
    }

    #[test]
    fn the_last_of_domain_and_search_wins() {
        assert_eq!(parse_resolv_conf("search a b\ndomain c\n").search, ["c"]);
        assert_eq!(parse_resolv_conf("domain c\nsearch a b\n").search, ["a", "b"]);
    }

    proptest! {
        #[test]
        fn any_text_gives_one_to_three_servers(text in "(nameserver |options |search |[ -~\\n\\t]|fe80::1%|10.0.0.1\\n){0,60}") {
            let count = parse_resolv_conf(&text).name_servers.len();
            prop_assert!((1..=ResolvConf::MAX_NAME_SERVERS).contains(&count));
        }
    }
}

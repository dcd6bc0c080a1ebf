//! Addresses of every kind, on both roads.

use proptest::prelude::*;

use super::*;
use crate::{
    cidr::tests::{any_address, nets},
    plan::Scope,
    subnets::{Inputs, RoutingPolicy, decide},
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn route(destination: &str, device: &str) -> HostRoute {
    HostRoute { destination: destination.parse().unwrap(), device: device.into(), gateway: None, table: 254 }
}

struct World {
    inputs: Inputs,
    subnets: Subnets,
    plan: Plan,
    policy: Policy,
    vnat: Vnat,
    unsteered: Vec<IpAddr>,
}

impl World {
    /// A VPN has 10.96.0.0/12 and with it the services; fd20::/16 is another one's.
    fn new(road: Road) -> Self {
        let inputs = Inputs {
            service_subnets: nets(&["10.96.0.0/16", "fd20:96::/112"]),
            pod_subnets: nets(&["10.244.0.0/16", "fd10:244::/64"]),
            host_routes: vec![
                route("0.0.0.0/0", "eth0"),
                route("192.168.1.0/24", "eth0"),
                route("10.96.0.0/12", "vpn0"),
                route("fd20::/16", "vpn1"),
                route("::/0", "eth0"),
            ],
            api_server: vec![ip("10.244.200.1"), ip("198.51.100.7")],
            name_servers: vec![ip("10.244.200.53"), ip("192.168.1.53"), ip("fd10:244::53")],
            gateways: vec![ip("10.244.200.254"), ip("192.168.1.1"), ip("fd10:244::fe")],
            scoped: false,
            policy: RoutingPolicy {
                also_proxy: nets(&["203.0.113.0/24", "203.0.113.64/28", "fd30::/64"]),
                never_proxy: nets(&["203.0.113.64/26", "10.244.9.0/24", "fd30::/96"]),
                ..RoutingPolicy::default()
            },
        };
        let subnets = decide(&inputs).unwrap();
        let plan = subnets.plan(Scope::Workstation, road, &inputs.name_servers);
        let mut vnat = Vnat::new("x", subnets.virtual4, subnets.virtual6);
        vnat.import([(ip("10.96.3.7"), ip("246.246.1.7")), (ip("fd20:96::7"), ip("fd74:7078:6e65:7401::7"))]);
        Self { inputs, subnets, plan, policy: Policy::default(), vnat, unsteered: Vec::new() }
    }

    fn explain(&self, address: IpAddr, port: Option<u16>) -> Explanation {
        let Self { inputs, subnets, plan, policy, vnat, unsteered: unsteered_name_servers } = self;
        let routes = &inputs.host_routes;
        explain(&View { subnets, plan, policy, unsteered_name_servers, vnat, routes }, address, port)
    }

    /// prefix | rule | TCP UDP ICMP | translation | device without tpx
    fn line(&self, address: &str) -> String {
        let (address, port) = match address.split_once(' ') {
            Some((address, port)) => (address, port.parse().ok()),
            None => (address, None),
        };
        let e = self.explain(ip(address), port);
        let rule = match e.rule {
            Rule::Subnet { role, mode: Mode::Direct } => format!("{role} direct"),
            Rule::Subnet { role, mode: Mode::Virtual { because, .. } } => format!("{role} virtual, {because}"),
            Rule::Subnet { role, mode: Mode::Refused { because } } => format!("{role} refused, {because}"),
            Rule::Exempt(why) => why.to_string(),
            Rule::NameServer => "name server".into(),
            Rule::UnsteeredNameServer => "unsteered name server".into(),
            Rule::Virtual => "virtual".into(),
            Rule::Own => "own".into(),
            Rule::Reserved(what) => what,
            Rule::Outside => "outside".into(),
        };
        let way = |way| match way {
            Way::Express => "express",
            Way::Floor => "floor",
            Way::NameServer => "dns",
            Way::Host => "host",
            Way::Denied => "denied",
        };
        let translation = match e.translation {
            Translation::None => "-".into(),
            Translation::Behind(real) => format!("-> {real}"),
            Translation::Nobody => "nobody".into(),
            Translation::Under(address) => format!("<- {address}"),
            Translation::OnDemand => "on demand".into(),
        };
        let prefix = e.prefix.map_or("-".into(), |p| p.to_string());
        let without = e.without.map_or("-".into(), |r| r.device);
        format!("{prefix} | {rule} | {} {} {} | {translation} | {without}", way(e.tcp), way(e.udp), way(e.icmp))
    }
}

#[test]
fn addresses_of_every_kind() {
    let world = World::new(Road::Express);
    let table = [
        // Pods, which nothing is in the way of; services, which a VPN has.
        ("10.244.1.2", "10.244.0.0/16 | pods direct | express express floor | - | eth0"),
        ("10.244.1.2 53", "10.244.0.0/16 | pods direct | express express floor | - | eth0"),
        ("::ffff:10.244.1.2", "10.244.0.0/16 | pods direct | express express floor | - | eth0"),
        ("fd10:244::2", "fd10:244::/64 | pods direct | express express floor | - | eth0"),
        (
            "10.96.3.7",
            "10.96.0.0/16 | services virtual, 10.96.0.0/12 goes to vpn0 | host host host | <- 246.246.1.7 | vpn0",
        ),
        ("10.96.3.8", "10.96.0.0/16 | services virtual, 10.96.0.0/12 goes to vpn0 | host host host | on demand | vpn0"),
        (
            "::ffff:10.96.3.7",
            "10.96.0.0/16 | services virtual, 10.96.0.0/12 goes to vpn0 | host host host | <- 246.246.1.7 | vpn0",
        ),
        (
            "fd20:96::7",
            "fd20:96::/112 | services virtual, fd20::/16 goes to vpn1 | host host host | <- fd74:7078:6e65:7401::7 | vpn1",
        ),
        ("fd20:96::8", "fd20:96::/112 | services virtual, fd20::/16 goes to vpn1 | host host host | on demand | vpn1"),
        // A host behind the VPN, beside the services.
        ("10.97.0.1", "- | outside | host host host | - | vpn0"),
        ("fd20:97::1", "- | outside | host host host | - | vpn1"),
        // Virtual addresses, given out or not.
        ("246.246.1.7", "246.246.0.0/16 | virtual | express express floor | -> 10.96.3.7 | eth0"),
        ("246.246.1.8", "246.246.0.0/16 | virtual | express express floor | nobody | eth0"),
        ("fd74:7078:6e65:7401::7", "fd74:7078:6e65:7401::/64 | virtual | express express floor | -> fd20:96::7 | eth0"),
        ("fd74:7078:6e65:7401::8", "fd74:7078:6e65:7401::/64 | virtual | express express floor | nobody | eth0"),
        // Our own.
        ("246.246.255.1", "246.246.255.0/24 | own | host host host | - | eth0"),
        ("fd74:7078:6e65:7400::1", "fd74:7078:6e65:7400::/64 | own | host host host | - | eth0"),
        ("246.1.2.3", "246.0.0.0/11 | own | host host host | - | eth0"),
        // also-proxy; never inside also; also inside that.
        ("203.0.113.1", "203.0.113.0/24 | also-proxy direct | express express floor | - | eth0"),
        ("203.0.113.100", "203.0.113.64/26 | --never-proxy 203.0.113.64/26 says so | host host host | - | eth0"),
        ("203.0.113.70", "203.0.113.64/28 | also-proxy direct | express express floor | - | eth0"),
        ("fd30:0:0:0:1::1", "fd30::/64 | also-proxy direct | express express floor | - | eth0"),
        ("fd30::1", "fd30::/96 | --never-proxy fd30::/96 says so | host host host | - | eth0"),
        ("10.244.9.1", "10.244.9.0/24 | --never-proxy 10.244.9.0/24 says so | host host host | - | eth0"),
        // What is never captured, inside and outside the cluster's subnets.
        ("10.244.200.1", "10.244.200.1/32 | it is the API server | host host host | - | eth0"),
        ("198.51.100.7", "- | outside | host host host | - | eth0"),
        ("10.244.200.53", "10.244.200.53/32 | name server | host host host | - | eth0"),
        ("10.244.200.53 53", "10.244.200.53/32 | name server | dns dns host | - | eth0"),
        ("192.168.1.53 53", "192.168.1.53/32 | name server | dns dns host | - | eth0"),
        ("192.168.1.53 80", "192.168.1.53/32 | name server | host host host | - | eth0"),
        ("fd10:244::53 53", "fd10:244::53/128 | name server | dns dns host | - | eth0"),
        ("10.244.200.254", "10.244.200.254/32 | it is a gateway of this host | host host host | - | eth0"),
        ("192.168.1.1", "- | outside | host host host | - | eth0"),
        ("fd10:244::fe", "fd10:244::fe/128 | it is a gateway of this host | host host host | - | eth0"),
        // What never leaves the host or its link, and the rest of the world.
        ("127.0.0.1", "127.0.0.0/8 | loopback addresses | host host host | - | eth0"),
        ("::1", "::1/128 | the loopback address | host host host | - | eth0"),
        ("169.254.169.254", "169.254.0.0/16 | link-local addresses | host host host | - | eth0"),
        ("fe80::1", "fe80::/10 | link-local addresses | host host host | - | eth0"),
        ("224.0.0.251", "224.0.0.0/4 | multicast addresses | host host host | - | eth0"),
        ("ff02::fb", "ff00::/8 | multicast addresses | host host host | - | eth0"),
        ("192.168.1.77", "- | outside | host host host | - | eth0"),
        ("1.1.1.1 443", "- | outside | host host host | - | eth0"),
        ("2606:4700::1111", "- | outside | host host host | - | eth0"),
    ];
    for (address, expected) in table {
        assert_eq!(world.line(address), expected, "{address}");
    }
    // One that nothing could be put in front of answers itself.
    let unsteered = World { unsteered: vec![ip("192.168.1.53"), ip("10.244.200.53")], ..World::new(Road::Tun) };
    for (address, device) in [("192.168.1.53", "eth0"), ("10.244.200.53", "eth0")] {
        let expected = format!("{address}/32 | unsteered name server | host host host | - | {device}");
        assert_eq!(unsteered.line(&format!("{address} 53")), expected);
    }
    assert!(unsteered.line("fd10:244::53 53").contains("| name server | dns dns host |"));
    // With the TUN device alone, only the road is another one.
    let world = World::new(Road::Tun);
    for (address, expected) in table {
        assert_eq!(world.line(address), expected.replace("express", "floor"), "{address}");
    }
}

#[test]
fn people_read_lines() {
    let text = World::new(Road::Express).explain(ip("10.96.3.7"), Some(80)).to_string();
    let expected = "10.96.3.7 port 80
  rule         10.96.0.0/16: services, behind virtual addresses in 246.246.0.0/16 because 10.96.0.0/12 goes to vpn0
  TCP          where the host's routes lead
  UDP          where the host's routes lead
  ping         where the host's routes lead
  translation  reached under 246.246.1.7
  without tpx  10.96.0.0/12 dev vpn0";
    assert_eq!(text, expected);
    let alone = World { inputs: Inputs::default(), ..World::new(Road::Tun) };
    assert!(alone.explain(ip("1.1.1.1"), None).to_string().ends_with("without tpx  no route"));
}

#[test]
fn a_refused_subnet_says_why() {
    let mut world = World::new(Road::Express);
    world.inputs.policy.auto_resolve = false;
    world.subnets = crate::subnets::decide_again(&world.inputs).unwrap();
    world.plan = world.subnets.plan(Scope::Workstation, Road::Express, &[]);
    let expected = "10.96.0.0/16 | services refused, 10.96.0.0/12 goes to vpn0 | host host host | - | vpn0";
    assert_eq!(world.line("10.96.3.7"), expected);
}

proptest! {
    #[test]
    fn roads_are_the_plans(address in any_address(), port: Option<u16>) {
        let world = World::new(Road::Express);
        let e = world.explain(address, port);
        prop_assert_eq!(e.icmp == Way::Floor, world.plan.steers(address));
        prop_assert_eq!(matches!(e.translation, Translation::Under(_) | Translation::OnDemand), world.subnets.hides(address));
    }
}

#[test]
fn what_is_denied_says_by_which_rule() {
    let mut world = World::new(Road::Express);
    let members = [("shop".to_owned(), vec![ip("10.96.3.7"), ip("10.244.3.7")])].into();
    let rules = ["namespace:shop", "192.168.0.0/16", "port:25"].map(|rule| rule.parse().unwrap());
    world.policy = Policy::new(rules.into(), crate::policy::DenyWith::Access, &members);
    // What is behind the virtual address decides.
    for address in ["10.244.3.7", "246.246.1.7"] {
        let explained = world.explain(ip(address), Some(80));
        assert_eq!([explained.tcp, explained.udp, explained.icmp], [Way::Denied; 3], "{address}");
        assert!(explained.to_string().contains("denied by --deny namespace:shop"), "{explained}");
    }
    let by_port = world.explain(ip("10.244.3.8"), Some(25));
    assert_eq!((by_port.tcp, by_port.icmp), (Way::Denied, Way::Floor));
    assert!(by_port.to_string().contains("denied by --deny port:25"));
    // Outside the tunnel nothing is denied: the subnet is the VPN's, and the other one the host's.
    for address in ["10.96.3.7", "192.168.1.7"] {
        let explained = world.explain(ip(address), Some(25));
        assert_eq!((explained.tcp, explained.denied), (Way::Host, None), "{address}");
    }
}

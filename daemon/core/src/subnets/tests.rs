//! The seed's cases as they stand, and properties over random networks.

use proptest::prelude::*;

use super::*;
use crate::{
    cidr::tests::{any_address, any_net, nets},
    plan::{Road, Scope},
};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn route(destination: &str, device: &str) -> HostRoute {
    HostRoute { destination: net(destination), device: device.into(), gateway: None, table: 254 }
}

fn cluster() -> Inputs {
    Inputs {
        service_subnets: nets(&["10.96.0.0/16", "fd10:96::/112"]),
        pod_subnets: nets(&["10.244.0.0/16"]),
        host_routes: vec![route("0.0.0.0/0", "eth0"), route("192.0.2.0/24", "eth0")],
        api_server: vec!["192.0.2.1".parse().unwrap()],
        name_servers: vec!["192.0.2.53".parse().unwrap()],
        ..Inputs::default()
    }
}

fn with(change: impl FnOnce(&mut Inputs)) -> Inputs {
    let mut inputs = cluster();
    change(&mut inputs);
    inputs
}

/// One line for each entry.
fn shown(inputs: &Inputs) -> Vec<String> {
    let subnets = decide(inputs).unwrap();
    let lines = subnets.subnets.iter().map(|s| {
        let mode = match &s.mode {
            Mode::Direct => "direct".to_owned(),
            Mode::Virtual { because, .. } => format!("virtual: {because}"),
            Mode::Refused { because } => format!("refused: {because}"),
        };
        format!("{} {} {mode}", s.cidr, s.role)
    });
    lines.chain(subnets.exceptions.iter().map(|e| format!("{} not: {}", e.cidr, e.why))).collect()
}

fn policy(change: impl FnOnce(&mut RoutingPolicy)) -> Vec<String> {
    shown(&with(|inputs| change(&mut inputs.policy)))
}

const DIRECT: [&str; 3] =
    ["10.96.0.0/16 services direct", "10.244.0.0/16 pods direct", "fd10:96::/112 services direct"];

#[test]
fn without_conflicts_everything_is_direct() {
    assert_eq!(shown(&cluster()), DIRECT);
    // Neither the default route nor the halves that a VPN lays over it are conflicts.
    let halves = with(|i| {
        for destination in ["0.0.0.0/1", "128.0.0.0/1", "::/0", "::/1", "8000::/1"] {
            i.host_routes.push(route(destination, "vpn0"));
        }
    });
    assert_eq!(shown(&halves), DIRECT);
}

#[test]
fn a_vpn_moves_what_it_overlaps() {
    let inputs = with(|i| i.host_routes.push(route("10.0.0.0/8", "vpn0")));
    let because = "virtual: 10.0.0.0/8 goes to vpn0";
    assert_eq!(
        shown(&inputs),
        [
            &format!("10.96.0.0/16 services {because}"),
            &format!("10.244.0.0/16 pods {because}"),
            "fd10:96::/112 services direct"
        ]
    );
    let subnets = decide(&inputs).unwrap();
    let line = "10.96.0.0/16 (services) is behind virtual addresses in 246.246.0.0/16 because 10.0.0.0/8 goes to vpn0";
    assert_eq!(subnets.notes()[0], line);
    let plan = subnets.plan(Scope::Workstation, Road::Tun, &inputs.name_servers);
    assert_eq!(plan.check(), Ok(()));
    assert_eq!(plan.hidden, nets(&["10.96.0.0/16", "10.244.0.0/16"]));
    assert_eq!(plan.steer, nets(&["fd10:96::/112"]));
    assert!(plan.steers("246.246.0.1".parse().unwrap()) && !plan.steers("10.96.0.1".parse().unwrap()));
    assert!(!plan.steers("246.246.255.53".parse().unwrap()));
    assert!(subnets.hides("10.96.0.1".parse().unwrap()) && !subnets.hides("10.97.0.1".parse().unwrap()));
}

#[test]
fn equal_and_narrower_routes_are_conflicts_too() {
    for (destination, device) in [("10.96.0.0/16", "br0"), ("10.96.5.0/24", "lan0"), ("10.96.5.1/32", "lan0")] {
        let lines = shown(&with(|i| i.host_routes.push(route(destination, device))));
        assert_eq!(lines[0], format!("10.96.0.0/16 services virtual: {destination} goes to {device}"));
        assert_eq!(lines[1..], DIRECT[1..]);
    }
    // The route that carries the subnet now is named, not one inside it.
    let lines = shown(&with(|i| {
        i.host_routes.extend([
            route("10.96.5.0/24", "lan0"),
            route("10.0.0.0/8", "vpn0"),
            route("10.96.0.0/12", "vpn1"),
        ]);
    }));
    assert_eq!(lines[0], "10.96.0.0/16 services virtual: 10.96.0.0/12 goes to vpn1");
}

#[test]
fn in_a_scope_the_hosts_routes_conflict_with_nothing() {
    let vpn = |i: &mut Inputs| {
        i.scoped = true;
        i.host_routes.extend([route("10.0.0.0/8", "vpn0"), route("246.0.0.0/8", "vpn1")]);
        // Also where a conflict would be an error.
        i.policy.auto_resolve = false;
    };
    assert_eq!(shown(&with(vpn)), DIRECT);
    // What the user asks for is done, and what is protected stays so.
    let lines = shown(&with(|i| {
        vpn(i);
        i.policy.vnat = vec![VnatSelector::Pods];
        i.api_server.push("10.96.0.1".parse().unwrap());
        i.name_servers.push("10.96.0.53".parse().unwrap());
        i.gateways.push("10.96.0.9".parse().unwrap());
    }));
    let wanted = [
        DIRECT[0],
        "10.244.0.0/16 pods virtual: --vnat pods says so",
        DIRECT[2],
        "10.96.0.1/32 not: it is the API server",
        "10.96.0.9/32 not: it is a gateway of this host",
        "10.96.0.53/32 not: it is a name server of this host",
    ];
    assert_eq!(lines, wanted);
    // The ranges of virtual addresses must still be free of what the scope itself reaches.
    let taken = with(|i| {
        vpn(i);
        i.service_subnets.push(net("246.246.0.0/20"));
    });
    assert!(decide(&taken).unwrap_err().to_string().contains("246.246.0.0/20"));
}

#[test]
fn every_symbol_moves_its_own() {
    let asked = |selector: &str| {
        policy(|p| {
            p.vnat = vec![selector.parse().unwrap()];
            p.also_proxy = nets(&["172.20.0.0/16"]);
        })
    };
    let [services, pods, services6] = DIRECT.map(|line| line.replace("direct", "virtual: --vnat X says so"));
    let also = "172.20.0.0/16 also-proxy virtual: --vnat X says so".to_owned();
    let direct_also = "172.20.0.0/16 also-proxy direct".to_owned();
    let [d_services, d_pods, d_services6] = DIRECT.map(str::to_owned);
    let cases = [
        ("service", [services.clone(), d_pods.clone(), direct_also.clone(), services6.clone()]),
        ("pods", [d_services.clone(), pods.clone(), direct_also, d_services6.clone()]),
        ("also", [d_services, d_pods, also.clone(), d_services6]),
        ("all", [services, pods, also, services6]),
    ];
    for (selector, lines) in cases {
        assert_eq!(asked(selector), lines.map(|line| line.replace('X', selector)), "{selector}");
    }
}

#[test]
fn a_subnet_asked_for_moves_a_part_or_is_added() {
    let lines = policy(|p| p.vnat = vec!["10.96.5.0/24".parse().unwrap(), "203.0.113.0/24".parse().unwrap()]);
    assert_eq!(
        lines,
        [
            DIRECT[0],
            "10.96.5.0/24 services virtual: --vnat 10.96.5.0/24 says so",
            DIRECT[1],
            "203.0.113.0/24 vnat virtual: --vnat 203.0.113.0/24 says so",
            DIRECT[2]
        ]
    );
    let lines = policy(|p| p.vnat = vec!["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(lines[0], "10.0.0.0/8 vnat virtual: --vnat 10.0.0.0/8 says so");
    assert_eq!(lines[1], "10.96.0.0/16 services virtual: --vnat 10.0.0.0/8 says so");
}

#[test]
fn an_allowed_conflict_is_direct_in_its_part() {
    // The seed's own numbers.
    let inputs = |allowed: &str| Inputs {
        service_subnets: nets(&["10.130.0.0/16"]),
        pod_subnets: nets(&["10.132.0.0/16", "100.124.0.0/16"]),
        host_routes: vec![route("10.0.0.0/8", "utun4"), route("100.64.0.0/10", "tailscale0")],
        policy: RoutingPolicy { allow_conflicting: nets(&[allowed]), ..RoutingPolicy::default() },
        ..Inputs::default()
    };
    assert_eq!(
        shown(&inputs("10.128.0.0/9")),
        [
            "10.130.0.0/16 services direct",
            "10.132.0.0/16 pods direct",
            "100.124.0.0/16 pods virtual: 100.64.0.0/10 goes to tailscale0"
        ]
    );
    let lines = shown(&inputs("100.124.150.0/24"));
    assert_eq!(
        lines[2..],
        ["100.124.0.0/16 pods virtual: 100.64.0.0/10 goes to tailscale0", "100.124.150.0/24 pods direct"]
    );
    let plan = decide(&inputs("100.124.150.0/24")).unwrap().plan(Scope::Workstation, Road::Express, &[]);
    assert!(plan.steers("100.124.150.45".parse().unwrap()) && !plan.steers("100.124.151.45".parse().unwrap()));
    // Where all that conflicts is allowed, nothing else moves.
    let mut narrow = inputs("10.130.7.0/24");
    narrow.host_routes = vec![route("10.130.7.0/25", "lan0"), route("10.130.7.128/25", "lan1")];
    assert_eq!(shown(&narrow)[0], "10.130.0.0/16 services direct");
}

#[test]
fn a_conflict_that_is_not_to_be_resolved_is_an_error_with_ways_out() {
    let inputs = with(|i| {
        i.policy.auto_resolve = false;
        i.host_routes.push(HostRoute { gateway: Some("10.0.0.1".parse().unwrap()), ..route("10.0.0.0/8", "vpn0") });
    });
    let said = decide(&inputs).unwrap_err().to_string();
    for part in [
        "10.96.0.0/16 (services)",
        "10.0.0.0/8 via 10.0.0.1 dev vpn0",
        "--vnat 10.96.0.0/16",
        "--allow-conflicting-subnets 10.96.0.0/16",
        "routing.autoResolveConflicts: true",
        "--never-proxy 10.96.0.0/16",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    // Each of them is one.
    let ways: [fn(&mut RoutingPolicy); 4] = [
        |p| p.vnat = vec![VnatSelector::All],
        |p| p.allow_conflicting = nets(&["10.0.0.0/8"]),
        |p| p.auto_resolve = true,
        |p| p.never_proxy = nets(&["10.96.0.0/16", "10.244.0.0/16"]),
    ];
    for way in ways {
        let mut inputs = inputs.clone();
        way(&mut inputs.policy);
        assert!(decide(&inputs).is_ok());
    }
    // While connected, it only takes the subnet away.
    let subnets = decide_again(&inputs).unwrap();
    assert_eq!(subnets.notes()[0], "10.96.0.0/16 (services) is not reached because 10.0.0.0/8 goes to vpn0");
    assert_eq!(subnets.plan(Scope::Workstation, Road::Tun, &[]).steer, nets(&["fd10:96::/112"]));
}

#[test]
fn never_and_also_by_length_in_every_order() {
    for (also, never) in [
        (["203.0.113.0/24", "203.0.113.128/26"], ["203.0.113.128/25", "203.0.0.0/16"]),
        (["203.0.113.128/26", "203.0.113.0/24"], ["203.0.0.0/16", "203.0.113.128/25"]),
    ] {
        let lines = policy(|p| (p.also_proxy, p.never_proxy) = (nets(&also), nets(&never)));
        assert_eq!(lines[2..4], ["203.0.113.0/24 also-proxy direct", "203.0.113.128/26 also-proxy direct"]);
        assert_eq!(lines[5], "203.0.113.128/25 not: --never-proxy 203.0.113.128/25 says so");
    }
    // Between equals, never.
    let lines = policy(|p| (p.also_proxy, p.never_proxy) = (nets(&["203.0.113.0/24"]), nets(&["203.0.113.0/24"])));
    assert_eq!(lines[2], "203.0.113.0/24 also-proxy refused: --never-proxy 203.0.113.0/24 says so");
    // Against the cluster's own: inside, around, equal.
    let lines = policy(|p| p.never_proxy = nets(&["10.96.5.0/24", "10.0.0.0/8", "10.244.0.0/16"]));
    assert_eq!(
        lines,
        [
            DIRECT[0],
            "10.244.0.0/16 pods refused: --never-proxy 10.244.0.0/16 says so",
            DIRECT[2],
            "10.96.5.0/24 not: --never-proxy 10.96.5.0/24 says so"
        ]
    );
    // What is left to the host is no conflict.
    let lines = shown(&with(|i| {
        i.policy.never_proxy = nets(&["10.96.5.0/24"]);
        i.host_routes.push(route("10.96.5.0/25", "lan0"));
    }));
    assert_eq!(lines[0], DIRECT[0]);
}

#[test]
fn what_the_tunnel_and_the_host_need_is_never_captured() {
    let inputs = with(|i| {
        i.api_server.push("10.96.0.1".parse().unwrap());
        i.name_servers.push("10.244.0.53".parse().unwrap());
        i.gateways.push("fd10:96::1".parse().unwrap());
        i.policy.also_proxy = nets(&["192.0.2.0/24", "192.0.2.53/32"]);
        i.policy.vnat = vec![VnatSelector::Pods];
        i.policy.allow_conflicting = nets(&["192.0.2.0/24"]);
    });
    assert_eq!(
        shown(&inputs)[3..],
        [
            "192.0.2.53/32 also-proxy refused: it is a name server of this host",
            "fd10:96::/112 services direct",
            "10.96.0.1/32 not: it is the API server",
            "10.244.0.53/32 not: it is a name server of this host",
            "192.0.2.1/32 not: it is the API server",
            "fd10:96::1/128 not: it is a gateway of this host",
        ]
    );
    let plan = decide(&inputs).unwrap().plan(Scope::Workstation, Road::Express, &inputs.name_servers);
    assert_eq!(plan.check(), Ok(()));
    for ip in inputs.api_server.iter().chain(&inputs.name_servers).chain(&inputs.gateways) {
        assert!(!plan.steers(*ip), "{ip}");
    }
}

#[test]
fn subnets_that_nobody_may_steer_are_refused_or_errors() {
    let lines = shown(&with(|i| i.pod_subnets.extend(nets(&["127.0.0.0/8", "8.0.0.0/7"]))));
    assert_eq!(lines[0], "8.0.0.0/7 pods refused: 8.0.0.0/7 is too wide: nothing shorter than /8 is ever steered");
    assert!(lines.iter().any(|l| l.starts_with("127.0.0.0/8 pods refused: 127.0.0.0/8 touches loopback")), "{lines:?}");
    let said =
        |change: fn(&mut RoutingPolicy)| decide(&with(|inputs| change(&mut inputs.policy))).unwrap_err().to_string();
    let loopback = "127.0.0.0/8 touches loopback addresses (127.0.0.0/8)";
    assert_eq!(said(|p| p.also_proxy = nets(&["127.0.0.0/8"])), format!("--also-proxy: {loopback}"));
    assert_eq!(said(|p| p.vnat = vec![VnatSelector::Cidr(net("127.0.0.0/8"))]), format!("--vnat: {loopback}"));
    assert_eq!(
        said(|p| p.never_proxy = vec![net("10.1.2.3/8")]),
        "--never-proxy: 10.1.2.3/8 has bits set behind its prefix; write 10.0.0.0/8"
    );
}

#[test]
fn virtual_subnets_that_collide_are_errors() {
    let said = |range: &str, change: fn(&mut Inputs)| {
        let error = decide(&with(|inputs| {
            inputs.policy.virtual4 = range.parse().unwrap();
            change(inputs);
        }));
        let said = error.unwrap_err().to_string();
        assert!(said.contains("routing.virtualSubnet") && said.contains(range), "{said}");
        said
    };
    let nothing: fn(&mut Inputs) = |_| {};
    assert!(said("10.96.128.0/24", nothing).contains("overlaps the cluster's service subnet 10.96.0.0/16"));
    assert!(said("10.244.0.0/16", nothing).contains("overlaps the cluster's pod subnet 10.244.0.0/16"));
    assert!(said("192.0.2.128/25", nothing).contains("overlaps the host's route 192.0.2.0/24 dev eth0"));
    assert!(said("127.0.1.0/24", nothing).contains("loopback"));
    assert!(said("239.1.0.0/16", nothing).contains("multicast"));
    assert!(said("169.254.7.0/24", nothing).contains("link-local"));
    assert!(said("246.246.255.0/24", nothing).contains("has no room"));
    assert!(said("100.10.20.0/31", nothing).contains("has no room"));
    assert!(said("100.10.20.1/24", nothing).contains("100.10.20.0/24"));
    assert!(said("100.0.0.0/7", nothing).contains("too wide"));
    assert!(
        said("100.10.20.0/24", |i| i.policy.also_proxy = nets(&["100.10.0.0/16"]))
            .contains("--also-proxy 100.10.0.0/16")
    );
    assert!(said("100.10.20.0/24", |i| i.policy.never_proxy = nets(&["100.10.20.0/28"])).contains("--never-proxy"));
    assert!(said("100.10.20.0/24", |i| i.api_server = vec!["100.10.20.9".parse().unwrap()]).contains("API server"));
    let fine = with(|i| i.policy.virtual4 = "100.10.20.0/24".parse().unwrap());
    assert!(decide(&fine).is_ok());
    assert!(decide(&Inputs { policy: RoutingPolicy::for_windows(), ..cluster() }).is_ok());
}

#[test]
fn the_usual_ipv6_range_is_not_the_block_of_own_addresses() {
    let own = IpNet::new_assert(tpx_ebpf_abi::slot::OWN6.0.into(), tpx_ebpf_abi::slot::OWN6.1);
    assert!(!own.contains(&IpNet::V6(RoutingPolicy::VIRTUAL6)));
}

fn any_inputs() -> impl Strategy<Value = Inputs> {
    let list = || proptest::collection::vec(any_net(), 0..4);
    let hosts = || proptest::collection::vec(any_address(), 0..2);
    let selector = prop_oneof![
        any_net().prop_map(VnatSelector::Cidr),
        proptest::sample::select(VnatSelector::SYMBOLS.to_vec()).prop_map(|(_, symbol)| symbol),
    ];
    let routes = list().prop_map(|nets| {
        nets.into_iter()
            .enumerate()
            .map(|(n, destination)| HostRoute { destination, device: format!("dev{n}"), gateway: None, table: 254 })
            .collect::<Vec<_>>()
    });
    let rules = (proptest::collection::vec(selector, 0..3), list(), list(), list(), any::<bool>(), any::<bool>());
    ((list(), list(), routes), (hosts(), hosts(), hosts()), rules).prop_map(|(cluster, hosts, rules)| Inputs {
        service_subnets: cluster.0,
        pod_subnets: cluster.1,
        host_routes: cluster.2,
        api_server: hosts.0,
        name_servers: hosts.1,
        gateways: hosts.2,
        scoped: rules.5,
        policy: RoutingPolicy {
            vnat: rules.0,
            also_proxy: rules.1,
            never_proxy: rules.2,
            allow_conflicting: rules.3,
            auto_resolve: rules.4,
            ..RoutingPolicy::default()
        },
    })
}

/// Random rules would nearly always hold one that cannot be followed; these leave such ones out.
fn followable(mut inputs: Inputs) -> Inputs {
    let fits = |n: &IpNet| crate::plan::may_be_steered(n).is_ok();
    inputs.policy.also_proxy.retain(fits);
    inputs.policy.vnat.retain(|s| !matches!(s, VnatSelector::Cidr(n) if !fits(n)));
    inputs
}

/// What the documentation says about one address, without any cleverness.
fn expected(inputs: &Inputs, ip: IpAddr) -> &'static str {
    let policy = &inputs.policy;
    let longest = |nets: &[IpNet]| nets.iter().filter(|n| n.contains(&ip)).max_by_key(|n| n.prefix_len()).copied();
    let len = |net: Option<IpNet>| net.map(|n| n.prefix_len());
    let cidrs: Vec<IpNet> = decide::vnat_cidrs(policy).collect();
    let all = [&inputs.service_subnets[..], &inputs.pod_subnets, &policy.also_proxy, &cidrs].concat();
    let Some(subnet) = longest(&all) else { return "outside" };
    if [&inputs.api_server, &inputs.name_servers, &inputs.gateways].iter().any(|ips| ips.contains(&ip)) {
        return "outside";
    }
    if len(longest(&policy.never_proxy)) >= Some(subnet.prefix_len()) || crate::plan::may_be_steered(&subnet).is_err() {
        return "outside";
    }
    let mut asked = cidrs;
    for selector in &policy.vnat {
        match selector {
            VnatSelector::Cidr(_) => {}
            VnatSelector::Service => asked.extend(&inputs.service_subnets),
            VnatSelector::Pods => asked.extend(&inputs.pod_subnets),
            VnatSelector::Also => asked.extend(&policy.also_proxy),
            VnatSelector::All => {
                asked.extend([&inputs.service_subnets[..], &inputs.pod_subnets, &policy.also_proxy].concat());
            }
        }
    }
    let (asked, allowed) = (len(longest(&asked)), len(longest(&policy.allow_conflicting)));
    if asked.is_some() && asked >= allowed {
        return "virtual";
    }
    if allowed.is_some() {
        return "direct";
    }
    // A route is in the way where it shares an address with the subnet for which no narrower rule speaks.
    let hosts = [&inputs.api_server[..], &inputs.name_servers, &inputs.gateways].concat();
    let mut inside: Vec<IpNet> = [all, policy.never_proxy.clone(), policy.allow_conflicting.clone()].concat();
    inside.extend(hosts.into_iter().map(IpNet::from));
    inside.retain(|n| subnet.contains(n) && *n != subnet);
    let conflicts = inputs.host_routes.iter().filter(|r| !inputs.scoped && !r.is_default()).any(|route| {
        let shared = if route.destination.contains(&subnet) { subnet } else { route.destination };
        subnet.contains(&shared) && !crate::cidr::difference(&[shared], &inside).is_empty()
    });
    match (conflicts, policy.auto_resolve) {
        (false, _) => "direct",
        (true, true) => "virtual",
        (true, false) => "outside",
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_address_gets_what_the_rules_say(
        inputs in any_inputs().prop_map(followable),
        ips in proptest::collection::vec(any_address(), 48),
    ) {
        let Ok(subnets) = decide_again(&inputs) else { return Ok(()) };
        let plan = subnets.plan(Scope::Workstation, Road::Express, &[]);
        prop_assert_eq!(plan.check(), Ok(()));
        let covered = crate::cidr::subtract(&[&plan.steer[..], &plan.virtual_subnets].concat(), &[&plan.except[..], &plan.hidden].concat());
        let hosts = [&inputs.api_server[..], &inputs.name_servers, &inputs.gateways].concat();
        for ip in ips.into_iter().chain(hosts).chain(inputs.host_routes.iter().map(|r| r.destination.addr())) {
            let in_range = plan.virtual_subnets.iter().any(|n| n.contains(&ip));
            let got = match () {
                () if subnets.hides(ip) => "virtual",
                () if plan.steers(ip) && !in_range => "direct",
                () => "outside",
            };
            prop_assert_eq!(got, expected(&inputs, ip), "{}", ip);
            prop_assert_eq!(covered.iter().any(|n| n.contains(&ip)), plan.steers(ip));
            prop_assert!(!(subnets.hides(ip) && plan.steers(ip)));
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter(inputs in any_inputs(), turn in 0usize..4) {
        let mut other = inputs.clone();
        fn turned<T: Clone>(list: &mut Vec<T>, by: usize) {
            let by = by.min(list.len());
            list.rotate_left(by);
            list.reverse();
            list.extend(list.first().cloned());
        }
        turned(&mut other.service_subnets, turn);
        turned(&mut other.pod_subnets, turn);
        turned(&mut other.host_routes, turn);
        turned(&mut other.api_server, turn);
        turned(&mut other.name_servers, turn);
        turned(&mut other.gateways, turn);
        turned(&mut other.policy.vnat, turn);
        turned(&mut other.policy.also_proxy, turn);
        turned(&mut other.policy.never_proxy, turn);
        turned(&mut other.policy.allow_conflicting, turn);
        prop_assert_eq!(decide(&inputs), decide(&other));
        prop_assert_eq!(decide_again(&inputs), decide_again(&other));
    }

    #[test]
    fn strict_and_lenient_agree_but_for_conflicts(inputs in any_inputs().prop_map(followable)) {
        match (decide(&inputs), decide_again(&inputs)) {
            (Ok(strict), Ok(lenient)) => prop_assert_eq!(strict, lenient),
            (Err(SubnetError::Conflict { .. }), Ok(lenient)) => {
                prop_assert!(!inputs.policy.auto_resolve && !lenient.notes().is_empty());
            }
            (strict, lenient) => prop_assert_eq!(strict.unwrap_err(), lenient.unwrap_err()),
        }
    }
}

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    dns::{Name, PolicyConfig},
    subnets::RoutingPolicy,
};

fn file() -> Origin {
    Origin::file("config.yml")
}

fn read(text: &str) -> Partial {
    Partial::parse(text, &file()).unwrap()
}

fn error(text: &str) -> String {
    let error = Partial::parse(text, &file()).unwrap_err();
    format!("{error}; {}", error.next)
}

const FULL: &str = "\
datapath: tun
routing:
  virtualSubnet: 100.10.20.0/24
  vnat: [service, 10.44.0.0/16]
  autoResolveConflicts: false
  allowConflictingSubnets: 10.128.0.0/9
  alsoProxySubnets:
    - 203.0.113.0/24
    - fd00:1::/64
  neverProxySubnets: [203.0.113.128/25]
dns:
  includeSuffixes: [.private]
  excludeSuffixes: []
  excludes: [API.example.com.]
  mappings:
    - name: shop.example
      aliasFor: shop.prod
  lookupTimeout: 1m30s
logLevels:
  userDaemon: debug
  rootDaemon: trace
  cli: error
containers:
  enabled: true
  devices: [docker0, 'br-*']
";

#[test]
fn every_key_is_read() {
    let layer = read(FULL);
    assert_eq!(layer.rows().len(), Partial::KEYS.len() - UNSET_IN_FULL);
    let config = Config::from(layer);
    assert_eq!(config.datapath.value, Datapath::Tun);
    assert!(!config.auto_resolve_conflicts.value);
    assert_eq!(config.also_proxy_subnets.value[1].value, "fd00:1::/64".parse().unwrap());
    assert_eq!(config.also_proxy_subnets.value[1].origin.to_string(), "config.yml:9:7");
    assert_eq!(config.exclude_suffixes.value, []);
    assert_eq!(config.excludes.value[0].value.as_str(), "api.example.com");
    assert_eq!(config.mappings.value[0].value.alias_for, "shop.prod");
    assert_eq!(config.lookup_timeout.value, Limit(Duration::from_secs(90)));
    assert_eq!(config.log_cli.value, LogLevel::Error);
    assert_eq!(config.served_devices(), ["docker0".parse().unwrap(), "br-*".parse().unwrap()]);
    let shown: Vec<_> =
        config.rows().into_iter().map(|row| format!("{} = {} ({})", row.key, row.value, row.origin)).collect();
    for line in [
        "routing.virtualSubnet = 100.10.20.0/24 (config.yml:3:18)",
        "routing.autoResolveConflicts = false (config.yml:5:25)",
        "dns.excludeSuffixes = none (config.yml:13:20)",
        "dns.mappings = shop.example -> shop.prod (config.yml:16:5)",
        "dns.lookupTimeout = 1m30s (config.yml:18:18)",
        "containers.devices = docker0, br-* (config.yml:25:12)",
    ] {
        assert!(shown.iter().any(|shown| shown == line), "{line} is not in {shown:#?}");
    }
}

/// Keys that [`FULL`] leaves out.
const UNSET_IN_FULL: usize = 0;

#[test]
fn routing_follows_the_configuration() {
    let config = Config::from(read(FULL));
    let policy = config.routing();
    assert_eq!(policy.virtual4.to_string(), "100.10.20.0/24");
    assert_eq!(policy.virtual6, RoutingPolicy::VIRTUAL6);
    assert_eq!(policy.vnat, ["service".parse().unwrap(), "10.44.0.0/16".parse().unwrap()]);
    assert_eq!(policy.allow_conflicting, ["10.128.0.0/9".parse().unwrap()]);
    assert_eq!((policy.also_proxy.len(), policy.never_proxy.len(), policy.auto_resolve), (2, 1, false));
    assert_eq!(Config::from(Partial::default()).routing(), RoutingPolicy::here());
    let mut names = PolicyConfig::new(Name::root());
    config.rule_names(&mut names);
    assert_eq!(names.include_suffixes, ["private".parse().unwrap()].into());
    assert!(names.exclude_suffixes.is_empty());
    assert_eq!(names.excludes, ["api.example.com".parse().unwrap()].into());
    assert_eq!(names.mappings, [("shop.example".parse().unwrap(), "shop.prod".parse().unwrap())].into());
}

#[test]
fn containers_can_be_left_out() {
    assert_eq!(Config::from(Partial::default()).served_devices(), crate::devices::DevicePattern::usual());
    assert_eq!(Config::from(read("containers: {enabled: false}")).served_devices(), []);
    assert_eq!(Config::from(read("containers: {devices: []}")).served_devices(), []);
    let many = format!("containers: {{devices: [{}docker0]}}", "docker0, ".repeat(32));
    assert!(error(&many).contains("docker0 is one too many: 32 are possible; join some"), "{}", error(&many));
}

#[test]
fn nothing_sets_nothing() {
    for text in ["", "# a comment\n", "---\n", "{}", "routing:\ndns: {}\n"] {
        assert_eq!(read(text), Partial::default(), "{text:?}");
    }
    let config = Config::from(Partial::default());
    assert!(config.auto_resolve_conflicts.value);
    assert_eq!(config.exclude_suffixes.value.len(), 5);
    assert_eq!(config.lookup_timeout.value, Limit(Duration::from_secs(4)));
    assert!(config.rows().iter().all(|row| row.origin.source == Source::Default));
    config.check().unwrap();
}

#[test]
fn every_mistake_is_one_line_that_names_the_place() {
    for (text, said) in [
        (
            "routing:\n  virtualSubnets: 10.0.0.0/8\n",
            "config.yml:2:3: routing.virtualSubnets: unknown key; did you mean routing.virtualSubnet?",
        ),
        (
            "containers: {devices: [eth0, lo]}\n",
            "config.yml:1:30: containers.devices: \"lo\" matches lo, which is no bridge of containers; write a bridge's name, \
             as in docker0 or \"br-*\"",
        ),
        ("rooting: {}\n", "config.yml:1:1: rooting: unknown key; did you mean routing?"),
        (
            "virtualSubnet: 246.0.0.0/16\n",
            "config.yml:1:1: virtualSubnet: unknown key; did you mean routing.virtualSubnet?",
        ),
        (
            "colour: red\n",
            "config.yml:1:1: colour: unknown key; known here: datapath, routing, containers, dns, logLevels",
        ),
        (
            "dns:\n  mappings:\n  - name: a.b\n    aliasfor: c.d\n",
            "config.yml:4:5: dns.mappings.aliasfor: unknown key; did you mean dns.mappings.aliasFor?",
        ),
        (
            "dns:\n  mappings:\n  - name: a.b\n",
            "config.yml:3:5: dns.mappings: aliasFor is missing; write {name: shop.example, aliasFor: shop.prod}",
        ),
        (
            "dns:\n  mappings: [{name: a.b, aliasFor: A.b}]\n",
            "config.yml:2:14: dns.mappings: a.b is mapped to itself; leave it out",
        ),
        (
            "dns:\n  mappings: shop\n",
            "config.yml:2:13: dns.mappings: \"shop\" where a mapping belongs; write {name: shop.example, aliasFor: shop.prod}",
        ),
        (
            "routing:\n  alsoProxySubnets: [10.0.0.0/8, 10.300.0.0/16]\n",
            "config.yml:2:34: routing.alsoProxySubnets: \"10.300.0.0/16\" is no subnet; write it as 10.128.0.0/9 or fd00:1::/64",
        ),
        (
            "routing:\n  neverProxySubnets: 10.1.2.3/8\n",
            "config.yml:2:22: routing.neverProxySubnets: 10.1.2.3/8 has bits set behind its prefix; write 10.0.0.0/8",
        ),
        (
            "routing:\n  neverProxySubnets: fd00::1\n",
            "config.yml:2:22: routing.neverProxySubnets: \"fd00::1\" has no prefix length; write fd00::1/128 for this address alone",
        ),
        (
            "routing:\n  neverProxySubnets: 10\n",
            "config.yml:2:22: routing.neverProxySubnets: \"10\" is no subnet; write it as 10.128.0.0/9 or fd00:1::/64",
        ),
        (
            "routing:\n  neverProxySubnets:\n",
            "config.yml:2:20: routing.neverProxySubnets: has no value; write [] for an empty list, or leave the key out",
        ),
        (
            "routing:\n  autoResolveConflicts: maybe\n",
            "config.yml:2:25: routing.autoResolveConflicts: \"maybe\" is neither true nor false; write true or false",
        ),
        (
            "routing:\n  autoResolveConflicts: [true]\n",
            "config.yml:2:25: routing.autoResolveConflicts: a list where one value belongs; write one value",
        ),
        (
            "routing: 10.0.0.0/8\n",
            "config.yml:1:10: routing: \"10.0.0.0/8\" where a mapping belongs; known here: virtualSubnet, vnat, autoResolveConflicts, allowConflictingSubnets, alsoProxySubnets, neverProxySubnets",
        ),
        (
            "- routing\n",
            "config.yml:1:1: a list where a mapping belongs; known here: datapath, routing, containers, dns, logLevels",
        ),
        (
            "routing:\n  virtualSubnet: [246.100.0.0/16, 246.101.0.0/16]\n",
            "config.yml:2:35: routing.virtualSubnet: 246.101.0.0/16 is the second range of its family, after 246.100.0.0/16; give one IPv4 and one IPv6 range at most",
        ),
        (
            "routing:\n  virtualSubnet: 127.1.0.0/16\n",
            "config.yml:2:18: routing.virtualSubnet: 127.1.0.0/16 cannot hold virtual addresses: 127.1.0.0/16 touches loopback addresses (127.0.0.0/8); choose a range that nothing uses, as 246.246.0.0/16",
        ),
        (
            "routing:\n  virtualSubnet: 246.0.0.0/31\n",
            "config.yml:2:18: routing.virtualSubnet: 246.0.0.0/31 cannot hold virtual addresses: it has no room; choose a range that nothing uses, as 246.246.0.0/16",
        ),
        (
            "routing:\n  alsoProxySubnets: 0.0.0.0/0\n",
            "config.yml:2:21: routing.alsoProxySubnets: 0.0.0.0/0 is too wide: nothing shorter than /8 is ever steered; name the subnets that you need",
        ),
        (
            "routing:\n  virtualSubnet: 10.5.0.0/16\n  alsoProxySubnets: 10.0.0.0/8\n",
            "config.yml:2:18: routing.virtualSubnet: 10.5.0.0/16 overlaps 10.0.0.0/8 (routing.alsoProxySubnets, config.yml:3:21); choose another virtual subnet",
        ),
        (
            "routing:\n  virtualSubnet: 10.5.0.0/16\n  neverProxySubnets: 10.5.1.0/24\n",
            "config.yml:2:18: routing.virtualSubnet: 10.5.0.0/16 overlaps 10.5.1.0/24 (routing.neverProxySubnets, config.yml:3:22); choose another virtual subnet",
        ),
        (
            "routing:\n  vnat: [services]\n",
            "config.yml:2:10: routing.vnat: \"services\" is neither a subnet nor one of also, service, pods, all; did you mean service?",
        ),
        (
            "routing:\n  vnat: 10.96.0.1/16\n",
            "config.yml:2:9: routing.vnat: 10.96.0.1/16 has bits set behind its prefix; write 10.96.0.0/16",
        ),
        (
            "routing:\n  vnat: [pods, 246.246.1.0/24]\n  virtualSubnet: 246.246.0.0/16\n",
            "config.yml:3:18: routing.virtualSubnet: 246.246.0.0/16 overlaps 246.246.1.0/24 (routing.vnat, config.yml:2:16); choose another virtual subnet",
        ),
        ("dns:\n  lookupTimeout: 4\n", "config.yml:2:18: dns.lookupTimeout: 4 has no unit; write 4s or 4ms"),
        (
            "dns:\n  lookupTimeout: 4 sec\n",
            "config.yml:2:18: dns.lookupTimeout: \"4 sec\" is no duration; write a number with a unit, as in 500ms, 4s or 1m",
        ),
        (
            "dns:\n  lookupTimeout: 0s\n",
            "config.yml:2:18: dns.lookupTimeout: 0s is out of range; choose from 10ms to 10m",
        ),
        (
            "dns:\n  excludes: [a..b]\n",
            "config.yml:2:14: dns.excludes: \"a..b\" is no DNS name: a label is empty; write letters, digits, '-' and dots, as in \"example.com\"",
        ),
        (
            "dns:\n  excludeSuffixes: ['.']\n",
            "config.yml:2:21: dns.excludeSuffixes: an empty name matches everything; name what you mean",
        ),
        (
            "logLevels:\n  cli: verbose\n",
            "config.yml:2:8: logLevels.cli: \"verbose\" is no log level; choose one of error, warn, info, debug, trace",
        ),
        (
            "logLevels:\n  cli: warning\n",
            "config.yml:2:8: logLevels.cli: \"warning\" is no log level; did you mean warn? (one of error, warn, info, debug, trace)",
        ),
        (
            "datapath: epbf\n",
            "config.yml:1:11: datapath: \"epbf\" is no datapath; did you mean ebpf? (one of auto, ebpf, tun)",
        ),
    ] {
        assert_eq!(error(text), said, "{text}");
    }
}

#[test]
fn what_is_no_yaml_is_one_line_too() {
    for text in [
        "routing: [",
        "a: b: c",
        "routing:\n\tdns: 1\n",
        "\"",
        "routing: {}\nrouting: {}\n",
        "a: *b\n",
        "%%\n",
        "--- {}\n--- {}\n",
    ] {
        let said = error(text);
        assert!(said.starts_with("config.yml:") && !said.contains('\n'), "{text:?}: {said}");
        assert!(said["config.yml:".len()..].starts_with(|c: char| c.is_ascii_digit()), "{text:?}: {said}");
    }
}

#[test]
fn an_extension_names_itself_instead_of_lines_that_nobody_can_look_up() {
    let origin = Origin::kubeconfig("lab");
    let error = Partial::parse("{\"routing\": {\"vnets\": 1}}", &origin).unwrap_err();
    assert_eq!(error.to_string(), "kubeconfig (extension tpx.io of cluster lab): routing.vnets: unknown key");
    let error = Partial::parse("dns:\n  lookupTimeout: 4\n", &Origin::cluster()).unwrap_err();
    assert_eq!(error.to_string(), "the cluster's client configuration:2:18: dns.lookupTimeout: 4 has no unit");
}

#[test]
fn flags_are_read_with_commas_and_blamed_by_name() {
    let mut layer = Partial::default();
    let words = ["10.0.0.0/8, 10.1.0.0/16".to_owned(), "fd00::/64".to_owned()];
    layer.set("routing.alsoProxySubnets", &words, &Origin::flag("--also-proxy")).unwrap();
    let setting = layer.also_proxy_subnets.unwrap();
    assert_eq!(setting.value.len(), 3);
    assert_eq!(setting.origin.to_string(), "--also-proxy");
    let mut layer = Partial::default();
    layer.set("datapath", &["tun".into()], &Origin::flag("--datapath")).unwrap();
    layer.set("routing.alsoProxySubnets", &[], &Origin::flag("--also-proxy")).unwrap();
    assert_eq!(layer.rows().len(), 1);
    let error = layer.set("datapath", &["wireguard".into()], &Origin::flag("--datapath")).unwrap_err();
    assert_eq!(error.to_string(), "--datapath: \"wireguard\" is no datapath");
    let error = layer.set("routing.neverProxySubnets", &["10.0.0.0/8,".into()], &Origin::flag("--never-proxy"));
    assert_eq!(error.unwrap_err().to_string(), "--never-proxy: \"\" is no subnet");
}

#[test]
fn the_stronger_layer_wins_key_by_key_and_is_remembered() {
    let text = |level: &str| format!("logLevels:\n  cli: {level}\n");
    let cluster = Partial::parse(
        &format!("{}datapath: tun\nrouting: {{autoResolveConflicts: false}}\n", text("error")),
        &Origin::cluster(),
    )
    .unwrap();
    let kubeconfig =
        Partial::parse(&format!("{}dns: {{lookupTimeout: 1s}}\n", text("info")), &Origin::kubeconfig("lab")).unwrap();
    let config_yml =
        read(&format!("{}dns: {{lookupTimeout: 2s}}\nrouting: {{autoResolveConflicts: true}}\n", text("debug")));
    let mut flags = Partial::default();
    flags.set("datapath", &["ebpf".into()], &Origin::flag("--datapath")).unwrap();
    let config = Config::from(flags.over(config_yml).over(kubeconfig.clone()).over(cluster.clone()));
    let of = |key: &str| {
        config
            .rows()
            .into_iter()
            .find(|row| row.key == key)
            .map(|row| (row.value.to_string(), row.origin.source))
            .unwrap()
    };
    assert_eq!(of("datapath"), ("ebpf".into(), Source::Flag));
    assert_eq!(of("logLevels.cli"), ("debug".into(), Source::File));
    assert_eq!(of("dns.lookupTimeout"), ("2s".into(), Source::File));
    // The default's own value, but set: it wins over a weaker layer.
    assert_eq!(of("routing.autoResolveConflicts"), ("true".into(), Source::File));
    assert_eq!(of("routing.neverProxySubnets"), ("none".into(), Source::Default));
    let below = Config::from(kubeconfig.over(cluster));
    assert_eq!((below.log_cli.value, below.log_cli.origin.source), (LogLevel::Info, Source::Kubeconfig));
    assert_eq!((below.datapath.value, below.datapath.origin.source), (Datapath::Tun, Source::Cluster));
    // An empty list is a value as well.
    let emptied = read("routing: {alsoProxySubnets: []}")
        .over(Partial::parse("routing: {alsoProxySubnets: 10.0.0.0/8}", &Origin::cluster()).unwrap());
    assert_eq!(Config::from(emptied).also_proxy_subnets.value, []);
}

#[test]
fn a_collision_across_layers_blames_the_stronger_one() {
    let mut flags = Partial::default();
    flags.set("routing.alsoProxySubnets", &["100.10.0.0/16".into()], &Origin::flag("--also-proxy")).unwrap();
    let config = Config::from(flags.over(read("routing:\n  virtualSubnet: 100.10.20.0/24\n")));
    let error = config.check().unwrap_err();
    assert_eq!(
        error.to_string(),
        "--also-proxy: 100.10.0.0/16 overlaps 100.10.20.0/24 (routing.virtualSubnet, config.yml:2:18)"
    );
}

#[test]
fn layers_survive_the_wire() {
    let layer = read(FULL);
    let text = serde_saphyr::to_string(&layer).unwrap();
    assert_eq!(serde_saphyr::from_str::<Partial>(&text).unwrap(), layer);
}

fn any_layer(name: &'static str) -> impl Strategy<Value = Partial> {
    let net = (any::<[u8; 4]>(), 8u8..=32).prop_map(|(a, n)| ipnet::IpNet::new(a.into(), n).unwrap().trunc());
    let nets = proptest::option::of(proptest::collection::vec(net, 0..3));
    let resolve = proptest::option::of(any::<bool>());
    let millis = proptest::option::of(10u64..600_000);
    (nets.clone(), nets, resolve, millis).prop_map(move |(also, never, resolve, millis)| {
        let origin = Origin::file(name);
        let list = |nets: Vec<ipnet::IpNet>| {
            Setting::new(nets.into_iter().map(|net| Setting::new(net, origin.clone())).collect(), origin.clone())
        };
        Partial {
            also_proxy_subnets: also.map(list),
            never_proxy_subnets: never.map(list),
            auto_resolve_conflicts: resolve.map(|on| Setting::new(on, origin.clone())),
            lookup_timeout: millis.map(|ms| Setting::new(Limit(Duration::from_millis(ms)), origin.clone())),
            ..Partial::default()
        }
    })
}

proptest! {
    #[test]
    fn merging_is_associative_with_the_empty_layer_as_identity(a in any_layer("a"), b in any_layer("b"), c in any_layer("c")) {
        let left = a.clone().over(b.clone()).over(c.clone());
        prop_assert_eq!(&left, &a.clone().over(b.clone().over(c)));
        prop_assert_eq!(&a.clone().over(Partial::default()), &a);
        prop_assert_eq!(&Partial::default().over(a.clone()), &a);
        prop_assert_eq!(&a.clone().over(a.clone()), &a);
        for row in a.rows() {
            prop_assert!(a.clone().over(b.clone()).rows().contains(&row));
        }
    }

    #[test]
    fn durations_are_read_as_they_are_shown(millis in 10u64..600_000) {
        let limit = Limit(Duration::from_millis(millis));
        let config = Config::from(read(&format!("dns: {{lookupTimeout: {limit}}}")));
        prop_assert_eq!(config.lookup_timeout.value, limit);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-zA-Z0-9:\\[\\]{}'\"#&*!|>% \n\t.,/-]{0,80}") {
        let _ = Partial::parse(&text, &file());
    }

    #[test]
    fn no_value_makes_it_panic(key in proptest::sample::select(Partial::KEYS), text in "\\PC{0,40}") {
        let mut layer = Partial::default();
        let _ = layer.set(key, &[text], &Origin::flag("--flag"));
    }
}

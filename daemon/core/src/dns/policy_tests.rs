use proptest::prelude::*;

use super::*;
use crate::dns::RecordType;

fn config() -> PolicyConfig {
    let mut config = PolicyConfig::new("cluster.local".parse().unwrap());
    config.namespaces = ["default", "emojivoto", "kube-system", "dev"].map(str::to_owned).into();
    config.connected_namespace = Some("emojivoto".to_owned());
    config.subnets = ["10.96.0.0/12", "10.244.0.0/16", "fd00:96::/112"].map(|net| net.parse().unwrap()).into();
    config
}

fn ask(config: &PolicyConfig, name: &str) -> Decision {
    ask_for(config, name, RecordType::A)
}

fn ask_for(config: &PolicyConfig, name: &str, record_type: RecordType) -> Decision {
    decide(config, &Question::new(name.parse().unwrap(), record_type))
}

fn only(names: &[&str]) -> Decision {
    Decision::Cluster { candidates: names.iter().map(|name| name.parse().unwrap()).collect() }
}

fn then_elsewhere(name: &str) -> Decision {
    Decision::ClusterThenElsewhere { candidates: vec![name.parse().unwrap()] }
}

#[test]
fn every_form_of_a_cluster_name() {
    let config = config();
    let full = "web-app.emojivoto.svc.cluster.local";
    for form in ["web-app.emojivoto", "web-app.emojivoto.svc", full, "Web-App.EMOJIVOTO.", "web-app.emojivoto.SVC."] {
        assert_eq!(ask(&config, form), only(&[full]), "{form}");
    }
    let cases = [
        ("web-0.web.emojivoto", "web-0.web.emojivoto.svc.cluster.local"),
        ("web-0.web.emojivoto.svc", "web-0.web.emojivoto.svc.cluster.local"),
        ("web-0.web.emojivoto.svc.cluster.local", "web-0.web.emojivoto.svc.cluster.local"),
        ("_http._tcp.web.emojivoto", "_http._tcp.web.emojivoto.svc.cluster.local"),
        ("_http._tcp.web.emojivoto.svc", "_http._tcp.web.emojivoto.svc.cluster.local"),
        ("_http._tcp.web.emojivoto.svc.cluster.local", "_http._tcp.web.emojivoto.svc.cluster.local"),
        ("10-244-0-7.emojivoto.pod", "10-244-0-7.emojivoto.pod.cluster.local"),
        ("10-244-0-7.emojivoto.pod.cluster.local", "10-244-0-7.emojivoto.pod.cluster.local"),
        ("fd00-244--7.emojivoto.pod", "fd00-244--7.emojivoto.pod.cluster.local"),
        ("cluster.local", "cluster.local"),
        ("dns-version.cluster.local", "dns-version.cluster.local"),
        // What `search cluster.local` makes of a short name: the cluster says what it says inside.
        ("web.emojivoto.cluster.local", "web.emojivoto.cluster.local"),
        ("web.cluster.local", "web.cluster.local"),
        // Not known, and still nobody else's business.
        ("a.b.c.d.emojivoto", "a.b.c.d.emojivoto.svc.cluster.local"),
        ("web.nowhere.svc", "web.nowhere.svc.cluster.local"),
        ("web.nowhere.svc.cluster.local", "web.nowhere.svc.cluster.local"),
        ("emojivoto.svc", "emojivoto.svc.cluster.local"),
    ];
    for (asked, expected) in cases {
        assert_eq!(ask(&config, asked), only(&[expected]), "{asked}");
    }
}

#[test]
fn mapped_and_excluded_names_are_whole_names() {
    let mut config = config();
    config.mappings = [
        ("postgres", "psql.dev"),
        ("shop.example.com", "web-app"),
        ("mirror.example.com", "example.org"),
        ("my.own.domain", "192.168.0.15"),
        ("web.emojivoto", "fd00::7"),
        ("loop.a", "loop.b"),
        ("loop.b", "loop.a"),
        ("redis", "other.dev"),
    ]
    .map(|(name, alias)| (name.parse().unwrap(), alias.parse().unwrap()))
    .into();
    config.excludes =
        ["redis", "cache", "db.dev", "kube-dns.kube-system.svc.cluster.local"].map(|n| n.parse().unwrap()).into();
    assert_eq!(ask(&config, "Postgres."), only(&["psql.dev.svc.cluster.local"]));
    // A single label is the connected namespace's service, and nobody else is asked.
    assert_eq!(ask(&config, "shop.example.com"), only(&["web-app.emojivoto.svc.cluster.local"]));
    assert_eq!(ask(&config, "mirror.example.com"), Decision::ElsewhereAs("example.org".parse().unwrap()));
    assert_eq!(ask(&config, "my.own.domain"), Decision::Address("192.168.0.15".parse().unwrap()));
    assert_eq!(ask(&config, "web.emojivoto"), Decision::Address("fd00::7".parse().unwrap()));
    // Names behind names are not mapped again, so nothing can go round in circles.
    assert_eq!(ask(&config, "loop.a"), Decision::ElsewhereAs("loop.b".parse().unwrap()));
    assert_eq!(ask(&config, "redis"), only(&["other.dev.svc.cluster.local"]));
    for name in ["cache", "CACHE.", "db.dev", "kube-dns.kube-system.svc.cluster.local"] {
        assert_eq!(ask(&config, name), Decision::Elsewhere, "{name}");
    }
    // Whole names only.
    assert_eq!(ask(&config, "x.postgres"), Decision::Elsewhere);
    assert_eq!(ask(&config, "a.db.dev"), only(&["a.db.dev.svc.cluster.local"]));
    assert_eq!(ask(&config, "cache.emojivoto"), only(&["cache.emojivoto.svc.cluster.local"]));
}

#[test]
fn reverse_names_of_virtual_addresses_are_nobodys() {
    let mut config = config();
    config.virtual_subnets = vec!["246.246.0.0/16".parse().unwrap()];
    assert_eq!(ask(&config, "7.1.246.246.in-addr.arpa"), Decision::NxDomain);
    assert_eq!(ask(&config, "246.246.in-addr.arpa"), Decision::NxDomain);
    assert_eq!(ask(&config, "246.in-addr.arpa"), Decision::Elsewhere);
}

#[test]
fn other_names_go_elsewhere() {
    let config = config();
    for name in [
        ".",
        "example.com",
        "web-app.emojivoto.corp.example",
        "mycluster.local",
        "printer.local",
        "emojivoto.com",
        "svc.example",
        "web.nowhere",
        "_http._tcp.web",
        "7.3.168.192.in-addr.arpa",
        "10.in-addr.arpa",
        "1.0.0.127.in-addr.arpa",
        "ip6.arpa",
        "localhost",
    ] {
        assert_eq!(ask(&config, name), Decision::Elsewhere, "{name}");
    }
}

#[test]
fn single_labels_are_services_of_the_connected_namespace_first() {
    let mut config = config();
    assert_eq!(ask(&config, "web-app"), then_elsewhere("web-app.emojivoto.svc.cluster.local"));
    assert_eq!(ask(&config, "svc"), then_elsewhere("svc.emojivoto.svc.cluster.local"));
    assert_eq!(ask_for(&config, "dev", RecordType::NS), Decision::Elsewhere);
    assert_eq!(ask_for(&config, "dev", RecordType(48)), Decision::Elsewhere);
    assert_eq!(ask(&config, "com"), Decision::Elsewhere);
    config.connected_namespace = None;
    assert_eq!(ask(&config, "web-app"), Decision::Elsewhere);
}

#[test]
fn reverse_names_of_the_clusters_subnets() {
    let config = config();
    let v6 = "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.9.0.0.0.0.d.f.ip6.arpa";
    for name in ["7.3.96.10.in-addr.arpa", "7.0.244.10.in-addr.arpa", "96.10.in-addr.arpa", v6] {
        assert_eq!(ask_for(&config, name, RecordType::PTR), only(&[name]), "{name}");
    }
    let other = v6.replacen("6.9", "7.9", 1);
    assert_eq!(ask_for(&config, &other, RecordType::PTR), Decision::Elsewhere);
}

#[test]
fn excluded_suffixes_win_over_namespaces_and_over_nothing_else() {
    let mut config = config();
    config.namespaces.insert("io".to_owned());
    assert_eq!(ask(&config, "web.io"), Decision::Elsewhere);
    assert_eq!(ask(&config, "web.io.svc"), only(&["web.io.svc.cluster.local"]));
    config.exclude_suffixes = [".dev", ".cluster.local", ".svc", "."].map(|text| text.parse().unwrap()).into();
    assert_eq!(ask(&config, "web.dev"), Decision::Elsewhere);
    assert_eq!(ask(&config, "web.io"), only(&["web.io.svc.cluster.local"]));
    assert_eq!(ask(&config, "web.dev.svc"), only(&["web.dev.svc.cluster.local"]));
    assert_eq!(ask(&config, "web.dev.svc.cluster.local"), only(&["web.dev.svc.cluster.local"]));
}

#[test]
fn included_suffixes_are_asked_as_they_are() {
    let mut config = config();
    config.include_suffixes = [".corp.com", ".dev", "box"].map(|text| text.parse().unwrap()).into();
    assert_eq!(ask(&config, "db.corp.com"), only(&["db.corp.com"]));
    assert_eq!(ask(&config, "db.other.com"), Decision::Elsewhere);
    assert_eq!(ask(&config, "web.dev"), only(&["web.dev.svc.cluster.local", "web.dev"]));
    assert_eq!(ask(&config, "box"), only(&["box"]));
}

#[test]
fn mapped_namespaces_hide_the_others() {
    let mut config = config();
    config.mapped_namespaces = Some(["Emojivoto", "later"].map(str::to_owned).into());
    assert_eq!(ask(&config, "web.emojivoto"), only(&["web.emojivoto.svc.cluster.local"]));
    assert_eq!(ask(&config, "web.later"), only(&["web.later.svc.cluster.local"]));
    assert_eq!(ask(&config, "web"), then_elsewhere("web.emojivoto.svc.cluster.local"));
    assert_eq!(ask(&config, "web.default"), Decision::Elsewhere);
    for name in [
        "web.default.svc",
        "web.default.svc.cluster.local",
        "a.web.default.svc.cluster.local",
        "default.svc.cluster.local",
        "1-2-3-4.default.pod",
        "1-2-3-4.default.pod.cluster.local",
    ] {
        assert_eq!(ask(&config, name), Decision::NxDomain, "{name}");
    }
    config.connected_namespace = Some("default".to_owned());
    assert_eq!(ask(&config, "web"), Decision::Elsewhere);
}

#[test]
fn namespaces_called_svc_or_pod_give_two_readings() {
    let mut config = config();
    config.namespaces.extend(["svc", "pod"].map(str::to_owned));
    assert_eq!(ask(&config, "web.svc"), only(&["web.svc.cluster.local", "web.svc.svc.cluster.local"]));
    assert_eq!(ask(&config, "web.pod"), only(&["web.pod.cluster.local", "web.pod.svc.cluster.local"]));
}

#[test]
fn an_unknown_domain_is_taken_for_the_usual_one() {
    let mut config = config();
    config.cluster_domain = Name::root();
    for name in ["web.emojivoto", "web.emojivoto.svc", "web.emojivoto.svc.cluster.local"] {
        assert_eq!(ask(&config, name), only(&["web.emojivoto.svc.cluster.local"]), "{name}");
    }
    assert_eq!(ask(&config, "example.org"), Decision::Elsewhere);
}

#[test]
fn a_domain_of_its_own() {
    let mut config = config();
    config.cluster_domain = "k8s.corp.com".parse().unwrap();
    assert_eq!(ask(&config, "web.emojivoto"), only(&["web.emojivoto.svc.k8s.corp.com"]));
    assert_eq!(ask(&config, "x.K8S.corp.com"), only(&["x.k8s.corp.com"]));
    assert_eq!(ask(&config, "x.corp.com"), Decision::Elsewhere);
    assert_eq!(ask(&config, "web.emojivoto.svc.cluster.local"), Decision::Elsewhere);
}

#[test]
fn names_too_long_to_expand_do_not_exist() {
    let long = vec!["x".repeat(60); 4].join(".") + ".dev";
    assert_eq!(ask(&config(), &long), Decision::NxDomain);
}

fn label() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::sample::select(vec!["emojivoto", "default", "dev", "svc", "pod", "cluster", "local", "com", "arpa"])
            .prop_map(|text| text.as_bytes().to_vec()),
        proptest::sample::select(vec!["in-addr", "ip6", "10", "96", "_tcp", "f", "d", "0"])
            .prop_map(|text| text.as_bytes().to_vec()),
        proptest::collection::vec(any::<u8>(), 1..64),
    ]
}

fn labels() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(label(), 0..8)
}

fn namespaces() -> impl Strategy<Value = Vec<String>> {
    proptest::collection::vec(
        proptest::sample::select(vec!["emojivoto", "default", "dev", "svc", "pod", "com"]).prop_map(str::to_owned),
        0..5,
    )
}

proptest! {
    #[test]
    fn total_and_never_a_leak(
        labels in labels(),
        record_type in any::<u16>(),
        known in namespaces(),
        mapped in proptest::option::of(namespaces()),
    ) {
        let mut config = config();
        config.namespaces = known.into_iter().collect();
        config.mapped_namespaces = mapped.map(|mapped| mapped.into_iter().collect());
        let Ok(name) = Name::from_labels(&labels) else { return Ok(()) };
        let decision = decide(&config, &Question::new(name.clone(), RecordType(record_type)));
        let ours = name.is_under(&config.cluster_domain)
            || (name.len() > 1 && name.from_top(0).is_some_and(|top| matches!(top, b"svc" | b"pod")))
            || (name.len() > 1
                && name.from_top(0).is_some_and(|top| top != b"com" && config.is_cluster_namespace(top)));
        match &decision {
            Decision::Elsewhere | Decision::ClusterThenElsewhere { .. } => prop_assert!(!ours, "{name} leaks"),
            Decision::NxDomain => prop_assert!(ours, "{name} is not ours to deny"),
            Decision::Cluster { .. } => {}
            Decision::ElsewhereAs(_) | Decision::Address(_) => prop_assert!(false, "{name} is not mapped"),
        }
        if let Decision::Cluster { candidates } | Decision::ClusterThenElsewhere { candidates } = decision {
            prop_assert!(!candidates.is_empty());
            for candidate in candidates {
                prop_assert!(candidate.is_under(&config.cluster_domain) || reverse_net(&candidate).is_some());
                // What is asked in the cluster starts with what was asked here.
                prop_assert_eq!(candidate.labels().take(name.len()).collect::<Vec<_>>(), name.labels().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn below_the_domain_is_always_the_clusters(labels in labels(), hidden in any::<bool>()) {
        let mut config = config();
        if hidden {
            config.mapped_namespaces = Some(BTreeSet::new());
        }
        let Ok(name) = Name::from_labels(labels.iter().map(Vec::as_slice).chain([b"Cluster".as_slice(), b"LOCAL"])) else {
            return Ok(());
        };
        let decision = decide(&config, &Question::new(name, RecordType::A));
        let ours = matches!(decision, Decision::Cluster { .. } | Decision::NxDomain);
        prop_assert!(ours);
    }

    #[test]
    fn the_order_of_facts_makes_no_difference(labels in labels(), known in namespaces(), turn in 0usize..8) {
        let Ok(name) = Name::from_labels(&labels) else { return Ok(()) };
        let question = Question::new(name, RecordType::A);
        let mut one = config();
        one.namespaces = known.iter().cloned().collect();
        let mut other = one.clone();
        other.namespaces = known.into_iter().rev().collect();
        let turn = turn % other.subnets.len();
        other.subnets.rotate_left(turn);
        other.subnets.extend(one.subnets.clone());
        prop_assert_eq!(decide(&one, &question), decide(&other, &question));
    }
}

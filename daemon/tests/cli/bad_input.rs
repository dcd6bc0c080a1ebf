//! Every bad input is one line that names the place; nothing is started.

use crate::laptop::Laptop;

/// Runs `arguments` and compares the whole of stderr; then the same as JSON.
#[track_caller]
fn fails(laptop: &Laptop, arguments: &[&str], said: &str) {
    let ended = laptop.run(arguments);
    assert_eq!(ended.stderr, format!("error: {said}\n"), "{ended:?}");
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""), "{ended:?}");
    let json = laptop.run(&[&["--format", "json"], arguments].concat());
    let document: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let text = |key: &str| document["error"][key].as_str().unwrap().to_owned();
    assert_eq!(format!("{}; {}", text("what"), text("next")), said);
    assert_eq!((json.code, json.stderr.as_str(), text("kind").as_str()), (2, "", "usage"), "{json:?}");
    assert!(laptop.nothing_was_started(), "something was started by {arguments:?}");
}

#[test]
fn flags() {
    let laptop = Laptop::new();
    for (arguments, said) in [
        (
            &["--vnat", "services"][..],
            "--vnat: \"services\" is neither a subnet nor one of also, service, pods, all; did you mean service?",
        ),
        (
            &["--vnat", "everything"],
            "--vnat: \"everything\" is neither a subnet nor one of also, service, pods, all; write a subnet as in \
             10.96.0.0/16, or one of these words",
        ),
        (
            &["--vnat", "pods", "--vnat", "10.96.1.0/16"],
            "--vnat: 10.96.1.0/16 has bits set behind its prefix; write 10.96.0.0/16",
        ),
        (
            &["--vnat", "pods,10.0.0.0/33"],
            "--vnat: \"10.0.0.0/33\" is no subnet; write it as 10.128.0.0/9 or fd00:1::/64",
        ),
        (
            &["--also-proxy", "203.0.113.7"],
            "--also-proxy: \"203.0.113.7\" has no prefix length; write 203.0.113.7/32 for this address alone",
        ),
        (
            &["--also-proxy", "0.0.0.0/0"],
            "--also-proxy: 0.0.0.0/0 is too wide: nothing shorter than /8 is ever steered; name the subnets that you need",
        ),
        (
            &["--also-proxy", "127.0.0.0/8"],
            "--also-proxy: 127.0.0.0/8 touches loopback addresses (127.0.0.0/8); name the subnets that you need",
        ),
        (
            &["--never-proxy", "10.0.0.0/8,fd00::/200"],
            "--never-proxy: \"fd00::/200\" is no subnet; write it as 10.128.0.0/9 or fd00:1::/64",
        ),
        (
            &["--allow-conflicting-subnets", "all"],
            "--allow-conflicting-subnets: \"all\" is no subnet; write it as 10.128.0.0/9 or fd00:1::/64",
        ),
        (
            &["--deny", "namespace:shop", "--deny", "emojivoto"],
            "--deny: \"emojivoto\" is none of namespace:NAME, a subnet and port:NUMBER; write namespace:shop, 10.96.0.0/16 \
             or port:25",
        ),
        (&["--deny-with", "eacces"], "--deny-with: \"eacces\" is neither access nor refused; did you mean access?"),
        (&["--datapath", "epbf"], "--datapath: \"epbf\" is no datapath; did you mean ebpf? (one of auto, ebpf, tun)"),
        (&["--datapath", "wireguard"], "--datapath: \"wireguard\" is no datapath; choose one of auto, ebpf, tun"),
        (
            &["--also-proxy", "246.246.7.0/24"],
            "--also-proxy: 246.246.7.0/24 overlaps 246.246.0.0/16 (routing.virtualSubnet, default); choose another \
             subnet, or set routing.virtualSubnet",
        ),
    ] {
        fails(&laptop, &[&["connect"], arguments].concat(), said);
    }
}

#[test]
fn the_configuration_file() {
    for (text, said) in [
        (
            "routing:\n  virtualSubnets: 10.0.0.0/8\n",
            "2:3: routing.virtualSubnets: unknown key; did you mean routing.virtualSubnet?",
        ),
        (
            "routing:\n  neverProxySubnets: [10.1.2.3/8]\n",
            "2:23: routing.neverProxySubnets: 10.1.2.3/8 has bits set behind its prefix; write 10.0.0.0/8",
        ),
        (
            "routing:\n  vnat: svc\n",
            "2:9: routing.vnat: \"svc\" is neither a subnet nor one of also, service, pods, all; write a subnet as in 10.96.0.0/16, or one of these words",
        ),
        ("dns:\n  lookupTimeout: 4\n", "2:18: dns.lookupTimeout: 4 has no unit; write 4s or 4ms"),
        (
            "dns:\n  excludeSuffixes: {com: true}\n",
            "2:20: dns.excludeSuffixes: a mapping where one value belongs; write one value",
        ),
        (
            "logLevels:\n  cli: loud\n",
            "2:8: logLevels.cli: \"loud\" is no log level; choose one of error, warn, info, debug, trace",
        ),
        ("datapath: [tun]\n", "1:11: datapath: a list where one value belongs; write one value"),
    ] {
        let laptop = Laptop::new();
        let path = laptop.config(text);
        let said = format!("{}:{said}", path.display());
        for command in [&["connect"][..], &["config", "view", "--client-only"]] {
            fails(&laptop, command, &said);
        }
        // Whoever has a typo there must still be able to leave.
        let quit = laptop.run(&["quit"]);
        let expected = (0, "Not connected\n".to_owned(), format!("warning: {said}\n"));
        assert_eq!((quit.code, quit.stdout, quit.stderr), expected);
    }
}

#[test]
fn what_is_no_yaml() {
    let laptop = Laptop::new();
    let path = laptop.config("routing: [\n");
    let ended = laptop.run(&["connect"]);
    assert!(ended.stderr.starts_with(&format!("error: {}:", path.display())), "{ended:?}");
    assert!(ended.stderr.contains("this is no YAML") && ended.stderr.lines().count() == 1, "{ended:?}");
    assert_eq!(ended.code, 2);
    assert!(laptop.nothing_was_started());
}

#[test]
fn a_file_and_a_flag_that_do_not_fit_together() {
    let laptop = Laptop::new();
    let path = laptop.config("routing:\n  virtualSubnet: 100.10.20.0/24\n");
    let said = format!(
        "--also-proxy: 100.10.0.0/16 overlaps 100.10.20.0/24 (routing.virtualSubnet, {}:2:18); choose another subnet, or \
         set routing.virtualSubnet",
        path.display()
    );
    fails(&laptop, &["connect", "--also-proxy", "100.10.0.0/16"], &said);
}

#[test]
fn a_file_that_cannot_be_read() {
    let laptop = Laptop::new();
    let missing = laptop.path("missing.yml").display().to_string();
    let said = format!(
        "cannot read the configuration file {missing}: No such file or directory (os error 2); name a readable file with \
         --config or $TPX_CONFIG"
    );
    fails(&laptop, &["--config", &missing, "connect"], &said);
    let ended = laptop.run_with(("TPX_CONFIG", missing.as_ref()), &["connect"]);
    assert_eq!((ended.code, ended.stderr), (2, format!("error: {said}\n")));
    // A folder at the file's own place.
    let usual = laptop.path("config/tpx/config.yml");
    std::fs::create_dir_all(&usual).unwrap();
    let said = format!(
        "cannot read the configuration file {}: Is a directory (os error 21); make it readable, or name another file with \
         --config",
        usual.display()
    );
    fails(&laptop, &["connect"], &said);
}

#[test]
fn what_cannot_be_explained() {
    let laptop = Laptop::new();
    for (target, what) in [
        ("10.96.0.300", "\"10.96.0.300\" is no address"),
        ("10.96.0.0/16", "\"10.96.0.0/16\" is no address"),
        ("http://web-app", "\"http://web-app\" ends in no port"),
        ("99999999999", "99999999999 is no process id"),
        ("a..b", "\"a..b\" is no DNS name"),
    ] {
        let next = "give an address (10.96.0.10:53, [fd00::1]:53), a DNS name or a process id";
        fails(&laptop, &["explain", target], &format!("{what}; {next}"));
    }
}

#[test]
fn what_is_no_environment() {
    let laptop = Laptop::new();
    let path = laptop.write("pod.env", "A=1\n# fine\n\nB\n").display().to_string();
    let next = "write KEY=VALUE, one a line";
    fails(&laptop, &["env", "translate", "--file", &path], &format!("{path}:4: \"B\" has no '='; {next}"));
    fails(&laptop, &["env", "translate", "A=1", "B"], &format!("\"B\" has no '='; {next}"));
    let missing = laptop.path("missing.env").display().to_string();
    let said =
        format!("cannot read {missing}: No such file or directory (os error 2); give a text file of KEY=VALUE lines");
    fails(&laptop, &["env", "translate", "--file", &missing], &said);
    let ended = laptop.run_on("A=1\nexport B=2\n", &["env", "translate"]);
    let what = "has no name that a variable can have in front of its '='";
    assert_eq!(ended.stderr, format!("error: standard input:2: \"export B=2\" {what}; {next}\n"));
    assert_eq!(ended.code, 2);
}

#[test]
fn an_unknown_section_of_the_maps() {
    let ended = Laptop::new().run(&["maps", "dump", "flow"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("'flow'") && ended.stderr.contains("'flows'"), "{ended:?}");
}

//! Commands that need a connection say so, in one line and with their own exit code.

use crate::laptop::Laptop;

#[test]
fn they_say_so() {
    let laptop = Laptop::new();
    for arguments in [
        &["status"][..],
        &["list-namespaces"],
        &["maps", "dump"],
        &["maps", "dump", "flows", "--watch"],
        &["explain", "10.96.0.10:53"],
        &["explain", "web-app.emojivoto"],
        &["explain", "1"],
        &["env", "translate", "A=10.96.0.1"],
    ] {
        let ended = laptop.run(arguments);
        assert_eq!(
            (ended.code, ended.stderr.as_str()),
            (3, "error: not connected; run `tpx connect`\n"),
            "{arguments:?}: {ended:?}"
        );
    }
    assert!(laptop.nothing_was_started());
}

#[test]
fn every_command_has_help_with_what_it_does() {
    let laptop = Laptop::new();
    for (arguments, words) in [
        (&["connect", "--help"][..], &["Examples:", "--datapath", "--vnat", "also, service, pods or all"][..]),
        (&["connect", "--help"], &["--scope", "unit:NAME", "--name"]),
        (&["run", "--help"], &["Examples:", "--env-file", "--quiet", "127", "eBPF"]),
        (&["explain", "--help"], &["Examples:", "ADDRESS|NAME|PID", "a process"]),
        (&["env", "translate", "--help"], &["Examples:", "--file", "KEY=VALUE"]),
        (&["maps", "dump", "--help"], &["Examples:", "--watch", "rules", "vnat", "flows", "scopes", "counters"]),
        (&["config", "view", "--help"], &["Examples:", "--client-only", "Weakest first"]),
    ] {
        let ended = laptop.run(arguments);
        assert_eq!(ended.code, 0);
        for word in words {
            assert!(ended.stdout.contains(word), "{word:?} is not in {}", ended.stdout);
        }
    }
}

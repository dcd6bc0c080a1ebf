//! Commands that need a connection say so, in one line and with their own exit code.

use crate::laptop::Laptop;

#[test]
fn they_say_so() {
    let laptop = Laptop::new();
    for arguments in [&["status"][..], &["list-namespaces"], &["maps", "dump"]] {
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
        (&["config", "view", "--help"], &["Examples:", "--client-only", "Weakest first"]),
    ] {
        let ended = laptop.run(arguments);
        assert_eq!(ended.code, 0);
        for word in words {
            assert!(ended.stdout.contains(word), "{word:?} is not in {}", ended.stdout);
        }
    }
}

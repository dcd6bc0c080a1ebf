//! `tpx run`, `--scope` and several connections, as far as they need no daemon.

use std::{os::unix::net::UnixListener, path::Path};

use crate::laptop::Laptop;

#[test]
fn what_is_wrong_is_said_before_anything_starts() {
    let laptop = Laptop::new();
    let file = laptop.write("pod.env", "A=1\nexport B\n").display().to_string();
    for (arguments, said) in [
        (
            &["run", "--env-file", &file, "--", "true"][..],
            format!("error: {file}:2: there is no '='; write KEY=VALUE, one a line\n"),
        ),
        (
            &["run", "--datapath", "tun", "--", "true"],
            "error: only the eBPF datapath can show the cluster to some processes and not to others, and --datapath says \
             tun; use --datapath auto where the kernel has it, or `tpx connect` for the whole workstation\n"
                .into(),
        ),
    ] {
        let ended = laptop.run(arguments);
        assert_eq!((ended.code, ended.stderr, ended.stdout), (2, said, String::new()), "{arguments:?}");
    }
    for (arguments, word) in [
        (&["connect", "--scope", "pods"][..], "unit:NAME"),
        (&["run"], "CMD"),
        (&["run", "--name", "a/b", "--", "true"], "letters, digits"),
        (&["status", "--use", "("], "regular expression"),
        (&["quit", "--all", "--use", "a"], "--use"),
    ] {
        let ended = laptop.run(arguments);
        assert!(ended.code == 2 && ended.stderr.contains(word), "{arguments:?}: {ended:?}");
    }
    assert!(laptop.nothing_was_started());
}

#[test]
fn one_of_several_has_to_be_chosen() {
    let laptop = Laptop::new();
    let quit = laptop.run(&["quit", "--all"]);
    assert_eq!((quit.code, quit.stdout.as_str()), (0, "Not connected\n"));
    for (used, name) in [("shop", "shop"), ("^run-1$", "run-1"), ("^r", "^r"), ("a/b", "a/b")] {
        let quit = laptop.run(&["quit", "--use", used, "--format", "json"]);
        assert_eq!(quit.code, 0, "{quit:?}");
        assert!(quit.stdout.contains(&format!("\"name\": \"{name}\"")), "{quit:?}");
    }
    let wrong = laptop.run_with(("TPX_USE", Path::new("(")), &["status"]);
    assert!(wrong.code == 2 && wrong.stderr.contains("TPX_USE"), "{wrong:?}");
    // Nobody answers there yet, as while a daemon is still connecting.
    let _daemons = ["a", "b"].map(|name| {
        let listener = UnixListener::bind(laptop.path(&format!("run/tpx-userd/{name}.sock"))).unwrap();
        let answering = listener.try_clone().unwrap();
        std::thread::spawn(move || answering.incoming().for_each(drop));
        listener
    });
    let several = "2 connections run: a (connecting), b (connecting); choose one with --use NAME, or see `tpx status`";
    let ended = laptop.run(&["flows"]);
    assert_eq!((ended.code, ended.stderr), (2, format!("error: {several}\n")));
    let none = "no connection matches \"c\"; choose one of these with --use: a (connecting), b (connecting)";
    let ended = laptop.run(&["flows", "--use", "c"]);
    assert_eq!((ended.code, ended.stderr), (3, format!("error: {none}\n")));
    // As inside of `tpx run`: the variable chooses, but nothing was typed that contradicts `--all`.
    let inside = |arguments: &[&str]| laptop.run_with(("TPX_USE", Path::new("^c$")), arguments);
    let ended = inside(&["flows"]);
    assert_eq!((ended.code, ended.stderr.contains("no connection matches \"^c$\"")), (3, true), "{ended:?}");
    let ended = inside(&["flows", "--use", "d"]);
    assert!(ended.stderr.contains("no connection matches \"d\""), "{ended:?}");
    let ended = inside(&["quit", "--all"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "Disconnected a, b\n"), "{ended:?}");
    let taken = laptop.run(&["run", "--name", "a", "--", "true"]);
    assert!(taken.code == 4 && taken.stderr.contains("a connection called a runs already"), "{taken:?}");
}

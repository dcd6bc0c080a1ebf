//! Commands that need a connection say so, in one line and with their own exit code.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

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

/// It is what carries connections; that it cannot take a question is no reason to end them.
#[test]
fn a_daemon_that_has_no_file_left_answers_later() {
    let laptop = Laptop::new();
    let mut daemon = laptop.start(&["userd", "--name", "default"]);
    let until = Instant::now() + Duration::from_secs(20);
    let socket = laptop.path("run/tpx-userd/default.sock");
    while UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < until, "{} is not there: {:?}", socket.display(), daemon.try_wait());
        sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_child(&daemon);
    // The daemon has raised its own soft limit to the hard one, which it inherited from here.
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let limit = |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap();
    limit(Some(1));
    let mut asking = UnixStream::connect(&socket).unwrap();
    asking.write_all(b"{\"request\":\"status\"}\n").unwrap();
    sleep(Duration::from_millis(300));
    assert_eq!(daemon.try_wait().unwrap(), None, "the daemon ended");
    limit(maximum);
    asking.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = String::new();
    BufReader::new(asking).read_line(&mut answer).unwrap();
    assert!(answer.contains("not connected"), "{answer}");
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

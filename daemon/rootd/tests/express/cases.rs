//! What has to hold.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::{io::Errno, process::Signal};

use crate::{
    faults,
    lab::{Lab, OWNER, Process, SOON, STRANGER, active, app, eventually, left},
    roles, trees,
};

type Case = fn(&Lab) -> Result<()>;

pub(crate) const ALL: &[(&str, Case)] = &[
    ("both_families_reach_the_cluster_and_know_their_peer", reach),
    ("connect_fails_the_way_the_cluster_said", errors),
    ("silence_lets_the_application_time_out_and_dials_once", silence),
    ("a_slow_dial_is_waited_for", slow),
    ("a_repeated_syn_is_dialled_once", repeated),
    ("500_at_once", burst),
    ("an_application_that_gives_up_leaves_nothing", impatient),
    ("a_second_try_from_the_same_port_is_not_lost", again),
    ("a_full_ring_buffer_heals", overflow),
    ("kill_9_of_rootd", kill_rootd),
    ("kill_9_of_the_user_daemon", kill_user),
    ("kill_9_of_both", kill_both),
    ("kill_9_of_rootd_at_each_step", faults::at_each_step),
    ("sigterm_reverts_and_exits_0", terminate),
    ("exit_when_idle", idle),
    ("an_older_kernel_is_described", old_kernel),
    ("a_second_rootd_is_told_so", second_rootd),
    ("process_trees_stand_beside_each_other", trees::beside),
    ("the_workstation_is_in_one_cluster_at_a_time", trees::one_workstation),
    ("trees_are_entered_by_their_owner_and_root", trees::who_enters),
    ("sigterm_moves_who_is_in_a_tree", trees::terminated),
    ("kill_9_of_rootd_with_somebody_in_a_tree", trees::killed),
    ("another_user_is_denied", stranger),
    ("nonsense_does_not_hurt", nonsense),
];

/// An address in the cluster.
pub(crate) fn to(port: u16) -> String {
    format!("10.96.0.10:{port}")
}

pub(crate) fn to6(port: u16) -> String {
    format!("[fd96::10]:{port}")
}

/// Milliseconds of an `ok`.
pub(crate) fn ok(line: &str) -> Result<u64> {
    let mut words = line.split(' ');
    ensure!(words.next() == Some("ok") && line.ends_with("echoed"), "{line}");
    Ok(words.next().context("no time")?.parse()?)
}

pub(crate) fn fails(address: &str, expected: Errno) -> Result<()> {
    let line = app(&["connect", address, "20"])?;
    let words: Vec<_> = line.split(' ').collect();
    ensure!(words[..2] == ["errno", &expected.raw_os_error().to_string()], "{address}: {line}, expected {expected}");
    ensure!(words[2].parse::<u64>()? < 500, "{address}: {line}");
    Ok(())
}

/// Attempts at a port that a user daemon has seen since it was asked last.
pub(crate) fn knocks(user: &Process, port: u16) -> usize {
    let knock = format!("knock {port}");
    user.said().iter().filter(|l| **l == knock).count()
}

/// No attempt is open, and the kernel's map is empty.
fn settled(user: &mut Process) -> Result<()> {
    eventually("attempts are over", || {
        let mut read = || -> Result<(String, String)> { Ok((user.ask("gauge")?, user.ask("held")?)) };
        match read() {
            Ok((gauge, held)) if gauge.contains("open: 0") && held == "held: 0" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
}

fn reach(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    for (address, peer) in
        [(to(80), to(80)), (to6(80), to6(80)), ("[::ffff:10.96.0.10]:80".into(), "[::ffff:10.96.0.10]:80".into())]
    {
        let line = app(&["connect", &address])?;
        ensure!(ok(&line)? < 500 && line.contains(&peer), "{line}");
    }
    ensure!(knocks(&user, 80) == 3);
    settled(&mut user)
}

fn errors(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    fails(&to(roles::REFUSED), Errno::CONNREFUSED)?;
    fails(&to6(roles::REFUSED), Errno::CONNREFUSED)?;
    fails(&to(roles::HOST_UNREACHABLE), Errno::HOSTUNREACH)?;
    fails(&to6(roles::HOST_UNREACHABLE), Errno::HOSTUNREACH)?;
    fails(&to(roles::NETWORK_UNREACHABLE), Errno::NETUNREACH)?;
    fails(&to6(roles::NETWORK_UNREACHABLE), Errno::NETUNREACH)?;
    // IPv4 has no code that Linux turns into EACCES.
    fails(&to(roles::PROHIBITED), Errno::HOSTUNREACH)?;
    fails(&to6(roles::PROHIBITED), Errno::ACCESS)?;
    fails(&to(roles::TUNNEL), Errno::HOSTUNREACH)?;
    fails(&to6(roles::TUNNEL), Errno::HOSTUNREACH)?;
    settled(&mut user)
}

fn silence(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    for (address, port) in [(to(roles::SILENT), roles::SILENT), (to6(roles::FORGOTTEN), roles::FORGOTTEN)] {
        let line = app(&["connect", &address, "3"])?;
        ensure!(line.starts_with(&format!("errno {} ", Errno::TIMEDOUT.raw_os_error())), "{line}");
        ensure!(knocks(&user, port) == 1, "a repeated SYN was dialled again");
    }
    ensure!(user.ask("gauge")?.contains("remembered: 2"));
    settled(&mut user)
}

fn slow(lab: &Lab) -> Result<()> {
    // The application repeats its SYN after 1 and 2 s: what comes before that was not its doing.
    let (_rootd, mut user) = lab.both()?;
    for address in [to(roles::HOLD_1200_MS), to6(roles::HOLD_1200_MS)] {
        let ms = ok(&app(&["connect", &address])?)?;
        ensure!((1200..1900).contains(&ms), "{address}: {ms} ms");
        // The same without blocking.
        let line = app(&["burst", &address, "1"])?;
        let ms: u64 = line.strip_prefix("1 ok, 0 refused, 0 other, ").context(line.clone())?.parse()?;
        ensure!((1200..1900).contains(&ms), "{address}: {ms} ms");
    }
    settled(&mut user)
}

fn repeated(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    let ms = ok(&app(&["connect", &to(roles::HOLD_3500_MS)])?)?;
    ensure!((3500..3900).contains(&ms), "{ms} ms");
    ensure!(knocks(&user, roles::HOLD_3500_MS) == 1);
    settled(&mut user)
}

fn burst(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    let line =
        app(&["burst", &to(roles::HOLD_300_MS), "250", &to6(roles::HOLD_300_MS), "200", &to(roles::REFUSED), "50"])?;
    let ms: u64 = line.strip_prefix("450 ok, 50 refused, 0 other, ").context(line.clone())?.parse()?;
    ensure!(ms < 5000, "{line}");
    ensure!(knocks(&user, roles::HOLD_300_MS) == 450);
    settled(&mut user)
}

fn impatient(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    let line = app(&["impatient", &to(roles::HOLD_1200_MS), "300"])?;
    ensure!(line == "gave up: TimedOut", "{line}");
    user.expect("gone: the application has given up")?;
    settled(&mut user)?;
    ensure!(user.ask("gauge")?.contains("unaccepted: 1"));
    Ok(())
}

fn again(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    for address in [to(roles::HOLD_1200_MS), to6(roles::HOLD_1200_MS)] {
        let ms = ok(&app(&["again", &address])?)?;
        ensure!(ms < 4000, "{address}: {ms} ms");
    }
    settled(&mut user)
}

fn overflow(lab: &Lab) -> Result<()> {
    let (_rootd, mut user) = lab.both()?;
    // More than the ring buffer holds, while nobody reads it.
    user.signal(Signal::STOP)?;
    let resume = std::thread::scope(|s| {
        let burst = s.spawn(|| app(&["burst", &to(80), "7500"]));
        let all = eventually("all connect", || match connecting() {
            Ok(7400..) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        let resumed = user.signal(Signal::CONT);
        burst.join().expect("a thread").and_then(|line| all.and(resumed).map(|()| line))
    });
    let line = resume?;
    ensure!(line.starts_with("7500 ok, 0 refused, 0 other"), "{line}");
    let lost: u64 = user.ask("lost")?.trim_start_matches("lost: ").parse()?;
    ensure!(lost > 0, "the ring buffer was large enough for this test");
    settled(&mut user)
}

/// Sockets in SYN_SENT, which proc_pid_net(5) calls 02.
fn connecting() -> Result<usize> {
    let table = fs::read_to_string("/proc/thread-self/net/tcp")?;
    Ok(table.lines().filter(|l| l.split_ascii_whitespace().nth(3) == Some("02")).count())
}

fn kill_rootd(lab: &Lab) -> Result<()> {
    let (mut rootd, mut user) = lab.both()?;
    let held = std::thread::scope(|s| {
        let held = s.spawn(|| app(&["connect", &to(roles::HOLD_3500_MS), "2"]));
        user.expect("knock")?;
        rootd.kill()?;
        rootd.ended()?;
        user.expect("tpx-rootd is gone")?;
        user.ended()?;
        held.join().expect("a thread")
    })?;
    ensure!(held.starts_with("errno"), "{held}");
    as_before(active)?;
    // The socket that it left behind is no obstacle.
    let (_rootd, _user) = lab.both()?;
    ok(&app(&["connect", &to(80)])?).map(|_| ())
}

fn kill_user(lab: &Lab) -> Result<()> {
    let (_rootd, user) = lab.both()?;
    let start = Instant::now();
    user.kill()?;
    nothing_is_left()?;
    ensure!(start.elapsed() < Duration::from_secs(2));
    // And the next session begins at once.
    drop(user);
    let _user = lab.user()?;
    ok(&app(&["connect", &to(80)])?).map(|_| ())
}

fn kill_both(lab: &Lab) -> Result<()> {
    let (mut rootd, mut user) = lab.both()?;
    rootd.signal(Signal::STOP)?; // it must not get to revert
    user.kill()?;
    rootd.kill()?;
    user.ended()?;
    rootd.ended()?;
    as_before(active)?;
    let (_rootd, _user) = lab.both()?;
    ok(&app(&["connect", &to(80)])?).map(|_| ())
}

fn nothing_is_left() -> Result<()> {
    as_before(left)
}

/// As without tpx: this namespace has no route to anywhere.
fn as_before(left: fn() -> Result<String>) -> Result<()> {
    eventually("reverted", || match left() {
        Ok(l) if l.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    fails(&to(80), Errno::NETUNREACH)?;
    fails(&to6(80), Errno::NETUNREACH)
}

fn terminate(lab: &Lab) -> Result<()> {
    for signal in [Signal::TERM, Signal::INT] {
        let (mut rootd, mut user) = lab.both()?;
        rootd.signal(Signal::HUP)?; // a closed terminal is no reason
        ok(&app(&["connect", &to(80)])?)?;
        rootd.signal(signal)?;
        ensure!(rootd.ended()?.code() == Some(0));
        ensure!(!lab.socket().exists());
        user.expect("tpx-rootd is gone")?;
        user.ended()?;
        nothing_is_left()?;
    }
    Ok(())
}

fn idle(lab: &Lab) -> Result<()> {
    let mut rootd = lab.rootd(&["--exit-when-idle"])?;
    let user = lab.user()?;
    ok(&app(&["connect", &to(80)])?)?;
    user.kill()?;
    ensure!(rootd.ended()?.code() == Some(0));
    ensure!(!lab.socket().exists());
    nothing_is_left()
}

/// What is missing is named, with what is done instead, and the user daemon hears it before it asks.
fn old_kernel(lab: &Lab) -> Result<()> {
    for (without, needed) in [("sk_lookup,tcx", "sk_lookup"), ("user_maps,tcx", "maps for users")] {
        let rootd = lab.rootd(&["--without", without])?;
        rootd.expect("TCX (Linux 6.6): containers are served by clsact")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (welcome, _) = runtime.block_on(tpx_datapath::remote::look(&lab.socket()))?;
        let missing: Vec<_> = welcome.missing.iter().map(|m| m.feature.as_str()).collect();
        ensure!(missing == without.split(',').collect::<Vec<_>>(), "{welcome:?}");
        ensure!(welcome.unavailable.as_ref().is_some_and(|why| why.contains(needed)), "{welcome:?}");
        ensure!(!welcome.features.contains(&"express_tcp".to_owned()), "{welcome:?}");
    }
    // Who asks for the express lane all the same.
    let _rootd = lab.rootd(&["--without", "sk_lookup"])?;
    lab.user_as(OWNER)?.expect("the kernel has no sk_lookup programs")?;
    nothing_is_left()
}

fn second_rootd(lab: &Lab) -> Result<()> {
    let (_rootd, _user) = lab.both()?;
    let e = lab.rootd(&[]).map(drop).unwrap_err().to_string();
    ensure!(e.contains("another tpx-rootd serves at"), "{e}");
    ok(&app(&["connect", &to(80)])?).map(|_| ())
}

fn stranger(lab: &Lab) -> Result<()> {
    let rootd = lab.rootd(&[])?;
    // By the file's mode, and by the kernel's word for who calls.
    lab.user_as(STRANGER)?.expect("tpx-rootd serves another user, not you")?;
    fs::set_permissions(lab.socket(), fs::Permissions::from_mode(0o666))?;
    lab.user_as(STRANGER)?.expect(&format!("tpx-rootd serves user {OWNER}, not you"))?;
    rootd.expect("denied")?;
    ensure!(left()?.is_empty());
    drop(lab.user()?);
    Ok(())
}

fn nonsense(lab: &Lab) -> Result<()> {
    let (_rootd, _user) = lab.both()?;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..200 {
        let mut bytes = vec![0; round * 7 % 600];
        for b in &mut bytes {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            *b = seed as u8;
        }
        if round % 2 == 0 && bytes.len() > 4 {
            // A good length, so that what is inside gets looked at.
            let length = (bytes.len() - 4) as u32;
            bytes[..4].copy_from_slice(&length.to_be_bytes());
        }
        let mut stream = UnixStream::connect(lab.socket())?;
        stream.set_read_timeout(Some(SOON))?;
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut bytes);
    }
    ok(&app(&["connect", &to(80)])?).map(|_| ())
}

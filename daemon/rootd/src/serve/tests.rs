//! Whole conversations over real sockets, with a host that only takes notes.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream as StdStream,
    path::Path,
};

use tokio::{net::UnixListener, time::timeout};
use tpx_core::plan::{Plan, Scope};
use tpx_datapath::{
    Host as _, HostError,
    linux::{Hook, Slot},
    remote::{
        ConnectError, RemoteHost, enter, look,
        protocol::{FRAME_MAX, Hello, Reply, Request, VERSION, Welcome, frame, take},
    },
};

use super::{
    noting::{Note, Notebook, NotingHosts, Running, tree_at},
    *,
};
use crate::{
    conversation::Caller,
    sessions::{BURST, INTERVAL},
};

fn me() -> u32 {
    rustix::process::getuid().as_raw()
}

fn plan(subnets: u8) -> Plan {
    let steer = (0..subnets).map(|i| format!("10.{i}.0.0/16").parse().unwrap()).collect();
    Plan { steer, ..Plan::default() }
}

async fn connect(path: &Path) -> RemoteHost {
    RemoteHost::connect(path).await.unwrap()
}

#[tokio::test]
async fn applies_for_one_session_and_reverts_when_it_ends() {
    let rootd = Running::start(me(), false);
    let mut host = connect(&rootd.path()).await;
    assert_eq!(host.welcome().unavailable, None);
    let handover = host.apply(&plan(1)).await.unwrap();
    assert_eq!(handover.dns[0].name_server, "10.9.8.7".parse::<std::net::IpAddr>().unwrap());
    host.apply(&plan(3)).await.unwrap();
    let status = host.status().await.unwrap();
    assert_eq!((status.sessions[0].pid, status.plan), (std::process::id(), Some(plan(3))));
    assert_eq!((status.bridges.bridges[0].name.as_str(), status.bridges.hook), ("docker0", Some(Hook::Tcx)));
    assert_eq!(rootd.notes.read(), [Note::Applied(1), Note::Applied(3)]);
    drop(host);
    rootd.notes.wait_for(&[Note::Applied(1), Note::Applied(3), Note::Reverted]).await;
    let (_, status) = look(&rootd.path()).await.unwrap();
    assert_eq!((status.sessions, status.plan), (vec![], None));
}

#[tokio::test]
async fn the_workstation_is_in_one_cluster_at_a_time() {
    let rootd = Running::start(me(), false);
    let (mut first, mut second) = (connect(&rootd.path()).await, connect(&rootd.path()).await);
    first.apply(&plan(1)).await.unwrap();
    let e = second.apply(&plan(1)).await.unwrap_err().to_string();
    assert!(e.contains("in a cluster already, by process"), "{e}");
    // It may look and end, which changes nothing.
    assert_eq!(second.status().await.unwrap().sessions.len(), 1);
    second.revert().await.unwrap();
    assert_eq!(connect(&rootd.path()).await.welcome().sessions[0].uid, me());
    assert_eq!(rootd.notes.read(), [Note::Applied(1)]);
    // A session that ends at this moment is waited for.
    let next = tokio::spawn(async move { second.apply(&plan(3)).await.map(|_| second) });
    sleep(Duration::from_millis(100)).await;
    drop(first);
    drop(next.await.unwrap().unwrap());
    rootd.notes.wait_for(&[Note::Applied(1), Note::Reverted, Note::Applied(3), Note::Reverted]).await;
}

fn tree(subnets: u8) -> Plan {
    Plan { scope: Scope::Tree, ..plan(subnets) }
}

#[tokio::test]
async fn process_trees_stand_beside_each_other_and_the_workstation() {
    let rootd = Running::start(me(), false);
    let (mut workstation, mut one, mut two) =
        (connect(&rootd.path()).await, connect(&rootd.path()).await, connect(&rootd.path()).await);
    workstation.apply(&plan(1)).await.unwrap();
    let handovers = [one.apply(&tree(1)).await.unwrap(), two.apply(&tree(3)).await.unwrap()];
    assert_eq!(handovers.map(|h| (h.slot, h.scope)), [(1, Some(tree_at(1))), (2, Some(tree_at(2)))]);
    let status = two.status().await.unwrap();
    let seen: Vec<_> = status.sessions.iter().map(|s| (s.slot, s.scope.as_str())).collect();
    assert_eq!(seen, [(0, "the workstation"), (1, "/sys/fs/cgroup/tpx-tree-1-0"), (2, "/sys/fs/cgroup/tpx-tree-2-0")]);
    // Each is shown its own plan, and who has none the first.
    assert_eq!(status.plan, Some(tree(3)));
    assert_eq!(look(&rootd.path()).await.unwrap().1.plan, Some(plan(1)));
    // The kind of a session does not change.
    let e = one.apply(&plan(1)).await.unwrap_err().to_string();
    assert!(e.contains("revert first"), "{e}");
    drop(one);
    let mut notes = vec![Note::Applied(1), Note::TreeApplied(1), Note::TreeApplied(2), Note::TreeReverted(1)];
    rootd.notes.wait_for(&notes).await;
    drop(workstation);
    notes.push(Note::Reverted);
    rootd.notes.wait_for(&notes).await;
    assert_eq!(two.status().await.unwrap().sessions.len(), 1);
}

#[tokio::test]
async fn slots_are_used_in_turn_until_none_is_left() {
    let rootd = Running::start(me(), false);
    let mut slots = Vec::new();
    for _ in 0..10 {
        let mut host = connect(&rootd.path()).await;
        slots.push(host.apply(&tree(1)).await.unwrap().slot);
        host.revert().await.unwrap();
    }
    assert_eq!(slots, [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]);
    let mut all = Vec::new();
    for _ in 1..Slot::COUNT {
        let mut host = connect(&rootd.path()).await;
        host.apply(&tree(1)).await.unwrap();
        all.push(host);
    }
    let mut late = connect(&rootd.path()).await;
    let e = late.apply(&tree(1)).await.unwrap_err().to_string();
    assert_eq!(
        e,
        "the plan was refused: 7 process trees are in clusters already, and there is no room for more; end one of them \
         first"
    );
    // One that ends at this moment is waited for.
    let late = tokio::spawn(async move { late.apply(&tree(1)).await.map(|h| (h.slot, late)) });
    sleep(Duration::from_millis(100)).await;
    drop(all.swap_remove(4));
    late.await.unwrap().unwrap();
}

#[tokio::test]
async fn trees_are_entered_by_their_owner_and_by_path() {
    let rootd = Running::start(me(), false);
    let (mut one, mut other) = (connect(&rootd.path()).await, connect(&rootd.path()).await);
    let scope = one.apply(&tree(1)).await.unwrap().scope.unwrap();
    // A cgroup that somebody else has made is not rootd's to fill.
    other.apply(&Plan { scope: Scope::Cgroup("/sys/fs/cgroup/mine".into()), ..plan(1) }).await.unwrap();
    enter(&rootd.path(), &scope).await.unwrap();
    let entered = Note::Entered(scope.clone(), std::process::id());
    rootd.notes.wait_for(&[Note::TreeApplied(1), Note::TreeApplied(2), entered]).await;
    for path in ["/sys/fs/cgroup/mine", "/sys/fs/cgroup", "/", "", "/sys/fs/cgroup/tpx-tree-1-0/x", "/etc/passwd"] {
        let e = enter(&rootd.path(), Path::new(path)).await.unwrap_err();
        assert!(matches!(&e, HostError::Refused(why) if why.contains("no session of yours")), "{path}: {e}");
    }
    one.revert().await.unwrap();
    assert!(enter(&rootd.path(), &scope).await.is_err());
}

#[test]
fn trees_are_entered_by_no_other_user() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let sessions = Sessions::new(NotingHosts(Notebook::default()), 0, None);
    runtime.block_on(async {
        sessions.claim(1, &Caller { uid: 1000, pid: 7, process: None }, &Scope::Tree).await.unwrap();
        sessions.set_plan(1, tree(1), Some(&tree_at(1)));
    });
    let now = std::time::Instant::now();
    for (uid, may) in [(1000, true), (0, true), (1001, false)] {
        assert_eq!(sessions.take_turn_to_enter(uid, &tree_at(1), now).is_ok(), may, "{uid}");
    }
    // Not as often as one likes.
    let waits = (0..BURST).map(|_| sessions.take_turn_to_enter(1000, &tree_at(1), now).unwrap());
    assert!(waits.max().unwrap() >= INTERVAL);
}

#[tokio::test]
async fn tables_are_those_of_the_own_session() {
    let rootd = Running::start(me(), false);
    let mut one = connect(&rootd.path()).await;
    let e = one.tables().await.unwrap_err().to_string();
    assert!(e.contains("no session"), "{e}");
    one.apply(&tree(1)).await.unwrap();
    let mut two = connect(&rootd.path()).await;
    two.apply(&tree(1)).await.unwrap();
    for (session, net) in [(&mut one, "10.1.0.0/16"), (&mut two, "10.2.0.0/16")] {
        let tables = session.tables().await.unwrap();
        assert_eq!(tables.rules[0].cidr.to_string(), net);
    }
}

/// Open files that were sent and not taken are the sender's.
#[tokio::test]
async fn who_does_not_take_files_gets_no_more() {
    let rootd = Running::start(me(), false);
    let apply = frame(&Request::Apply(Box::new(plan(1)))).unwrap();
    let silent = StdStream::connect(rootd.path()).unwrap();
    (&silent).write_all(&[hello(), apply.clone(), apply.clone(), apply].concat()).unwrap();
    rootd.notes.wait_for(&[Note::Applied(1)]).await;
    // The next request is not even looked at, and the end is that of the session.
    sleep(Duration::from_secs(6)).await;
    assert_eq!(rootd.notes.read(), [Note::Applied(1), Note::Reverted]);
    drop(silent);
}

#[tokio::test]
async fn a_slow_session_does_not_keep_the_others_waiting() {
    let rootd = Running::start(me(), false);
    let (mut slow, mut quick) = (connect(&rootd.path()).await, connect(&rootd.path()).await);
    let work = tokio::spawn(async move {
        slow.apply(&tree(4)).await.unwrap();
        slow
    });
    sleep(Duration::from_millis(100)).await;
    quick.apply(&plan(1)).await.unwrap();
    quick.status().await.unwrap();
    assert_eq!(rootd.notes.read(), [Note::Applied(1)], "the slow one was waited for");
    drop(work.await.unwrap());
    rootd.notes.wait_for(&[Note::Applied(1), Note::TreeApplied(1), Note::TreeReverted(1)]).await;
}

#[tokio::test]
async fn failures_arrive_and_leave_no_session() {
    let rootd = Running::start(me(), false);
    let mut host = connect(&rootd.path()).await;
    let e = host.apply(&plan(0)).await.unwrap_err();
    assert_eq!(e.to_string(), "the plan was refused: nothing to steer");
    let e = host.apply(&plan(2)).await.unwrap_err();
    assert!(matches!(&e, HostError::Unsupported(why) if why == "this kernel has no BPF"), "{e}");
    // Those who come later hear why at once.
    let mut later = connect(&rootd.path()).await;
    assert_eq!(later.welcome().unavailable.as_deref(), Some("this kernel has no BPF"));
    assert_eq!(later.welcome().features, [Welcome::TUN, Welcome::DNS, Welcome::STAYS]);
    later.apply(&plan(1)).await.unwrap();
    // A failure does not end a session that exists.
    later.apply(&plan(0)).await.unwrap_err();
    assert!(later.status().await.unwrap().sessions.len() == 1);
}

#[tokio::test]
async fn the_end_of_rootd_is_noticed() {
    let rootd = Running::start(me(), false);
    let mut host = connect(&rootd.path()).await;
    host.apply(&plan(1)).await.unwrap();
    let closed = host.closed();
    assert!(timeout(Duration::from_millis(50), host.closed()).await.is_err());
    rootd.task.abort();
    timeout(Duration::from_secs(2), closed).await.unwrap();
    assert!(host.apply(&plan(1)).await.unwrap_err().to_string().starts_with("tpx-rootd"));
    let _ = rootd.task.await;
    assert!(matches!(
        RemoteHost::connect(&rootd.directory.path().join("s")).await,
        Err(ConnectError::NotRunning { .. })
    ));
}

#[tokio::test]
async fn leaves_when_nobody_is_left() {
    let rootd = Running::start(me(), true);
    drop(look(&rootd.path()).await.unwrap());
    let mut host = connect(&rootd.path()).await;
    host.apply(&plan(1)).await.unwrap();
    host.revert().await.unwrap();
    // Who has the connection may apply another plan.
    tokio::time::sleep(super::ALONE * 2).await;
    host.apply(&plan(1)).await.unwrap();
    drop(host);
    timeout(Duration::from_secs(2), rootd.task).await.unwrap().unwrap().unwrap();
    assert_eq!(rootd.notes.read().last(), Some(&Note::Reverted));
    assert!(!rootd.directory.path().join("s").exists());
}

/// Sends bytes, returns all replies until the end of the connection.
async fn raw(path: &Path, bytes: &[u8]) -> Vec<Reply> {
    let (path, bytes) = (path.to_owned(), bytes.to_owned());
    tokio::task::spawn_blocking(move || raw_now(&path, &bytes)).await.unwrap()
}

fn raw_now(path: &Path, bytes: &[u8]) -> Vec<Reply> {
    let mut stream = StdStream::connect(path).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    std::iter::from_fn(|| take(&mut answer).unwrap()).collect()
}

#[tokio::test]
async fn nonsense_ends_its_own_connection_only() {
    let rootd = Running::start(me(), false);
    let path = rootd.path();
    let hello = |version| frame(&Request::Hello(Hello { version })).unwrap();
    let long = u32::try_from(FRAME_MAX + 1).unwrap().to_be_bytes();
    let cases: [(Vec<u8>, &str); 6] = [
        (vec![0xff; 1000], "bytes"),
        (long.to_vec(), "bytes"),
        (vec![0, 0, 0, 2, b'{', b'}'], "not a message"),
        (vec![0, 0, 0, 0], "not a message"),
        (frame(&Request::Status).unwrap(), "say hello first"),
        ([hello(VERSION), vec![0, 0, 0, 1, b'7']].concat(), "not a message"),
    ];
    for (bytes, expected) in cases {
        let replies = raw(&path, &bytes).await;
        let last = format!("{:?}", replies.last());
        assert!(last.contains(expected), "{bytes:?}: {last}");
    }
    assert!(raw(&path, b"").await.is_empty());
    assert!(raw(&path, &[0, 0, 1]).await.len() <= 1);
    // Another version is told ours, and no more.
    let replies = raw(&path, &[hello(VERSION + 1), frame(&Request::Status).unwrap()].concat()).await;
    assert!(matches!(&replies[..], [Reply::Welcome(w)] if w.version == VERSION), "{replies:?}");
    let mut host = connect(&path).await;
    host.apply(&plan(1)).await.unwrap();
}

fn hello() -> Vec<u8> {
    frame(&Request::Hello(Hello { version: VERSION })).unwrap()
}

/// What rootd answers to a plan, whatever the user daemon's own end thinks of it.
async fn answer(path: &Path, plan: Plan) -> String {
    let apply = frame(&Request::Apply(Box::new(plan))).unwrap();
    format!("{:?}", raw(path, &[hello(), apply].concat()).await.last())
}

#[tokio::test]
async fn plans_that_are_never_allowed_change_nothing() {
    let rootd = Running::start(me(), false);
    let steering = |net: &str| Plan { steer: vec![net.parse().unwrap()], ..Plan::default() };
    let api = Plan { protected: vec!["10.96.0.1".parse().unwrap()], ..steering("10.96.0.0/16") };
    let server = Plan { name_servers: vec!["10.96.0.10".parse().unwrap()], ..steering("10.96.0.0/16") };
    let many = (0..Plan::MAX_SUBNETS + 10_000).map(|i| format!("fd96:{i:x}::/64").parse().unwrap()).collect();
    let cases = [
        (steering("0.0.0.0/0"), "too wide"),
        (steering("128.0.0.0/1"), "too wide"),
        (steering("::/0"), "too wide"),
        (steering("127.0.0.0/8"), "loopback"),
        (steering("127.0.0.53/32"), "loopback"),
        (steering("::1/128"), "loopback"),
        (api.clone(), "must stay outside"),
        (server, "name server 10.96.0.10"),
        (Plan { steer: many, ..Plan::default() }, "more than 16384 entries"),
    ];
    for (plan, why) in cases {
        let said = answer(&rootd.path(), plan).await;
        assert!(said.contains("Failed") && said.contains(why), "{why}: {said}");
    }
    // The user daemon's own end says the same, and a good plan passes on the same connection.
    let mut host = connect(&rootd.path()).await;
    let e = host.apply(&api).await.unwrap_err().to_string();
    assert!(e.contains("must stay outside"), "{e}");
    assert!(rootd.notes.read().is_empty());
    assert!(host.status().await.unwrap().sessions.is_empty());
    host.apply(&Plan { except: vec!["10.96.0.1/32".parse().unwrap()], ..api }).await.unwrap();
}

#[tokio::test]
async fn ten_mebibytes_are_refused_at_their_length() {
    let rootd = Running::start(me(), false);
    let ten = 10 << 20;
    let mut message = u32::try_from(ten).unwrap().to_be_bytes().to_vec();
    // Nothing but the length is there: whoever waited for more would not answer.
    let said = format!("{:?}", raw(&rootd.path(), &message).await.last());
    assert!(said.contains("10485760 bytes"), "{said}");
    message.resize(4 + ten, b'[');
    let _ = raw(&rootd.path(), &message).await;
    connect(&rootd.path()).await.apply(&plan(1)).await.unwrap();
}

#[tokio::test]
async fn nobody_sends_files() {
    let rootd = Running::start(me(), false);
    let stream = tokio::net::UnixStream::connect(rootd.path()).await.unwrap();
    let (mut sender, mut receiver) = tpx_datapath::remote::split(stream);
    let null = File::open("/dev/null").unwrap();
    let hello = Request::Hello(Hello { version: VERSION });
    sender.send(&hello, &[std::os::fd::AsFd::as_fd(&null)]).await.unwrap();
    let (reply, _): (Reply, _) = receiver.receive().await.unwrap().unwrap();
    assert!(format!("{reply:?}").contains("too many files"), "{reply:?}");
    // The rest of the question was not even read.
    assert!(!matches!(receiver.receive::<Reply>().await, Ok(Some(_))));
}

#[tokio::test]
async fn the_silent_make_room_for_others() {
    let rootd = Running::start(me(), false);
    let silent: Vec<_> = (0..CONNECTIONS).map(|_| StdStream::connect(rootd.path()).unwrap()).collect();
    sleep(Duration::from_millis(300)).await;
    assert!(look(&rootd.path()).await.is_err(), "more than {CONNECTIONS} connections");
    sleep(Duration::from_secs(6)).await;
    look(&rootd.path()).await.unwrap();
    drop(silent);
}

#[tokio::test]
async fn who_does_not_read_is_dropped() {
    let rootd = Running::start(me(), false);
    let mut host = connect(&rootd.path()).await;
    host.apply(&plan(200)).await.unwrap();
    let path = rootd.path();
    let flood = tokio::task::spawn_blocking(move || {
        let mut stream = StdStream::connect(path).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(&hello()).unwrap();
        let ask = frame(&Request::Status).unwrap();
        // The answers are greater than the questions: they fill the socket first.
        (0..1_000_000).find_map(|_| stream.write_all(&ask).err()).map(|e| e.kind())
    });
    let end = timeout(Duration::from_secs(15), flood).await.expect("it is still served").unwrap();
    assert!(matches!(end, Some(std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset)), "{end:?}");
    assert!(host.status().await.unwrap().sessions.len() == 1);
}

#[tokio::test]
async fn changes_of_the_host_are_paced() {
    let rootd = Running::start(me(), false);
    let mut host = connect(&rootd.path()).await;
    let start = Instant::now();
    for _ in 0..BURST {
        host.apply(&plan(1)).await.unwrap();
    }
    let burst = start.elapsed();
    for _ in 0..4 {
        host.apply(&plan(1)).await.unwrap();
    }
    assert!(start.elapsed() + burst > 3 * INTERVAL, "{burst:?}, then {:?}", start.elapsed() - burst);
}

#[tokio::test]
async fn another_version_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("s");
    let listener = UnixListener::bind(&path).unwrap();
    let server = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut sender, _receiver) = tpx_datapath::remote::split(stream);
        sender.send(&of_the_future(), &[]).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    });
    let e = RemoteHost::connect(&path).await.unwrap_err();
    assert!(matches!(&e, ConnectError::VersionMismatch { theirs: 9, .. }));
    assert_eq!(e.to_string(), format!("tpx-rootd 9.0.0 speaks protocol version 9 and tpx {VERSION}"));
    assert!(e.next_step().contains("from the same release"));
    server.abort();
}

fn of_the_future() -> Reply {
    Reply::Welcome(tpx_datapath::remote::protocol::Welcome {
        version: 9,
        release: "9.0.0".into(),
        features: vec![],
        unavailable: None,
        missing: vec![],
        sessions: vec![],
    })
}

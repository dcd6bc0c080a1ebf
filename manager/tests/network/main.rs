//! Ping, and errors that only a real network makes: a network namespace with a router, a narrow link and a far host.
//!
//! The process starts itself again in user, network and mount namespaces of its own. Where the system does not allow
//! that, the tests are shown as ignored, unless `TPX_REQUIRE_TIER` asks for them.

#[path = "../harness/mod.rs"]
mod harness;

mod cases;

use std::{
    env,
    process::{Command, ExitCode, Stdio},
};

use libtest_mimic::{Arguments, Trial};

/// Which tier this is: namespaces of an ordinary user.
const TIER: u8 = 1;
/// Set in the inner process.
const INSIDE: &str = "TPX_MANAGER_NETWORK";
const UNSHARE: [&str; 4] = ["--user", "--map-root-user", "--net", "--mount"];

/// us (10.9.0.1) - router (10.9.0.2, 10.9.1.1) - far (10.9.1.2), the second link narrow; IPv6 beside it.
const SETUP: &str = r#"
    mount -t tmpfs none /run
    ip link set lo up
    echo 0 0 > /proc/sys/net/ipv4/ping_group_range
    ip netns add router
    ip netns add far
    # Addresses count at once, and no error is held back.
    ready='
        for conf in all default; do echo 0 > /proc/sys/net/ipv6/conf/$conf/accept_dad; done
        echo 0 > /proc/sys/net/ipv6/icmp/ratelimit'
    sh -ec "$ready"
    for namespace in router far; do nsenter --net=/run/netns/$namespace sh -ec "$ready"; done
    ip link add near0 type veth peer name near1 netns router
    ip -n router link add far0 type veth peer name far1 netns far
    # Neighbours that do not answer are given up after 0.3 s.
    quick='for file in /proc/sys/net/ipv?/neigh/*/retrans_time_ms; do echo 100 > $file; done'
    sh -ec "$quick"
    for namespace in router far; do
        nsenter --net=/run/netns/$namespace sh -ec "$quick
            echo 1 > /proc/sys/net/ipv4/ip_forward
            echo 1 > /proc/sys/net/ipv6/conf/all/forwarding"
        ip -n $namespace link set lo up
    done
    ip addr add 10.9.0.1/24 dev near0
    ip addr add fd09:0::1/64 dev near0 nodad
    ip link set near0 up
    ip -n router addr add 10.9.0.2/24 dev near1
    ip -n router addr add fd09:0::2/64 dev near1 nodad
    ip -n router link set near1 up
    ip -n router addr add 10.9.1.1/24 dev far0
    ip -n router addr add fd09:1::1/64 dev far0 nodad
    ip -n router link set far0 mtu 1280 up
    ip -n far addr add 10.9.1.2/24 dev far1
    ip -n far addr add fd09:1::2/64 dev far1 nodad
    ip -n far link set far1 mtu 1280 up
    ip -n far route add default via 10.9.1.1
    ip -n far route add default via fd09:1::1
    ip route add 10.9.1.0/24 via 10.9.0.2
    ip route add fd09:1::/64 via fd09:0::2
    ip route add prohibit 198.51.100.0/24
    ip -n router route add prohibit 10.9.1.128/25
    # The kernel notices a little later that the links are up.
    for attempt in $(seq 50); do
        { ip link; ip -n router link; ip -n far link; } | grep -q 'state .*DOWN' || break
        sleep 0.1
    done
"#;

fn main() -> ExitCode {
    let mut args = Arguments::from_args();
    if env::var_os(INSIDE).is_some() {
        args.test_threads = Some(1);
        let trials = cases::ALL.iter().map(|(name, case)| Trial::test(*name, move || run(*case)));
        return libtest_mimic::run(&args, trials.collect()).exit_code();
    }
    let allowed = unshare().args(["true"]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if args.list || !allowed {
        let required = env::var("TPX_REQUIRE_TIER").ok().and_then(|tier| tier.parse().ok()).unwrap_or(0) >= TIER;
        let trials = cases::ALL.iter().map(|(name, _)| {
            let trial = Trial::test(*name, || Err("this test needs user namespaces (and unshare and ip)".into()));
            trial.with_ignored_flag(!allowed && !required)
        });
        return libtest_mimic::run(&args, trials.collect()).exit_code();
    }
    let setup = format!("{SETUP}\nexec \"$0\" \"$@\"");
    let own = env::current_exe().expect("a process has an executable");
    let inner = unshare().args(["sh", "-ec", &setup]).arg(own).args(env::args_os().skip(1)).env(INSIDE, "1").status();
    match inner {
        Ok(status) => u8::try_from(status.code().unwrap_or(1)).unwrap_or(1).into(),
        Err(error) => {
            eprintln!("unshare: {error}");
            ExitCode::FAILURE
        }
    }
}

fn unshare() -> Command {
    let mut command = Command::new("unshare");
    command.args(UNSHARE).args(["--kill-child", "--fork", "--"]);
    command
}

fn run(case: cases::Case) -> Result<(), libtest_mimic::Failed> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(case());
    Ok(())
}

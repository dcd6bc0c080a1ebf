//! `tpx run`: one process tree sees the cluster, and nobody else does.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;

use super::Case;
use crate::{
    cluster, laptop,
    laptop::at,
    process::{Ended, eventually, run, sh, sh_as, wait},
    residue,
    vpn::{self, HOST, Vpn, route_to},
};

pub(super) const CASES: &[Case] = &[
    ("run::names_addresses_datagrams_and_pings_inside", inside),
    ("run::nothing_outside", outside),
    ("run::a_static_go_program", go),
    ("run::children_of_children", children),
    ("run::exit_codes", codes),
    ("run::signals", signals),
    ("run::standard_streams_are_the_commands", streams),
    ("run::an_environment_from_a_file", environment),
    ("run::an_ordinary_user", ordinary),
    ("run::what_it_leaves_keeps_the_connection", leftovers),
    ("run::quit_before_the_leftovers_end", quit_early),
    ("run::inside_of_another_run", nested),
    ("run::connect_inside_is_refused", connect_inside),
    ("run::quit_all_inside", quit_inside),
    ("run::beside_the_workstation", beside),
    ("run::raw_addresses_where_a_vpn_has_them", raw),
    ("run::virtual_addresses_when_asked", asked),
    ("run::fifty_times", fifty),
    ("run::the_command_line_is_killed", killed),
    ("run::a_daemon_is_killed", crash),
    ("run::a_lost_connection_is_said", lost),
];

/// What is left of all that where programs cannot be had.
pub(super) const ON_THE_FLOOR: &[Case] = &[("run::needs_the_express_lane", refused)];

const TITLE: &str = "<title>Emoji Vote</title>";
const UDP: &str = "import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
s.sendto(b'hello', ('echo.default', 7))
print(s.recv(99).decode())";

/// Presses Ctrl-C in a terminal whose foreground is `tpx run`; says how often the command has heard it.
const CTRL_C: &str = r#"import os, pty, time
inner = r'n=0; trap "n=\$((n+1))" INT; echo armed; i=0; while [ $i -lt 30 ]; do sleep 0.1; i=$((i+1)); done; echo heard $n'
pid, terminal = pty.fork()
if pid == 0:
    os.execvp('tpx', ['tpx', 'run', '-q', '--', 'sh', '-c', inner])
said, pressed = b'', False
while b'heard' not in said or not said.endswith(b'\n'):
    try:
        data = os.read(terminal, 1024)
    except OSError:
        break
    said += data
    if b'armed' in said and not pressed:
        time.sleep(0.3)
        os.write(terminal, b'\x03')
        pressed = True
os.waitpid(pid, 0)
print(said.decode().replace('\r', '').replace('^C', '').strip().splitlines()[-1])"#;

/// `tpx run` of a shell's script.
fn tree(flags: &[&str], script: &str) -> Result<Ended> {
    run(Command::new("tpx").args(["run", "-n", "emojivoto"]).args(flags).args(["--", "sh", "-c", script]))
}

/// A process tree that says "ready" and then waits for a line of input. Ended when dropped.
pub(super) struct Waiting {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Waiting {
    /// Runs `script` in the end. The command is the leader of a process group.
    pub(super) fn start(flags: &[&str], script: &str) -> Result<Self> {
        let script = format!("echo ready; read line; {script}");
        let mut command = Command::new("tpx");
        command.args(["run", "-n", "emojivoto", "-q"]).args(flags).args(["--", "sh", "-c", &script]).process_group(0);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = BufReader::new(child.stdout.take().context("no output")?);
        let mut waiting = Self { child, output };
        let first = waiting.line()?;
        ensure!(first == "ready", "the command did not start: {first:?}");
        Ok(waiting)
    }

    /// The next line that it prints; empty when it has ended.
    pub(super) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        Ok(line.trim().to_owned())
    }

    /// Gives it its line.
    pub(super) fn go_on(&mut self) -> Result<()> {
        Ok(self.child.stdin.as_mut().context("no input")?.write_all(b"go on\n")?)
    }

    /// Lets it go on, and returns its exit code.
    pub(super) fn finish(mut self) -> Result<i32> {
        self.go_on()?;
        Ok(wait(&mut self.child, Duration::from_secs(60))?.code().unwrap_or(-1))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The shell itself, which is in the tree.
    pub(super) fn inner(&self) -> Result<u32> {
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", self.child.id()))?;
        let is_shell = |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sh\n");
        Ok(children.split_whitespace().find(is_shell).context("there is no shell")?.parse()?)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn inside() -> Result<()> {
    laptop::quit()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let pod = cluster::pod("default", "app=echo")?;
    for url in [
        "http://web-app.emojivoto".to_owned(),
        "http://web-app".to_owned(),
        format!("http://{}", service.v4),
        format!("http://[{}]", service.v6),
    ] {
        let page = tree(&[], &format!("curl -sS -m 10 '{url}'"))?.success().context(url.clone())?;
        ensure!(page.contains(TITLE), "{url}: {page}");
    }
    let echoed = run(Command::new("tpx").args(["run", "-n", "emojivoto", "--", "python3", "-c", UDP]))?.success()?;
    ensure!(echoed == "hello\n", "{echoed}");
    for ip in [pod.v4, pod.v6] {
        tree(&[], &format!("ping -c 2 -i 0.2 -W 5 {ip}"))?.success().with_context(|| format!("ping {ip}"))?;
    }
    // The internet is where it was.
    let page = tree(&[], "curl -sS -m 10 http://www.internet.test")?.success()?;
    ensure!(page.contains("The Internet"), "{page}");
    residue::nothing_left()
}

fn outside() -> Result<()> {
    laptop::quit()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let pod = cluster::pod("default", "app=echo")?;
    let before = sh("cat /etc/resolv.conf; ip route show; ip -6 route show")?.success()?;
    let mut waiting = Waiting::start(&[], "curl -sS -m 10 http://web-app; exit 0")?;
    // Before, while and after it uses the cluster.
    for moment in ["before", "after"] {
        let name = sh("curl -sS -m 5 http://web-app.emojivoto")?;
        ensure!(name.code() == 6, "{moment}: the name resolves outside: {name:?}");
        for ip in [service.v4, service.v6, pod.v4] {
            let saw = laptop::probe(at(ip, 80), &["--patience", "1000"])?;
            ensure!(!saw.connected, "{moment}: the cluster is reached outside: {saw:?}");
        }
        let ping = sh(&format!("ping -c 1 -W 1 {}", pod.v4))?;
        ensure!(ping.code() != 0, "{moment}: a pod answers outside: {ping:?}");
        let own = sh("curl -sS -m 10 http://www.internet.test")?.success()?;
        ensure!(own.contains("The Internet"), "{own}");
        if moment == "before" {
            // Who asks about the connection hears what its processes hear.
            let explained = sh("tpx explain web-app.emojivoto --format json")?.success()?;
            ensure!(explained.contains(&format!("\"{}\"", service.v4)), "{explained}");
            waiting.go_on()?;
        }
    }
    ensure!(before == sh("cat /etc/resolv.conf; ip route show; ip -6 route show")?.success()?, "it changed the host");
    ensure!(wait(&mut waiting.child, Duration::from_secs(60))?.success());
    residue::nothing_left()
}

fn go() -> Result<()> {
    let program = std::env::var("TPX_GO_DIAL").context("TPX_GO_DIAL names the Go program")?;
    let said = tree(&[], &format!("{program} web-app.emojivoto:80"))?.success()?;
    ensure!(said.contains("200 OK"), "{said}");
    let outside = run(Command::new(&program).arg("web-app.emojivoto:80"))?;
    ensure!(outside.code() != 0, "{outside:?}");
    residue::nothing_left()
}

fn children() -> Result<()> {
    let script = "sh -c 'setsid sh -c \"curl -sS -m 10 http://web-app & wait\"; :' & wait";
    let page = tree(&[], script)?.success()?;
    ensure!(page.contains(TITLE), "{page}");
    residue::nothing_left()
}

fn codes() -> Result<()> {
    for (script, code) in [("exit 0", 0), ("exit 23", 23), ("kill -KILL $$", 137), ("kill -TERM $$", 143)] {
        let ended = tree(&[], script)?;
        ensure!(ended.code() == code, "{script}: {ended:?}");
    }
    for (command, code) in [("/nowhere/nothing", 127), ("nothing-of-this-name", 127), ("/etc/passwd", 126)] {
        let ended = run(Command::new("tpx").args(["run", "-q", "--", command]))?;
        let said: Vec<&str> = ended.stderr.lines().collect();
        ensure!(ended.code() == code && said.len() == 1 && said[0].contains(command), "{command}: {ended:?}");
    }
    let unknown = run(Command::new("tpx").args(["run", "--context", "nowhere", "--", "true"]))?;
    ensure!(unknown.code() == 5 && unknown.stderr.contains("no context \"nowhere\""), "{unknown:?}");
    residue::nothing_left()
}

fn signals() -> Result<()> {
    let looping =
        |trap: &str| format!("trap '{trap}' TERM INT QUIT USR1 USR2; echo armed; while :; do sleep 0.05; done");
    let armed = |trap: &str| -> Result<Waiting> {
        let mut waiting = Waiting::start(&[], &looping(trap))?;
        waiting.go_on()?;
        ensure!(waiting.line()? == "armed");
        Ok(waiting)
    };
    let code = |waiting: &mut Waiting| wait(&mut waiting.child, Duration::from_secs(30)).map(|status| status.code());
    // Sent to the command line alone: passed on.
    // There is no terminal here whose keys could have sent them.
    for signal in [Signal::TERM, Signal::USR1, Signal::USR2, Signal::INT, Signal::QUIT] {
        let mut waiting = armed("exit 9")?;
        kill_process(waiting.pid(), signal)?;
        ensure!(code(&mut waiting)? == Some(9), "{signal:?}");
    }
    let mut waiting = armed("")?;
    kill_process(waiting.pid(), Signal::HUP)?;
    ensure!(code(&mut waiting)? == Some(129), "SIGHUP");
    // Sent to the whole group: the command decides, and the daemons that were started here do not hear it. Without a terminal,
    // the command line cannot know that the command has heard it already.
    laptop::quit()?;
    residue::nothing_left()?;
    let mut waiting = armed("trap : INT; curl -sS -m 10 -o /dev/null http://web-app; exit $((5 + $?))")?;
    kill_process_group(waiting.pid(), Signal::INT)?;
    ensure!(code(&mut waiting)? == Some(5), "SIGINT");
    // Ctrl-C is heard by everybody in the foreground of a terminal, and by each once.
    let pressed = run(Command::new("python3").args(["-c", CTRL_C]))?.success()?;
    ensure!(pressed == "heard 1\n", "{pressed:?}");
    // What was ignored stays so, as under nohup.
    let ended = sh("trap '' HUP; tpx run -q -- sh -c 'kill -HUP $PPID; kill -HUP $$; sleep 0.1; exit 4'")?;
    ensure!(ended.code() == 4, "{ended:?}");
    residue::nothing_left()
}

fn streams() -> Result<()> {
    let ended = sh("echo in | tpx run -n emojivoto --name streams -- sh -c 'read x; echo out $x; echo err >&2'")?;
    ensure!(ended.stdout == "out in\n", "{ended:?}");
    let said: Vec<&str> = ended.stderr.lines().collect();
    ensure!(
        said.len() == 2 && said[0].contains("Connected") && said[0].contains("as streams") && said[1] == "err",
        "{said:?}"
    );
    let quiet = sh("tpx run -q -- sh -c 'echo out; echo err >&2'")?;
    ensure!((quiet.stdout.as_str(), quiet.stderr.as_str()) == ("out\n", "err\n"), "{quiet:?}");
    // Without `--`, all from the command on is its own.
    let bare = sh("tpx run -q sh -c 'echo got $0 $1' -n --quiet")?;
    ensure!(bare.stdout == "got -n --quiet\n", "{bare:?}");
    residue::nothing_left()
}

fn environment() -> Result<()> {
    let service = cluster::service("emojivoto", "web-app")?;
    let file = "/tmp/run-pod.env";
    fs::write(file, format!("# a pod's\nexport URL='http://{}:80'\nWORDS=\"a b\" # two\nPLAIN=1\n", service.v4))?;
    let script = "echo \"$URL|$WORDS|$PLAIN|$OWN\"; curl -sS -m 10 \"$URL\"";
    let flags = ["--env-file", file, "--vnat", "service"];
    let ended = tree(&flags, &format!("OWN=own; {script}"))?.success()?;
    let first = ended.lines().next().unwrap_or_default();
    ensure!(first.starts_with("http://246.246.") && first.ends_with(":80|a b|1|own"), "{first}");
    ensure!(ended.contains(TITLE), "{ended}");
    // Where nothing has moved, nothing is exchanged.
    let direct = tree(&flags[..2], "echo $URL")?.success()?;
    ensure!(direct.trim() == format!("http://{}:80", service.v4), "{direct}");
    fs::write(file, "A=1\nB\n")?;
    let wrong = tree(&flags[..2], "true")?;
    let said = format!("error: {file}:2: there is no '='; write KEY=VALUE, one a line\n");
    ensure!(wrong.code() == 2 && wrong.stderr == said, "{wrong:?}");
    residue::nothing_left()
}

/// Through sudo, and with the rights of the user: the command is not root's.
fn ordinary() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let ended = sh_as("dev", "tpx run -n emojivoto -- sh -c 'id -u; curl -sS -m 10 http://web-app'")?.success()?;
    ensure!(ended.starts_with("1000\n") && ended.contains(TITLE), "{ended}");
    residue::nothing_left()
}

fn leftovers() -> Result<()> {
    laptop::quit()?;
    let file = "/tmp/run-left";
    let _ = fs::remove_file(file);
    let left = format!("sleep 3; curl -sS -m 10 http://web-app >{file}.part; mv {file}.part {file}");
    let ended = tree(&["--name", "left"], &format!("setsid sh -c '{left}' </dev/null >/dev/null 2>&1 & exit 6"))?;
    ensure!(ended.code() == 6, "{ended:?}");
    let last = ended.stderr.lines().last().unwrap_or_default().to_owned();
    for word in ["left 2 processes running", "sleep", "tpx quit --use left"] {
        ensure!(last.contains(word), "{word:?} is not in {last:?}");
    }
    let status = laptop::status()?.context("the connection has not stayed")?;
    ensure!(status["name"] == "left" && status["scope"]["kind"] == "tree", "{status}");
    eventually(Duration::from_secs(30), || {
        ensure!(laptop::status()?.is_none(), "the connection stays");
        Ok(())
    })?;
    ensure!(fs::read_to_string(file)?.contains(TITLE), "what was left did not see the cluster");
    residue::nothing_left()
}

fn quit_early() -> Result<()> {
    let ended = tree(&["--name", "early"], "setsid sleep 4242 </dev/null >/dev/null 2>&1 & exit 0")?;
    ensure!(ended.code() == 0 && ended.stderr.contains("left 1 process running (sleep "), "{ended:?}");
    sh("tpx quit --use early")?.success()?;
    let nothing = residue::nothing_left();
    // It goes on, without the cluster.
    let pid = sh("pgrep -f 'sleep 4242'")?.success();
    sh("kill $(pgrep -f 'sleep 4242')")?;
    ensure!(!pid?.trim().is_empty());
    nothing
}

fn nested() -> Result<()> {
    laptop::quit()?;
    let script = "tpx run -q --name inner -n emojivoto -- sh -c 'curl -sS -m 10 http://web-app; tpx status --format json \
                  >/tmp/run-inner; env -u TPX_USE tpx status --format json >/tmp/run-all'; \
                  tpx status --format json >/tmp/run-outer; curl -sS -m 10 http://web-app";
    let ended = tree(&["--name", "outer"], script)?.success()?;
    ensure!(ended.matches(TITLE).count() == 2, "{ended}");
    let read = |name: &str| -> Result<Value> {
        let path = format!("/tmp/run-{name}");
        let text = fs::read_to_string(&path)?;
        serde_json::from_str(&text).with_context(|| format!("{path}: {text}"))
    };
    ensure!(read("inner")?["name"] == "inner" && read("outer")?["name"] == "outer");
    let all = read("all")?;
    let names: Vec<&str> =
        all["connections"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    ensure!(names == ["inner", "outer"], "{all}");
    residue::nothing_left()
}

/// Its daemon would be in the tree, and keep it.
fn connect_inside() -> Result<()> {
    laptop::quit()?;
    let ended = tree(&["--name", "around"], "tpx connect; code=$?; tpx connect --scope user:root || exit $code")?;
    let refused = ended.stderr.lines().filter(|line| line.starts_with("error: ") && line.contains("`tpx run`"));
    ensure!(ended.code() == 2 && refused.count() == 2, "{ended:?}");
    ensure!(ended.stderr.contains("connection around") && ended.stderr.contains("another terminal"), "{ended:?}");
    residue::nothing_left()
}

/// All, although the environment names one. The command goes on.
fn quit_inside() -> Result<()> {
    laptop::quit()?;
    let ended = tree(&["--name", "around"], "tpx quit --all && tpx quit --format json")?;
    ensure!(ended.code() == 0 && ended.stdout.contains("Disconnected around"), "{ended:?}");
    let last: Value = serde_json::from_str(&ended.stdout[ended.stdout.find('{').context("no document")?..])?;
    ensure!(last["name"] == "around" && last["was_connected"] == false, "{last}");
    residue::nothing_left()
}

fn beside() -> Result<()> {
    laptop::quit()?;
    laptop::connect()?;
    let waiting = Waiting::start(&["--name", "beside"], "curl -sS -m 10 http://web-app")?;
    let page = sh("curl -sS -m 10 http://web-app")?.success()?;
    ensure!(page.contains(TITLE), "{page}");
    let explain = |pid: u32| -> Result<Value> {
        let said = sh(&format!("tpx explain {pid} --format json"))?.success()?;
        Ok(serde_json::from_str(&said)?)
    };
    let inner = explain(waiting.inner()?)?;
    ensure!(inner["process"]["connection"] == "beside", "{inner}");
    let outer = explain(std::process::id())?;
    ensure!(outer["process"]["connection"] == "default", "{outer}");
    let other = sh(&format!("tpx explain {} --use default", waiting.inner()?))?.success()?;
    ensure!(other.contains("of connection beside, not that of default"), "{other}");
    let scopes: Value = serde_json::from_str(&sh("tpx maps dump scopes --use beside --format json")?.success()?)?;
    let row = &scopes["scopes"][0];
    ensure!(row["connection"] == "beside" && row["processes"] == 1, "{scopes}");
    ensure!(waiting.finish()? == 0);
    // The workstation's goes on.
    ensure!(sh("curl -sS -m 10 http://web-app")?.success()?.contains(TITLE));
    laptop::quit()?;
    residue::nothing_left()
}

fn raw() -> Result<()> {
    laptop::quit()?;
    let _vpn = Vpn::private()?;
    let service = cluster::service("emojivoto", "web-app")?;
    let before = route_to(service.v4)?;
    let page = |ended: Ended, title: &str| -> Result<()> {
        let page = ended.success()?;
        ensure!(page.contains(title), "{page}");
        Ok(())
    };
    let url = format!("http://{}", service.v4);
    let waiting = Waiting::start(&[], &format!("curl -sS -m 10 {url} | grep -q '{TITLE}'"))?;
    page(sh(&format!("curl -sS -m 10 {url}"))?, vpn::TITLE)?;
    let status = laptop::status()?.context("no status")?;
    let modes: Vec<&str> =
        status["datapath"]["subnets"].as_array().into_iter().flatten().filter_map(|s| s["mode"].as_str()).collect();
    ensure!(!modes.is_empty() && modes.iter().all(|mode| *mode == "direct"), "{status}");
    ensure!(waiting.finish()? == 0, "the raw address is not the cluster's inside");
    page(tree(&[], "curl -sS -m 10 http://web-app")?, TITLE)?;
    // What is not the cluster's is the VPN's, inside as well.
    page(tree(&[], &format!("curl -sS -m 10 http://{HOST}"))?, vpn::TITLE)?;
    page(sh(&format!("curl -sS -m 10 {url}"))?, vpn::TITLE)?;
    ensure!(before == route_to(service.v4)?, "the VPN's route has changed");
    residue::nothing_left()
}

fn asked() -> Result<()> {
    let script = "getent ahostsv4 web-app; curl -sS -m 10 http://web-app";
    let said = tree(&["--vnat", "service"], script)?.success()?;
    ensure!(said.starts_with("246.246.") && said.contains(TITLE), "{said}");
    residue::nothing_left()
}

fn fifty() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let before = laptop::network_state()?;
    for n in 0..50 {
        run(Command::new("tpx").args(["run", "-q", "--", "true"]))?.success().with_context(|| format!("run {n}"))?;
    }
    residue::nothing_left()?;
    let sockets =
        sh("ls ${XDG_RUNTIME_DIR:+$XDG_RUNTIME_DIR/tpx-userd} /tmp/tpx-userd-0 2>/dev/null | grep run- || true")?;
    ensure!(sockets.stdout.is_empty(), "sockets are left: {sockets:?}");
    let after = laptop::network_state()?;
    ensure!(before == after, "the network is not as before:\n{before}\n---\n{after}");
    Ok(())
}

fn killed() -> Result<()> {
    laptop::quit()?;
    let mut waiting =
        Waiting::start(&["--name", "killed"], "curl -sS -m 10 http://web-app | grep -o '<title.*title>'")?;
    kill_process(waiting.pid(), Signal::KILL)?;
    // The command does not notice, and its connection ends with it.
    waiting.go_on()?;
    ensure!(waiting.line()? == TITLE, "the command has lost the cluster");
    residue::nothing_left()
}

fn crash() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    for what in [" userd", "tpx-rootd"] {
        let waiting = Waiting::start(&[], "curl -sS -m 5 http://web-app; code=$?; test $code = 6")?;
        let pid = laptop::daemon(what)?;
        sh(&format!("kill -9 {pid}"))?.success()?;
        eventually(Duration::from_secs(5), residue::no_datapath).with_context(|| what.to_owned())?;
        let own = sh("curl -sS -m 10 http://www.internet.test")?.success()?;
        ensure!(own.contains("The Internet"), "{own}");
        // The command goes on without the cluster, and its own code is what counts.
        let code = waiting.finish()?;
        ensure!(code == 0, "{what}: {code}");
        residue::nothing_at_work().with_context(|| what.to_owned())?;
    }
    ensure!(tree(&[], "curl -sS -m 10 http://web-app")?.success()?.contains(TITLE), "not after the crashes");
    residue::nothing_left()
}

fn lost() -> Result<()> {
    laptop::quit()?;
    residue::nothing_left()?;
    let ended = tree(&["-q", "--name", "lost"], "kill -9 $(pgrep -f '[u]serd --name lost'); sleep 1; exit 3")?;
    let said = ended.stderr.lines().next().unwrap_or_default();
    ensure!(ended.code() == 3 && ended.stderr.lines().count() == 1, "{ended:?}");
    ensure!(said.contains("connection lost ended before the command did") && said.contains("lost.log"), "{said}");
    residue::nothing_at_work()?;
    ensure!(tree(&[], "true")?.code() == 0);
    residue::nothing_left()
}

fn refused() -> Result<()> {
    laptop::quit()?;
    for flags in [&["run", "--", "true"][..], &["connect", "--scope", "user:root", "--name", "x"]] {
        let ended = run(Command::new("tpx").args(flags))?;
        if ended.stderr.contains("user root runs nothing") {
            continue;
        }
        ensure!(ended.code() == 2 && ended.stderr.lines().count() == 1, "{ended:?}");
        ensure!(ended.stderr.contains("eBPF") && ended.stderr.contains("`tpx connect`"), "{ended:?}");
        residue::nothing_left()?;
    }
    Ok(())
}

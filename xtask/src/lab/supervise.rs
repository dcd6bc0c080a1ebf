//! The first process of a part: it starts the part's daemons in order, starts them again when they end, and collects orphans.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{WaitOptions, wait};

use super::config::{Lab, RUN_LAB};

/// A daemon that ended this often is not started again: its log says why.
const MAX_STARTS: u32 = 20;

/// What has to be there before a daemon starts.
pub(crate) enum After {
    /// Somebody accepts connections there.
    Port(u16),
    /// The file, or socket, exists.
    File(PathBuf),
}

impl After {
    fn holds(&self) -> bool {
        match self {
            After::Port(port) => {
                TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], *port)), Duration::from_millis(100))
                    .is_ok()
            }
            After::File(path) => path.exists(),
        }
    }
}

/// One program that runs as long as the part does.
pub(crate) struct Daemon {
    pub(crate) name: &'static str,
    pub(crate) command: Command,
    pub(crate) after: Vec<After>,
}

/// Tells `lab up` how far the part is: a file in its own /run/lab.
pub(crate) fn mark(what: &str) -> Result<()> {
    fs::write(format!("{RUN_LAB}/{what}"), "").with_context(|| format!("cannot write {RUN_LAB}/{what}"))
}

/// Runs for ever; the part ends when this process is killed.
pub(crate) fn run(lab: &Lab, mut daemons: Vec<Daemon>) -> Result<()> {
    struct Run {
        daemon: usize,
        at: Instant,
    }
    let mut waiting: Vec<(usize, Instant)> = (0..daemons.len()).map(|daemon| (daemon, Instant::now())).collect();
    let mut running: HashMap<i32, Run> = HashMap::new();
    let mut starts = vec![0u32; daemons.len()];
    loop {
        let mut later = Vec::new();
        for (index, not_before) in waiting {
            let Some(daemon) = daemons.get_mut(index) else { continue };
            if Instant::now() < not_before || !daemon.after.iter().all(After::holds) {
                later.push((index, not_before));
                continue;
            }
            let log = File::options().create(true).append(true).open(lab.log(daemon.name))?;
            let child = daemon.command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
            let child = child.with_context(|| format!("cannot start {}", daemon.name))?;
            println!("{}: process {}", daemon.name, child.id());
            running.insert(child.id().cast_signed(), Run { daemon: index, at: Instant::now() });
            mark(daemon.name)?;
        }
        waiting = later;
        let options = if waiting.is_empty() { WaitOptions::empty() } else { WaitOptions::NOHANG };
        match wait(options) {
            Ok(Some((pid, status))) => {
                if let Some(Run { daemon, at }) = running.remove(&pid.as_raw_nonzero().get()) {
                    let name = daemons.get(daemon).map_or("", |d| d.name);
                    println!("{name}: ended after {:.1} s: {status:?}", at.elapsed().as_secs_f32());
                    if let Some(count) = starts.get_mut(daemon) {
                        *count += 1;
                        if *count < MAX_STARTS {
                            waiting.push((daemon, Instant::now() + Duration::from_millis(200 * u64::from(*count))));
                        }
                    }
                }
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            // No children (a part without daemons): those of the processes that enter it arrive here later.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

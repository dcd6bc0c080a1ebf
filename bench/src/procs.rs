//! Processes of the lab as the machine sees them: who they are, what CPU they used, what memory they hold.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// A process that is part of a road, told from a later one with the same id by its start time.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Process {
    /// What the report calls it.
    pub(crate) name: String,
    /// Its id outside the lab.
    pub(crate) pid: u32,
    #[serde(skip)]
    begin: u64,
}

/// Memory in KiB, as the kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    /// Everything resident, pages of the program's file and shared ones too.
    pub(crate) rss: u64,
    /// What of it is the process's own: heap, stacks.
    pub(crate) anonymous: u64,
    /// Resident, with shared pages divided among those who share them.
    pub(crate) pss: u64,
}

/// Finds the lab's processes.
pub(crate) struct Finder {
    cgroup: String,
}

impl Finder {
    /// For the lab whose cgroup has this name.
    pub(crate) fn new(cgroup: &str) -> Finder {
        Finder { cgroup: cgroup.to_owned() }
    }

    /// The lab's processes of which `is` says so, from the program's name and the first argument.
    pub(crate) fn all(&self, name: &str, is: impl Fn(&str, &str) -> bool) -> Result<Vec<Process>> {
        let mut found = Vec::new();
        for pid in fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok()) {
            // Whoever ends meanwhile was none of those that are looked for.
            let Some((program, argument)) = self.program(pid) else { continue };
            let Ok(stat) = stat(pid) else { continue };
            if is(&program, &argument) {
                found.push(Process { name: name.to_owned(), pid, begin: stat.begin });
            }
        }
        Ok(found)
    }

    /// The only such process.
    pub(crate) fn one(&self, name: &str, is: impl Fn(&str, &str) -> bool) -> Result<Process> {
        let mut found = self.all(name, is)?;
        ensure!(found.len() == 1, "there are {} processes of {name} instead of one", found.len());
        found.pop().context("none")
    }

    fn program(&self, pid: u32) -> Option<(String, String)> {
        let dir = Path::new("/proc").join(pid.to_string());
        if !in_cgroup(&fs::read_to_string(dir.join("cgroup")).ok()?, &self.cgroup) {
            return None;
        }
        let exe = fs::read_link(dir.join("exe")).ok()?;
        let program = exe.file_name()?.to_str()?.trim_end_matches(" (deleted)").to_owned();
        let arguments = fs::read(dir.join("cmdline")).ok()?;
        let first = arguments.split(|byte| *byte == 0).nth(1).unwrap_or_default();
        Some((program, String::from_utf8_lossy(first).into_owned()))
    }
}

impl Process {
    /// CPU time used so far, in seconds, by all its threads, also those that ended.
    pub(crate) fn cpu(&self) -> Result<f64> {
        let now = stat(self.pid).with_context(|| format!("{} (process {}) is gone", self.name, self.pid))?;
        ensure!(now.begin == self.begin, "{} (process {}) is gone", self.name, self.pid);
        Ok(now.ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// What it holds now.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let read = |file: &str| {
            fs::read_to_string(format!("/proc/{}/{file}", self.pid))
                .with_context(|| format!("{} (process {}) is gone", self.name, self.pid))
        };
        let (status, rollup) = (read("status")?, read("smaps_rollup")?);
        let kib = |text: &str, field: &str| {
            kib(text, field).with_context(|| format!("the kernel does not say {field} of {}", self.name))
        };
        Ok(Memory { rss: kib(&status, "VmRSS")?, anonymous: kib(&status, "RssAnon")?, pss: kib(&rollup, "Pss")? })
    }
}

struct Stat {
    ticks: u64,
    begin: u64,
}

fn stat(pid: u32) -> Result<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?).context("/proc/PID/stat is not what proc(5) says")
}

/// Fields 14, 15 and 22 of proc_pid_stat(5); the name, field 2, may contain anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Stat { ticks: number(14)? + number(15)?, begin: number(22)? })
}

/// `Name:   123 kB`.
pub(crate) fn kib(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// Whether the cgroup2 line (`0::/a/b`) has the name in its path.
fn in_cgroup(text: &str, name: &str) -> bool {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.is_some_and(|path| path.split('/').any(|part| part == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_moves_no_field() {
        let line = "42 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 111 222 15 16 17 18 19 20 9876 22 23\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!((stat.ticks, stat.begin), (333, 9876));
        assert!(parse_stat("42 (a) S 1 2").is_none());
    }

    #[test]
    fn memory_is_found_by_its_whole_name() {
        let text = "Name:\tx\nVmRSS:\t   28116 kB\nRssAnon:\t    5124 kB\n";
        assert_eq!((kib(text, "VmRSS"), kib(text, "RssAnon"), kib(text, "Rss")), (Some(28116), Some(5124), None));
        assert_eq!(kib("Pss_Dirty:  1 kB\nPss:     77 kB\n", "Pss"), Some(77));
    }

    #[test]
    fn the_lab_is_told_from_others() {
        let text = "9:name=systemd:/tpx-lab-lab\n0::/tpx-lab-lab/node\n";
        assert!(in_cgroup(text, "tpx-lab-lab"));
        assert!(!in_cgroup(text, "tpx-lab-la"));
        assert!(!in_cgroup("9:name=systemd:/tpx-lab-lab\n0::/\n", "tpx-lab-lab"));
    }

    #[test]
    fn this_process_can_be_read() {
        let pid = std::process::id();
        let own = Process { name: "test".into(), pid, begin: stat(pid).unwrap().begin };
        let before = own.cpu().unwrap();
        let begin = std::time::Instant::now();
        while own.cpu().unwrap() < before + 0.03 {
            assert!(begin.elapsed().as_secs() < 20, "no CPU time is counted");
        }
        assert!(own.memory().unwrap().rss > own.memory().unwrap().anonymous);
    }
}

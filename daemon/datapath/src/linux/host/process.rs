//! A process that must not be taken for another one.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};

/// A process, held by its file (pidfd_open(2)): its number is given to no other one unnoticed.
#[derive(Debug)]
pub struct Process {
    id: u32,
    file: OwnedFd,
}

impl Process {
    /// Holds the process that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(id: u32) -> io::Result<Self> {
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::NotFound)?;
        Ok(Self { id, file: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Whether it has not ended yet.
    ///
    /// # Errors
    /// What poll(2) says.
    pub fn is_alive(&self) -> io::Result<bool> {
        let mut ended = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
        Ok(poll(&mut ended, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))? == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_is_noticed() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        assert!(process.is_alive().unwrap());
        drop(child.stdin.take());
        // Not even a zombie counts.
        for _ in 0..1000 {
            if !process.is_alive().unwrap() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!process.is_alive().unwrap());
        child.wait().unwrap();
        assert!(Process::open(0).is_err() && Process::open(u32::MAX).is_err());
    }
}

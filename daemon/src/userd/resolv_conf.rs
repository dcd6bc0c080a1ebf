//! The host's name servers as /etc/resolv.conf has them, followed: a VPN writes its own into it.

use std::{io, time::Duration};

use tokio::time::{Interval, MissedTickBehavior, interval};
use tpx_core::dns::{ResolvConf, parse_resolv_conf};

use crate::failure::{Failure, Kind};

const PATH: &str = "/etc/resolv.conf";
/// How often it is read again. It may be a link to a file that others replace, in places that come and go: nothing tells of all
/// that.
const LOOK: Duration = Duration::from_secs(1);

/// Reads it.
///
/// # Errors
/// When it is there and cannot be read.
pub(crate) fn read() -> Result<ResolvConf, Failure> {
    look().map_err(|e| Failure::new(Kind::Host, format!("cannot read {PATH}: {e}"), "make it readable"))
}

fn look() -> io::Result<ResolvConf> {
    match std::fs::read_to_string(PATH) {
        Ok(text) => Ok(parse_resolv_conf(&text)),
        // resolv.conf(5): without the file, the name server of this machine is used.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(parse_resolv_conf("")),
        Err(e) => Err(e),
    }
}

/// The file, read again and again.
pub(crate) struct Following {
    last: ResolvConf,
    /// Read once.
    new: Option<ResolvConf>,
    ticks: Interval,
}

impl Following {
    /// From what it was on. Needs a tokio runtime.
    pub(crate) fn from(last: ResolvConf) -> Self {
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { last, new: None, ticks }
    }

    /// Waits until it names other servers, and stays so for a while: who writes it may not be done. Cancel safe.
    pub(crate) async fn changed(&mut self) -> ResolvConf {
        loop {
            self.ticks.tick().await;
            // One that cannot be read is being replaced.
            if let Some(new) = look().ok().and_then(|now| self.see(now)) {
                return new;
            }
        }
    }

    fn see(&mut self, now: ResolvConf) -> Option<ResolvConf> {
        let before = self.new.take();
        if now.name_servers == self.last.name_servers {
            return None;
        }
        if before.is_none_or(|before| before.name_servers != now.name_servers) {
            self.new = Some(now);
            return None;
        }
        self.last = now.clone();
        Some(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_stays_counts() {
        let [one, two] = ["nameserver 192.0.2.1", "nameserver 192.0.2.2\nsearch a"].map(parse_resolv_conf);
        let mut following = Following::from(one.clone());
        assert_eq!(following.see(one.clone()), None);
        assert_eq!(following.see(two.clone()), None);
        // It was half of a file.
        assert_eq!((following.see(one), following.see(two.clone())), (None, None));
        assert_eq!(following.see(two.clone()), Some(two.clone()));
        let searching = parse_resolv_conf("nameserver 192.0.2.2\nsearch b");
        assert_eq!((following.see(searching.clone()), following.see(searching)), (None, None));
    }
}

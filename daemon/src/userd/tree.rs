//! The process tree of `tpx run`: its connection ends with its last process, and when nobody ever comes.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tpx_datapath::linux::cgroup::Population;

/// A tree into which nobody comes is given up: `tpx run` was killed before its command began.
const UNENTERED: Duration = Duration::from_secs(30);
/// How often to look although nothing was heard: of a directory that was removed, nothing is.
const LOOK: Duration = Duration::from_secs(5);

/// A process tree that is watched.
pub(crate) struct Tree {
    population: Population,
    life: Life,
}

impl Tree {
    /// Begins to watch.
    pub(crate) fn watch(cgroup: &Path) -> io::Result<Self> {
        let life = Life { since: Instant::now(), entered: false };
        Ok(Self { population: Population::watch(cgroup)?, life })
    }

    /// Resolves, with the reason, when the tree is not needed any more. Cancel safe.
    pub(crate) async fn over(&mut self) -> &'static str {
        loop {
            // An error: the directory is gone.
            let populated = self.population.is_populated().ok();
            if let Some(why) = self.life.over(populated, Instant::now()) {
                return why;
            }
            let _ = timeout(LOOK, self.population.changed()).await;
        }
    }
}

/// What is known of a tree.
struct Life {
    since: Instant,
    entered: bool,
}

impl Life {
    /// Why it is over, if it is.
    fn over(&mut self, populated: Option<bool>, now: Instant) -> Option<&'static str> {
        match populated {
            None => Some("the cgroup of its process tree was removed"),
            Some(true) => {
                self.entered = true;
                None
            }
            Some(false) if self.entered => Some("the last process of its tree has ended"),
            Some(false) if now.duration_since(self.since) >= UNENTERED => Some("nobody came into its process tree"),
            Some(false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_lives_as_long_as_anybody_is_in_it() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let life = || Life { since: start, entered: false };
        assert!(life().over(Some(false), after(29)).is_none());
        assert!(life().over(Some(false), after(30)).is_some());
        assert!(life().over(None, after(0)).is_some());
        let mut entered = life();
        assert!(entered.over(Some(true), after(1)).is_none());
        assert!(entered.over(Some(true), after(1000)).is_none());
        assert!(entered.over(Some(false), after(1001)).unwrap().contains("last process"));
    }
}

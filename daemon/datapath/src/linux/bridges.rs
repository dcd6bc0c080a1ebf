//! Which bridges of containers are served, as `tpx status` shows it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How programs are attached to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hook {
    /// By links that go with the process (kernel 6.6).
    Tcx,
    /// By filters of the `clsact` queueing discipline, which outlive a process that is killed. They let packets pass then,
    /// and the next start removes them.
    Clsact,
}

impl Hook {
    /// The better one that the kernel has.
    #[must_use]
    pub const fn of(has_tcx: bool) -> Self {
        if has_tcx { Self::Tcx } else { Self::Clsact }
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        })
    }
}

/// The bridges of containers on this host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridges {
    /// Those that the plan's patterns match, sorted.
    pub bridges: Vec<Bridge>,
    /// How their packets are taken; `None` while none is served.
    pub hook: Option<Hook>,
    /// Why none is served, as one line.
    pub problem: Option<String>,
}

/// A bridge of containers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bridge {
    /// Its name.
    pub name: String,
    /// Why its containers do not see the cluster, as one line; `None` when they do.
    pub problem: Option<String>,
}

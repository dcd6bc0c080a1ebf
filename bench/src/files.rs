//! How many files, and so connections, a process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes all that this process may have.
pub fn allow_all() {
    let files = getrlimit(Resource::Nofile);
    // Without it there are fewer, and whoever needs them says so.
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, ..files }).ok();
}

/// Connections that a process on this machine may have, with some files left for everything else.
pub fn connections() -> usize {
    const OTHERS: usize = 500;
    let most = getrlimit(Resource::Nofile).maximum.and_then(|most| usize::try_from(most).ok());
    most.unwrap_or(usize::MAX).saturating_sub(OTHERS)
}

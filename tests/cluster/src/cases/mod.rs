//! The cases, in the order in which they run: first what a connection does, then what ends it.

mod crash;
mod dns;
mod maps;
mod reach;
mod semantics;
mod users;
mod volume;
mod wrong;

/// A case's name and what it does.
pub(crate) type Case = (&'static str, fn() -> anyhow::Result<()>);

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    [wrong::CASES, reach::CASES, dns::CASES, semantics::CASES, volume::CASES, maps::CASES, crash::CASES, users::CASES]
        .concat()
}

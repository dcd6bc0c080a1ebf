//! The one way a command can fail: what happened, why, and the next step, on one line.

use serde::{Deserialize, Serialize};

/// What kind of failure it was; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// Something unexpected in tpx itself or in the operating system.
    Internal,
    /// The command line or an argument's value is wrong.
    Usage,
    /// The command needs a connection and there is none.
    NotConnected,
    /// There is a connection already.
    AlreadyConnected,
    /// kubeconfig, credentials or the API server.
    Kubernetes,
    /// The manager is missing, not ready, or of another version.
    Manager,
    /// The privileged daemon or the kernel.
    Host,
}

impl Kind {
    /// The process's exit code. 1 and 2 follow the usual conventions; the rest is documented in `tpx --help`.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Kind::Internal => 1,
            Kind::Usage => 2,
            Kind::NotConnected => 3,
            Kind::AlreadyConnected => 4,
            Kind::Kubernetes => 5,
            Kind::Manager => 6,
            Kind::Host => 7,
        }
    }
}

/// A failed command.
#[derive(Debug, Clone, Serialize, Deserialize, thiserror::Error)]
#[error("{what}; {next}")]
pub(crate) struct Failure {
    /// Decides the exit code.
    pub kind: Kind,
    /// What failed and why.
    pub what: String,
    /// What to do next.
    pub next: String,
}

impl Failure {
    /// A failure of the given kind. Line breaks from foreign messages are folded: a failure is one line.
    pub(crate) fn new(kind: Kind, what: impl Into<String>, next: impl Into<String>) -> Self {
        Self { kind, what: one_line(&what.into()), next: one_line(&next.into()) }
    }

    /// Something that should not happen.
    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Kind::Internal, what, "see the log that `tpx status` names, and report it")
    }
}

/// An error and its causes on one line, without the repetitions that wrapping errors tend to print.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut out = String::new();
    for cause in std::iter::successors(Some(error), |e| e.source()) {
        let text = cause.to_string();
        if !out.contains(&text) {
            if !out.is_empty() {
                out.push_str(": ");
            }
            out.push_str(&text);
        }
    }
    out
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::new(Kind::Kubernetes, "the API server said:\n  no", "try\nagain");
        assert_eq!(failure.to_string(), "the API server said: no; try again");
    }

    #[test]
    fn a_chain_does_not_repeat_itself() {
        let inner = std::io::Error::other("connection refused");
        let outer = anyhow::Error::new(inner).context("connection refused by 127.0.0.1").context("dial");
        assert_eq!(chain(outer.as_ref()), "dial: connection refused by 127.0.0.1");
    }
}

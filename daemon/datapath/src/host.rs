//! The privileged half of a road, as one small trait.

use async_trait::async_trait;
use tpx_core::plan::Plan;

/// Does everything that needs privilege, and undoes it. Idempotent.
#[async_trait]
pub trait Host: Send {
    /// What an applied plan hands to the caller: sockets, devices, maps.
    type Handover: Send;

    /// Makes the host look like `plan`. The same plan again puts back what somebody else has removed meanwhile.
    ///
    /// # Errors
    /// [`HostError`]; the host is then as it was before, or, where what was removed cannot come back, as after
    /// [`revert`](Self::revert).
    async fn apply(&mut self, plan: &Plan) -> Result<Self::Handover, HostError>;

    /// Removes all that was ever applied.
    ///
    /// # Errors
    /// [`HostError`], after removing as much as could be removed.
    async fn revert(&mut self) -> Result<(), HostError>;
}

/// Why the host could not be changed. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The plan asks for something that is never allowed.
    #[error("the plan was refused: {0}")]
    Refused(String),
    /// This kernel or this build cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// The operating system said no.
    #[error("{what}: {source}")]
    System {
        /// The step that failed.
        what: String,
        /// The operating system's word.
        source: std::io::Error,
    },
}

//! Virtual addresses of one connection: given out with DNS answers, told to the kernel before anybody learns of them,
//! translated back when a stream is opened.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use tpx_core::{
    dial::DialFailure,
    policy::Policy,
    subnets::Subnets,
    vnat::{Exhausted, Vnat},
};
use tpx_datapath::linux::Translations;

use super::routing::Decided;

/// Shared by the name server, the flows and the command line's questions.
#[derive(Clone)]
pub(crate) struct Addresses(Arc<Inner>);

struct Inner {
    vnat: Mutex<Vnat>,
    /// The express lane's copy.
    kernel: Option<Translations>,
    decided: watch::Receiver<Decided>,
}

impl Addresses {
    /// Follows what is `decided`; `kernel` learns of every address.
    pub(crate) fn new(vnat: Vnat, kernel: Option<Translations>, decided: watch::Receiver<Decided>) -> Self {
        Self(Arc::new(Inner { vnat: Mutex::new(vnat), kernel, decided }))
    }

    /// What becomes of every subnet now.
    pub(crate) fn subnets(&self) -> Arc<Subnets> {
        Arc::clone(&self.0.decided.borrow().subnets)
    }

    /// What must not be reached now.
    pub(crate) fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.0.decided.borrow().policy)
    }

    /// Whether what asks for `ip` goes through the tunnel.
    pub(crate) fn steers(&self, ip: IpAddr) -> bool {
        self.0.decided.borrow().plan.steers(ip)
    }

    /// Where a flow that asked for `destination` really leads.
    ///
    /// # Errors
    /// A virtual address that stands for nothing: no host answers there.
    pub(crate) fn behind(&self, destination: IpAddr) -> Result<IpAddr, DialFailure> {
        let vnat = self.vnat();
        match vnat.real_for(destination) {
            Some(real) => Ok(real),
            None if vnat.is_virtual(destination) => Err(DialFailure::HostUnreachable),
            None => Ok(destination),
        }
    }

    /// As [`behind`](Self::behind), with the port; for a flow that is to be carried, so that it fails too where the policy
    /// forbids it. The kernel has refused most of those before.
    pub(crate) fn target(&self, destination: SocketAddr) -> Result<SocketAddr, DialFailure> {
        let target = SocketAddr::new(self.behind(destination.ip())?, destination.port());
        self.policy().check(target).map(|()| target)
    }

    /// Resolves when the policy forbids `target`, which is behind virtual addresses, or comes to do so: with what a flow there is
    /// told. Cancel safe.
    pub(crate) async fn denied(&self, target: SocketAddr) -> DialFailure {
        let mut decided = self.0.decided.clone();
        loop {
            let checked = decided.borrow_and_update().policy.check(target);
            if let Err(why) = checked {
                return why;
            }
            if decided.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the policy forbids a flow that asked for `destination`.
    pub(crate) fn is_denied(&self, destination: SocketAddr) -> bool {
        let real = self.behind(destination.ip());
        real.is_ok_and(|real| self.policy().check(SocketAddr::new(real, destination.port())).is_err())
    }

    /// The address by which programs on this laptop reach the cluster's `real`: a virtual one, given out now if need be,
    /// where its subnet has moved.
    ///
    /// # Errors
    /// No virtual address is left.
    pub(crate) fn reachable(&self, real: IpAddr) -> Result<IpAddr, Exhausted> {
        if !self.0.decided.borrow().subnets.hides(real) {
            return Ok(real);
        }
        let mut vnat = self.vnat();
        let given = vnat.allocate(real)?;
        if given.fresh
            && let Some(kernel) = &self.0.kernel
            && let Err(e) = kernel.insert(given.address, real)
        {
            // The kernel then hands flows to the virtual address over as they are, and `behind` translates them.
            tracing::debug!("{} stands for {real} in the user daemon alone: {e}", given.address);
        }
        Ok(given.address)
    }

    /// Looks at the relation itself.
    pub(crate) fn vnat(&self) -> MutexGuard<'_, Vnat> {
        self.0.vnat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

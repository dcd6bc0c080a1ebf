//! Putting back what somebody else has removed: rules, routes and addresses belong to whoever has the right to change them.

use tpx_core::plan::Scope;
use tpx_ebpf_abi::slot::Slot;

use super::{Applied, Process, cgroup, network::Network, rules::Rule, system};
use crate::HostError;

impl Applied {
    /// Makes the host look again as it was left. What hangs on the device's file cannot come back without it: then this
    /// fails, and the caller has to begin anew.
    pub(super) async fn mend(&mut self, slot: Slot, caller: Option<&Process>) -> Result<(), HostError> {
        if !self.device.exists() {
            let gone = std::io::Error::new(std::io::ErrorKind::NotFound, "somebody has removed it");
            return Err(system(format!("find {}", slot.device()), gone));
        }
        let network = Network::mending()?;
        network.bring_up(&self.device, slot, self.ipv6).await?;
        if self.express.is_some() {
            network.add_blocks(&self.device, slot, self.ipv6).await?;
        }
        for rule in Rule::standing(self.express.is_some(), self.plan.scope.is_tree(), self.ipv6) {
            network.add_rule(slot, rule).await?;
        }
        self.mend_names(&network, slot).await?;
        for (table, net) in &self.state.routes {
            network.add_route(&self.device, slot, *table, *net).await?;
        }
        if network.missing() > 0 {
            tracing::warn!("somebody removed {} addresses, rules and routes of tpx; they are back", network.missing());
        }
        // A cgroup that tpx did not make may have been removed and made anew. One that is as it was keeps its hooks: for a
        // moment there would be two of each, and the second does not know a connection that the first has translated.
        let scope = self.group.scope.clone();
        if let Scope::Cgroup(path) = &scope
            && cgroup::open(path).is_ok_and(|(_, now)| cgroup::inode(&now) != self.group.inode)
        {
            self.enlist(&scope, slot, caller)?;
        }
        Ok(())
    }
}

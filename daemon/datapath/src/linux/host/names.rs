//! Standing in for name servers. On the express lane the kernel programs exchange a server for one of tpx's own
//! addresses; on the floor alone policy rules make the server's own address local for questions, and for nothing else.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use tpx_ebpf_abi::slot::{NAMES, Slot};

use super::{
    Applied,
    desired::{self, Table},
    network::Network,
    rules::Rule,
    sockets,
};
use crate::{HostError, linux::DnsSockets};

/// A name server that tpx stands in for.
#[derive(Debug)]
pub(super) struct Name {
    road: Road,
    pub(super) sockets: DnsSockets,
}

#[derive(Debug, Clone, Copy)]
enum Road {
    /// The programs lead to the `nth` of the slot's own addresses.
    Express { nth: usize, own: IpAddr },
    /// Rules lead to the server's own address.
    Floor,
}

impl Drop for Name {
    fn drop(&mut self) {
        // Frees the port, also while somebody else has a copy of the file.
        let _ = rustix::net::shutdown(&self.sockets.tcp, rustix::net::Shutdown::Both);
    }
}

impl Applied {
    /// Stands in for `server`; on the floor alone it may turn out that this server cannot be stood in for.
    pub(super) async fn add_name(&mut self, network: &Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        if self.express.is_some() {
            self.add_express_name(network, slot, server).await
        } else {
            self.add_floor_name(network, slot, server).await
        }
    }

    async fn add_express_name(&mut self, network: &Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        let Some(express) = &mut self.express else {
            return Ok(());
        };
        let taken = |nth: usize| {
            self.names.values().any(|name| matches!(name.road, Road::Express { nth: other, .. } if other == nth))
        };
        let mut last = HostError::Refused(format!("no address is left for the name server {server}"));
        for nth in (0..NAMES).filter(|nth| !taken(*nth)).collect::<Vec<_>>() {
            let Some(own) = desired::own_address(slot, server, nth) else {
                break;
            };
            network.add_address(&self.device, own).await?;
            let made = sockets::dns(server, SocketAddr::new(own, express.names_port))
                .and_then(|sockets| express.programs.set_name(server, own).map(|()| sockets));
            match made {
                Ok(sockets) => {
                    self.names.insert(server, Name { road: Road::Express { nth, own }, sockets });
                    return Ok(());
                }
                // A user daemon that lingers may still have the sockets of the datapath before: the next address is free.
                Err(e) => {
                    network.remove_address(&self.device, own).await?;
                    let taken = is_taken(&e);
                    last = e;
                    if !taken {
                        break;
                    }
                }
            }
        }
        Err(last)
    }

    async fn add_floor_name(&mut self, network: &Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        let link_local = matches!(server, IpAddr::V6(six) if six.is_unicast_link_local());
        // The kernel's local table comes before all rules, and a question to a link-local address names its device.
        if link_local || network.is_local(server).await? {
            tracing::info!("questions to the name server {server} stay on this host");
            return Ok(());
        }
        let sockets = match sockets::transparent_dns(server) {
            Ok(sockets) => sockets,
            Err(e) if is_taken(&e) => {
                tracing::warn!("another name server of this host has port 53 of all addresses: {e}");
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        // Known before it is complete, so that whatever is there is removed again.
        self.names.insert(server, Name { road: Road::Floor, sockets });
        let done = async {
            network.add_route(&self.device, slot, Table::Names, IpNet::from(server)).await?;
            for rule in Rule::names(server) {
                network.add_rule(slot, rule).await?;
            }
            Ok(())
        };
        let done = done.await;
        if done.is_err() {
            self.remove_name(network, slot, server).await?;
        }
        done
    }

    /// Puts back what leads to the sockets that stand in for name servers.
    pub(super) async fn mend_names(&self, network: &Network, slot: Slot) -> Result<(), HostError> {
        for (server, name) in &self.names {
            match name.road {
                Road::Express { own, .. } => network.add_address(&self.device, own).await?,
                Road::Floor => {
                    network.add_route(&self.device, slot, Table::Names, IpNet::from(*server)).await?;
                    for rule in Rule::names(*server) {
                        network.add_rule(slot, rule).await?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Undoes [`add_name`](Self::add_name).
    pub(super) async fn remove_name(&mut self, network: &Network, slot: Slot, server: IpAddr) -> Result<(), HostError> {
        match self.names.get(&server).map(|name| name.road) {
            None => return Ok(()),
            Some(Road::Express { own, .. }) => {
                if let Some(express) = &mut self.express {
                    express.programs.remove_name(server, own)?;
                }
                network.remove_address(&self.device, own).await?;
            }
            Some(Road::Floor) => {
                for rule in Rule::names(server) {
                    network.remove_rule(slot, rule).await?;
                }
                network.remove_route(&self.device, slot, Table::Names, IpNet::from(server)).await?;
            }
        }
        self.names.remove(&server);
        Ok(())
    }
}

fn is_taken(error: &HostError) -> bool {
    matches!(error, HostError::System { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
}

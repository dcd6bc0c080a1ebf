//! The files of an applied plan as what they are for: sources of flows, maps, sockets.

use std::{io, os::fd::OwnedFd};

use tpx_core::explain::Way;
use tpx_datapath::{
    Floor, FlowSource,
    linux::{
        Bypass, DnsSockets, ExpressFiles, Handover, Maps, Translations, Tun,
        express::{ExpressLane, ExpressParts},
    },
};

/// An open datapath.
pub(crate) struct Datapath {
    /// Where flows come from: the floor, and the express lane where there is one.
    pub sources: Vec<(Way, Box<dyn FlowSource>)>,
    /// The kernel's virtual addresses, on the express lane.
    pub translations: Option<Translations>,
    /// The kernel's maps, on the express lane.
    pub maps: Option<Maps>,
    /// For sockets that must not be steered.
    pub bypass: Bypass,
    /// Sockets that stand in for name servers.
    pub dns: Vec<DnsSockets>,
    /// Whether systemd-resolved was told.
    pub resolved: bool,
    /// The device lives as long as any copy of its file.
    pub device: OwnedFd,
}

impl Datapath {
    /// Opens what the privileged daemon handed over.
    ///
    /// # Errors
    /// When a file is not what it should be.
    pub(crate) fn open(handover: Handover) -> io::Result<Self> {
        let Handover { device, vnet_hdr, mtu, express, dns, resolved, .. } = handover;
        let mut sources: Vec<(Way, Box<dyn FlowSource>)> = Vec::new();
        let (mut maps, mut translations, mut bypass) = (None, None, Bypass::by_device());
        if let Some(files) = express {
            maps = Some(Maps::of(&files)?);
            translations = Some(Translations::of(&files)?);
            bypass = Bypass::new(files.bypass.try_clone()?)?;
            let ExpressFiles { listeners, raws, syns, held, datagrams, targets, owners, .. } = files;
            let parts = ExpressParts { listeners, raws, syns, held, datagrams, targets, owners };
            sources.push((Way::Express, Box::new(ExpressLane::new(parts)?)));
        }
        let mtu = u16::try_from(mtu).map_err(io::Error::other)?;
        sources.push((Way::Floor, Box::new(Floor::new(Tun::new(device.try_clone()?, vnet_hdr)?, mtu))));
        Ok(Self { sources, translations, maps, bypass, dns, resolved, device })
    }
}

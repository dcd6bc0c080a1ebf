//! Cluster addresses that the laptop reaches under virtual ones: exchanged in every answer, on its way out.
//!
//! What is kept of the cluster's answers is never translated, so that it stays right when a subnet moves between its own
//! and virtual addresses.

use std::net::IpAddr;

use hickory_proto::rr::{
    RData,
    rdata::{
        A, AAAA,
        svcb::{SVCB, SvcParamValue},
    },
};
use tpx_core::vnat::Exhausted;

/// Knows which addresses are behind virtual ones. Asked for every address of every answer, so it must be quick.
pub trait Translate: Send + Sync + 'static {
    /// The address under which the laptop reaches `real`: a virtual one, given out now if need be, or `real` itself.
    /// Always of the same family. When it returns, the datapath knows the address.
    ///
    /// # Errors
    /// There are no more; the client is told SERVFAIL.
    fn virtual_for(&self, real: IpAddr) -> Result<IpAddr, Exhausted>;

    /// What is behind a virtual address; `None` where nothing is, and for other addresses.
    fn real_for(&self, address: IpAddr) -> Option<IpAddr>;
}

/// For clusters that are reached under their own addresses.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTranslation;

impl Translate for NoTranslation {
    fn virtual_for(&self, real: IpAddr) -> Result<IpAddr, Exhausted> {
        Ok(real)
    }

    fn real_for(&self, _address: IpAddr) -> Option<IpAddr> {
        None
    }
}

/// The translation of one answer.
pub(crate) struct Translation<'a> {
    with: &'a dyn Translate,
    /// Every address of the answer, and under which one it is given.
    pub(crate) given: Vec<(IpAddr, IpAddr)>,
}

impl<'a> Translation<'a> {
    pub(crate) fn new(with: &'a dyn Translate) -> Self {
        Self { with, given: Vec::new() }
    }

    /// Exchanges the addresses of a record: A, AAAA, and the hints of SVCB and HTTPS (RFC 9460, 7.3).
    pub(crate) fn record(&mut self, data: &mut RData) -> Result<(), Exhausted> {
        match data {
            RData::A(a) => self.four(a),
            RData::AAAA(aaaa) => self.six(aaaa),
            RData::SVCB(svcb) => self.hints(svcb),
            RData::HTTPS(https) => self.hints(&mut https.0),
            _ => Ok(()),
        }
    }

    fn hints(&mut self, svcb: &mut SVCB) -> Result<(), Exhausted> {
        for (_, value) in &mut svcb.svc_params {
            match value {
                SvcParamValue::Ipv4Hint(hint) => hint.0.iter_mut().try_for_each(|a| self.four(a))?,
                SvcParamValue::Ipv6Hint(hint) => hint.0.iter_mut().try_for_each(|aaaa| self.six(aaaa))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn four(&mut self, a: &mut A) -> Result<(), Exhausted> {
        if let IpAddr::V4(given) = self.address(a.0.into())? {
            a.0 = given;
        }
        Ok(())
    }

    fn six(&mut self, aaaa: &mut AAAA) -> Result<(), Exhausted> {
        if let IpAddr::V6(given) = self.address(aaaa.0.into())? {
            aaaa.0 = given;
        }
        Ok(())
    }

    fn address(&mut self, real: IpAddr) -> Result<IpAddr, Exhausted> {
        let given = self.with.virtual_for(real)?;
        self.given.push((real, given));
        Ok(given)
    }
}

//! The decisions of tpx, without effects: no I/O, no clock, no unsafe code.
//!
//! Everything here is a function of its arguments; time comes in as `now`. Shells (`tpx-datapath`, `tpx-link`, the
//! daemons) carry decisions out.
#![forbid(unsafe_code)]

pub mod cidr;
pub mod config;
pub mod devices;
pub mod dial;
pub mod dns;
pub mod explain;
pub mod plan;
pub mod policy;
pub mod scope;
pub mod subnets;
pub mod syngate;
pub mod vnat;

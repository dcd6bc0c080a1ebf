//! The Linux datapath.

mod handover;

pub use handover::{DnsSockets, Handover, Layout, WrongCount};

//! The Linux datapath.

mod bypass;
mod handover;
mod inspect;

pub use bypass::Bypass;
pub use handover::{DnsSockets, Handover, Layout, WrongCount};
pub use inspect::Maps;

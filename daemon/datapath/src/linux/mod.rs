//! The Linux datapath.

mod bridges;
mod bypass;
pub mod cgroup;
pub mod express;
mod features;
mod handover;
#[cfg(feature = "privileged")]
mod host;
mod inspect;
pub mod routes;
#[expect(unsafe_code, reason = "system calls without a safe wrapper")]
mod sys;
mod translations;
mod tun;

pub use bridges::{Bridge, Bridges, Hook};
pub use bypass::Bypass;
pub use features::Feature;
pub use handover::{DnsSockets, ExpressFiles, Handover, Layout, WrongCount};
#[cfg(feature = "privileged")]
pub use host::{Ahead, Features, LinuxHost, Process, enter, needs_perfmon, probe, sweep};
pub use inspect::Maps;
pub use sys::return_large_blocks;
pub(crate) use sys::unread;
pub use tpx_ebpf_abi::slot::Slot;
pub use translations::{TranslationError, Translations};
pub use tun::Tun;

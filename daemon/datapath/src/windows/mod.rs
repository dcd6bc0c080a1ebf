//! The TUN road on Windows: a wintun device, routes to it, and rules of the name resolution policy table (NRPT).
//!
//! [`steps`] decides what changes and is data, so that it is tested on every platform; `WindowsHost` carries it out. The
//! driver removes the device with the handle that keeps it, and its routes go with it. Rules stay behind a crash: they
//! carry a [mark](MARK), and the next start removes those that do.
//!
//! A wintun session cannot be handed to another process: on Windows the user daemon's bytes and the privileged verbs
//! live in one process. Subnets that move behind virtual addresses take the connections that were open to them along;
//! Windows has no route for them alone. Programs that send questions to a name server themselves, past the system's
//! resolver, do not see the cluster's names.

mod addresses;
#[cfg(target_os = "windows")]
mod host;
mod rules;
mod steps;
#[cfg(target_os = "windows")]
mod sys;
#[cfg(target_os = "windows")]
mod tun;

pub use addresses::{OWN4, VIRTUAL4, own_address, virtual_pool};
#[cfg(target_os = "windows")]
pub use host::{Handover, WindowsHost};
pub use rules::{MARK, MAX_DOMAINS, Rule, Store, Value};
pub use steps::{Desired, Effect, FLUSH, Found, REFRESH_POLICY, Step, back, device_guid, steps, sweep};
#[cfg(target_os = "windows")]
pub use tun::Tun;

//! The TUN road on macOS: a utun device, routes to it, and files in `/etc/resolver`.
//!
//! [`steps`] decides what changes and is data, so that it is tested on every platform; `MacHost` carries it out. The
//! kernel removes the device with the file that keeps it, and the device's routes with the device. Resolver files stay
//! behind a crash: they carry a [mark](MARK), and the next start removes those that do.
//!
//! Programs that send questions to a name server themselves, past the system's resolver, do not see the cluster's names.

#[cfg(target_os = "macos")]
mod host;
mod steps;
#[cfg(target_os = "macos")]
mod sys;
#[cfg(target_os = "macos")]
mod tun;

#[cfg(target_os = "macos")]
pub use host::{Handover, MacHost};
pub use steps::{Effect, FLUSH, MARK, RESOLVER_DIRECTORY, Step, back, steps, sweep};
#[cfg(target_os = "macos")]
pub use tun::Tun;

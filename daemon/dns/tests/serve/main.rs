//! The name server over real sockets on the loopback, between a cluster and an internet of its own.
//!
//! Every test starts all three on ports of its own and ends with them; nothing leaves the loopback.

mod cluster;
mod fixture;
mod forms;
mod internet;
mod rough;
mod rules;
mod translated;
mod untouched;

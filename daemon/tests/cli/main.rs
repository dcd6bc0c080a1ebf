//! The command line as its users meet it: the real program, without a cluster, without privilege, in folders of its own.

mod bad_input;
mod config_view;
mod laptop;
mod scopes;
mod unconnected;

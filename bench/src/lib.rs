//! What the programs of the bench share: what a load client says, and the arithmetic on it.

pub mod files;
pub mod said;
pub mod stats;

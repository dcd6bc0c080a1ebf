//! What the two programs of the bench share: what a load client says, and the arithmetic on it.

pub mod said;
pub mod stats;

//! Marks the shared types as readable from any bytes.

use crate::{Flow, Owner, Policy, Rule, Station, Target, Verdict};

// SAFETY: byte arrays only; every bit pattern is valid and there is no padding.
unsafe impl aya::Pod for Flow {}
// SAFETY: two integers without padding.
unsafe impl aya::Pod for Verdict {}
// SAFETY: two integers without padding.
unsafe impl aya::Pod for Policy {}
// SAFETY: two integers and bytes without padding.
unsafe impl aya::Pod for Owner {}
// SAFETY: a transparent integer.
unsafe impl aya::Pod for Rule {}
// SAFETY: integers of one size, without padding.
unsafe impl aya::Pod for Target {}
// SAFETY: an integer and bytes up to its alignment, without padding.
unsafe impl aya::Pod for Station {}

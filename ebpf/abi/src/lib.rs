//! What kernel programs and daemons agree on.
#![no_std]

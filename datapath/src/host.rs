//! The engine's packet and tables in plain memory, and packets to feed it: what the tests run,
//! and what the loaded programs are compared with.
//!
//! Everything here refuses what the kernel refuses.

pub mod buffer;
pub mod frame;
pub mod lru;
pub mod memory;
pub mod tunnel;
pub mod verify;

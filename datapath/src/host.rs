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
pub mod wire;

/// Makes of each case, a function that takes the family as its type, two tests: `v4::CASE` and
/// `v6::CASE`.
#[macro_export]
macro_rules! both {
    ($($(#[$attr:meta])* $case:ident),* $(,)?) => {
        mod v4 {
            $($(#[$attr])* #[test] fn $case() { super::$case::<$crate::address::V4>(); })*
        }
        mod v6 {
            $($(#[$attr])* #[test] fn $case() { super::$case::<$crate::address::V6>(); })*
        }
    };
}

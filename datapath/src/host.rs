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

use std::{
    panic::{catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

/// Makes of each case, a function that takes the family as its type, two tests: `v4::CASE` and
/// `v6::CASE`.
#[macro_export]
macro_rules! both {
    ($($(#[$attr:meta])* $case:ident),* $(,)?) => {
        mod v4 {
            $($(#[$attr])* #[test] fn $case() {
                $crate::host::judge(super::$case::<$crate::address::V4>);
            })*
        }
        mod v6 {
            $($(#[$attr])* #[test] fn $case() {
                $crate::host::judge(super::$case::<$crate::address::V6>);
            })*
        }
    };
}

/// Runs a case, up to five times where it fails and was slow. Loaded programs tell the time by the
/// kernel's clock, which goes on beside what a case lets pass: what fails on a machine that stood
/// still meanwhile says nothing.
///
/// # Panics
///
/// As the case does.
pub fn judge(case: fn()) {
    const STALL: Duration = Duration::from_millis(300);
    for _ in 0..4 {
        let began = Instant::now();
        let Err(failure) = catch_unwind(case) else { return };
        let took = began.elapsed();
        if took < STALL {
            resume_unwind(failure);
        }
        eprintln!("took {took:?}: once more");
    }
    case();
}

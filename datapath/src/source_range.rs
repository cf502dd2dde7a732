//! Source ranges: who may begin connections to a load balancer's addresses
//! (`loadBalancerSourceRanges`).

use crate::{
    frontend::{Frontend, kind},
    header::Network,
    service::service_flags,
    tables::Tables,
};

/// What the tries `RANGES4` and `RANGES6` are looked up by: who asks which Service. 8 and 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct Source<A> {
    /// Index into `SERVICES`.
    pub service: u32,
    pub addr: A,
}

/// Key of the LPM tries `RANGES4` and `RANGES6`, as the kernel wants it: 12 and 24 bytes. That
/// there is a row says that sources in the range are admitted; its value, [`ADMITTED`], says no
/// more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
pub struct RangeKey<A> {
    /// Bits of `source` that count, in this machine's byte order: [`SERVICE_BITS`] and the range's.
    pub prefix_len: u32,
    pub source: Source<A>,
}

/// All bits of `Source::service`, which come first. They are always compared whole, so their order
/// does not matter.
pub const SERVICE_BITS: u32 = 32;

/// Value of the tries.
pub const ADMITTED: u32 = 1;

/// True if the frontend has source ranges.
#[inline(always)]
#[must_use]
pub const fn is_guarded(frontend_kind: u8, flags: u32) -> bool {
    frontend_kind == kind::LOAD_BALANCER && flags & service_flags::SOURCE_RANGES != 0
}

/// True if the frontend has source ranges, and none for this source.
#[inline(always)]
pub fn refuses<F: Network, T: Tables<F>>(
    tables: &mut T,
    frontend: &Frontend,
    source: F::Address,
) -> bool {
    // The row is read only for what can have ranges.
    frontend.kind == kind::LOAD_BALANCER
        && is_guarded(frontend.kind, tables.policy(frontend.service).flags)
        && !tables.is_admitted(frontend.service, source)
}

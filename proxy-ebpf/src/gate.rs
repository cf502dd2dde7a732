//! Most packets are none of ours, and to tell so must cost next to nothing: addresses are read
//! straight from the packet, and one byte of an array tells whether the tables can know them.
//! Where it says "perhaps", the engine looks.

use aya_ebpf::programs::TcContext;
use datapath::hash;

use crate::{
    flows::MARKS,
    known::is_foreign,
    marks::is_set,
    peek::{Peek, header},
};

/// True if an entering packet's destination is certainly none of ours.
#[inline(always)]
pub fn is_foreign_destination<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let destination = unsafe { F::peek(header.add(F::DST as usize)) };
    is_foreign::<F>(destination)
}

/// True if a leaving packet is certainly of no flow, and no ICMP error about one.
#[inline(always)]
pub fn is_foreign_pair<F: Peek>(context: &TcContext) -> bool {
    let Some(header) = header::<F>(context) else { return false };
    // SAFETY: `header` has checked that the whole fixed header is there.
    let (source, destination, next) = unsafe {
        (
            F::peek(header.add(F::SRC as usize)),
            F::peek(header.add(F::DST as usize)),
            *header.add(F::NEXT),
        )
    };
    !F::may_be_icmp(next) && !is_set(&MARKS, hash::pair(source, destination))
}

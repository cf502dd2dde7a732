//! Arrays of bytes that tell whether a table can know something: a byte that is set says
//! "perhaps", and most are not.

use aya_ebpf::btf_maps::Array;

use crate::linear::modulo;

pub type Marks<const LEN: usize, const FLAGS: usize> = Array<[u8; LEN], 1, FLAGS>;

/// True if the byte of a number is set.
#[inline(always)]
pub fn is_set<const LEN: usize, const FLAGS: usize>(
    marks: &Marks<LEN, FLAGS>,
    number: u32,
) -> bool {
    bits(marks, number) != 0
}

/// The byte of a number.
#[inline(always)]
pub fn bits<const LEN: usize, const FLAGS: usize>(marks: &Marks<LEN, FLAGS>, number: u32) -> u8 {
    let Some(bytes) = marks.get_ptr(0) else { return u8::MAX };
    // SAFETY: the place is below the row's length.
    unsafe { *bytes.cast::<u8>().add(modulo::<LEN>(number as usize)) }
}

/// Sets the byte of a number.
#[inline(always)]
pub fn set<const LEN: usize, const FLAGS: usize>(marks: &Marks<LEN, FLAGS>, number: u32) {
    if let Some(bytes) = marks.get_ptr_mut(0) {
        // SAFETY: the place is below the row's length.
        let byte = unsafe { bytes.cast::<u8>().add(modulo::<LEN>(number as usize)) };
        // Written once: processors share the cache line.
        // SAFETY: as above.
        unsafe {
            if *byte == 0 {
                *byte = 1;
            }
        }
    }
}

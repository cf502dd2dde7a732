//! CRC32c (RFC 9260, appendix A), and how it changes with a message's first bytes.
//!
//! A CRC is what remains of a division of polynomials over GF(2), and so linear: if two messages of
//! one length differ, their CRCs differ by the CRC of the difference alone. Bytes at the very
//! beginning are there a factor of x^(8·length): two look-ups and two products tell what it is, and
//! the rest of the message need not be read.

use core::hint::black_box;

/// The polynomial without its leading term (RFC 9260, appendix A), reversed: the lowest bit of a
/// word is its highest power.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// x^0 and x^8.
const ONE: u32 = 1 << 31;
const BYTE: u32 = 1 << 23;

/// x^(8·n) for n below 256, and x^(8·256·n).
static LOW: [u32; 256] = powers(BYTE);
static HIGH: [u32; 256] = powers(multiply(powers(BYTE)[255], BYTE));

/// The first powers of a polynomial.
const fn powers(base: u32) -> [u32; 256] {
    let mut powers = [ONE; 256];
    let mut at = 1;
    while at < powers.len() {
        powers[at] = multiply(powers[at - 1], base);
        at += 1;
    }
    powers
}

/// The product of two polynomials, modulo ours.
const fn multiply(mut a: u32, b: u32) -> u32 {
    let (mut product, mut power) = (0, 32);
    while power > 0 {
        power -= 1;
        (product, a) = step(product, a, b >> power & 1, a & 1);
    }
    product
}

/// The same in programs: a bit that the compiler knows to be one becomes a branch, and the verifier
/// would follow each way of all the 32.
#[inline(always)]
fn multiply_without_branches(mut a: u32, b: u32) -> u32 {
    let mut product = 0;
    for power in (0..32).rev() {
        (product, a) = step(product, a, black_box(b >> power & 1), black_box(a & 1));
    }
    product
}

/// Adds `a` to the product if the other factor has its power, and multiplies `a` by x; `carry` is
/// its highest power's coefficient.
#[inline(always)]
const fn step(product: u32, a: u32, bit: u32, carry: u32) -> (u32, u32) {
    (product ^ (a & bit.wrapping_neg()), (a >> 1) ^ (POLYNOMIAL & carry.wrapping_neg()))
}

/// What a message's CRC changes by (exclusive or) when its first four bytes, as a little-endian
/// word, do by `difference`. `length` is the message's, from 4 to 65,535 bytes.
#[inline(always)]
#[must_use]
pub fn change(difference: u32, length: u32) -> u32 {
    let low = LOW[(length & 0xff) as usize];
    let high = HIGH[(length >> 8 & 0xff) as usize];
    multiply_without_branches(multiply_without_branches(difference, low), high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::frame::crc32c;

    /// RFC 3720, appendix B.4, whose CRC is the same; there as bytes on the wire.
    #[test]
    fn published_vectors() {
        let rising: Vec<u8> = (0..32).collect();
        let falling: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
        assert_eq!(crc32c(&falling), 0x113f_db5c);
        // The check value of catalogues of CRCs (CRC-32/ISCSI).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_changed_beginning_changes_a_published_vector() {
        let mut message = [0_u8; 32];
        message[..4].fill(0xff);
        assert_eq!(crc32c(&message), 0x8a91_36aa ^ change(u32::MAX, 32));
    }

    #[test]
    fn powers_are_those_of_x() {
        // By shifting zeros through, a byte at a time.
        let mut power = ONE;
        for length in 0..=0xffff_u32 {
            let (low, high) = (LOW[(length & 0xff) as usize], HIGH[(length >> 8) as usize]);
            assert_eq!(multiply(low, high), power, "x^(8·{length})");
            for _ in 0..8 {
                power = (power >> 1) ^ (POLYNOMIAL & (power & 1).wrapping_neg());
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn changed_equals_computed(
            mut message in proptest::collection::vec(proptest::num::u8::ANY, 4..3000),
            new: [u8; 4],
        ) {
            let before = crc32c(&message);
            let old = [message[0], message[1], message[2], message[3]];
            message[..4].copy_from_slice(&new);
            let difference = u32::from_le_bytes(old) ^ u32::from_le_bytes(new);
            let change = change(difference, message.len() as u32);
            proptest::prop_assert_eq!(before ^ change, crc32c(&message));
        }

        #[test]
        fn changes_of_long_messages(length in 4_usize..65_536, fill: u8, new: [u8; 4]) {
            let mut message = vec![fill; length];
            let before = crc32c(&message);
            message[..4].copy_from_slice(&new);
            let difference = u32::from_le_bytes([fill; 4]) ^ u32::from_le_bytes(new);
            proptest::prop_assert_eq!(before ^ change(difference, length as u32), crc32c(&message));
        }
    }
}

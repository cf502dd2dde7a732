//! One's complement sums (RFC 1071) and their incremental change (RFC 1624), over 16-bit words
//! as they lie in memory: the sum of swapped words is the swapped sum, so byte order does not
//! matter as long as it is the same throughout.

/// Folds a sum into 16 bits. Wide enough for any sum of fewer than 2^16 words.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// What to add to a sum when words that add up to `old` are replaced by words that add up to
/// `new`.
#[inline(always)]
#[must_use]
pub const fn difference(old: u32, new: u32) -> u32 {
    new + (fold(old) ^ 0xffff) as u32
}

/// The checksum field after its data changed by `difference` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn replace(field: u16, difference: u32) -> u16 {
    !fold(fold(difference) as u32 + !field as u32)
}

/// Sum of the bytes as words, a lone last byte padded with zero.
#[inline(always)]
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    let mut total = 0;
    for pair in bytes.chunks(2) {
        let word = match *pair {
            [a, b] => u16::from_ne_bytes([a, b]),
            [a] => u16::from_ne_bytes([a, 0]),
            _ => 0,
        };
        total += word as u32;
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn incremental_equals_recomputed(mut data: [u8; 32], new: [u8; 4]) {
            let before = !fold(sum(&data));
            let old = sum(&data[8..12]);
            data[8..12].copy_from_slice(&new);
            let after = !fold(sum(&data));
            let incremental = replace(before, difference(old, sum(&new)));
            // Zero has two forms in one's complement.
            proptest::prop_assert!(
                incremental == after || (incremental == 0 && after == 0xffff)
                    || (incremental == 0xffff && after == 0)
            );
        }
    }

    #[test]
    fn rfc1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }
}

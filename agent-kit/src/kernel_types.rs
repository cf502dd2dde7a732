//! What the running kernel tells of its own structures (BTF, `Documentation/bpf/btf.rst`): at which
//! offset a member stands.

use std::{fs, io, path::Path};

const TYPES: &str = "/sys/kernel/btf/vmlinux";
const MAGIC: u16 = 0xeb9f;

/// Why it is not known where something stands.
#[derive(Debug, thiserror::Error)]
pub enum TypesError {
    #[error("cannot read {TYPES}: {0}; the kernel must be built with CONFIG_DEBUG_INFO_BTF")]
    Read(#[from] io::Error),
    #[error("{TYPES} tells of no {structure}::{member}")]
    Missing { structure: &'static str, member: &'static str },
}

/// The kernel's types, as it tells them.
#[derive(Debug)]
pub struct Types {
    bytes: Vec<u8>,
}

impl Types {
    pub fn read() -> Result<Self, TypesError> {
        Ok(Self { bytes: fs::read(Path::new(TYPES))? })
    }

    /// Bytes before a member of a structure, which stands in no nameless part of it.
    pub fn offset(&self, structure: &'static str, member: &'static str) -> Result<u16, TypesError> {
        let found = find(&self.bytes, structure, member).and_then(|at| u16::try_from(at).ok());
        found.ok_or(TypesError::Missing { structure, member })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn find(bytes: &[u8], structure: &str, member: &str) -> Option<u32> {
    const STRUCT: u32 = 4;
    if u16::from_ne_bytes(*bytes.first_chunk()?) != MAGIC {
        return None;
    }
    // `struct btf_header`: what follows counts from its end.
    let header = word(bytes, 4)? as usize;
    let part = |offset: u32, length: u32| {
        let start = header.checked_add(offset as usize)?;
        bytes.get(start..start.checked_add(length as usize)?)
    };
    let types = part(word(bytes, 8)?, word(bytes, 12)?)?;
    let strings = part(word(bytes, 16)?, word(bytes, 20)?)?;
    let is_called = |name: u32, wanted: &str| {
        let rest =
            strings.get(name as usize..).and_then(|rest| rest.strip_prefix(wanted.as_bytes()));
        rest.is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
        at += 12;
        let each = match kind {
            STRUCT | 5 | 15 | 19 => 12,
            6 | 13 => 8,
            _ => 0,
        };
        let alone = match kind {
            1 | 14 | 17 => 4,
            3 => 12,
            _ => 0,
        };
        if kind == STRUCT && is_called(name, structure) {
            for nth in 0..count {
                let field = at + each * nth;
                if is_called(word(types, field)?, member) {
                    let bits = word(types, field + 8)?;
                    // Where members may have a width in bits, that stands in the highest byte.
                    let bits = if info >> 31 == 0 { bits } else { bits & 0xff_ffff };
                    return Some(bits / 8);
                }
            }
        }
        at += each * count + alone;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An integer, and `struct b { int x; int y; }` behind `struct bb {}`.
    fn types() -> Vec<u8> {
        let strings = b"\0bb\0b\0x\0y\0";
        let (bb, b, x, y) = (1, 4, 6, 8);
        let words = [
            [x, 1 << 24, 4].as_slice(),
            &[32],
            &[bb, 4 << 24, 0],
            &[b, 1 << 31 | 4 << 24 | 2, 8],
            &[x, 1, 0],
            &[y, 1, 32 << 24 | 32],
        ]
        .concat();
        let length = words.len() as u32 * 4;
        let header = [24, 0, length, length, strings.len() as u32];
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        for word in header.iter().chain(&words) {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn a_member_is_found_by_both_names() {
        let types = types();
        assert_eq!(find(&types, "b", "y"), Some(4));
        assert_eq!(find(&types, "b", "x"), Some(0));
        assert_eq!(find(&types, "bb", "x"), None);
        assert_eq!(find(&types, "x", "x"), None);
        for length in 0..types.len() {
            let _ = find(&types[..length], "b", "y");
        }
    }
}

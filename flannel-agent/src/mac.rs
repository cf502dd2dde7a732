//! Hardware addresses as flannel writes and reads them.

use std::fmt;

use datapath::tunnel;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// A locally administered unicast address out of random bytes.
    pub fn local(mut bytes: [u8; 6]) -> Self {
        bytes[0] = (bytes[0] & 0xfe) | 0x02;
        Self(bytes)
    }

    /// Any form that Go's `ParseMAC` takes: `a:b:…`, `a-b-…`, `abcd.abcd.abcd`.
    pub fn parse(text: &str) -> Option<Self> {
        let (separator, width) = match text.as_bytes().get(2)? {
            b':' => (':', 2),
            b'-' => ('-', 2),
            _ => ('.', 4),
        };
        let is_hex =
            |part: &str| part.len() == width && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let parts: Vec<&str> = text.split(separator).collect();
        if parts.len() * width != 12 || !parts.iter().all(|part| is_hex(part)) {
            return None;
        }
        let digits = parts.concat();
        let mut bytes = [0; 6];
        for (nth, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(nth * 2..nth * 2 + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// One that a device can have and a peer can send to.
    pub fn is_usable(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl From<Mac> for tunnel::Mac {
    fn from(mac: Mac) -> Self {
        Self(mac.0)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let mac = Mac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]);
        for text in ["12:c6:65:89:b4:e3", "12-C6-65-89-B4-E3", "12c6.6589.b4e3"] {
            assert_eq!(Mac::parse(text), Some(mac), "{text}");
        }
        assert_eq!(mac.to_string(), "12:c6:65:89:b4:e3");
        for text in [
            "",
            "12",
            "12:c6:65:89:b4",
            "12:c6:65:89:b4:e3:00:01",
            "1:2:3:4:5:6",
            "12:c6-65:89:b4:e3",
            "12:c6:65:89:b4:eé",
            "ééé",
        ] {
            assert_eq!(Mac::parse(text), None, "{text}");
        }
        assert_eq!(Mac::local([0xff; 6]).0[0], 0xfe);
        assert!(!Mac([1, 0, 0, 0, 0, 0]).is_usable());
    }
}

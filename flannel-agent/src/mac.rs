//! Hardware addresses as flannel writes and reads them.

pub use datapath::address::Mac;

/// A locally administered unicast address out of random bytes.
pub fn local(mut bytes: [u8; 6]) -> Mac {
    bytes[0] = (bytes[0] & 0xfe) | 0x02;
    Mac(bytes)
}

/// Any form that Go's `ParseMAC` takes: `a:b:…`, `a-b-…`, `abcd.abcd.abcd`.
pub fn parse(text: &str) -> Option<Mac> {
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
    Some(Mac(bytes))
}

/// One that a device can have and a peer can send to.
pub fn is_usable(mac: Mac) -> bool {
    !mac.is_group() && mac != Mac::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let mac = Mac([0x12, 0xc6, 0x65, 0x89, 0xb4, 0xe3]);
        for text in ["12:c6:65:89:b4:e3", "12-C6-65-89-B4-E3", "12c6.6589.b4e3"] {
            assert_eq!(parse(text), Some(mac), "{text}");
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
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(local([0xff; 6]).0[0], 0xfe);
        assert!(!is_usable(Mac([1, 0, 0, 0, 0, 0])));
    }
}

//! JSON objects as Go's decoder reads them.

use serde_json::Value;

/// A field of an object, its name in any case; the exact name goes before one in another.
/// `null` says nothing.
pub fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    let map = value.as_object()?;
    let folded = || map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    map.get(name).or_else(|| folded().map(|(_, value)| value)).filter(|value| !value.is_null())
}

//! The files that a benchmark leaves.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::Value;

/// Writes `NAME.md` and `NAME.json`; returns the former's text.
pub(super) fn write(directory: &Path, name: &str, text: String, json: &Value) -> Result<String> {
    fs::create_dir_all(directory)?;
    let put = |extension: &str, text: &str| {
        let path = directory.join(name).with_extension(extension);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    put("md", &text)?;
    put("json", &serde_json::to_string_pretty(json)?)?;
    Ok(text)
}

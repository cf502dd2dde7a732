//! The Go tool chain, for what is built from Go modules. It is looked for and never installed:
//! Debian's own is too old, and a second one is for the user to choose.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

use crate::command::{self, clean};

/// What the modules of the peers ask for.
const OLDEST: Version = (1, 25);

/// Where Go's own installer puts it, which few search paths name.
const USUAL: &str = "/usr/local/go/bin";

type Version = (u32, u32);

/// A Go that is new enough; `why` says what for.
pub(crate) fn find(why: &str) -> Result<PathBuf> {
    let dirs = command::search_path().into_iter().chain([PathBuf::from(USUAL)]);
    let mut old = Vec::new();
    for go in dirs.map(|dir| dir.join("go")).filter(|go| go.is_file()) {
        let said = command::read(command_of(&go).args(["env", "GOVERSION"])).unwrap_or_default();
        match version(&said) {
            Some(version) if version >= OLDEST => return Ok(go),
            _ => old.push(format!("{} is {}", go.display(), said.trim())),
        }
    }
    let (major, minor) = OLDEST;
    let found = if old.is_empty() { "there is none".into() } else { old.join(", ") };
    bail!(
        "Go {major}.{minor} or newer is missing ({found}): it builds {why}; install it as \
         https://go.dev/doc/install says, to /usr/local/go, or put it into PATH"
    );
}

/// A command of this Go, which shall not fetch another one by itself.
pub(crate) fn command_of(go: &Path) -> Command {
    let mut command = clean(go);
    command.env("GOTOOLCHAIN", "local").env("GOWORK", "off");
    command
}

/// From what `go env GOVERSION` prints: `go1.26.8`, `devel go1.27-3f2a`.
fn version(text: &str) -> Option<Version> {
    let (_, numbers) = text.split_once("go")?;
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        assert_eq!(version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(version("devel go1.27-3f2a Mon"), Some((1, 27)));
        assert_eq!(version(""), None);
        assert!(version("go1.9").is_some_and(|old| old < OLDEST));
        assert!(version("go1.25rc1").is_some_and(|new| new >= OLDEST));
    }
}

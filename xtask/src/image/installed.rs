//! Programs that are installed on this machine, put into images with the libraries that they load.
//! Images have the merged `/usr` of Debian, wherever the machine has its files.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{files::Files, read};
use crate::command::{self, clean};

/// What the merged `/usr` replaced by links to the directories of the same names in it.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// The links that the paths of programs, scripts and dynamic loaders lead by.
pub(crate) fn merge(files: &mut Files) {
    for name in MERGED {
        files.directory(&format!("usr/{name}"), 0o755);
        files.link(name, &format!("usr/{name}"));
    }
}

/// Adds a program, as `usr/bin/NAME`, and all that the dynamic loader loads before it begins.
pub(crate) fn add(files: &mut Files, program: &str, name: &str) -> Result<()> {
    let path = command::find(program)
        .with_context(|| format!("{program} is missing, which pods of tests run"))?;
    files.program(&format!("usr/bin/{name}"), read(&path)?);
    for library in libraries(&path)? {
        let place = merged(&library);
        if !files.has(&place) {
            files.program(&place, read(Path::new(&library))?);
        }
    }
    Ok(())
}

/// Adds BusyBox, by which images of Alpine have their utilities too, as each of its commands whose
/// place nothing else has.
pub(crate) fn add_utilities(files: &mut Files) -> Result<()> {
    const BUSYBOX: &str = "busybox";
    add(files, BUSYBOX, BUSYBOX)?;
    let path = command::find(BUSYBOX).unwrap_or_default();
    for command in command::read(clean(path).arg("--list"))?.lines() {
        let place = format!("usr/bin/{command}");
        if !files.has(&place) {
            files.link(&place, BUSYBOX);
        }
    }
    Ok(())
}

/// The paths of the libraries of a program, its dynamic loader among them; none if it is static.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let output = clean("ldd").arg(program).env("LC_ALL", "C").output();
    let output = output.context("cannot start ldd (Debian: libc-bin)")?;
    if output.status.success() {
        return parse(&String::from_utf8_lossy(&output.stdout))
            .with_context(|| format!("libraries of {}", program.display()));
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    bail!("ldd {} failed: {}", program.display(), errors.trim());
}

/// From what ldd prints: `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f2a)` for each, the
/// loader without a name before it, and what the kernel provides without a path.
fn parse(printed: &str) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for line in printed.lines() {
        if line.ends_with("not found") {
            bail!("{}", line.trim());
        }
        paths.extend(line.split_whitespace().find(|word| word.starts_with('/')).map(String::from));
    }
    Ok(paths)
}

/// Where an image has a file of the machine, below its root.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches('/');
    match path.split_once('/') {
        Some((top, _)) if MERGED.contains(&top) => format!("usr/{path}"),
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_what_ldd_prints() {
        let printed = "\tlinux-vdso.so.1 (0x00007ffe4a5f2000)\n\
            \tlibbsd.so.0 => /lib/x86_64-linux-gnu/libbsd.so.0 (0x00007f1c0a9d5000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f1c0aa0d000)\n";
        let expected = ["/lib/x86_64-linux-gnu/libbsd.so.0", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse(printed).unwrap(), expected);
        assert!(parse("\tlibgone.so.1 => not found\n").is_err());
    }

    #[test]
    fn what_was_merged_is_below_usr() {
        assert_eq!(merged("/lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("/usr/lib/libz.so.1"), "usr/lib/libz.so.1");
        assert_eq!(merged("/opt/lib/libz.so.1"), "opt/lib/libz.so.1");
    }
}

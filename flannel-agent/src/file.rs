//! Files that others read while we write them.

use std::{
    fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use std::io::Write;

#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}: {source}; its directory must be writable")]
pub struct FileError {
    path: PathBuf,
    source: io::Error,
}

/// Puts a text at a path, whole or not at all, readable by all; its directory is made.
pub fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    let failed = |source| FileError { path: path.into(), source };
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if let Some(directory) = directory {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let aside = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o644)
            .open(&aside)?;
        // Whatever the mask of this process is.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&aside, path)
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&aside);
        failed(source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flannel/subnet.env");
        replace(&path, "one\n").unwrap();
        replace(&path, "two\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        let error = replace(Path::new("/proc/none/subnet.env"), "").unwrap_err().to_string();
        assert!(error.contains("/proc/none/subnet.env"), "{error}");
    }
}

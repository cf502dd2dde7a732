//! The directory source: manifests in `.yaml`, `.yml` and `.json` files of one directory,
//! watched by inotify. Like `kubectl apply -f DIR`, it does not look into subdirectories.
//!
//! [`crate::documents`] decides what is in force, without touching a file or a clock; [`read`]
//! reads and [`watch`] listens.

mod notify;
mod read;
mod watch;

use std::time::Duration;

pub use watch::watch;

/// An empty file may be about to be filled.
pub const EMPTY_GRACE: Duration = Duration::from_secs(1);
/// A file that went may be about to come back: editors that keep a copy rename the file, then
/// write a new one.
pub const GONE_GRACE: Duration = Duration::from_millis(10);
/// The same, for a directory that was away itself and may be about to be filled.
const RETURN_GRACE: Duration = Duration::from_secs(1);

/// Whether a file of this name is read. Names with a dot in front are editors' and ConfigMap
/// mounts' own.
fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

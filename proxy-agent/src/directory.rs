//! The directory source: manifests in `.yaml`, `.yml` and `.json` files of one directory,
//! watched by inotify. Like `kubectl apply -f DIR`, it does not look into subdirectories.
//!
//! [`files`] decides, without touching a file or a clock; [`read`] reads and [`watch`] listens.

pub mod files;
mod notify;
mod read;
mod watch;

use std::{sync::Arc, time::Instant};

use crate::{doubt::Doubt, model::Change, problem::Problem};

pub use watch::watch;

/// What the source tells at once.
#[derive(Debug)]
pub struct Batch {
    /// The directory has been read as a whole, in this batch or an earlier one.
    pub synced: bool,
    /// When the first of it was noticed.
    pub since: Instant,
    /// The first synced batch holds all objects, later ones what changed.
    pub changes: Vec<Change>,
    /// All problems there are now, not only new ones.
    pub problems: Arc<[Problem]>,
    /// All there is now that cannot be read and never was.
    pub doubts: Arc<[Doubt]>,
}

/// Whether a file of this name is read. Names with a dot in front are editors' and ConfigMap
/// mounts' own.
fn is_manifest(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

//! An agent's eBPF object, embedded in its binary: loaded with its maps pinned and its programs
//! verified.

use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
};

use aya::Ebpf;

use crate::{
    attach::{self, AttachError},
    mount::{self, MountError},
    object::{self, Loaded, ObjectError, Pins, Request},
};

/// Why there are no programs.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("built without the eBPF programs: use `cargo xtask build`")]
    NotEmbedded,
    #[error(transparent)]
    Mount(#[from] MountError),
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Program(#[from] AttachError),
}

/// What an agent's build found; see `agent-kit/embed.rs`.
#[derive(Clone, Copy, Debug)]
pub struct Embedded {
    /// Empty if it found nothing.
    pub bytes: &'static [u8],
    /// [`Request::groups`].
    pub groups: &'static [&'static [&'static str]],
}

impl Embedded {
    fn bytes(&self) -> Result<&'static [u8], LoadError> {
        if self.bytes.is_empty() { Err(LoadError::NotEmbedded) } else { Ok(self.bytes) }
    }

    /// Makes a place for pins, and this process the one that writes the tables there, for as long
    /// as the file lives.
    pub fn claim(&self, bpffs: &Path, pins: &Pins) -> Result<File, LoadError> {
        self.bytes()?;
        mount::provide_bpffs(bpffs)?;
        Ok(pins.claim()?)
    }

    /// Makes the pins again that somebody else removed meanwhile, and the place for them; gives the
    /// names of the tables. Links are pinned again where devices are looked at.
    pub fn restore<'a>(
        &self,
        bpffs: &Path,
        pins: &Pins,
        loaded: &'a Loaded,
        claim: &mut File,
    ) -> Result<Vec<&'a str>, LoadError> {
        if !pins.is_here(claim) {
            mount::provide_bpffs(bpffs)?;
            *claim = pins.claim_again()?;
        }
        Ok(loaded.restore()?)
    }

    /// Loads the object with its maps pinned, and has the kernel verify its programs. `shared` as
    /// in [`Request::shared`]; `unused` are programs that are not loaded.
    pub fn load(
        &self,
        pins: &Pins,
        capacities: &BTreeMap<String, u32>,
        shared: &[(&str, PathBuf)],
        unused: &[&str],
    ) -> Result<Loaded, LoadError> {
        let mut loaded = object::load(&Request {
            object: self.bytes()?,
            pins,
            layout: datapath::maps::LAYOUT,
            capacities,
            groups: self.groups,
            shared,
        })?;
        if let Err(err) = attach::load_programs(&mut loaded.ebpf, unused) {
            loaded.discard();
            return Err(err.into());
        }
        self.let_go();
        Ok(loaded)
    }

    /// Gives the object's pages back, half a megabyte that is not read again, or from the file.
    fn let_go(&self) {
        let page = rustix::param::page_size();
        let before = self.bytes.as_ptr().align_offset(page);
        let length = self.bytes.len().saturating_sub(before) / page * page;
        if length == 0 {
            return;
        }
        let start = self.bytes[before..].as_ptr().cast_mut().cast();
        // SAFETY: whole pages of a constant, which hold nothing else and nothing that was ever
        // written: the kernel reads them from the binary again where they are looked at.
        let _ = unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxDontNeed) };
    }

    /// Has the kernel verify the programs with small tables that are pinned nowhere.
    pub fn verify(&self) -> Result<Ebpf, LoadError> {
        let mut ebpf = object::load_private(self.bytes()?)?;
        attach::load_programs(&mut ebpf, &[])?;
        Ok(ebpf)
    }
}

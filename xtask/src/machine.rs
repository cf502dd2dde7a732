//! The machine that builds: what it has, what it lacks, and how it is given the rest.
//!
//! Whatever is missing is named with its reason before anything is installed, and with
//! `--offline` nothing ever is.

use std::{
    cell::Cell,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::command::{self, host};

/// One thing a task needs from the machine.
pub(crate) struct Need {
    pub(crate) name: String,
    pub(crate) why: &'static str,
    pub(crate) present: Box<dyn Fn() -> bool>,
    /// What provides it, in order.
    pub(crate) steps: Vec<Step>,
}

pub(crate) enum Step {
    /// Debian packages.
    Packages(&'static [&'static str]),
    /// A rustup or cargo command line.
    Command(Vec<String>),
}

pub(crate) struct Machine {
    pub(crate) root: PathBuf,
    pub(crate) offline: bool,
    /// Whether the package lists were fetched by us.
    refreshed: Cell<bool>,
}

impl Need {
    pub(crate) fn program(
        program: &'static str,
        why: &'static str,
        packages: &'static [&'static str],
    ) -> Self {
        Self {
            name: program.into(),
            why,
            present: Box::new(move || command::find(program).is_some()),
            steps: vec![Step::Packages(packages)],
        }
    }
}

impl Machine {
    pub(crate) fn new(offline: bool) -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().context("xtask stands in no workspace")?.to_path_buf();
        Ok(Self { root, offline, refreshed: Cell::new(false) })
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.root.join("target")
    }

    /// Where finished binaries are put.
    pub(crate) fn dist(&self) -> PathBuf {
        self.target().join("dist")
    }

    /// The user's own cargo, in the root workspace.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = host("cargo");
        cargo.current_dir(&self.root).env("PATH", command::joined_search_path());
        self.keep_offline(&mut cargo);
        cargo
    }

    pub(crate) fn keep_offline(&self, cargo: &mut Command) {
        if self.offline {
            cargo.env("CARGO_NET_OFFLINE", "true");
        }
    }

    /// Fetches the package lists, once. A source that fails may be one we do not need.
    pub(crate) fn refresh_packages(&self) {
        if self.offline || self.refreshed.replace(true) || command::find("apt-get").is_none() {
            return;
        }
        eprintln!("fetching package lists: apt-get update");
        if let Err(err) = command::run(host("apt-get").args(["--quiet", "update"])) {
            eprintln!("{err:#}; going on with the lists there are");
        }
    }

    /// Whether a package can be had. Without a look at fresh lists, a system with apt is
    /// taken to be one that has it.
    pub(crate) fn offers(&self, package: &str) -> bool {
        if command::find("apt-get").is_none() {
            return false;
        }
        if self.offline {
            return true;
        }
        self.refresh_packages();
        command::read(host("apt-cache").args(["show", "--no-all-versions", package])).is_ok()
    }

    /// Sees to it that all needs are met, or says what is missing and what to do.
    pub(crate) fn provide(&self, needs: &[Need]) -> Result<()> {
        let missing: Vec<&Need> = needs.iter().filter(|need| !(need.present)()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        for need in &missing {
            eprintln!("missing: {} ({})", need.name, need.why);
        }
        let commands = remedies(&missing);
        if self.offline {
            bail!("not installed because of --offline; run: {}", lines(&commands));
        }
        if commands.iter().any(|words| words[0] == "apt-get") {
            self.refresh_packages();
        }
        for remedy in &commands {
            install(remedy).with_context(|| {
                format!("install by hand what is missing, then try again: {}", lines(&commands))
            })?;
        }
        match missing.iter().find(|need| !(need.present)()) {
            Some(need) => bail!("{} is still missing after its installation", need.name),
            None => Ok(()),
        }
    }
}

/// The command lines that provide what is missing, packages first and all at once.
fn remedies(missing: &[&Need]) -> Vec<Vec<String>> {
    let mut packages: Vec<String> = Vec::new();
    let mut commands = Vec::new();
    for step in missing.iter().flat_map(|need| &need.steps) {
        match step {
            Step::Packages(names) => packages.extend(names.iter().map(ToString::to_string)),
            Step::Command(words) => commands.push(words.clone()),
        }
    }
    packages.sort();
    packages.dedup();
    if !packages.is_empty() {
        let install = ["apt-get", "--quiet", "install", "--yes", "--no-install-recommends"];
        let words = install.map(String::from).into_iter().chain(packages).collect();
        commands.insert(0, words);
    }
    commands
}

fn lines(commands: &[Vec<String>]) -> String {
    commands.iter().map(|words| words.join(" ")).collect::<Vec<_>>().join(" && ")
}

fn install(words: &[String]) -> Result<()> {
    let (program, arguments) = words.split_first().context("an empty command line")?;
    if program == "apt-get" && command::find(program).is_none() {
        bail!("this is no Debian-like system (no apt-get)");
    }
    eprintln!("installing: {}", words.join(" "));
    let mut install = host(program);
    install.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
    // The prefix of Debian's LLVM, for the build of bpf-linker.
    let llvm = Path::new("/usr/lib/llvm-22");
    if llvm.exists() {
        install.env("LLVM_PREFIX", llvm).env("LLVM_SYS_221_PREFIX", llvm);
    }
    command::run(&mut install)
}

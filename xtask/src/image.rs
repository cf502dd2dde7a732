//! `cargo xtask image`: the static agents as OCI images in one archive, without a container
//! engine.
//!
//! An image for each agent, so that a node pulls only what it runs, and `flannel-agent` can be
//! replaced while `proxy-agent` stays.

mod e2e;
mod files;
mod installed;
mod layout;

use std::{
    collections::BTreeMap,
    fs,
    io::BufWriter,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::{
    SetupArgs,
    agents::{self, AGENTS},
    architecture::Architecture,
    command,
    image::layout::Image,
    machine::Machine,
    object,
};

/// Of images that no registry has: container engines never ask one for a name that begins so.
const REPOSITORY: &str = "localhost/millrace";

#[derive(Args)]
pub(crate) struct ImageArgs {
    /// Processors to build for
    #[arg(long, value_delimiter = ',', default_value = "amd64,arm64")]
    arch: Vec<Architecture>,
    /// Where the archive is put [default: target/image/millrace.tar]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    setup: SetupArgs,
}

/// Builds the agents for each processor, and the images of them.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    let machine = Machine::new(args.setup.offline)?;
    let mut architectures = args.arch.clone();
    architectures.sort();
    architectures.dedup();
    build(&machine, &architectures, args.output.as_deref()).map(drop)
}

/// Returns where the archive is.
pub(crate) fn build(
    machine: &Machine,
    architectures: &[Architecture],
    output: Option<&Path>,
) -> Result<PathBuf> {
    let objects = object::build(machine)?;
    let directory = machine.target().join("image");
    for &architecture in architectures {
        let built = agents::build_static(machine, &objects, architecture)?;
        // Where deploy/Containerfile takes them from.
        let place = directory.join(architecture.name());
        for agent in AGENTS {
            answers(architecture, &agents::put_into(&place, &built.join(agent))?)?;
        }
    }
    let images = AGENTS
        .into_iter()
        .map(|agent| image(agent, architectures, &directory))
        .collect::<Result<Vec<_>>>()?;
    let archive = output.map_or_else(|| directory.join("millrace.tar"), Path::to_path_buf);
    write(&images, &archive)?;
    Ok(archive)
}

/// Makes images of what runs in the pods of the cluster tier beside the agents, for this processor:
/// lab-peer, which also holds a pod's namespaces, and CoreDNS.
pub(crate) fn build_pods(machine: &Machine, peers: &Path) -> Result<PathBuf> {
    let architecture = Architecture::host()?.name();
    let images =
        [("lab-peer", machine.dist(), &["pause"][..]), ("coredns", peers.to_path_buf(), &[])]
            .into_iter()
            .map(|(name, directory, arguments)| {
                let program = read(&directory.join(name))?;
                let reference = format!("{REPOSITORY}/{name}:{}", env!("CARGO_PKG_VERSION"));
                let programs = [(architecture, program)].into();
                Ok(Image { arguments, ..Image::of_program(name, reference, programs) })
            });
    let archive = machine.target().join("image/pods.tar");
    write(&images.collect::<Result<Vec<_>>>()?, &archive)?;
    Ok(archive)
}

/// Makes images of what runs in the pods of Kubernetes' end-to-end tests, for this processor.
pub(crate) fn build_e2e(machine: &Machine, peers: &Path) -> Result<()> {
    let images = e2e::images(peers, &machine.dist().join("lab-peer"))?;
    write(&images, &machine.target().join("image/e2e.tar"))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(images: &[Image], archive: &Path) -> Result<()> {
    let fresh = archive.with_extension("new");
    let file = fs::File::create(&fresh)
        .with_context(|| format!("cannot write {}; choose another --output", fresh.display()))?;
    layout::write(images, BufWriter::new(file))?;
    fs::rename(&fresh, archive)?;
    for image in images {
        let processors: Vec<&str> = image.layers.keys().copied().collect();
        eprintln!("{} ({})", image.reference, processors.join(", "));
    }
    eprintln!("{}: {} bytes", archive.display(), fs::metadata(archive)?.len());
    Ok(())
}

fn image(agent: &'static str, architectures: &[Architecture], directory: &Path) -> Result<Image> {
    let version = env!("CARGO_PKG_VERSION");
    let description = match agent {
        "proxy-agent" => "Balances Kubernetes Services with eBPF, in place of kube-proxy",
        "flannel-agent" => "Joins the pods of nodes with eBPF, in place of flanneld",
        other => bail!("{other} is no agent"),
    };
    let labels = [
        ("title", agent),
        ("description", description),
        ("version", version),
        ("source", env!("CARGO_PKG_REPOSITORY")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ];
    let programs = architectures.iter().map(|architecture| {
        let name = architecture.name();
        Ok((name, read(&directory.join(name).join(agent))?))
    });
    let reference = format!("{REPOSITORY}/{agent}:{version}");
    Ok(Image {
        labels: labels
            .into_iter()
            .map(|(name, value)| (format!("org.opencontainers.image.{name}"), value.to_owned()))
            .collect(),
        ..Image::of_program(agent, reference, programs.collect::<Result<BTreeMap<_, _>>>()?)
    })
}

/// Asks a binary for its version, before anybody ships it. One for another processor needs an
/// emulator; without, that it was not run is said.
fn answers(architecture: Architecture, binary: &Path) -> Result<()> {
    let mut ask = if architecture == Architecture::host()? {
        Command::new(binary)
    } else if let Some(emulator) = command::find(&architecture.emulator()) {
        let mut ask = Command::new(emulator);
        ask.arg(binary);
        ask
    } else {
        eprintln!(
            "{}: not run: no {} here (Debian: qemu-user-static)",
            binary.display(),
            architecture.emulator()
        );
        return Ok(());
    };
    let said = command::read(ask.arg("--version"))?;
    ensure!(
        said.trim().ends_with(env!("CARGO_PKG_VERSION")),
        "{} says it is {:?}",
        binary.display(),
        said.trim()
    );
    Ok(())
}

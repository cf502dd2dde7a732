//! `cargo xtask lab`: the namespaces of demo and tests, to explore by hand.

use std::{
    os::unix::process::ExitStatusExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use lab::{Lab, LabSpec, Lifetime, agent::SocketLb, manifests};

use crate::{
    SetupArgs, agents,
    command::search_path,
    joined::{self, Joined},
    machine::Machine,
    object, setup,
};

/// The lab that commands mean when none is named.
pub(crate) const DEFAULT: &str = "lab";

#[derive(Subcommand)]
pub(crate) enum LabTask {
    /// Raise two nodes with two pods each and an outside client, joined by routes, or with
    /// --agents by the overlay
    #[command(after_help = "Example: cargo xtask lab up --agents")]
    Up(UpArgs),
    /// Take down every lab that no running process owns
    #[command(after_help = "Example: cargo xtask lab down")]
    Down,
    /// List the labs that are up, with their places and addresses
    #[command(after_help = "Example: cargo xtask lab status")]
    Status,
    /// Run a command in a node, a pod or the client
    #[command(after_help = "Example: cargo xtask lab exec pod1a -- ip address")]
    Exec(ExecArgs),
}

#[derive(Args)]
pub(crate) struct UpArgs {
    /// Build and run both agents on each node, which join the nodes, with a real etcd
    #[arg(long)]
    agents: bool,
    /// Who meets proxy-agent's socket path; the rest is served by the packet path
    #[arg(long, default_value = "on", requires = "agents")]
    socket_lb: SocketLb,
    #[command(flatten)]
    setup: SetupArgs,
}

#[derive(Args)]
pub(crate) struct ExecArgs {
    /// `node1`, `pod1a`, …, `client` or `fabric`
    name: String,
    /// Which lab, if several are up
    #[arg(long)]
    lab: Option<String>,
    #[arg(required = true, last = true)]
    command: Vec<String>,
}

pub(crate) fn run(task: LabTask) -> Result<ExitCode> {
    match task {
        LabTask::Up(args) => up(&args)?,
        LabTask::Down => down()?,
        LabTask::Status => status(),
        LabTask::Exec(args) => return exec(&args),
    }
    Ok(ExitCode::SUCCESS)
}

fn up(args: &UpArgs) -> Result<()> {
    let machine = Machine::new(args.setup.offline)?;
    setup::root("a lab makes network namespaces and loads eBPF programs")?;
    let spec = if args.agents {
        machine.provide(&setup::joined_lab())?;
        agents::build_with_peer(&machine, &object::build(&machine)?)?;
        joined::spec()
    } else {
        machine.provide(&setup::lab())?;
        agents::build_peer(&machine)?;
        LabSpec::default()
    };
    let lab = Lab::raise(DEFAULT.into(), spec, Lifetime::Kept)?;
    lab.publish("nodes.yaml", &manifests::nodes(&lab))?;
    let joined = args.agents.then(|| Joined::start(&lab, args.socket_lb)).transpose()?;
    describe(&lab);
    println!("\ntry next:");
    println!("  cargo xtask lab exec pod1a -- ping -c1 {}", lab.addresses("pod2a")?.v4);
    if let Some(joined) = joined {
        joined.let_go();
        joined::suggest(&lab);
        println!("  manifests of node1: {}", lab.manifests("node1").display());
    }
    println!("  cargo xtask lab down");
    lab.keep();
    Ok(())
}

fn down() -> Result<()> {
    let gone = lab::remove_all()?;
    for id in &gone {
        println!("lab {id} is down");
    }
    for (id, _) in Lab::list() {
        println!("lab {id} belongs to a process that runs; it goes with that");
    }
    if gone.is_empty() {
        println!("nothing to take down");
    }
    Ok(())
}

fn status() {
    let labs = Lab::list();
    if labs.is_empty() {
        println!("no lab is up; raise one: cargo xtask lab up");
    }
    for lab in labs.iter().filter_map(|(id, _)| Lab::open(id).ok()) {
        describe(&lab);
    }
}

/// The places of a lab as a table.
pub(crate) fn describe(lab: &Lab) {
    println!("lab {}", lab.id());
    println!("{:<12} {:<16} {:<24} NAMESPACE", "PLACE", "IPV4", "IPV6");
    for name in lab.spec().names() {
        let Ok(place) = lab.place(name) else { continue };
        let (v4, v6) = (place.addresses.v4.to_string(), place.addresses.v6.to_string());
        let namespace = place.netns();
        let namespace = namespace.file_name().unwrap_or_default().display();
        println!("{name:<12} {v4:<16} {v6:<24} {namespace}");
    }
}

/// Exits as the command did.
fn exec(args: &ExecArgs) -> Result<ExitCode> {
    let lab = match &args.lab {
        Some(id) => Lab::open(id)?,
        None => the_one()?,
    };
    let (program, arguments) = args.command.split_first().context("no command given")?;
    let mut command = Command::new(program);
    // `lab-peer` and `proxy-agent` are found by name.
    let mut path = vec![lab::dist()];
    path.extend(search_path());
    command.args(arguments).env("PATH", std::env::join_paths(path)?);
    let status = lab.place(&args.name)?.spawn(command)?.wait()?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

fn the_one() -> Result<Lab> {
    let labs = Lab::list();
    let kept = labs.iter().find(|(id, _)| id == DEFAULT).or(match labs.as_slice() {
        [one] => Some(one),
        _ => None,
    });
    match kept {
        Some((id, _)) => Ok(Lab::open(id)?),
        None if labs.is_empty() => bail!("no lab is up; raise one: cargo xtask lab up"),
        None => {
            let ids: Vec<&str> = labs.iter().map(|(id, _)| id.as_str()).collect();
            bail!("several labs are up; name one with --lab: {}", ids.join(", "))
        }
    }
}

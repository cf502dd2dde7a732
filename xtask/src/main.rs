//! `cargo xtask`: build, test, demo, lab and bench of this repository, one command each.

mod agents;
mod architecture;
mod bench;
mod command;
mod compiler;
mod demo;
mod direction;
mod go;
mod image;
mod joined;
mod kernels;
mod lab;
mod machine;
mod named_tests;
mod object;
mod peers;
mod setup;
mod stack;
mod tally;
mod tidy;
mod tiers;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::machine::Machine;

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    version,
    about = "Build, test, demo, lab and bench of Millrace",
    after_help = "Example: cargo xtask demo"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the eBPF objects and the agents that embed them, into target/dist
    #[command(after_help = "Example: cargo xtask build --release")]
    Build(BuildArgs),
    /// Make OCI images of the static agents, for several processors, in one archive
    #[command(after_help = "Example: cargo xtask image --arch arm64 --output /tmp/millrace.tar")]
    Image(image::ImageArgs),
    /// Run two nodes with agents, send real traffic, and show who answered
    #[command(after_help = "Example: cargo xtask demo --keep")]
    Demo(demo::DemoArgs),
    /// Run the tests, all tiers or one
    #[command(after_help = "Example: cargo xtask test --tier unit")]
    Test(TestArgs),
    /// Check format, lints, licences, advisories and dependency direction
    #[command(after_help = "Example: cargo xtask tidy")]
    Tidy(SetupArgs),
    /// Run benchmarks, all or those named
    #[command(after_help = "Example: cargo xtask bench service --peers")]
    Bench(BenchArgs),
    /// The same namespaces as the demo's, to explore by hand
    #[command(subcommand, after_help = "Example: cargo xtask lab up")]
    Lab(lab::LabTask),
}

#[derive(Args)]
struct BuildArgs {
    /// Static binaries (musl), optimised
    #[arg(long)]
    release: bool,
    /// Stop after the eBPF objects (target/bpf)
    #[arg(long)]
    objects: bool,
    /// Also what benchmarks and tests run beside, from pinned Go modules (target/peers), as `bench
    /// --peers` and `test` do when they need it; takes Go 1.25 or newer
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    setup: SetupArgs,
}

#[derive(Args)]
struct TestArgs {
    /// Only this tier
    #[arg(long)]
    tier: Option<tiers::Tier>,
    #[command(flatten)]
    setup: SetupArgs,
}

#[derive(Args)]
struct BenchArgs {
    /// Which benchmarks; all of them unless some are named
    #[arg(value_name = "NAME", value_parser = bench::names())]
    names: Vec<String>,
    /// Few rounds, to see that it works; the figures mean nothing
    #[arg(long)]
    quick: bool,
    /// Only this part of the benchmark
    #[arg(long)]
    only: Option<bench::Part>,
    /// Numbers of Services beside which traffic is measured, and the largest of them in the API
    /// server (service)
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    services: Vec<u32>,
    /// Measure the real kube-proxy (1.35, modes nftables and iptables) or flanneld (0.28.4) in the
    /// same run, and the control plane told by a real kube-apiserver; builds them from pinned Go
    /// modules, which takes Go 1.25 or newer
    #[arg(long)]
    peers: bool,
    #[command(flatten)]
    setup: SetupArgs,
}

#[derive(Args)]
struct SetupArgs {
    /// Never download or install anything: say what is missing and stop
    #[arg(long)]
    offline: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(code) => code,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    match task {
        Task::Build(args) => {
            let machine = Machine::new(args.setup.offline)?;
            let objects = object::build(&machine)?;
            if !args.objects {
                agents::build(&machine, &objects, args.release.into())?;
            }
            if args.peers {
                peers::provide_all(&machine)?;
            }
        }
        Task::Image(args) => image::run(&args)?,
        Task::Demo(args) => demo::run(&args)?,
        Task::Test(args) => tiers::run(&Machine::new(args.setup.offline)?, args.tier)?,
        Task::Tidy(args) => {
            let tally = tidy::run(&Machine::new(args.offline)?)?;
            anyhow::ensure!(tally.failed == 0, "{} checks failed", tally.failed);
        }
        Task::Bench(args) => {
            let options = bench::Options {
                quick: args.quick,
                only: args.only,
                services: args.services,
                peers: args.peers,
            };
            bench::run(&Machine::new(args.setup.offline)?, &args.names, &options)?;
        }
        Task::Lab(task) => return lab::run(task),
    }
    Ok(ExitCode::SUCCESS)
}

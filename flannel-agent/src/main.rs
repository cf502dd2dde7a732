//! The command `flannel-agent`: reads the command line, runs, and turns errors into exit codes
//! (0 success, 1 failure, 2 bad usage).

use std::{
    env,
    future::Future,
    io::{self, Write},
    process::ExitCode,
};

use agent_kit::{finding, log, output::print};
use anyhow::{Context, Result};
use clap::Parser;
use flannel_agent::{
    check, cleanup, cni,
    config::{Cli, Command, ConfigError, RunArgs, spelled},
    run::{self, RunError},
    show,
};

/// musl's own allocator is slow with many threads, and keeps more memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse_from(spelled(env::args_os()));
    match execute(cli) {
        Ok(code) => code,
        Err(err) => {
            let _ = writeln!(io::stderr(), "flannel-agent: {err}");
            let is_usage = err.downcast_ref::<ConfigError>().is_some()
                || matches!(err.downcast_ref(), Some(RunError::Config(_)));
            ExitCode::from(if is_usage { 2 } else { 1 })
        }
    }
}

fn execute(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        None => agent(cli.run),
        Some(Command::Run(args)) => agent(*args),
        Some(Command::Status(args)) => {
            let status = show::status(args.metrics_bind_address);
            print(args.output.output, &status, show::print_status)
        }
        Some(Command::Peers(args)) => {
            let peers = show::peers(args.metrics_bind_address)?;
            print(args.output.output, &peers, |peers| show::print_peers(peers))
        }
        Some(Command::Check(args)) => {
            let settings = args.interface.settings()?;
            let findings = block_on(check::check(&settings, &args.pins.bpffs))?;
            print(args.output.output, &findings, |findings| finding::print(findings))?;
            Ok(if finding::is_fit(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::InstallCni(args)) => {
            let installed = cni::install(&args.from, &args.to)?;
            print(args.output.output, &installed, cni::print)
        }
        Some(Command::Cleanup(args)) => {
            let bpffs = &args.pins.bpffs;
            let reserved = &args.reserved_ports;
            let removed =
                block_on(cleanup::cleanup(&args.subnet_file, bpffs, args.nat_ports, reserved))??;
            print(args.output.output, &removed, cleanup::print)
        }
    }
}

fn agent(args: RunArgs) -> Result<ExitCode> {
    args.validate()?;
    log::init(args.log_format, args.verbose, "flannel_agent");
    block_on(run::run(args))??;
    Ok(ExitCode::SUCCESS)
}

fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let output = runtime.block_on(future);
    // Nobody waits for a watch that is under way.
    runtime.shutdown_background();
    Ok(output)
}

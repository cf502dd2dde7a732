//! The command `proxy-agent`: reads the command line, runs, and turns errors into exit codes
//! (0 success, 1 failure, 2 bad usage).

use std::{
    env, fs,
    io::{self, Write},
    path::Path,
    process::ExitCode,
};

use agent_kit::{
    finding, log,
    output::{Output, print},
};
use anyhow::{Context, Result, anyhow};
use clap::Parser;
use proxy_agent::{
    capture, check, cleanup,
    config::{Cli, Command, ConfigError, RunArgs, spelled},
    init,
    kube_proxy::{self, KubeProxyConfig, KubeProxyError, flags::Errand},
    object,
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
            let _ = writeln!(io::stderr(), "proxy-agent: {err}");
            let is_usage = err.downcast_ref::<ConfigError>().is_some()
                || err.downcast_ref::<KubeProxyError>().is_some()
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
            let status = show::status::read(args.metrics_bind_address, &args.show.pins.bpffs)?;
            print(args.show.output.output, &status, show::status::print)
        }
        Some(Command::Services(args)) => {
            let maps = object::pins(&args.show.pins.bpffs).maps();
            let services = show::services::read(&maps, args.name.as_deref())?;
            print(args.show.output.output, &services, |services| show::services::print(services))
        }
        Some(Command::Backends(args)) => {
            let maps = object::pins(&args.pins.bpffs).maps();
            let backends = show::services::backends(&show::services::read(&maps, None)?);
            print(args.output.output, &backends, |backends| {
                show::services::print_backends(backends)
            })
        }
        Some(Command::Flows(args)) => {
            let flows = show::flows::read(&object::pins(&args.pins.bpffs).maps())?;
            print(args.output.output, &flows, |flows| show::flows::print(flows))
        }
        Some(Command::Capture(args)) => {
            capture::capture(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Command::Check(args)) => {
            let findings = check::check(&args);
            print(args.show.output.output, &findings, |findings| finding::print(findings))?;
            Ok(if finding::is_fit(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Some(Command::Cleanup(args)) => {
            let cleanup =
                if args.kube_proxy { cleanup::cleanup_kube_proxy } else { cleanup::cleanup };
            let removed = cleanup(&args.show.pins.bpffs, args.nat_ports, &args.reserved_ports)?;
            print(args.show.output.output, &removed, cleanup::print)
        }
    }
}

fn agent(mut args: RunArgs) -> Result<ExitCode> {
    let kube_proxy = kube_proxy::resolve(&mut args)?;
    match &kube_proxy.errand {
        Some(Errand::WriteConfig(path)) => return write_config(&kube_proxy, &args, path),
        Some(Errand::Cleanup) => {
            let removed = cleanup::cleanup_kube_proxy(
                &args.pins.bpffs,
                args.nat_ports,
                &args.reserved_ports,
            )?;
            return print(Output::Table, &removed, cleanup::print);
        }
        Some(Errand::Init) => return print(Output::Table, &init::init(&args)?, init::print),
        None => {}
    }
    args.validate()?;
    log::init(args.log_format, args.verbose, "proxy_agent");
    return_memory_at_once();
    // One thread for changes, one for those who ask; waits and sweeps have their own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run::run(args, kube_proxy));
    // Nobody waits for a sweep or a wait that is under way.
    runtime.shutdown_background();
    result?;
    Ok(ExitCode::SUCCESS)
}

fn write_config(kube_proxy: &KubeProxyConfig, args: &RunArgs, path: &Path) -> Result<ExitCode> {
    let file = path.display();
    let text = kube_proxy.to_file(args)?;
    fs::write(path, text)
        .map_err(|err| anyhow!("--write-config-to: cannot write {file}: {err}"))?;
    writeln!(io::stdout(), "wrote {file}; proxy-agent run --config {file} runs with it")?;
    Ok(ExitCode::SUCCESS)
}

/// Reading ten thousand manifests takes twice the memory that is kept of them. What is freed
/// goes back to the kernel at once, because an agent at rest would never return it later.
fn return_memory_at_once() {
    /// `mi_option_purge_delay`, which the bindings do not name.
    const PURGE_DELAY: i32 = 15;
    // SAFETY: no other thread runs yet, which is what the call asks for.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, 0) };
}

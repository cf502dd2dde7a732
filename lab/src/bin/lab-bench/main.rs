//! The load of the benchmarks: a server and a driver that spend as little as they can beside
//! the system calls that are measured.

mod bpf;
mod drive;
mod frames;
mod instructions;
mod rounds;
mod rows;
mod runs;
mod serve;
mod watch;

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about, after_help = "Example: lab-bench --cpu 1 serve")]
struct Cli {
    #[command(subcommand)]
    task: Task,
    /// Stay on this processor, and before other processes on it
    #[arg(long)]
    cpu: Option<usize>,
}

#[derive(Subcommand)]
enum Task {
    /// Serve every kind of round until ended
    Serve,
    /// Read orders, one JSON document a line, and print what came of each
    #[command(
        after_help = "Example: echo '{\"latency\":{\"to\":\"10.96.0.10:7002\",\"count\":9}}' | \
                            lab-bench drive"
    )]
    Drive,
    /// Have the kernel count the runs of eBPF programs until ended
    CountRuns,
}

fn main() -> ExitCode {
    let Cli { task, cpu } = Cli::parse();
    let run = match task {
        Task::Serve => serve::run,
        Task::Drive => drive::run,
        Task::CountRuns => runs::count,
    };
    match cpu.map_or(Ok(()), stay_on).and_then(|()| run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("lab-bench: {err}");
            ExitCode::FAILURE
        }
    }
}

/// Threads started later stay there too.
fn stay_on(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::other(format!("--cpu: there is no processor {cpu}")));
    }
    // SAFETY: a set of zeros is an empty one, and the number is within the set.
    let outcome = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    go_first();
    Ok(())
}

/// Before everything that is not real-time: what else the machine does must not be measured.
/// Kernels that give a cgroup no such time refuse, and then rounds are only less alike.
fn go_first() {
    // SAFETY: parameters of zeros are valid ones, and the kernel only reads them.
    let outcome = unsafe {
        let mut parameters: libc::sched_param = std::mem::zeroed();
        parameters.sched_priority = 1;
        // musl has a function of this name that only says it has none.
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const parameters)
    };
    if outcome != 0 {
        eprintln!("lab-bench: no real-time priority: {}", io::Error::last_os_error());
    }
}

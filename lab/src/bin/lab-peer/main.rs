//! The processes inside pods: a server that says who it is and whom it sees, a client that
//! prints what became of each request, and a load that counts what was lost.

mod ask;
mod exchange;
mod load;
mod serve;
mod socket;
mod survey;

use std::{net::ToSocketAddrs, process::ExitCode};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(version, about, after_help = "Example: lab-peer ask tcp 10.96.0.10:80")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Answer connections, datagrams and HTTP requests with one line of JSON each
    #[command(after_help = "Example: lab-peer serve --name pod1a --tcp 8080 --udp 8080 --http 80")]
    Serve(serve::Arguments),
    /// Ask a server and print what became of it
    #[command(after_help = "Example: lab-peer ask udp 10.96.0.10:53 --count 3 --json")]
    Ask(ask::Arguments),
    /// Send bulk data both ways at once and compare it
    #[command(after_help = "Example: lab-peer exchange 10.96.0.10:80 --bytes 1000000")]
    Exchange(exchange::Arguments),
    /// Keep connections and datagrams going and count what fails
    #[command(after_help = "Example: lab-peer load --tcp 10.96.0.10:80 --seconds 10")]
    Load(load::Arguments),
    /// Print the addresses of a name, as this place's resolver tells them
    #[command(after_help = "Example: lab-peer resolve web.default.svc.cluster.local")]
    Resolve { name: String },
    /// Do nothing until told to end: what holds a pod's namespaces
    #[command(after_help = "Example: lab-peer pause")]
    Pause,
    /// Ask many questions at once and print all that answered each
    #[command(
        long_about = "Reads one question a line, in JSON, to the end of standard input, and \
                      prints what was heard of each in the same order."
    )]
    Survey(survey::Arguments),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Serve(arguments) => serve::run(&arguments),
        Task::Ask(arguments) => ask::run(&arguments),
        Task::Exchange(arguments) => exchange::run(&arguments),
        Task::Load(arguments) => load::run(&arguments),
        Task::Resolve { name } => resolve(&name),
        Task::Pause => pause(),
        Task::Survey(arguments) => survey::run(&arguments),
    };
    match result {
        Ok(code) => code,
        Err(err) => {
            eprintln!("lab-peer: {err}");
            ExitCode::FAILURE
        }
    }
}

/// The first process of a pod gets no signal that it does not ask for.
fn pause() -> std::io::Result<ExitCode> {
    let (told, end) = std::sync::mpsc::channel();
    let tell = move || {
        let _ = told.send(());
    };
    ctrlc::set_handler(tell).map_err(std::io::Error::other)?;
    let _ = end.recv();
    Ok(ExitCode::SUCCESS)
}

/// A failure says why; a name without an address is one.
fn resolve(name: &str) -> std::io::Result<ExitCode> {
    for address in (name, 0).to_socket_addrs()? {
        println!("{}", address.ip());
    }
    Ok(ExitCode::SUCCESS)
}

//! What a command prints: a table for people or JSON for programs, the same facts.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Serialize;

#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Table for people, JSON for programs
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// Prints facts as asked for.
pub fn print<T: Serialize>(
    output: Output,
    facts: &T,
    for_people: impl FnOnce(&T) -> String,
) -> Result<ExitCode> {
    let text = match output {
        Output::Table => for_people(facts),
        Output::Json => serde_json::to_string_pretty(facts)? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough (`proxy-agent flows | head`).
        Err(err) if err.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        result => result
            .context(
                "cannot write to standard output: the file system is full or the pipe is broken",
            )
            .map(|()| ExitCode::SUCCESS),
    }
}

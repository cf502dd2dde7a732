//! The log of an agent: standard error, as text or JSON.

use std::io;

use clap::ValueEnum;
use serde::Serialize;
use tracing_subscriber::EnvFilter;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Begins to log; `RUST_LOG` goes before `verbose`, which is about this agent's own crates.
pub fn init(format: LogFormat, verbose: u8, agent: &str) {
    let level = match verbose {
        0 => "info".to_owned(),
        1 => format!("info,{agent}=debug,agent_kit=debug"),
        _ => format!("debug,{agent}=trace,agent_kit=trace"),
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let subscriber =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false);
    match format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
}

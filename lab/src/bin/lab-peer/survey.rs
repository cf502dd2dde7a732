//! Many questions at once: each on a thread of its own, with an end to how many there are.

use std::{
    io::{self, BufRead, Write},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    thread,
};

use clap::Args;
use lab::{
    peer::Answer,
    survey::{Finding, Inquiry},
};

use crate::ask;

#[derive(Args, Clone, Debug)]
pub(crate) struct Arguments {
    /// Questions that are asked at the same time; most of them wait for what is dropped
    #[arg(long, default_value_t = 48)]
    parallel: usize,
    /// The source port of the first request; each has one of its own
    #[arg(long, default_value_t = 10_000)]
    first_port: u16,
}

/// Reads questions from standard input, to its end, and prints what was heard in their order.
pub(crate) fn run(arguments: &Arguments) -> io::Result<ExitCode> {
    let inquiries: Vec<Inquiry> = io::stdin()
        .lock()
        .lines()
        .map(|line| serde_json::from_str(&line?).map_err(io::Error::other))
        .collect::<io::Result<_>>()?;
    let findings = Mutex::new(vec![Finding::default(); inquiries.len()]);
    let next = AtomicUsize::new(0);
    let ports = Ports(AtomicU16::new(arguments.first_port));
    thread::scope(|scope| {
        for _ in 0..arguments.parallel.clamp(1, inquiries.len().max(1)) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(inquiry) = inquiries.get(number) else { break };
                    let finding = inquire(inquiry, &ports);
                    findings.lock().unwrap_or_else(PoisonError::into_inner)[number] = finding;
                }
            });
        }
    });
    let findings = findings.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut out = io::stdout().lock();
    for finding in findings {
        let line = serde_json::to_string(&finding).expect("what was heard is plain data");
        writeln!(out, "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Source ports, each given once, and the next where another socket has one.
struct Ports(AtomicU16);

impl Ports {
    fn ask(&self, question: &ask::Arguments, number: u32) -> Answer {
        loop {
            let port = self.0.fetch_add(1, Ordering::Relaxed);
            let answer = ask::ask(&question.clone().with_source_port(port), number);
            if !matches!(answer.error.as_deref(), Some("EADDRINUSE" | "EADDRNOTAVAIL")) {
                return answer;
            }
        }
    }
}

fn inquire(inquiry: &Inquiry, ports: &Ports) -> Finding {
    let question = ask::Arguments::plain(inquiry.protocol, inquiry.to, inquiry.timeout);
    let mut finding = Finding::default();
    let mut errors = 0;
    for number in 0..inquiry.count {
        let answer = ports.ask(&question, number);
        if answer.from.or(answer.peer).is_some_and(|from| from != inquiry.to) {
            finding.errors.insert("foreign".into());
        }
        finding.heard.extend(answer.answer.map(|it| (it.name, it.source.ip())));
        if let Some(error) = answer.error {
            finding.errors.insert(error);
            errors += 1;
        }
        // Twice at least: what changes between two answers is seen.
        let is_complete = number > 0 && finding.servers() >= inquiry.servers;
        if errors == Finding::ENOUGH || is_complete {
            break;
        }
    }
    finding
}

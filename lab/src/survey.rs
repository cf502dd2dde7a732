//! Many questions from one place at once, each asked as often as it takes to hear everybody who
//! answers: what `lab-peer survey` reads and prints.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, SocketAddr},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    error::{At, Error, Result},
    peer::{self, Protocol},
    place::Place,
};

/// A question: one line of JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inquiry {
    pub protocol: Protocol,
    pub to: SocketAddr,
    /// How often it is asked at most. After [`Finding::ENOUGH`] errors it is not asked again.
    pub count: u32,
    /// How many servers there are: once each has answered, asking again would tell no more.
    pub servers: usize,
    /// How long a connection, or the answer to a datagram, is waited for.
    pub timeout: Duration,
}

/// All that was heard, each once: one line of JSON.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Finding {
    /// Names of servers that answered, with the address that they saw the question come from.
    pub heard: BTreeSet<(String, IpAddr)>,
    /// Errors as [`peer::Answer`] names them, and `foreign` for an answer from another address
    /// than was asked.
    pub errors: BTreeSet<String>,
}

impl Finding {
    /// Errors that are taken for the rule: each costs a timeout.
    pub const ENOUGH: u32 = 2;

    /// How many servers answered.
    pub fn servers(&self) -> usize {
        self.heard.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len()
    }
}

/// Asks all questions, in parallel, and returns what was heard of each. Each time another source
/// port is used, from the first one on: toward one backend, two flows of different frontends from
/// one port are a matter of their own.
pub fn survey(place: &Place, first_port: u16, inquiries: &[Inquiry]) -> Result<Vec<Finding>> {
    let failed = |message: String| Error::Command {
        place: place.name.clone(),
        command: "lab-peer survey".into(),
        message,
    };
    let mut command = peer::command();
    command.arg("survey").arg(format!("--first-port={first_port}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut process = place.spawn(command)?;
    // It reads everything before it prints anything, so neither waits for the other.
    if let Some(mut stdin) = process.stdin() {
        for inquiry in inquiries {
            let line = serde_json::to_string(inquiry).expect("a question is plain data");
            writeln!(stdin, "{line}").at("write", "the standard input of lab-peer")?;
        }
    }
    let output = process.output().map_err(|err| failed(err.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let findings: Vec<Finding> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<std::result::Result<_, _>>()
        .map_err(|source| Error::Answer { what: "lab-peer survey".into(), source })?;
    if findings.len() == inquiries.len() {
        return Ok(findings);
    }
    Err(failed(format!("{} of {} questions were answered", findings.len(), inquiries.len())))
}

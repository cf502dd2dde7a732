//! What became of a request, in words that two proxies share.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use lab::{Lab, address, survey::Finding};

use crate::bed::ok;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Outcome {
    /// A server answered, and saw the request come from this place.
    Answer { backend: String, source: String },
    /// With session affinity: one server answered every time, whichever it was.
    Kept,
    /// The error by name: `ECONNREFUSED`, or `timeout` for what was dropped.
    Failed(String),
}

/// All that became of one question, asked often.
pub(crate) type Outcomes = BTreeSet<Outcome>;

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { backend, source } => write!(f, "{backend} saw {source}"),
            Self::Kept => f.write_str("always the same"),
            Self::Failed(name) if name == "ECONNREFUSED" => f.write_str("refused"),
            Self::Failed(name) if name == "timeout" => f.write_str("dropped"),
            Self::Failed(name) => f.write_str(name),
        }
    }
}

/// As a person reads it.
pub(crate) fn text(outcomes: &Outcomes) -> String {
    let all: Vec<_> = outcomes.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// In the lab's names. With affinity it is random who answers first, so only that it stays is
/// told.
pub(crate) fn outcomes(lab: &Lab, finding: &Finding, has_affinity: bool) -> Outcomes {
    let backends: BTreeSet<_> = finding.heard.iter().map(|(name, _)| name).collect();
    let errors = finding.errors.iter().cloned().map(Outcome::Failed);
    if has_affinity && backends.len() == 1 {
        return errors.chain([Outcome::Kept]).collect();
    }
    let answers = finding.heard.iter().map(|(backend, source)| Outcome::Answer {
        backend: backend.clone(),
        source: place(lab, *source),
    });
    answers.chain(errors).collect()
}

/// The place that has an address; `bridge1` is the first node's bridge of pods.
fn place(lab: &Lab, ip: IpAddr) -> String {
    let spec = lab.spec();
    let has = |name: &&str| ok(lab.addresses(name)).both().contains(&ip);
    if let Some(name) = spec.names().into_iter().find(has) {
        return name.into();
    }
    let bridges = spec.nodes().map(|(number, _)| number).find(|number| {
        [IpAddr::from(address::gateway4(*number)), address::gateway6(*number).into()].contains(&ip)
    });
    bridges.map_or_else(|| ip.to_string(), |number| format!("bridge{number}"))
}

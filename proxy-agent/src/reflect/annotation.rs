//! Annotations of Millrace's own. One that cannot be read is named, and asks for nothing: it must not
//! keep a Service from being served.

use std::net::IpAddr;

use datapath::algorithm::Algorithm;

use super::Report;
use crate::{
    config,
    manifest::document::{Annotations, Metadata},
    model::{Weight, Weighted},
    problem::ProblemKind,
};

/// Above IPVS' largest there is no use.
const WEIGHT_MAX: u16 = 65_535;

fn annotations(metadata: Option<&Metadata>) -> Option<&Annotations> {
    metadata?.annotations.as_ref()
}

fn complain(report: &mut Report, name: &str, message: String) {
    let field = format!("metadata.annotations[millrace.io/{name}]");
    report.note(ProblemKind::Ignored, field, message);
}

/// How a Service's backends are chosen, if it says.
pub(super) fn algorithm(metadata: Option<&Metadata>, report: &mut Report) -> Option<Algorithm> {
    let text = annotations(metadata)?.algorithm.as_deref()?;
    let known = config::Algorithm::named(text);
    if known.is_none() {
        let message = format!("unknown algorithm {text:?}; write {}", config::Algorithm::NAMES);
        complain(report, "algorithm", message);
    }
    known.map(Into::into)
}

/// Whether a Service or a pod is left out of the socket path.
pub(super) fn without_sockets(metadata: Option<&Metadata>, report: &mut Report) -> bool {
    match annotations(metadata).and_then(|all| all.socket_lb.as_deref()) {
        None | Some("on") => false,
        Some("off") => true,
        Some(other) => {
            complain(report, "socket-lb", format!("{other:?} is neither on nor off"));
            false
        }
    }
}

/// `ADDRESS=WEIGHT` or `NODE=WEIGHT`, divided by commas.
pub(super) fn weights(metadata: Option<&Metadata>, report: &mut Report) -> Box<[Weight]> {
    let text = annotations(metadata).and_then(|all| all.weights.as_deref()).unwrap_or_default();
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let mut weights = Vec::new();
    for part in parts {
        let Some((of, weight)) = part.split_once('=') else {
            let message = format!("{part:?} is no ADDRESS=WEIGHT or NODE=WEIGHT");
            complain(report, "weights", message);
            continue;
        };
        let (of, weight) = (of.trim(), weight.trim());
        let Ok(weight) = weight.parse() else {
            let message = format!("{weight:?} of {of} is no weight; write 0 to {WEIGHT_MAX}");
            complain(report, "weights", message);
            continue;
        };
        let of = match of.parse::<IpAddr>() {
            Ok(address) => Weighted::At(address),
            Err(_) => Weighted::On(report.strings.share(of)),
        };
        weights.push(Weight { of, weight });
    }
    weights.into()
}

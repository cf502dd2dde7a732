//! Traffic between nodes by all ways, each as a ratio to the same between the nodes themselves.
//!
//! What two beds that do the same differ by is chance: where their memory lies. So all of them
//! are raised anew several times; what one raising found by its rounds is one sample, and the
//! interval holds what raising them again would find.

use std::{thread, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{bed::Bed, way::Way};
use crate::bench::{
    cost::{self, Ran},
    kind::Kind,
    slices::{SLICES, Time, alternate},
    statistics::{Ratio, median},
};

pub(super) const KINDS: [Kind; 4] = [Kind::Connections, Kind::Latency, Kind::Bulk, Kind::Datagrams];

/// How much is measured.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The first is the reference.
    pub(super) ways: Vec<Way>,
    /// How often all of it is raised: at least, and until ratios are known or so often.
    pub(super) least: usize,
    pub(super) most: usize,
    /// Rounds of each kind in one raising.
    pub(super) rounds: usize,
    /// Peers that are added to the one.
    pub(super) crowd: u32,
}

/// What one raising found.
#[derive(Clone, Debug, Default)]
struct Sample {
    /// By kind and way.
    times: Vec<Vec<Time>>,
    /// Logarithm of the round trip time with many peers over that with one.
    crowd: f64,
}

/// What was found about one kind of traffic by one way.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) way: Way,
    /// To the same between nodes: of rates, or of times for round trips.
    pub(super) ratio: Ratio,
    /// Rounds in all.
    pub(super) rounds: usize,
    /// Median, as the kind tells it.
    pub(super) value: f64,
    /// Datagrams that did not arrive, of all that were sent.
    pub(super) lost: f64,
}

/// One way over another, from the same rounds.
#[derive(Clone, Debug)]
pub(super) struct Comparison {
    pub(super) kind: Kind,
    pub(super) way: Way,
    pub(super) over: Way,
    pub(super) ratio: Ratio,
    pub(super) rounds: usize,
}

/// What a program of ours did for one piece of traffic.
#[derive(Clone, Debug)]
pub(super) struct Cost {
    pub(super) kind: Kind,
    pub(super) way: Way,
    /// Runs are those for each connection, round trip, mebibyte or datagram, on both nodes.
    pub(super) ran: Ran,
}

/// All that was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    pub(super) found: Vec<Found>,
    pub(super) comparisons: Vec<Comparison>,
    pub(super) costs: Vec<Cost>,
    /// Round trip time with many peers over that with one.
    pub(super) crowd: Option<Ratio>,
    pub(super) raised: usize,
}

pub(super) fn measure(plan: &Plan) -> Result<Outcome> {
    let mut samples: Vec<Sample> = Vec::new();
    let mut costs = Vec::new();
    while samples.len() < plan.least || (samples.len() < plan.most && !is_known(plan, &samples)) {
        let mut beds = raise(plan)?;
        for bed in &mut beds {
            let costs_of_bed = prove(bed)?;
            if samples.is_empty() {
                costs.extend(costs_of_bed);
            }
        }
        samples.push(sample(plan, &mut beds)?);
        tell(plan, &samples);
    }
    let ratio_of = |kind, way| ratio(plan, &samples, kind, way, plan.ways[0]);
    let rounds = samples.len() * plan.rounds;
    let mut outcome = Outcome {
        costs,
        crowd: Ratio::of_logs(&samples.iter().map(|sample| sample.crowd).collect::<Vec<_>>()),
        raised: samples.len(),
        ..Outcome::default()
    };
    for kind in KINDS {
        for (number, &way) in plan.ways.iter().enumerate() {
            let times = || samples.iter().map(|sample| sample.times[kind as usize][number]);
            let sent = kind.units() * (SLICES * rounds) as f64;
            outcome.found.push(Found {
                kind,
                way,
                ratio: ratio_of(kind, way).context("one sample has no interval")?,
                rounds,
                value: kind.value(median(&times().map(|time| time.median).collect::<Vec<_>>())),
                lost: times().map(|time| time.lost as f64).sum::<f64>() / sent,
            });
        }
        for (way, over) in pairs(plan) {
            let ratio = ratio(plan, &samples, kind, way, over);
            let ratio = ratio.context("one sample has no interval")?;
            outcome.comparisons.push(Comparison { kind, way, over, ratio, rounds });
        }
    }
    Ok(outcome)
}

/// Ways of ours with each that stands after them.
fn pairs(plan: &Plan) -> Vec<(Way, Way)> {
    let ours = plan.ways.iter().filter(|way| way.has_programs());
    ours.flat_map(|&way| {
        plan.ways.iter().filter(move |&&over| over > way).map(move |&over| (way, over))
    })
    .collect()
}

fn raise(plan: &Plan) -> Result<Vec<Bed>> {
    let beds = plan.ways.iter().map(|&way| Bed::raise(way));
    let beds = beds.collect::<Result<Vec<Bed>>>()?;
    // What starting has set in motion comes to rest.
    thread::sleep(Duration::from_secs(2));
    Ok(beds)
}

/// Proves that traffic takes the way it is measured by, and tells what that costs: by the
/// kernel's count of each program's runs, or of the connections it tracks where rules are.
fn prove(bed: &mut Bed) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    let tracked = bed.tracked()?;
    let programs = bed.programs()?;
    ensure!(
        programs.is_empty() != bed.way.has_programs(),
        "{}: {} programs are attached",
        bed.way.name(),
        programs.len()
    );
    let place = bed.place()?;
    for kind in KINDS {
        if !bed.way.has_programs() {
            bed.round(kind)?;
            continue;
        }
        let ran = cost::counted(&place, &programs, || bed.round(kind).map(drop))?;
        // For bulk, the kernel joins segments.
        let least = if kind == Kind::Bulk { 1.0 } else { kind.units() };
        for name in shall_run(bed.way) {
            let runs = ran.iter().find(|ran| ran.program == *name).map_or(0.0, |ran| ran.runs);
            ensure!(
                runs >= least,
                "{}, {}: {name} ran {runs} times: the figures are not its",
                bed.way.name(),
                kind.name()
            );
        }
        let way = bed.way;
        costs.extend(ran.into_iter().map(|ran| {
            let runs = ran.runs / kind.units();
            Cost { kind, way, ran: Ran { runs, ..ran } }
        }));
    }
    let found = bed.tracked()?.saturating_sub(tracked);
    let opened = Kind::Connections.connections();
    ensure!(
        (found >= opened / 2) == bed.way.has_rules(),
        "{}: {found} of {opened} connections are tracked",
        bed.way.name()
    );
    Ok(costs)
}

/// Programs of flannel-agent that each packet of a way meets.
fn shall_run(way: Way) -> &'static [&'static str] {
    match way {
        Way::FastPath => &["bypass_ingress", "decap_ingress"],
        Way::SlowPath => &["tunnel_egress", "tunnel_ingress"],
        Way::Nodes | Way::Classic | Way::Flanneld => &[],
    }
}

fn sample(plan: &Plan, beds: &mut [Bed]) -> Result<Sample> {
    let mut sample = Sample::default();
    for kind in KINDS {
        // The first round warms caches.
        round(beds, kind)?;
        let mut rounds = Vec::new();
        for _ in 0..plan.rounds {
            rounds.push(round(beds, kind)?);
        }
        let of_way = |way: usize| mean(&rounds.iter().map(|times| times[way]).collect::<Vec<_>>());
        sample.times.push((0..beds.len()).map(of_way).collect());
    }
    sample.crowd = crowd(plan, beds)?;
    Ok(sample)
}

/// A round by all ways.
fn round(beds: &mut [Bed], kind: Kind) -> Result<Vec<Time>> {
    alternate(beds.len(), 0, |way| beds[way].round(kind))
}

/// Several rounds of one way as one; datagrams lost are added up.
fn mean(rounds: &[Time]) -> Time {
    let of =
        |figure: fn(&Time) -> f64| rounds.iter().map(figure).sum::<f64>() / rounds.len() as f64;
    Time {
        median: of(|time| time.median),
        mean: of(|time| time.mean),
        over_reference: of(|time| time.over_reference),
        lost: rounds.iter().map(|time| time.lost).sum(),
    }
}

/// Round trips with one peer, with many, with many, with one: on the same nodes, so that nothing
/// differs but the number.
fn crowd(plan: &Plan, beds: &mut [Bed]) -> Result<f64> {
    let at = beds.iter().position(|bed| bed.way == Way::FastPath).context("no fast path")?;
    let latency = |beds: &mut [Bed]| {
        let times = alternate(2, 0, |way| beds[if way == 0 { 0 } else { at }].round(Kind::Latency));
        times.map(|times| times[1].over_reference)
    };
    let numbers = 0..plan.crowd;
    let mut few = latency(beds)?;
    beds[at].crowd(numbers.clone())?;
    let mut many = latency(beds)?;
    many += latency(beds)?;
    beds[at].disperse(numbers)?;
    few += latency(beds)?;
    Ok((many - few) / 2.0)
}

/// One way over another: the mean of what each raising found.
fn ratio(plan: &Plan, samples: &[Sample], kind: Kind, way: Way, over: Way) -> Option<Ratio> {
    let [way, over] = [way, over].map(|one| plan.ways.iter().position(|&way| way == one));
    let (way, over) = (way?, over?);
    let log = |sample: &Sample| {
        let times = &sample.times[kind as usize];
        kind.log(times[way].over_reference - times[over].over_reference)
    };
    Ratio::of_logs(&samples.iter().map(log).collect::<Vec<_>>())
}

fn is_known(plan: &Plan, samples: &[Sample]) -> bool {
    KINDS.iter().all(|&kind| {
        plan.ways.iter().all(|&way| {
            ratio(plan, samples, kind, way, plan.ways[0]).is_some_and(|ratio| ratio.is_known())
        })
    })
}

fn tell(plan: &Plan, samples: &[Sample]) {
    for kind in KINDS {
        let text = |&way: &Way| {
            let last = samples.last().map(|sample| {
                let number = plan.ways.iter().position(|&one| one == way).unwrap_or_default();
                kind.log(sample.times[kind as usize][number].over_reference).exp()
            });
            let ratio = ratio(plan, samples, kind, way, plan.ways[0])
                .map_or(String::new(), |ratio| {
                    format!(" ({:.3} ± {:.1} %)", ratio.value, ratio.reach() * 100.0)
                });
            format!("{} {:.3}{ratio}", way.name(), last.unwrap_or_default())
        };
        let ways: Vec<String> = plan.ways.iter().skip(1).map(text).collect();
        println!("  {} {}: {}", samples.len(), kind.name(), ways.join(", "));
    }
}

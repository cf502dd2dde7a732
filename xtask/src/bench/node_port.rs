//! Traffic from outside: a client that asks a NodePort, whose pod is on the node asked or on the
//! other one, as a ratio to the same client that reaches the same pod routed directly.
//!
//! There are two beds, alike but for who serves their nodes. Rounds alternate as those between
//! pods do, and whoever serves moves to the other bed after half of them.

mod bed;

use std::{path::Path, thread, time::Duration};

use anyhow::Result;

use super::{
    kind::Kind,
    proxy::Proxy,
    slices::{Time, alternate},
    statistics::{Ratio, median},
};
use bed::Bed;

/// What is measured of it.
pub(super) const KINDS: [Kind; 3] = [Kind::Connections, Kind::Latency, Kind::Bulk];

/// Where the pod is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Target {
    /// On the node that is asked.
    Local,
    /// On the other one.
    Remote,
}

impl Target {
    pub(super) const ALL: [Self; 2] = [Self::Local, Self::Remote];
}

/// How the client reaches the pod.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// By a port of the node that is asked.
    NodePort,
    /// Routed by that node, and back by it, where Services are served.
    Beside,
    /// The same where nobody serves any.
    Alone,
    /// Routed by the pod's own node, where nobody serves any.
    Shortest,
}

impl Way {
    const ALL: [Self; 4] = [Self::NodePort, Self::Beside, Self::Alone, Self::Shortest];

    /// Nothing is shorter than by the node that the pod is on.
    fn of(target: Target) -> &'static [Self] {
        match target {
            Target::Local => &Self::ALL[..3],
            Target::Remote => &Self::ALL,
        }
    }
}

/// What is compared with what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Figure {
    pub(super) way: Way,
    pub(super) to: Way,
}

impl Figure {
    const fn of(way: Way, to: Way) -> Self {
        Self { way, to }
    }

    fn all(target: Target) -> &'static [Self] {
        const ALL: [Figure; 4] = [
            Figure::of(Way::NodePort, Way::Alone),
            Figure::of(Way::NodePort, Way::Beside),
            Figure::of(Way::Beside, Way::Alone),
            Figure::of(Way::NodePort, Way::Shortest),
        ];
        match target {
            Target::Local => &ALL[..3],
            Target::Remote => &ALL,
        }
    }
}

/// What the goals are about: the client, the pod and the nodes on the way are the same, and
/// nothing slows the other down.
pub(super) const GOAL: Figure = Figure::of(Way::NodePort, Way::Alone);

/// Services there are: those that are measured, and some beside.
pub(super) const SERVICES: u32 = 10;

/// How much is measured.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) proxies: Vec<Proxy>,
    /// Rounds on each bed before whoever serves moves to the other.
    pub(super) batch: usize,
    /// Rounds after which a ratio is taken as it is.
    pub(super) most: usize,
}

/// What was found of one figure.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) target: Target,
    pub(super) figure: Figure,
    pub(super) proxy: Proxy,
    /// Of medians: of rates for connections, of times for round trips.
    pub(super) ratio: Ratio,
    pub(super) rounds: usize,
    /// Medians of this and of what it is compared with, in [`Kind::absolute_unit`].
    pub(super) value: f64,
    pub(super) reference: f64,
}

/// Measures all there is in the plan. `peers` is where kube-proxy and kube-apiserver are, if they
/// shall be measured too.
pub(super) fn measure(plan: &Plan, peers: Option<&Path>) -> Result<Vec<Found>> {
    let mut beds = [Bed::raise(peers)?, Bed::raise(peers)?];
    let mut found = Vec::new();
    for &proxy in &plan.proxies {
        let mut cell = Cell { proxy, rounds: Default::default() };
        cell.measure(plan, &mut beds)?;
        found.extend(cell.found());
    }
    Ok(found)
}

/// One round, by [`Way`].
type Times = Vec<Time>;

/// What was measured of one proxy.
struct Cell {
    proxy: Proxy,
    /// By kind, by target, by the bed that is served.
    rounds: [[[Vec<Times>; 2]; 2]; KINDS.len()],
}

impl Cell {
    fn measure(&mut self, plan: &Plan, beds: &mut [Bed; 2]) -> Result<()> {
        loop {
            let is_wanting = |&(kind, target): &(Kind, Target)| self.is_wanting(plan, kind, target);
            let left: Vec<_> = cells().filter(is_wanting).collect();
            if left.is_empty() {
                return Ok(());
            }
            for side in 0..2 {
                beds[side].start(self.proxy)?;
                // What starting has set in motion comes to rest.
                thread::sleep(Duration::from_secs(2));
                for target in Target::ALL {
                    beds[side].prove(self.proxy, target)?;
                }
                for &(kind, target) in &left {
                    // The first round warms caches.
                    round(beds, side, kind, target)?;
                    for _ in 0..plan.batch {
                        let times = round(beds, side, kind, target)?;
                        self.rounds_mut(kind, target)[side].push(times);
                    }
                }
                beds[side].remove()?;
            }
            for &(kind, target) in &left {
                self.tell(kind, target);
            }
        }
    }

    fn is_wanting(&self, plan: &Plan, kind: Kind, target: Target) -> bool {
        let rounds = self.count(kind, target);
        let is_known = |&figure: &Figure| {
            self.ratio(kind, target, figure).is_some_and(|ratio| ratio.is_known())
        };
        rounds == 0 || (rounds < plan.most && !Figure::all(target).iter().all(is_known))
    }

    fn rounds(&self, kind: Kind, target: Target) -> &[Vec<Times>; 2] {
        &self.rounds[kind as usize][target as usize]
    }

    fn rounds_mut(&mut self, kind: Kind, target: Target) -> &mut [Vec<Times>; 2] {
        &mut self.rounds[kind as usize][target as usize]
    }

    /// Rounds on both beds together.
    fn count(&self, kind: Kind, target: Target) -> usize {
        self.rounds(kind, target).iter().map(Vec::len).sum()
    }

    /// One way's times over another's, or their inverse where more is better. A round on one bed
    /// and its counterpart on the other make one sample.
    fn ratio(&self, kind: Kind, target: Target, figure: Figure) -> Option<Ratio> {
        let log = |times: &Times| {
            let [way, to] = [figure.way, figure.to].map(|way| times[way as usize].over_reference);
            kind.log(way - to)
        };
        let [left, right] = self.rounds(kind, target);
        let logs: Vec<f64> =
            left.iter().zip(right).map(|(a, b)| f64::midpoint(log(a), log(b))).collect();
        Ratio::of_logs(&logs)
    }

    fn found(&self) -> Vec<Found> {
        let one = |(kind, target): (Kind, Target), figure: Figure| {
            let absolute = |way: Way| {
                let all = self.rounds(kind, target).iter().flatten();
                let medians: Vec<f64> = all.map(|times| times[way as usize].median).collect();
                kind.value(median(&medians))
            };
            Some(Found {
                kind,
                target,
                figure,
                proxy: self.proxy,
                ratio: self.ratio(kind, target, figure)?,
                rounds: self.count(kind, target),
                value: absolute(figure.way),
                reference: absolute(figure.to),
            })
        };
        let all = cells().flat_map(|cell| Figure::all(cell.1).iter().map(move |&it| (cell, it)));
        all.filter_map(|(cell, figure)| one(cell, figure)).collect()
    }

    fn tell(&self, kind: Kind, target: Target) {
        let text = |figure| {
            self.ratio(kind, target, figure).map_or("unknown".into(), |ratio| {
                format!(
                    "{:?}/{:?} {:.3} ± {:.1} %",
                    figure.way,
                    figure.to,
                    ratio.value,
                    ratio.reach() * 100.0
                )
            })
        };
        let figures: Vec<String> = Figure::all(target).iter().copied().map(text).collect();
        let name = if self.proxy.is_agent() { "agent" } else { self.proxy.name() };
        println!(
            "  NodePort, {name:<20} {:<12} {:<7} {} ({} rounds)",
            format!("{kind:?}:").to_lowercase(),
            format!("{target:?}").to_lowercase(),
            figures.join(", "),
            self.count(kind, target),
        );
    }
}

fn cells() -> impl Iterator<Item = (Kind, Target)> {
    Target::ALL.into_iter().flat_map(|target| KINDS.map(|kind| (kind, target)))
}

/// A round by all ways to a pod; those where nobody serves are on the other bed.
fn round(beds: &mut [Bed; 2], side: usize, kind: Kind, target: Target) -> Result<Times> {
    let ways = Way::of(target);
    alternate(ways.len(), Way::Alone as usize, |way| {
        let way = ways[way];
        let is_served = matches!(way, Way::NodePort | Way::Beside);
        let bed = &mut beds[if is_served { side } else { 1 - side }];
        bed.round(kind, way, target)
    })
}

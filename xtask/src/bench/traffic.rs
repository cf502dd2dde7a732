//! The data path: traffic through a Service, and traffic beside the agent, each as a ratio to
//! the same traffic on a node that has no agent. kube-proxy is measured like an agent.
//!
//! There are two nodes, alike but for the agent. Rounds on one and the other alternate; after
//! half of them the agent moves to the other node, so that what makes the nodes differ by
//! chance (where their memory lies) falls out of the ratio.

use std::{thread, time::Duration};

use anyhow::{Result, ensure};
use lab::agent::SocketLb;

use super::{
    cost::{self, Cost},
    kind::Kind,
    proxy::Proxy,
    slices::{SLICES, Time, alternate},
    stage::Stage,
    statistics::{Ratio, median},
};

/// What is measured of traffic.
pub(super) const KINDS: [Kind; 3] = [Kind::Connections, Kind::Latency, Kind::Bulk];

/// Whose traffic a slice is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// Through the Service.
    Service,
    /// Pod to pod on the node that is served: to one that the asker meets by no Service.
    Beside,
    /// The same to the pod behind the Service that is measured.
    Backend,
    /// Pod to pod on the node that nobody serves.
    Alone,
}

impl Way {
    const ALL: [Self; 4] = [Self::Service, Self::Beside, Self::Backend, Self::Alone];
    /// Those that are compared with the last.
    pub(super) const MEASURED: [Self; 3] = [Self::Service, Self::Beside, Self::Backend];
}

/// How much is measured.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) sizes: Vec<u32>,
    pub(super) proxies: Vec<Proxy>,
    /// Rounds on each node before the agent moves to the other.
    pub(super) batch: usize,
    /// Rounds after which a ratio is taken as it is.
    pub(super) most: usize,
}

/// One round, by [`Way`].
type Times = Vec<Time>;

/// What was found about one kind of traffic.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) kind: Kind,
    pub(super) way: Way,
    pub(super) services: u32,
    pub(super) proxy: Proxy,
    /// Of medians, to the same alone: of rates for connections and bulk, of times for latency.
    pub(super) ratio: Ratio,
    /// The same of means, which interruptions blur.
    pub(super) of_means: Ratio,
    pub(super) rounds: usize,
    /// Medians of this and of the reference: connections a second, microseconds, bytes a second.
    pub(super) value: f64,
    pub(super) reference: f64,
}

/// Measures all there is in the plan.
pub(super) fn measure(plan: &Plan, stages: &mut [Stage; 2]) -> Result<(Vec<Found>, Vec<Cost>)> {
    // The pods change parts as the nodes do, for the same reason.
    stages[1].turn_over()?;
    let mut found = Vec::new();
    let mut costs = Vec::new();
    let largest = plan.sizes.iter().max();
    for &services in &plan.sizes {
        for stage in stages.iter_mut() {
            stage.grow(services)?;
        }
        for &proxy in &plan.proxies {
            let mut cell = Cell { services, proxy, rounds: Default::default() };
            cell.measure(plan, stages)?;
            for kind in KINDS {
                for way in Way::MEASURED {
                    found.extend(cell.found(kind, way));
                }
            }
            if let Proxy::Agent(socket_lb) = proxy
                && Some(&services) == largest
            {
                stages[0].start(proxy)?;
                costs.extend(cost::measure(&mut stages[0], socket_lb)?);
                stages[0].remove()?;
            }
        }
    }
    Ok((found, costs))
}

/// What a ratio is taken of.
#[derive(Clone, Copy, Debug)]
enum Measure {
    Medians,
    Means,
}

/// One number of Services, served in one way.
struct Cell {
    services: u32,
    proxy: Proxy,
    /// By kind, by node that is served.
    rounds: [[Vec<Times>; 2]; 3],
}

impl Cell {
    fn measure(&mut self, plan: &Plan, stages: &mut [Stage; 2]) -> Result<()> {
        loop {
            let left: Vec<Kind> =
                KINDS.into_iter().filter(|&kind| self.is_wanting(plan, kind)).collect();
            if left.is_empty() {
                return Ok(());
            }
            for side in 0..2 {
                stages[side].start(self.proxy)?;
                // What starting has set in motion comes to rest.
                thread::sleep(Duration::from_secs(2));
                self.measure_side(plan, stages, side, &left)?;
                stages[side].remove()?;
            }
            for &kind in &left {
                self.tell(kind);
            }
        }
    }

    fn is_wanting(&self, plan: &Plan, kind: Kind) -> bool {
        let rounds = self.count(kind);
        let is_known =
            |way| self.ratio(kind, way, Measure::Medians).is_some_and(|ratio| ratio.is_known());
        rounds == 0 || (rounds < plan.most && !Way::MEASURED.into_iter().all(is_known))
    }

    /// Rounds on both nodes together.
    fn count(&self, kind: Kind) -> usize {
        self.rounds[kind as usize].iter().map(Vec::len).sum()
    }

    /// Rounds with one of the nodes served, and proof that no round passed the server by.
    fn measure_side(
        &mut self,
        plan: &Plan,
        stages: &mut [Stage; 2],
        side: usize,
        kinds: &[Kind],
    ) -> Result<()> {
        let Proxy::Agent(socket_lb) = self.proxy else {
            prove_tracking(&mut stages[side])?;
            return self.measure_kinds(plan, stages, side, kinds);
        };
        let before = counted(socket_lb, &stages[side])?;
        self.measure_kinds(plan, stages, side, kinds)?;
        let found = counted(socket_lb, &stages[side])? - before;
        let each = (SLICES * (plan.batch + 1)) as u64;
        let wanted = kinds.iter().map(|kind| kind.connections() * each).sum::<u64>();
        ensure!(
            found >= wanted,
            "with socket-lb {} {found} connections of {wanted} were counted: the figures are not \
             its",
            socket_lb.name()
        );
        Ok(())
    }

    fn measure_kinds(
        &mut self,
        plan: &Plan,
        stages: &mut [Stage; 2],
        side: usize,
        kinds: &[Kind],
    ) -> Result<()> {
        for &kind in kinds {
            // The first round warms caches.
            round(stages, side, kind)?;
            for _ in 0..plan.batch {
                let times = round(stages, side, kind)?;
                self.rounds[kind as usize][side].push(times);
            }
        }
        Ok(())
    }

    /// One way's times over those alone, or their inverse where more is better. A round on one
    /// node and its counterpart on the other make one sample.
    fn ratio(&self, kind: Kind, way: Way, by: Measure) -> Option<Ratio> {
        let log = |times: &Times| {
            let [time, alone] = [way, Way::Alone].map(|way| times[way as usize]);
            let log = match by {
                Measure::Medians => time.over_reference,
                Measure::Means => (time.mean / alone.mean).ln(),
            };
            kind.log(log)
        };
        let [left, right] = &self.rounds[kind as usize];
        let logs: Vec<f64> =
            left.iter().zip(right).map(|(a, b)| f64::midpoint(log(a), log(b))).collect();
        Ratio::of_logs(&logs)
    }

    fn found(&self, kind: Kind, way: Way) -> Option<Found> {
        let all = || self.rounds[kind as usize].iter().flatten();
        let medians = |way: Way| all().map(|times| times[way as usize].median).collect::<Vec<_>>();
        Some(Found {
            kind,
            way,
            services: self.services,
            proxy: self.proxy,
            ratio: self.ratio(kind, way, Measure::Medians)?,
            of_means: self.ratio(kind, way, Measure::Means)?,
            rounds: self.count(kind),
            value: kind.value(median(&medians(way))),
            reference: kind.value(median(&medians(Way::Alone))),
        })
    }

    fn tell(&self, kind: Kind) {
        let text = |way| {
            self.ratio(kind, way, Measure::Medians).map_or("unknown".into(), |ratio| {
                format!("{:.3} ± {:.1} %", ratio.value, ratio.reach() * 100.0)
            })
        };
        println!(
            "  {:>6} Services, {:<20} {:<12} through the Service {}, beside {}, to the backend {} \
             ({} rounds)",
            self.services,
            match self.proxy {
                Proxy::Agent(socket_lb) => format!("socket-lb {}", socket_lb.name()),
                Proxy::KubeProxy(_) => self.proxy.name().into(),
            },
            format!("{kind:?}:").to_lowercase(),
            text(Way::Service),
            text(Way::Beside),
            text(Way::Backend),
            self.count(kind),
        );
    }
}

/// Connections of the measured Service, as the agent's own path for them counts.
fn counted(socket_lb: SocketLb, stage: &Stage) -> Result<u64> {
    let counts = stage.counts()?;
    Ok(match socket_lb {
        SocketLb::On => counts.socket_connections,
        SocketLb::Host | SocketLb::Off => counts.packet_connections,
    })
}

/// kube-proxy counts nothing. But its rules have the kernel track every connection that meets
/// them, on each of the ways, and without them it tracks none.
fn prove_tracking(stage: &mut Stage) -> Result<()> {
    let opened = Kind::Connections.connections();
    for way in Way::MEASURED {
        let before = stage.tracked()?;
        single(stage, Kind::Connections, way)?;
        let found = stage.tracked()?.saturating_sub(before);
        // Others come to their end meanwhile, and a port that is used again is no new row.
        ensure!(
            found >= opened / 2,
            "{found} of {opened} connections ({way:?}) have met kube-proxy's rules: the \
             figures are not its"
        );
    }
    Ok(())
}

/// A round by all ways.
fn round(stages: &mut [Stage; 2], side: usize, kind: Kind) -> Result<Times> {
    alternate(Way::ALL.len(), Way::Alone as usize, |way| {
        let way = Way::ALL[way];
        let address = stages[side].address(way)?;
        let stage = &mut stages[if way == Way::Alone { 1 - side } else { side }];
        stage.round(&kind.order(address))
    })
}

/// One slice, for those who count what it makes run.
pub(super) fn single(stage: &mut Stage, kind: Kind, way: Way) -> Result<()> {
    let order = kind.order(stage.address(way)?);
    stage.round(&order).map(drop)
}

//! Services that the last agent programmed, as the tables tell of them. One of which a good
//! version may stand in something that cannot be read (a [`Doubt`]) goes on as it was found,
//! until that can be read or is gone.
//!
//! A Service that is kept stands in the state like any other, so that endpoints that are known
//! count for it, and who holds a frontend is settled as ever. Sets of backends are kept on
//! their own where the Service is known and no object tells of its endpoints.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use datapath::{affinity, algorithm::Algorithm, frontend::kind, service::service_flags};
use ipnetwork::IpNetwork;

use crate::{
    desired::{Desired, DesiredService, DesiredSet, IpFamily, ServicePortKey},
    doubt::Doubt,
    model::{Name, Service, ServicePort, ServiceType},
    problem::{Problem, ProblemKind},
};

/// Names told in one problem.
const NAMES: usize = 3;

/// What the state knows of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    pub service: Option<&'a Arc<Service>>,
    /// Whether some object tells of its endpoints, by family.
    pub families: [bool; 2],
}

/// What is to be done with a Service of the last agent.
#[derive(Debug)]
pub enum Step {
    Nothing,
    /// It is to stand in the state as it was found.
    Put(Arc<Service>),
    /// It stands there for no reason any more.
    Delete,
}

#[derive(Debug)]
struct Found {
    /// Without those of which some object has told the endpoints.
    rows: Vec<(ServicePortKey, DesiredService)>,
    /// What was put into the state.
    stand_in: Option<Arc<Service>>,
    /// A version of it has been read, so that only endpoints may be missing.
    is_known: bool,
}

/// All of them, less those of which everything is known.
#[derive(Debug, Default)]
pub struct Adopted {
    services: BTreeMap<Name, Found>,
    doubts: Arc<[Doubt]>,
}

impl Adopted {
    /// From now on these, found in the tables.
    pub fn find(&mut self, rows: Desired) {
        for (key, row) in rows {
            let name =
                Name { namespace: key.namespace.as_str().into(), name: key.name.as_str().into() };
            let new = || Found { rows: Vec::new(), stand_in: None, is_known: false };
            self.services.entry(name).or_insert_with(new).rows.push((key, row));
        }
    }

    /// What cannot be read from now on.
    pub fn doubt(&mut self, doubts: &Arc<[Doubt]>) {
        self.doubts = Arc::clone(doubts);
    }

    #[must_use]
    pub fn names(&self) -> BTreeSet<Name> {
        self.services.keys().cloned().collect()
    }

    /// Looks at one of them again, and forgets it if it needs no keeping any more.
    pub fn settle(&mut self, name: &Name, known: Known<'_>) -> Step {
        let Some(found) = self.services.get_mut(name) else { return Step::Nothing };
        let is_told = |family: IpFamily| known.families[family as usize];
        found.rows.retain(|(key, _)| known.service.is_none() || !is_told(key.family));
        let is_stand_in = match (known.service, &found.stand_in) {
            (Some(service), Some(stand_in)) => Arc::ptr_eq(service, stand_in),
            _ => false,
        };
        let is_doubted = self.doubts.iter().any(|doubt| doubt.concerns_service(name));
        match known.service {
            None if found.stand_in.is_none() && !found.is_known && is_doubted => {
                if let Some(service) = service(name, &found.rows) {
                    let service = Arc::new(service);
                    found.stand_in = Some(Arc::clone(&service));
                    return Step::Put(service);
                }
            }
            Some(_) if is_stand_in && is_doubted => return Step::Nothing,
            Some(_) if is_stand_in => {
                self.services.remove(name);
                return Step::Delete;
            }
            Some(_) => {
                found.is_known = true;
                if lends(&found.rows) && self.doubts.iter().any(|d| d.concerns_endpoints(name)) {
                    return Step::Nothing;
                }
            }
            // It was known, and is no more.
            None => {}
        }
        self.services.remove(name);
        Step::Nothing
    }

    /// The row as it was found, if its endpoints may stand in what cannot be read.
    #[must_use]
    pub fn row(&self, name: &Name, key: &ServicePortKey) -> Option<&DesiredService> {
        let found = self.services.get(name)?;
        if !self.doubts.iter().any(|doubt| doubt.concerns_endpoints(name)) {
            return None;
        }
        found
            .rows
            .iter()
            .find(|(other, row)| other == key && had_endpoints(row))
            .map(|(_, row)| row)
    }

    /// One for each thing that cannot be read and keeps something.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        self.doubts.iter().filter_map(|doubt| self.problem(doubt)).collect()
    }

    fn problem(&self, doubt: &Doubt) -> Option<Problem> {
        let is_kept = |(name, found): &(&Name, &Found)| {
            (found.stand_in.is_some() && doubt.concerns_service(name))
                || (lends(&found.rows) && doubt.concerns_endpoints(name))
        };
        let kept: Vec<&Name> = self.services.iter().filter(is_kept).map(|(name, _)| name).collect();
        let mut names: Vec<String> = kept.iter().take(NAMES).map(ToString::to_string).collect();
        if kept.len() > NAMES {
            names.push("…".into());
        }
        let (what, verb) = match kept.len() {
            0 => return None,
            1 => ("adopted Service", "is"),
            _ => ("adopted Services", "are"),
        };
        let mut problem = Problem {
            kind: ProblemKind::Kept,
            source: None,
            object: doubt.object.clone(),
            field: String::new(),
            message: format!(
                "{} {what} {verb} kept as found, because this cannot be read ({}); repair or \
                 remove it",
                kept.len(),
                names.join(", ")
            ),
        };
        problem.locate(&doubt.document);
        Some(problem)
    }
}

/// Whether there were endpoints; without, there is nothing to keep.
fn had_endpoints(row: &DesiredService) -> bool {
    [&row.cluster, &row.local].into_iter().any(|set| *set != DesiredSet::Reject)
}

fn lends(rows: &[(ServicePortKey, DesiredService)]) -> bool {
    rows.iter().any(|(_, row)| had_endpoints(row))
}

fn timeout_sec(row: &DesiredService) -> Option<u32> {
    (row.affinity > 0).then(|| affinity::seconds(row.affinity))
}

/// A Service that compiles to these rows; `None` if they hold no cluster IP.
fn service(name: &Name, rows: &[(ServicePortKey, DesiredService)]) -> Option<Service> {
    let addresses = |wanted: u8| -> BTreeSet<IpAddr> {
        let frontends = rows.iter().flat_map(|(_, row)| &row.frontends);
        frontends.filter(|f| f.kind == wanted).map(|f| f.address).collect()
    };
    let mut cluster_ips: Vec<IpAddr> = addresses(kind::CLUSTER_IP).into_iter().collect();
    cluster_ips.dedup_by_key(|address| IpFamily::of(address));
    let mut ports: BTreeMap<(&str, u8), ServicePort> = BTreeMap::new();
    for (key, row) in rows {
        for frontend in &row.frontends {
            let port = ports.entry((&key.port, key.proto)).or_insert_with(|| ServicePort {
                name: key.port.as_str().into(),
                proto: key.proto,
                port: 0,
                node_port: 0,
            });
            match frontend.kind {
                kind::NODE_PORT => port.node_port = frontend.port,
                _ => port.port = frontend.port,
            }
        }
    }
    let ports: Box<[ServicePort]> = ports.into_values().filter(|port| port.port != 0).collect();
    if cluster_ips.is_empty() || ports.is_empty() {
        return None;
    }
    let ranges: BTreeSet<IpNetwork> =
        rows.iter().flat_map(|(_, row)| row.ranges.iter().copied()).collect();
    let any = |flag: u32| rows.iter().any(|(_, row)| row.flags & flag != 0);
    let load_balancer_ips: Box<[IpAddr]> = addresses(kind::LOAD_BALANCER).into_iter().collect();
    let kind = if !load_balancer_ips.is_empty() {
        ServiceType::LoadBalancer
    } else if ports.iter().any(|port| port.node_port != 0) {
        ServiceType::NodePort
    } else {
        ServiceType::ClusterIp
    };
    Some(Service {
        name: name.clone(),
        kind,
        created: None,
        cluster_ips: cluster_ips.into(),
        ports,
        external_ips: addresses(kind::EXTERNAL_IP).into_iter().collect(),
        load_balancer_ips,
        source_ranges: ranges.into_iter().collect(),
        internal_local: any(service_flags::INTERNAL_LOCAL),
        external_local: any(service_flags::EXTERNAL_LOCAL),
        health_check_node_port: 0,
        affinity_timeout_sec: rows.iter().find_map(|(_, row)| timeout_sec(row)),
        algorithm: rows.first().map(|(_, row)| Algorithm::of(row.flags)),
        weights: Box::default(),
        without_sockets: any(service_flags::PACKETS),
    })
}

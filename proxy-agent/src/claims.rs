//! Which Service holds a frontend that several claim. Whoever holds one keeps it until it lets
//! go, so that a mistaken newcomer breaks nothing; of several newcomers the oldest gets it. A
//! Service's own address always takes precedence over a NodePort, as in kube-proxy's rules.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
};

use datapath::{address::protocol, frontend::kind};

use crate::{
    compile::Claim,
    model::{Name, ObjectKey, ObjectKind, Service},
    problem::{Problem, ProblemKind},
};

/// Address, port and protocol: what one Service only can have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Place {
    address: IpAddr,
    port: u16,
    proto: u8,
}

impl Place {
    const fn of(claim: &Claim) -> Self {
        Self { address: claim.frontend.address, port: claim.frontend.port, proto: claim.proto }
    }
}

#[derive(Debug)]
struct Claimant {
    service: Name,
    claim: Claim,
    created: Option<u64>,
}

impl Claimant {
    /// The least gets the place.
    fn rank(&self, holder: Option<&Name>) -> impl Ord + '_ {
        (
            self.claim.frontend.kind == kind::NODE_PORT,
            holder != Some(&self.service),
            self.created.unwrap_or(u64::MAX),
            &self.service,
        )
    }
}

#[derive(Debug)]
struct Contest {
    holder: Option<Name>,
    claimants: Vec<Claimant>,
}

impl Default for Contest {
    fn default() -> Self {
        Self { holder: None, claimants: Vec::with_capacity(1) }
    }
}

/// All claims and who holds what.
#[derive(Debug, Default)]
pub struct Claims {
    places: HashMap<Place, Contest>,
    /// Those with more than one claimant.
    contested: BTreeSet<Place>,
    /// Those that may have to change hands.
    touched: BTreeSet<Place>,
}

impl Claims {
    /// Takes note of what a Service claims now instead of `old`. Nothing changes hands before
    /// [`Self::settle`], so that a batch counts as a whole.
    pub fn replace(&mut self, service: &Service, old: &[Claim], new: &[Claim]) {
        self.release(&service.name, old);
        for claim in new {
            let place = Place::of(claim);
            self.places.entry(place).or_default().claimants.push(Claimant {
                service: service.name.clone(),
                claim: *claim,
                created: service.created,
            });
            self.touched.insert(place);
        }
    }

    /// Takes note that a Service claims nothing of `old` any more.
    pub fn release(&mut self, service: &Name, old: &[Claim]) {
        for claim in old {
            let place = Place::of(claim);
            if let Some(contest) = self.places.get_mut(&place) {
                contest.claimants.retain(|claimant| claimant.service != *service);
                self.touched.insert(place);
            }
        }
    }

    /// Lets places change hands; tells whose frontends are others than before.
    pub fn settle(&mut self) -> BTreeSet<Name> {
        let mut affected = BTreeSet::new();
        for place in std::mem::take(&mut self.touched) {
            let Some(contest) = self.places.get_mut(&place) else { continue };
            let before = contest.holder.take();
            let claimants = contest.claimants.iter();
            let best =
                claimants.min_by(|a, b| a.rank(before.as_ref()).cmp(&b.rank(before.as_ref())));
            contest.holder = best.map(|claimant| claimant.service.clone());
            if contest.holder != before {
                affected.extend(before);
                affected.extend(contest.holder.clone());
            }
            if contest.claimants.len() > 1 {
                self.contested.insert(place);
            } else {
                self.contested.remove(&place);
            }
            if contest.claimants.is_empty() {
                self.places.remove(&place);
            }
        }
        affected
    }

    /// Whether a Service holds what it claims.
    #[must_use]
    pub fn holds(&self, service: &Name, claim: &Claim) -> bool {
        let contest = self.places.get(&Place::of(claim));
        contest.is_some_and(|contest| contest.holder.as_ref() == Some(service))
    }

    /// One for each Service and address that it cannot have.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut lost: BTreeMap<(&Name, String), (&Name, Place)> = BTreeMap::new();
        for place in &self.contested {
            let contest = &self.places[place];
            let Some(holder) = &contest.holder else { continue };
            for loser in contest.claimants.iter().filter(|loser| loser.service != *holder) {
                lost.entry((&loser.service, field(&loser.claim))).or_insert((holder, *place));
            }
        }
        let lost = lost.into_iter();
        lost.map(|((loser, field), (holder, place))| problem(loser, field, holder, place)).collect()
    }
}

fn field(claim: &Claim) -> String {
    match claim.frontend.kind {
        kind::CLUSTER_IP => "spec.clusterIPs".into(),
        kind::NODE_PORT => format!("spec.ports[{}].nodePort", claim.port),
        kind::EXTERNAL_IP => "spec.externalIPs".into(),
        _ => "status.loadBalancer.ingress".into(),
    }
}

fn problem(loser: &Name, field: String, holder: &Name, place: Place) -> Problem {
    let address = SocketAddr::new(place.address, place.port);
    let proto = protocol::name(place.proto);
    Problem {
        kind: ProblemKind::Conflict,
        source: None,
        object: Some(ObjectKey { kind: ObjectKind::Service, name: loser.clone() }),
        field,
        message: format!(
            "{address}/{proto} is held by Service {holder} and leads there; change one of the two"
        ),
    }
}

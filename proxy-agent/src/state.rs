//! All objects in force, and the rows that follow from them. Pure: changes go in, changed rows
//! come out, and what one change costs does not depend on how many Services there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnetwork::IpNetwork;

use crate::{
    adopted::{Adopted, Known, Step},
    claims::Claims,
    compile::{Claim, NodeFacts, claims, compile, without_host_bits},
    desired::{Desired, DesiredService, IpFamily, ServicePortKey},
    doubt::Doubt,
    model::{
        Change, EndpointSet, Name, Node, Object, ObjectKey, ObjectKind, Pod, Service, ServiceCIDR,
    },
    problem::Problem,
    service_health::{ServicesHealth, service_health},
    serving::{self, Front, Place, Serving},
    told::{NoLocal, Told, Trigger},
};

/// A row that is new or another than before, or `None` in place of one that is no more.
pub type RowChange = (ServicePortKey, Option<DesiredService>);

/// Feed it the batches of a source (see [`crate::directory::watch`]) by [`State::apply`] and
/// program the rows that come back; [`State::set_addresses`] when the node's are others.
#[derive(Debug, Default)]
pub struct State {
    facts: NodeFacts,
    node: Option<Arc<Node>>,
    /// Whether there was a Node object that is no more.
    is_node_gone: bool,
    service_cidrs: HashMap<Name, Arc<ServiceCIDR>>,
    /// This node's that are left out of the socket path.
    pods: BTreeMap<Name, Arc<Pod>>,
    services: HashMap<Name, Arc<Service>>,
    /// By Service, sorted by the object's key. Nearly always one, and so are the other lists
    /// that begin with room for one: empty room would be a third of all memory.
    sets: HashMap<Name, Vec<(ObjectKey, Arc<EndpointSet>)>>,
    /// The Service that an object of endpoints belongs to.
    owners: HashMap<ObjectKey, Name>,
    claims: Claims,
    desired: Desired,
    health: ServicesHealth,
    no_local: NoLocal,
    told: Told,
    adopted: Adopted,
    /// Services with flows that end with their endpoint, and frontends of theirs, now or before, that
    /// have changed in any way since [`State::take_serving`].
    touched: BTreeSet<Name>,
    touched_frontends: HashSet<Front>,
}

impl State {
    #[must_use]
    pub fn new(facts: NodeFacts) -> Self {
        Self { facts, ..Self::default() }
    }

    /// Takes a batch of changes as one: nothing in between is seen by anyone.
    pub fn apply(&mut self, batch: impl IntoIterator<Item = Change>) -> Vec<RowChange> {
        let mut dirty = BTreeSet::new();
        let zone = self.zone();
        for change in batch {
            self.count(&change);
            match change {
                Change::Put(key, object) => self.put(key, object, &mut dirty),
                Change::Delete(key) => self.delete(&key, &mut dirty),
            }
        }
        if self.zone() != zone {
            dirty.extend(self.services.keys().cloned());
        }
        dirty.append(&mut self.claims.settle());
        self.recompile(&dirty)
    }

    fn count(&mut self, change: &Change) {
        let (Change::Put(key, _) | Change::Delete(key)) = change;
        match key.kind {
            ObjectKind::Service => self.told.services += 1,
            ObjectKind::EndpointSlice | ObjectKind::Endpoints => self.told.endpoints += 1,
            ObjectKind::Node | ObjectKind::ServiceCIDR | ObjectKind::Pod => {}
        }
        // What is deleted tells only of its last change but one.
        if let Change::Put(_, Object::Endpoints(set)) = change
            && let (Some(at_ms), Some(slice)) = (set.triggered_ms, set.slices.first())
        {
            self.told.triggers.push(Trigger { family: slice.family, at_ms: at_ms.get() });
        }
    }

    /// What cannot be read now. Until the state is told, it keeps nothing of the last agent.
    pub fn doubt(&mut self, doubts: &Arc<[Doubt]>) -> Vec<RowChange> {
        self.adopted.doubt(doubts);
        self.settle_adopted()
    }

    /// Takes over what the last agent left, as far as it may stand in something that cannot be
    /// read; gives the rows that are kept for it.
    pub fn adopt(&mut self, rows: Desired) -> Vec<RowChange> {
        self.adopted.find(rows);
        self.settle_adopted()
    }

    fn settle_adopted(&mut self) -> Vec<RowChange> {
        let mut dirty = self.adopted.names();
        for name in dirty.clone() {
            let families = [IpFamily::V4, IpFamily::V6].map(|family| self.tells(&name, family));
            let service = self.services.get(&name);
            match self.adopted.settle(&name, Known { service, families }) {
                Step::Nothing => {}
                Step::Put(service) => self.put_service(&service, &mut dirty),
                Step::Delete => self.delete_service(&name, &mut dirty),
            }
        }
        dirty.append(&mut self.claims.settle());
        self.recompile(&dirty)
    }

    /// Whether some object tells of a Service's endpoints.
    fn tells(&self, name: &Name, family: IpFamily) -> bool {
        self.sets.get(name).into_iter().flatten().any(|(_, set)| {
            set.slices.is_empty() || set.slices.iter().any(|slice| slice.family == family)
        })
    }

    /// Where NodePorts answer, and the node's own addresses, from now on.
    pub fn set_addresses(&mut self, addresses: Vec<IpAddr>, own: Vec<IpAddr>) -> Vec<RowChange> {
        if addresses == self.facts.addresses && own == self.facts.own {
            return Vec::new();
        }
        let is_own_changed = own != self.facts.own;
        let facts = NodeFacts { addresses, own, ..self.facts.clone() };
        let mut dirty = BTreeSet::new();
        for (name, service) in &self.services {
            let (old, new) = (claims(service, &self.facts), claims(service, &facts));
            if old != new {
                self.claims.replace(service, &old, &new);
                dirty.insert(name.clone());
            }
            if is_own_changed && !service.source_ranges.is_empty() {
                dirty.insert(name.clone());
            }
        }
        self.facts = facts;
        dirty.append(&mut self.claims.settle());
        self.recompile(&dirty)
    }

    /// Everything that should be programmed.
    #[must_use]
    pub const fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The endpoints that flows may stay with which end with theirs, of the frontends that changed
    /// since this was asked last; of all with `is_whole`.
    pub fn take_serving(&mut self, is_whole: bool) -> Serving {
        let names = std::mem::take(&mut self.touched);
        let gone = std::mem::take(&mut self.touched_frontends);
        let mut endpoints: HashMap<Front, Vec<Place>> =
            gone.into_iter().map(|frontend| (frontend, Vec::new())).collect();
        let names: Vec<&Name> =
            if is_whole { self.services.keys().collect() } else { names.iter().collect() };
        for name in names {
            for (key, serving) in self.serving(name) {
                for frontend in self.desired.get(&key).into_iter().flat_map(|row| &row.frontends) {
                    let place = (frontend.address, frontend.port);
                    endpoints.insert((place, key.proto), serving.clone());
                }
            }
        }
        Serving::new(endpoints, is_whole, self.facts.ending)
    }

    fn serving(&self, name: &Name) -> Vec<(ServicePortKey, Vec<Place>)> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let NodeFacts { name: node, ending, .. } = &self.facts;
        let mut found = serving::of_service(service, &self.sets_of(name), node, *ending);
        for (key, places) in &mut found {
            if let Some(row) = self.stand_in(name, key) {
                *places = serving::of_row(row);
            }
        }
        found
    }

    /// What load balancers are to be told.
    #[must_use]
    pub const fn health(&self) -> &ServicesHealth {
        &self.health
    }

    /// What was told since this was last asked.
    pub fn take_told(&mut self) -> Told {
        std::mem::take(&mut self.told)
    }

    /// Services' ports that have endpoints, but none where their policy wants them.
    #[must_use]
    pub const fn no_local(&self) -> NoLocal {
        self.no_local
    }

    /// This node's object, if the source has it.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_deref()
    }

    /// Whether load balancers shall send nobody here any more: the Node object says so, or was deleted
    /// (KEP-3836). Where there never was one, nobody asks.
    #[must_use]
    pub fn is_node_leaving(&self) -> bool {
        self.is_node_gone || self.node.as_ref().is_some_and(|node| node.going)
    }

    /// The networks that cluster IPs are given out of, without host bits.
    #[must_use]
    pub fn service_networks(&self) -> BTreeSet<IpNetwork> {
        let cidrs = self.service_cidrs.values().flat_map(|told| told.cidrs.iter());
        cidrs.map(without_host_bits).collect()
    }

    /// This node's pods that are left out of the socket path.
    #[must_use]
    pub fn pods_without_sockets(&self) -> Vec<Arc<Pod>> {
        self.pods.values().cloned().collect()
    }

    /// What is wrong between objects; the source knows what is wrong within.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.claims.problems();
        problems.extend(self.adopted.problems());
        problems
    }

    fn zone(&self) -> Option<Arc<str>> {
        self.node.as_ref().and_then(|node| node.zone.clone())
    }

    fn put(&mut self, key: ObjectKey, object: Object, dirty: &mut BTreeSet<Name>) {
        match object {
            Object::Service(service) => self.put_service(&service, dirty),
            Object::Endpoints(set) => self.put_endpoints(key, set, dirty),
            Object::Node(node) => {
                if *node.name == *self.facts.name {
                    self.node = Some(node);
                    self.is_node_gone = false;
                }
            }
            Object::ServiceCIDR(told) => {
                self.service_cidrs.insert(key.name, told);
            }
            Object::Pod(pod) => {
                if pod.node.as_deref() == Some(&*self.facts.name) {
                    self.pods.insert(key.name, pod);
                } else {
                    self.pods.remove(&key.name);
                }
            }
        }
    }

    fn put_service(&mut self, service: &Arc<Service>, dirty: &mut BTreeSet<Name>) {
        let name = service.name.clone();
        let old = self.services.insert(name.clone(), Arc::clone(service));
        let old = old.map(|old| claims(&old, &self.facts)).unwrap_or_default();
        self.claims.replace(service, &old, &claims(service, &self.facts));
        dirty.insert(name);
    }

    fn put_endpoints(&mut self, key: ObjectKey, set: Arc<EndpointSet>, dirty: &mut BTreeSet<Name>) {
        let service = set.service.clone();
        if self.owners.get(&key).is_some_and(|owner| *owner != service) {
            self.delete(&key, dirty);
        }
        self.owners.insert(key.clone(), service.clone());
        let sets = self.sets.entry(service.clone()).or_insert_with(|| Vec::with_capacity(1));
        match sets.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(index) => sets[index].1 = set,
            Err(index) => sets.insert(index, (key, set)),
        }
        dirty.insert(service);
    }

    fn delete(&mut self, key: &ObjectKey, dirty: &mut BTreeSet<Name>) {
        match key.kind {
            ObjectKind::Service => self.delete_service(&key.name, dirty),
            ObjectKind::Node if *key.name.name == *self.facts.name => {
                self.is_node_gone |= self.node.take().is_some();
            }
            ObjectKind::Node => {}
            ObjectKind::ServiceCIDR => {
                self.service_cidrs.remove(&key.name);
            }
            ObjectKind::Pod => {
                self.pods.remove(&key.name);
            }
            ObjectKind::EndpointSlice | ObjectKind::Endpoints => {
                if let Some(service) = self.owners.remove(key) {
                    self.remove_set(&service, key);
                    dirty.insert(service);
                }
            }
        }
    }

    fn delete_service(&mut self, name: &Name, dirty: &mut BTreeSet<Name>) {
        if let Some(service) = self.services.remove(name) {
            self.claims.release(name, &claims(&service, &self.facts));
            dirty.insert(name.clone());
        }
    }

    fn remove_set(&mut self, service: &Name, key: &ObjectKey) {
        let Some(sets) = self.sets.get_mut(service) else { return };
        sets.retain(|(other, _)| other != key);
        if sets.is_empty() {
            self.sets.remove(service);
        }
    }

    fn recompile(&mut self, dirty: &BTreeSet<Name>) -> Vec<RowChange> {
        let mut changes = Vec::new();
        for name in dirty {
            let rows = self.rows(name);
            self.replace_rows(name, rows, &mut changes);
            self.settle_health(name);
        }
        changes
    }

    fn settle_health(&mut self, name: &Name) {
        let service = self.services.get(name);
        let health = service
            .and_then(|service| service_health(service, &self.sets_of(name), &self.facts.name));
        match health {
            Some(health) => drop(self.health.insert(name.clone(), health)),
            None => drop(self.health.remove(name)),
        }
    }

    fn rows(&self, name: &Name) -> Vec<(ServicePortKey, DesiredService)> {
        let Some(service) = self.services.get(name) else { return Vec::new() };
        let sets = self.sets_of(name);
        let mut held: Vec<Claim> = claims(service, &self.facts);
        held.retain(|claim| self.claims.holds(name, claim));
        let zone = self.zone();
        let mut rows = compile(service, &sets, &held, &self.facts, zone.as_deref());
        for (key, row) in &mut rows {
            if let Some(found) = self.stand_in(name, key) {
                row.cluster = found.cluster.clone();
                row.local = found.local.clone();
            }
        }
        rows
    }

    fn sets_of(&self, name: &Name) -> Vec<&EndpointSet> {
        let sets = self.sets.get(name).into_iter().flatten();
        sets.map(|(_, set)| &**set).collect()
    }

    /// What the last agent left, where nothing that can be read tells of a row's endpoints.
    fn stand_in(&self, name: &Name, key: &ServicePortKey) -> Option<&DesiredService> {
        self.adopted.row(name, key).filter(|_| !self.tells(name, key.family))
    }

    fn replace_rows(
        &mut self,
        name: &Name,
        rows: Vec<(ServicePortKey, DesiredService)>,
        changes: &mut Vec<RowChange>,
    ) {
        let old = self.keys(name);
        let before = old.iter().filter_map(|key| Some((key, self.desired.get(key)?)));
        let now = rows.iter().map(|(key, row)| (key, row));
        let ending = self.facts.ending;
        for (key, row) in before.chain(now).filter(|(key, _)| ending.has(key.proto)) {
            let places = row.frontends.iter().map(|frontend| (frontend.address, frontend.port));
            self.touched_frontends.extend(places.map(|place| (place, key.proto)));
            self.touched.insert(name.clone());
        }
        for key in old {
            if !rows.iter().any(|(other, _)| *other == key) {
                if let Some(old) = self.desired.remove(&key) {
                    self.no_local.remove(key.family, &old);
                }
                changes.push((key, None));
            }
        }
        for (key, row) in rows {
            if self.desired.get(&key) != Some(&row) {
                self.no_local.add(key.family, &row);
                if let Some(old) = self.desired.insert(key.clone(), row.clone()) {
                    self.no_local.remove(key.family, &old);
                }
                changes.push((key, Some(row)));
            }
        }
    }

    /// Keys of a Service's rows: neighbours in the order of keys.
    fn keys(&self, name: &Name) -> Vec<ServicePortKey> {
        let first = ServicePortKey {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            port: String::new(),
            proto: 0,
            family: IpFamily::V4,
        };
        let keys = self.desired.range(first..).map(|(key, _)| key);
        keys.take_while(|key| key.namespace == *name.namespace && key.name == *name.name)
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests;

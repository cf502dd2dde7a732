//! The lab itself: raised from a spec, changed while it is up, gone when dropped.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    address::Addresses,
    bpffs, cgroup,
    error::{At, Error, Result},
    manifests,
    namespace::Namespace,
    network,
    place::Place,
    process::Process,
    record::{self, Lifetime, Record, end_if_interrupted},
    spec::{LabSpec, Seat},
};

/// A running lab. Unless it is to be kept, dropping it takes it down.
#[derive(Debug)]
pub struct Lab {
    record: Record,
}

impl Lab {
    /// Raises a lab that lasts as long as this value.
    pub fn up(spec: LabSpec) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::raise(format!("{}-{count}", std::process::id()), spec, Lifetime::Owner)
    }

    /// Raises a lab with a name of its own.
    pub fn raise(id: String, spec: LabSpec, lifetime: Lifetime) -> Result<Self> {
        spec.validate()?;
        record::remove_leftovers()?;
        let lab = Self { record: Record::new(id, spec, lifetime) };
        lab.record.claim()?;
        match lab.build() {
            Ok(()) => Ok(lab),
            Err(err) => {
                // What failed is the news; what is left of it goes with the next lab.
                let _ = lab.record.remove();
                Err(err)
            }
        }
    }

    /// A lab that is up already, kept or of another process.
    pub fn open(id: &str) -> Result<Self> {
        Ok(Self { record: Record::load(id)? })
    }

    /// Ids of the labs that are up on this machine, and whether each is a kept one.
    pub fn list() -> Vec<(String, bool)> {
        record::all().into_iter().map(|lab| (lab.id.clone(), lab.is_kept())).collect()
    }

    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn spec(&self) -> &LabSpec {
        &self.record.spec
    }

    fn build(&self) -> Result<()> {
        let spec = self.spec();
        for name in spec.names() {
            self.furnish(name)?;
        }
        self.namespace("fabric").ip(&network::fabric(self.id(), spec))?;
        self.namespace("client").ip(&network::client(spec))?;
        for (number, node) in spec.nodes() {
            self.namespace(&node.name).ip(&network::node(spec, number, node))?;
            for (slot, pod) in node.pods() {
                self.plug(number, &node.name, slot, pod)?;
            }
        }
        Ok(())
    }

    /// A namespace with its settings, a cgroup, and for a node the agent's directories.
    fn furnish(&self, name: &str) -> Result<()> {
        let namespace = self.namespace(name);
        namespace.create()?;
        let is_node = matches!(self.spec().seat(name), Some(Seat::Node { .. }));
        namespace.sysctl(&network::sysctls(self.spec(), is_node))?;
        cgroup::create(&self.place(name)?.cgroup)?;
        if is_node {
            bpffs::create(&self.bpffs(name))?;
            let manifests = self.manifests(name);
            fs::create_dir_all(&manifests).at("create", manifests)?;
        }
        Ok(())
    }

    /// Joins a pod to its node.
    fn plug(&self, number: u8, node: &str, slot: u8, pod: &str) -> Result<()> {
        let spec = self.spec();
        let port = network::pod_port(self.id(), spec, number, slot, pod);
        self.namespace(node).ip(&port)?;
        self.namespace(pod).ip(&network::pod(spec, number, slot))
    }

    /// Adds a pod to a node and returns it.
    pub fn add_pod(&mut self, node: &str, pod: &str) -> Result<Place> {
        let Some(Seat::Node { number }) = self.spec().seat(node) else {
            return Err(self.unknown(node));
        };
        let mut spec = self.record.spec.clone();
        let pods = &mut spec.nodes[usize::from(number) - 1].pods;
        let slot = pods.iter().position(Option::is_none).unwrap_or(pods.len());
        if slot == pods.len() {
            pods.push(None);
        }
        pods[slot] = Some(pod.into());
        spec.validate()?;
        self.record.spec = spec;
        self.record.save()?;
        self.furnish(pod)?;
        self.plug(number, node, slot as u8, pod)?;
        self.place(pod)
    }

    /// Removes a pod: its processes, its link, its namespace.
    pub fn remove_pod(&mut self, pod: &str) -> Result<()> {
        let Some(Seat::Pod { node, slot }) = self.spec().seat(pod) else {
            return Err(self.unknown(pod));
        };
        let place = self.place(pod)?;
        cgroup::remove(&place.cgroup)?;
        // The link is removed first: a namespace's devices go some time after its name.
        let port = format!("link delete veth{pod}");
        let node_name = self.spec().nodes[usize::from(node) - 1].name.clone();
        self.namespace(&node_name).ip(&[port])?;
        place.namespace.delete()?;
        self.record.spec.nodes[usize::from(node) - 1].pods[usize::from(slot)] = None;
        self.record.save()
    }

    fn namespace(&self, name: &str) -> Namespace {
        Namespace::new(self.id(), name)
    }

    fn unknown(&self, name: &str) -> Error {
        Error::UnknownPlace { name: name.into(), known: self.spec().names().join(", ") }
    }

    /// A node, a pod, `client` or `fabric`.
    pub fn place(&self, name: &str) -> Result<Place> {
        let seat = self.spec().seat(name).ok_or_else(|| self.unknown(name))?;
        let addresses = self.addresses(name)?;
        let lab = cgroup::of_lab(self.id())?;
        let cgroup = match seat {
            Seat::Fabric | Seat::Client => lab.join(name),
            Seat::Node { .. } => lab.join(name).join("host"),
            Seat::Pod { node, .. } => {
                lab.join(&self.spec().nodes[usize::from(node) - 1].name).join(name)
            }
        };
        Ok(Place {
            name: name.into(),
            addresses,
            namespace: self.namespace(name),
            cgroup,
            kept: self.record.is_kept(),
        })
    }

    pub fn addresses(&self, name: &str) -> Result<Addresses> {
        self.spec().addresses(name).ok_or_else(|| self.unknown(name))
    }

    /// The node a pod runs on.
    pub fn node_of(&self, pod: &str) -> Result<&str> {
        match self.spec().seat(pod) {
            Some(Seat::Pod { node, .. }) => Ok(&self.spec().nodes[usize::from(node) - 1].name),
            _ => Err(self.unknown(pod)),
        }
    }

    /// Starts a command in a place.
    pub fn spawn(&self, place: &str, command: Command) -> Result<Process> {
        self.place(place)?.spawn(command)
    }

    /// Runs a command in a place to its end.
    pub fn run(&self, place: &str, command: Command) -> Result<Output> {
        self.place(place)?.run(command)
    }

    /// Runs a shell line in a place; fails if it does.
    pub fn shell(&self, place: &str, line: &str) -> Result<String> {
        self.place(place)?.shell(line)
    }

    /// Calls a function on a thread in a place's network namespace.
    pub fn enter<T: Send>(&self, place: &str, inside: impl FnOnce() -> T + Send) -> Result<T> {
        self.place(place)?.enter(inside)
    }

    /// The cgroup that holds all of a node: its own processes and those of its pods.
    pub fn node_cgroup(&self, node: &str) -> Result<PathBuf> {
        Ok(cgroup::of_lab(self.id())?.join(node))
    }

    /// Where a node's agents pin their maps and links.
    pub fn bpffs(&self, node: &str) -> PathBuf {
        bpffs::of_lab(self.id()).join(node)
    }

    /// The directory of manifests that a node's agent reads.
    pub fn manifests(&self, node: &str) -> PathBuf {
        self.directory(node).join("manifests")
    }

    /// What a node's flannel-agent tells the CNI plugin by.
    pub fn subnet_file(&self, node: &str) -> PathBuf {
        self.directory(node).join("flannel/subnet.env")
    }

    /// Where logs and other files of a place are kept while the lab is up.
    pub fn directory(&self, place: &str) -> PathBuf {
        self.record.directory().join(place)
    }

    /// Puts a file of manifests before the agents of all nodes.
    pub fn publish(&self, file: &str, documents: &[serde_json::Value]) -> Result<()> {
        self.spec()
            .nodes
            .iter()
            .try_for_each(|node| manifests::write(&self.manifests(&node.name), file, documents))
    }

    /// Takes a file of manifests away from the agents of all nodes.
    pub fn withdraw(&self, file: &str) -> Result<()> {
        self.spec().nodes.iter().try_for_each(|node| {
            let path = self.manifests(&node.name).join(file);
            fs::remove_file(&path).at("remove", path)
        })
    }

    /// Leaves a kept lab up when this process ends.
    pub fn keep(self) {
        end_if_interrupted();
        if self.record.is_kept() {
            self.record.let_go();
        }
    }

    /// Takes the lab down and says what went wrong, which dropping cannot.
    pub fn down(self) -> Result<()> {
        self.record.remove()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.record.is_mine() {
            return;
        }
        if let Err(err) = self.record.remove() {
            eprintln!("lab {} is not gone: {err}", self.id());
        }
    }
}

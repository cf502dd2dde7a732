//! A whole cluster of Kubernetes in a lab: API server and controllers in the fabric, and on each
//! node containerd and a kubelet. What the nodes' network is made by, and who balances Services, is
//! for whoever raises it to deploy.

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    LabSpec, NodeSpec,
    address::Families,
    api_server::ApiServer,
    containerd::{self, Containerd},
    control_plane::ControlPlane,
    error::{At, Error, Result},
    kubelet::Kubelet,
    lab::Lab,
    machine::Machine,
    peers,
    place::Place,
};

/// Where API server and controllers are.
const CENTRE: &str = "fabric";

/// A table of routes that no forwarded packet is looked up in.
const OWN_ROUTES: u32 = 100;

/// How long a node, a pod or a rollout may take, on however busy a machine.
pub const PATIENCE: Duration = Duration::from_mins(5);

/// A running cluster. Dropping it ends all of it.
#[derive(Debug)]
pub struct Kubernetes {
    // Dropped in this order: the lab goes last.
    _kubelets: Vec<Kubelet>,
    _containerds: Vec<Containerd>,
    pub machines: Vec<Machine>,
    _control_plane: ControlPlane,
    pub api: ApiServer,
    pub lab: Lab,
}

impl Kubernetes {
    /// Raises a cluster of nodes `node1`, `node2` and so on, and waits until each is registered and has
    /// its podCIDR. `archives` are imported on all nodes; `sandbox` is an image of one of them.
    pub fn up(nodes: u8, families: Families, archives: &[&Path], sandbox: &str) -> Result<Self> {
        let names = (1..=nodes).map(|number| format!("node{number}"));
        // A CNI plugin makes their bridges and an overlay the routes between them.
        let nodes = names.map(|name| NodeSpec::new(&name, &[]).routed()).collect();
        let lab = Lab::up(LabSpec { nodes, overlay: true, ..LabSpec::default() })?;
        let api = ApiServer::start_for_cluster(&lab, CENTRE, &peers().join("kube-apiserver"))?;
        let control_plane = ControlPlane::start(&lab, CENTRE, &api, families)?;
        let names: Vec<_> = lab.spec().nodes.iter().map(|node| node.name.clone()).collect();
        let (mut machines, mut containerds, mut kubelets) = (Vec::new(), Vec::new(), Vec::new());
        for name in &names {
            let machine = Machine::boot(&lab, name)?;
            containerds.push(Containerd::start(&machine, sandbox)?);
            archives
                .iter()
                .try_for_each(|archive| containerd::Containerd::import(&machine, archive))?;
            kubelets.push(Kubelet::start(&machine, &api, families)?);
            machines.push(machine);
        }
        let cluster = Self {
            _kubelets: kubelets,
            _containerds: containerds,
            machines,
            _control_plane: control_plane,
            api,
            lab,
        };
        for name in &names {
            cluster.wait(&format!("a podCIDR of {name}"), || cluster.pod_cidr(name).ok())?;
        }
        cluster.route_to_pods()?;
        Ok(cluster)
    }

    /// The API server hands requests on to pods. What nodes send by way of the fabric goes nowhere: to
    /// join their pods is an overlay's work, which nobody shall do in its place.
    fn route_to_pods(&self) -> Result<()> {
        let centre = self.centre()?;
        // What comes from no device is the place's own.
        centre.shell(&format!("ip rule add iif lo lookup {OWN_ROUTES}"))?;
        self.machines.iter().try_for_each(|machine| {
            let (cidr, node) = (self.pod_cidr(machine.name())?, machine.place().addresses.v4);
            centre.shell(&format!("ip route add {cidr} via {node} table {OWN_ROUTES}")).map(drop)
        })
    }

    /// The network that the node's pods shall be in.
    pub fn pod_cidr(&self, node: &str) -> Result<String> {
        let path = format!("/api/v1/nodes/{node}");
        let cidr = self.api.read(&path)?["spec"]["podCIDR"].as_str().map(String::from);
        cidr.ok_or_else(|| Error::Command {
            place: CENTRE.into(),
            command: format!("GET {path}"),
            message: "it has no podCIDR".into(),
        })
    }

    /// Asks until there is an answer.
    pub fn wait<T>(&self, what: &str, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(answer) = ask() {
                return Ok(answer);
            }
            thread::sleep(Duration::from_millis(200));
        }
        Err(Error::NotReady { what: what.into(), seconds: PATIENCE.as_secs(), log: self.report() })
    }

    /// A command line of kubectl for an administrator, to be run in the [centre](Self::centre).
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut kubectl = Command::new(peers().join("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.api.kubeconfig()).args(arguments);
        kubectl
    }

    /// Where API server and controllers are.
    pub fn centre(&self) -> Result<Place> {
        self.lab.place(CENTRE)
    }

    /// Runs kubectl as an administrator; fails if it does.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.lab.run(CENTRE, self.kubectl_command(arguments))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            place: CENTRE.into(),
            command: format!("kubectl {}", arguments.join(" ")),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// Has helm install a chart as an administrator does, by `--set` with each of the values.
    pub fn helm_install(&self, chart: &Path, values: &[&str]) -> Result<()> {
        let mut helm = Command::new(peers().join("helm"));
        helm.args(["install", "millrace"]).arg(chart);
        helm.arg("--kubeconfig").arg(self.api.kubeconfig());
        helm.args(values.iter().flat_map(|value| ["--set", value]));
        // It keeps what it has downloaded below the user's home unless told otherwise.
        for kind in ["CACHE", "CONFIG", "DATA"] {
            helm.env(format!("HELM_{kind}_HOME"), self.lab.directory(CENTRE).join("helm"));
        }
        let output = self.lab.run(CENTRE, helm)?;
        if output.status.success() {
            return Ok(());
        }
        Err(Error::Command {
            place: CENTRE.into(),
            command: format!("helm install {}", chart.display()),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// Makes or changes objects as `kubectl apply` does.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        let file = self.lab.directory(CENTRE).join("apply.json");
        fs::write(&file, list.to_string()).at("write", &file)?;
        self.kubectl(&["apply", "--filename", &file.display().to_string()]).map(drop)
    }

    /// Waits until a workload such as `daemonset/proxy-agent` is as it was told to be.
    pub fn rolled_out(&self, namespace: &str, workload: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", PATIENCE.as_secs());
        self.kubectl(&["--namespace", namespace, "rollout", "status", workload, &timeout])
            .map(drop)
            .map_err(|err| Error::NotReady {
                what: format!("{workload} ({err})"),
                seconds: PATIENCE.as_secs(),
                log: self.report(),
            })
    }

    /// What of the cluster tells why something is not ready.
    pub fn report(&self) -> String {
        let mut text = String::new();
        for question in [
            &["get", "nodes,pods", "--all-namespaces", "--output", "wide"][..],
            &["get", "events", "--all-namespaces", "--field-selector", "type=Warning"],
        ] {
            text += &self.kubectl(question).unwrap_or_else(|err| err.to_string());
        }
        text
    }
}

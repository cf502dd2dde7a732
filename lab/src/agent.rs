//! An agent on a node of the lab, proxy-agent or flannel-agent: started, killed, started again,
//! asked if it is ready.

use std::{
    fs::File,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Command, ExitStatus, Output},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use crate::{
    address::{CLUSTER_CIDR4, CLUSTER_CIDR6},
    dist,
    error::{At, Error, Result},
    lab::Lab,
    old_kernel,
    place::Place,
    process::{self, Process},
};

const HEALTH: &str = "127.0.0.1:10256";
const METRICS: &str = "127.0.0.1:10249";
const OVERLAY_HEALTH: &str = "127.0.0.1:8081";
const OVERLAY_METRICS: &str = "127.0.0.1:9871";

/// `--socket-lb`: who meets the socket path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum SocketLb {
    /// Pods and the node's own processes.
    On,
    /// Only the node's own processes; pods are served by the packet path.
    Host,
    Off,
}

impl SocketLb {
    pub fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub socket_lb: SocketLb,
    /// Whether it is told its addresses by `--node-ip`, and not by its Node object.
    pub is_told_node_ip: bool,
    /// `--source`, where it is not the lab's manifests.
    pub source: Option<String>,
    /// Further arguments; they come last, so they win.
    pub extra: Vec<String>,
    pub binary: PathBuf,
    /// How long it may take to be ready.
    pub patience: Duration,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            socket_lb: SocketLb::On,
            is_told_node_ip: true,
            source: None,
            extra: Vec::new(),
            binary: dist().join("proxy-agent"),
            patience: Duration::from_secs(20),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Proxy,
    Flannel,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Proxy => "proxy-agent",
            Self::Flannel => "flannel-agent",
        }
    }

    /// Where it says whether it is ready.
    fn readiness(self) -> (&'static str, &'static str) {
        match self {
            Self::Proxy => (HEALTH, "/healthz"),
            Self::Flannel => (OVERLAY_HEALTH, "/readyz"),
        }
    }

    fn metrics(self) -> &'static str {
        match self {
            Self::Proxy => METRICS,
            Self::Flannel => OVERLAY_METRICS,
        }
    }
}

/// An agent of one node. Dropping it kills it, and what it programmed stays, as it would
/// after any crash.
#[derive(Debug)]
pub struct Agent {
    place: Place,
    kind: Kind,
    binary: PathBuf,
    patience: Duration,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    /// What subcommands are asked with.
    asking: Vec<String>,
    log: PathBuf,
    is_refused_links: bool,
    process: Option<Process>,
}

impl Agent {
    /// Starts an agent and waits until it is ready.
    pub fn start(lab: &Lab, node: &str, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::prepare(lab, node, options)?;
        agent.launch()?;
        agent.wait_ready()?;
        Ok(agent)
    }

    /// An agent that is not started yet.
    pub fn prepare(lab: &Lab, node: &str, options: AgentOptions) -> Result<Self> {
        let binary = built(options.binary)?;
        let place = lab.place(node)?;
        let bpffs = lab.bpffs(node);
        let [v4, v6] = place.addresses.both();
        let manifests = || format!("dir:{}", lab.manifests(node).display());
        let flags = [
            ("--source", options.source.clone().unwrap_or_else(manifests)),
            ("--hostname-override", node.into()),
            ("--node-ip", format!("{v4},{v6}")),
            ("--cluster-cidr", format!("{CLUSTER_CIDR4},{CLUSTER_CIDR6}")),
            ("--uplink", "eth0".into()),
            ("--socket-lb", options.socket_lb.name().into()),
            ("--cgroup-root", lab.node_cgroup(node)?.display().to_string()),
            ("--bpffs", bpffs.display().to_string()),
            ("--metrics-bind-address", METRICS.into()),
            ("--healthz-bind-address", HEALTH.into()),
        ];
        let is_used = |(flag, _): &(&str, String)| options.is_told_node_ip || *flag != "--node-ip";
        let flags =
            flags.into_iter().filter(is_used).flat_map(|(flag, value)| [flag.to_string(), value]);
        let arguments = flags.chain(options.extra.iter().cloned()).collect();
        let log = lab.directory(node).join("proxy-agent.log");
        Ok(Self {
            place,
            kind: Kind::Proxy,
            binary,
            patience: options.patience,
            arguments,
            variables: Vec::new(),
            asking: vec!["--bpffs".into(), bpffs.display().to_string()],
            log,
            is_refused_links: false,
            process: None,
        })
    }

    /// A flannel-agent that is not started yet. It shall find the subnet that the lab's pods on
    /// this node have, by way of `subnet.env`.
    pub fn prepare_overlay(lab: &Lab, node: &str, arguments: &[String]) -> Result<Self> {
        let binary = built(dist().join("flannel-agent"))?;
        let flags = [
            "-iface=eth0".into(),
            "-healthz-port=8081".into(),
            format!("-subnet-file={}", lab.subnet_file(node).display()),
            format!("--bpffs={}", lab.bpffs(node).display()),
        ];
        Ok(Self {
            place: lab.place(node)?,
            kind: Kind::Flannel,
            binary,
            patience: Duration::from_secs(20),
            arguments: flags.into_iter().chain(arguments.iter().cloned()).collect(),
            variables: Vec::new(),
            asking: Vec::new(),
            log: lab.directory(node).join("flannel-agent.log"),
            is_refused_links: false,
            process: None,
        })
    }

    /// Gives `--flag=value` another value from the next start on.
    pub fn change_argument(&mut self, argument: &str) {
        let name = argument.split('=').next().unwrap_or_default();
        let is_same = |held: &String| held.split('=').next() == Some(name);
        self.arguments.retain(|held| !is_same(held));
        self.arguments.push(argument.to_owned());
    }

    /// Runs another binary, or a script that runs it, from the next start on.
    pub fn set_binary(&mut self, binary: PathBuf) {
        self.binary = binary;
    }

    /// Gives it a variable of the environment from the next start on.
    pub fn set_variable(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.into()));
    }

    /// Has it attach to devices as on a kernel before 6.6, from the next start on. The socket path
    /// must be off: its links are older, and refused as well.
    pub fn refuse_links(&mut self) {
        self.is_refused_links = true;
    }

    /// Starts the process without waiting for anything. Its log is appended to.
    pub fn launch(&mut self) -> Result<()> {
        let mut run = Command::new(&self.binary);
        run.arg("run").args(&self.arguments).envs(self.variables.iter().cloned());
        process::log_to(&mut run, &self.log)?;
        if self.is_refused_links {
            old_kernel::refuse_links(&mut run);
        }
        self.process = Some(self.place.spawn(run)?);
        Ok(())
    }

    /// Waits until it says that it is ready.
    pub fn wait_ready(&mut self) -> Result<()> {
        self.wait(self.kind.readiness().1)
    }

    /// Waits until a path of the status server says 200.
    fn wait(&mut self, path: &str) -> Result<()> {
        let began = Instant::now();
        let (address, _) = self.kind.readiness();
        while began.elapsed() < self.patience {
            if self.get(address, path).is_ok_and(|(status, _)| status == 200) {
                return Ok(());
            }
            if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(Error::NotReady {
            what: format!("{} of {}", self.kind.name(), self.place.name),
            seconds: began.elapsed().as_secs(),
            log: self.log_tail(),
        })
    }

    /// Ends the agent by SIGKILL, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        match self.process.take() {
            Some(mut process) => process.kill().map(drop).at("kill", &self.binary),
            None => Ok(()),
        }
    }

    /// Ends it by SIGTERM, as a supervisor does, and says how it ended.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let gone = || io::Error::other("it does not run");
        let mut process = self.process.take().ok_or_else(gone).at("end", &self.binary)?;
        process.signal(Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < self.patience {
            if let Some(status) = process.ended() {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        process.kill().at("kill", &self.binary)
    }

    /// Kills the agent and starts it again, until it is ready.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.launch()?;
        self.wait_ready()
    }

    /// The same, but only until it answers: it may have to wait for what it reads.
    pub fn restart_unready(&mut self) -> Result<()> {
        self.kill()?;
        self.launch()?;
        self.wait("/livez")
    }

    /// Leaves the agent running when this process ends (kept labs).
    pub fn let_go(mut self) {
        if let Some(process) = self.process.take() {
            process.let_go();
        }
    }

    pub fn node(&self) -> &str {
        &self.place.name
    }

    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Runs a subcommand (`status`, `services`, …) beside the agent.
    pub fn ask(&self, arguments: &[&str]) -> Result<Output> {
        let mut ask = Command::new(&self.binary);
        ask.args(arguments).args(&self.asking);
        self.place.run(ask)
    }

    /// The text of `/metrics`.
    pub fn metrics(&self) -> Result<String> {
        let address = self.kind.metrics();
        let answer = self.get(address, "/metrics");
        answer.map(|(_, body)| body).at("read", format!("http://{address}/metrics"))
    }

    /// Status and body of a path of the status server at the health address.
    pub fn health(&self, path: &str) -> Result<(u16, String)> {
        let (address, _) = self.kind.readiness();
        self.get(address, path).at("read", format!("http://{address}{path}"))
    }

    /// Status and body of a path at the address of metrics.
    pub fn status(&self, path: &str) -> Result<(u16, String)> {
        let address = self.kind.metrics();
        self.get(address, path).at("read", format!("http://{address}{path}"))
    }

    /// How the process ended, if it did by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    fn get(&self, address: &str, path: &str) -> io::Result<(u16, String)> {
        self.place.enter(|| get(address, path)).unwrap_or_else(|err| Err(io::Error::other(err)))
    }

    pub fn log(&self) -> String {
        let mut text = String::new();
        let _ = File::open(&self.log).and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    /// The last lines of the log, for a failure's report.
    pub fn log_tail(&self) -> String {
        process::log_tail(&self.log)
    }
}

/// The program, if it is there.
fn built(path: PathBuf) -> Result<PathBuf> {
    if path.exists() { Ok(path) } else { Err(Error::NotBuilt { path }) }
}

/// A GET over HTTP/1.0, which needs neither chunks nor a client library.
fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let patience = Duration::from_secs(2);
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    status
        .map(|status| (status, body.to_string()))
        .ok_or_else(|| io::Error::other("no HTTP status line"))
}

//! A node of a lab as a machine of its own: with processes, mounts and cgroups that only it sees. A
//! container runtime and a kubelet find there, at their usual places, what they would have on a real
//! machine, and write nothing of the one that the lab is on.
//!
//! All that they write is in memory and goes with the last process of the node.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{At, Error, Result},
    lab::Lab,
    place::Place,
    process::{self, Process},
};

const PATIENCE: Duration = Duration::from_mins(1);

/// Settings of the whole kernel that a kubelet insists on (`setupKernelTunables` in
/// `pkg/kubelet/cm/container_manager_linux.go`). It is shown these values and no file of the kernel,
/// so that it changes none.
const SETTINGS: [(&str, &str); 6] = [
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// What the machine has of the directories that the node writes: its own layer is above them.
const LAYERED: [&str; 4] = ["etc", "opt", "var/lib", "var/log"];

/// A node as a machine. Dropping it ends all that runs on it.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    directory: PathBuf,
    /// The parent of the node's first process, which does not outlive it.
    _keeper: Process,
    /// The node's first process, as this machine counts processes.
    init: u32,
}

impl Machine {
    /// Makes a machine of a node of the lab, on which nothing runs yet.
    pub fn boot(lab: &Lab, node: &str) -> Result<Self> {
        let place = lab.place(node)?;
        let directory = lab.directory(node);
        let script = directory.join("init.sh");
        fs::write(&script, init(lab, &place, &directory)).at("write", &script)?;
        // From the node's cgroup, lest `host` within it be the root of all that the node sees.
        let line = format!(
            "echo 0 >{}/cgroup.procs && exec unshare --mount --uts --ipc --pid --cgroup --fork \
             --kill-child sh {}",
            lab.node_cgroup(node)?.display(),
            script.display(),
        );
        let mut keeper = Command::new("sh");
        keeper.args(["-c", &line]);
        let log = directory.join("init.log");
        process::log_to(&mut keeper, &log)?;
        let mut keeper = place.spawn(keeper)?;
        let began = Instant::now();
        while !directory.join(BOOTED).exists() {
            if keeper.ended().is_some() || began.elapsed() > PATIENCE {
                return Err(Error::NotReady {
                    what: format!("{node} as a machine"),
                    seconds: began.elapsed().as_secs(),
                    log: process::log_tail(&log),
                });
            }
            thread::sleep(Duration::from_millis(20));
        }
        let children = PathBuf::from(format!("/proc/{0}/task/{0}/children", keeper.id()));
        let text = fs::read_to_string(&children).at("read", &children)?;
        let init = text.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let init = init.ok_or_else(|| std::io::Error::other("it names no process"));
        Ok(Self { init: init.at("read", children)?, _keeper: keeper, place, directory })
    }

    pub fn name(&self) -> &str {
        &self.place.name
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Files of the node that the lab sees, too, at the same path.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The same command inside the node.
    fn inside(&self, command: &Command) -> Command {
        let mut inside = Command::new("nsenter");
        inside.arg("--target").arg(self.init.to_string());
        inside.args(["--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup", "--"]);
        inside.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => inside.env(name, value),
                None => inside.env_remove(name),
            };
        }
        inside
    }

    /// Starts a daemon, whose log is `NAME.log` in the [directory](Self::directory).
    pub(crate) fn start(&self, name: &str, command: &Command) -> Result<Process> {
        let mut inside = self.inside(command);
        process::log_to(&mut inside, &self.log(name))?;
        self.place.spawn(inside)
    }

    pub(crate) fn log(&self, daemon: &str) -> PathBuf {
        self.directory.join(format!("{daemon}.log"))
    }

    /// Runs a command to its end.
    pub fn run(&self, command: &Command) -> Result<Output> {
        let mut inside = self.inside(command);
        inside.stdin(Stdio::null());
        self.place.run(inside)
    }

    /// Runs a shell line and returns what it printed; fails if it does.
    pub fn shell(&self, line: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", line]);
        let output = self.run(&shell)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            place: self.name().into(),
            command: line.into(),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }
}

/// Written when all mounts are made.
const BOOTED: &str = "booted";

/// The script of the node's first process: mounts, and then the burial of orphans.
fn init(lab: &Lab, place: &Place, directory: &Path) -> String {
    let beneath = format!("millrace-lab/{}", lab.id());
    let own = directory.join("own");
    let own = own.display();
    let run = format!("{own}/run");
    let mut lines = vec![
        "set -e".into(),
        format!("hostname {}", place.name),
        "mount --make-rprivate /".into(),
        "mount -t proc proc /proc".into(),
        "mount -t sysfs sysfs /sys".into(),
        "mount -t cgroup2 cgroup2 /sys/fs/cgroup".into(),
        "mount -t bpf bpf /sys/fs/bpf".into(),
        // Containers are beside the node's own processes and not below.
        "echo 0 >/sys/fs/cgroup/host/cgroup.procs".into(),
        format!("mkdir {own}"),
        format!("mount -t tmpfs tmpfs {own}"),
    ];
    for path in LAYERED {
        let layer = format!("{own}/{}", path.replace('/', "-"));
        lines.push(format!("mkdir -p {layer}/upper {layer}/work"));
        lines.push(format!(
            "mount -t overlay overlay -o lowerdir=/{path},upperdir={layer}/upper,workdir={layer}/work /{path}"
        ));
    }
    lines.extend([
        "rm -rf /etc/resolv.conf /etc/cni /var/lib/kubelet /var/lib/cni".into(),
        "mkdir -p /etc/cni/net.d /opt/cni /var/lib/kubelet /var/lib/cni".into(),
        ">/etc/resolv.conf".into(),
        format!(
            "printf '127.0.0.1 localhost\\n{} {}\\n' >/etc/hosts",
            place.addresses.v4, place.name
        ),
        // The lab's files are below /run themselves.
        format!("mkdir -p {run}/{beneath} && mount --rbind /run/{beneath} {run}/{beneath}"),
        format!("mount --rbind {run} /run"),
        "mkdir -p /run/lock /run/netns".into(),
    ]);
    for (name, value) in SETTINGS {
        let shown = format!("{own}/{}", name.replace('/', "-"));
        lines.push(format!("echo {value} >{shown}"));
        lines.push(format!("mount --bind {shown} /proc/sys/{name}"));
    }
    lines.extend([
        // Mounts of pods are seen by the kubelet, and the other way round.
        "mount --make-rshared /".into(),
        format!(">{}/{BOOTED}", directory.display()),
        // The shell waits for whoever has lost its parent.
        "while :; do sleep 3600 & wait $!; done".into(),
    ]);
    lines.join("\n") + "\n"
}

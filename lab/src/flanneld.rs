//! A real flanneld on a node of the lab: what flannel-agent shares a network with, takes a node over
//! from, and gives it back to.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    thread,
    time::{Duration, Instant, SystemTime},
};

use nix::sys::signal::Signal;

use crate::{
    error::{At, Error, Result},
    lab::Lab,
    peers,
    place::Place,
    process::{self, Process},
};

/// flanneld does not start where packets of a bridge cannot pass netfilter.
const BRIDGED: [&str; 2] = [
    "/proc/sys/net/bridge/bridge-nf-call-iptables",
    "/proc/sys/net/bridge/bridge-nf-call-ip6tables",
];

const PATIENCE: Duration = Duration::from_secs(20);

/// flanneld of one node. Dropping it kills it, and what it programmed stays.
#[derive(Debug)]
pub struct Flanneld {
    place: Place,
    binary: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(&'static str, String)>,
    subnet_file: PathBuf,
    log: PathBuf,
    process: Option<Process>,
    launched: SystemTime,
}

impl Flanneld {
    /// One that is not started yet, with the flags that its manifests give it. It shall find the
    /// subnet that the lab's pods on this node have, by way of `subnet.env`.
    pub fn prepare(lab: &Lab, node: &str, arguments: &[String]) -> Result<Self> {
        let binary = peers().join("flanneld");
        if !binary.exists() {
            return Err(Error::NoPeer { path: binary });
        }
        let place = lab.place(node)?;
        for path in BRIDGED {
            if !place.enter(|| Path::new(path).exists())? {
                return Err(Error::NoBridgeNetfilter { path, who: "flanneld" });
            }
        }
        let subnet_file = lab.subnet_file(node);
        let flags = [
            "-iface=eth0".to_owned(),
            "-ip-masq".to_owned(),
            format!("-subnet-file={}", subnet_file.display()),
        ];
        Ok(Self {
            place,
            binary,
            arguments: flags.into_iter().chain(arguments.iter().cloned()).collect(),
            variables: Vec::new(),
            subnet_file,
            log: lab.directory(node).join("flanneld.log"),
            process: None,
            launched: SystemTime::UNIX_EPOCH,
        })
    }

    /// Gives it a variable of the environment from the next start on.
    pub fn set_variable(&mut self, name: &'static str, value: &str) {
        self.variables.push((name, value.into()));
    }

    /// Starts the process without waiting for anything. Its log is appended to.
    pub fn launch(&mut self) -> Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(&self.arguments).envs(self.variables.iter().cloned());
        process::log_to(&mut command, &self.log)?;
        self.launched = SystemTime::now();
        self.process = Some(self.place.spawn(command)?);
        Ok(())
    }

    /// Waits until it has written `subnet.env`, by which flanneld says that it is up; of peers it
    /// learns a moment later.
    pub fn wait_ready(&mut self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.is_ready() {
                return Ok(());
            }
            if self.process.as_mut().is_none_or(|process| process.ended().is_some()) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
        }
        Err(Error::NotReady {
            what: format!("flanneld of {}", self.place.name),
            seconds: began.elapsed().as_secs(),
            log: process::log_tail(&self.log),
        })
    }

    fn is_ready(&self) -> bool {
        let written = fs::metadata(&self.subnet_file).and_then(|file| file.modified());
        written.is_ok_and(|written| written >= self.launched)
    }

    /// Ends it by SIGTERM, as a supervisor does, and says how it ended.
    pub fn end(&mut self) -> Result<ExitStatus> {
        let gone = || io::Error::other("it does not run");
        let mut process = self.process.take().ok_or_else(gone).at("end", &self.binary)?;
        process.signal(Signal::SIGTERM);
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = process.ended() {
                return Ok(status);
            }
            thread::sleep(Duration::from_millis(5));
        }
        process.kill().at("kill", &self.binary)
    }

    pub fn node(&self) -> &str {
        &self.place.name
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

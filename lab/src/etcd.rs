//! A real etcd for leases: started by a test or a demo, stopped and started again with what it
//! holds, gone with its files when dropped.

use std::{
    fs::{self, OpenOptions},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{At, Error, Result},
    lab::Lab,
    place::Place,
    process::Process,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// etcd, running or stopped. Dropping it ends it.
#[derive(Debug)]
pub struct Etcd {
    /// Whose network namespace it runs in; this process's own if none.
    place: Option<Place>,
    directory: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    /// Further arguments of etcd.
    extra: Vec<String>,
    process: Option<Running>,
}

#[derive(Debug)]
enum Running {
    Here(Child),
    There(Process),
}

impl Etcd {
    /// On this machine's loopback, at ports that were free a moment ago.
    pub fn on_loopback(extra: &[&str]) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-etcd-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        // Both are held until both are known, lest they be the same.
        let listeners = [listener()?, listener()?];
        let [client, peer] = [&listeners[0], &listeners[1]].map(TcpListener::local_addr);
        let (client, peer) = (client.at("bind", "127.0.0.1")?, peer.at("bind", "127.0.0.1")?);
        drop(listeners);
        let extra = extra.iter().map(ToString::to_string).collect();
        let mut etcd = Self { place: None, directory, client, peer, extra, process: None };
        etcd.start()?;
        Ok(etcd)
    }

    /// In a place of a lab, at its address.
    pub fn in_place(lab: &Lab, place: &str) -> Result<Self> {
        let place = lab.place(place)?;
        let mut etcd = Self {
            directory: lab.directory(&place.name).join("etcd"),
            client: (place.addresses.v4, 2379).into(),
            peer: (Ipv4Addr::LOCALHOST, 2380).into(),
            place: Some(place),
            extra: Vec::new(),
            process: None,
        };
        etcd.start()?;
        Ok(etcd)
    }

    /// For `--etcd-endpoints`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.client)
    }

    /// Starts it, with what it held before, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        fs::create_dir_all(&self.directory).at("create", &self.directory)?;
        let log = self.directory.join("log");
        let log = OpenOptions::new().create(true).append(true).open(&log).at("open", log)?;
        let errors = log.try_clone().at("open", &self.directory)?;
        let (client, peer) = (self.endpoint(), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", "lab", "--logger", "zap", "--log-level", "warn"]);
        command.arg("--data-dir").arg(self.directory.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("lab={peer}")]);
        command.args(&self.extra).stdin(Stdio::null()).stdout(log).stderr(errors);
        self.process = Some(match &self.place {
            Some(place) => Running::There(place.spawn(command)?),
            None => Running::Here(
                command
                    .spawn()
                    .map_err(|source| Error::Start { program: "etcd".into(), source })?,
            ),
        });
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if self.is_up() && self.ctl(&["endpoint", "health"]).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        Err(Error::NotReady { what: "etcd".into(), seconds: PATIENCE.as_secs(), log })
    }

    fn is_up(&self) -> bool {
        let connect = || TcpStream::connect_timeout(&self.client, Duration::from_secs(1)).is_ok();
        match &self.place {
            Some(place) => place.enter(connect).unwrap_or(false),
            None => connect(),
        }
    }

    /// Ends it as a crash would; what it holds stays.
    pub fn stop(&mut self) {
        match self.process.take() {
            Some(Running::Here(mut child)) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            Some(Running::There(mut process)) => drop(process.kill()),
            None => {}
        }
    }

    /// Forgets all it held; it must be stopped.
    pub fn wipe(&self) -> Result<()> {
        let data = self.directory.join("data");
        fs::remove_dir_all(&data).at("remove", data)
    }

    /// Runs `etcdctl` and returns what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        let mut ctl = Command::new("etcdctl");
        ctl.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.endpoint()).args(arguments);
        let failed = |source| Error::Start { program: "etcdctl".into(), source };
        let output = match &self.place {
            Some(place) => place.run(ctl)?,
            None => ctl.stdin(Stdio::null()).output().map_err(failed)?,
        };
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Command {
            place: self.place.as_ref().map_or("the host", |place| &place.name).into(),
            command: format!("etcdctl {}", arguments.join(" ")),
            message: String::from_utf8_lossy(&output.stderr).trim().into(),
        })
    }

    /// The value of a key, if there is one.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        let text = self.ctl(&["get", "--print-value-only", key])?;
        Ok(Some(text.trim_end_matches('\n').to_owned()).filter(|text| !text.is_empty()))
    }

    /// Keys that begin so, in order.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let text = self.ctl(&["get", "--prefix", "--keys-only", prefix])?;
        Ok(text.lines().filter(|line| !line.is_empty()).map(String::from).collect())
    }

    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.ctl(&["put", key, "--", value]).map(drop)
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn listener() -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).at("bind", "127.0.0.1")
}

//! A real etcd for leases and objects: started by a test or a demo, stopped and started again with what it
//! holds, gone with its files when dropped.

use std::{
    fs,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    address::FABRIC4,
    bench::clock,
    error::{At, Error, Result},
    lab::Lab,
    place::Place,
    process::{self, Process},
};

/// Keys put at once: fewer than `--max-txn-ops` (128).
const CHUNK: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

/// etcd, running or stopped. Dropping it ends it.
#[derive(Debug)]
pub struct Etcd {
    /// Whose network namespace it runs in; this process's own if none.
    place: Option<Place>,
    directory: PathBuf,
    client: SocketAddr,
    peer: SocketAddr,
    /// Whom both sides trust, and what the server shows.
    tls: Option<Tls>,
    process: Option<Running>,
}

/// Files of a made-up authority: `ca.pem`, and `NAME.pem` with `NAME.key` for `server` and
/// `client`.
#[derive(Clone, Debug)]
pub struct Tls {
    pub directory: PathBuf,
    /// Whether clients must show a certificate.
    pub wants_client: bool,
}

impl Tls {
    /// Makes the files with `openssl`.
    pub fn create(directory: &Path, wants_client: bool) -> Result<Self> {
        fs::create_dir_all(directory).at("create", directory)?;
        let san = format!("subjectAltName=IP:127.0.0.1,IP:{FABRIC4}\n");
        fs::write(directory.join("san"), san).at("write", directory)?;
        let sign = |name: &str| {
            [
                format!(
                    "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
                ),
                format!(
                    "x509 -req -days 2 -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -extfile san -out {name}.pem"
                ),
            ]
        };
        let ca = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=lab -keyout ca.key -out ca.pem";
        let lines = std::iter::once(ca.to_owned()).chain(sign("server")).chain(sign("client"));
        for line in lines {
            let mut openssl = Command::new("openssl");
            openssl.args(line.split(' ')).current_dir(directory);
            let output = openssl
                .output()
                .map_err(|source| Error::Start { program: "openssl".into(), source })?;
            if !output.status.success() {
                return Err(Error::Command {
                    place: "the host".into(),
                    command: format!("openssl {line}"),
                    message: String::from_utf8_lossy(&output.stderr).trim().into(),
                });
            }
        }
        Ok(Self { directory: directory.into(), wants_client })
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

#[derive(Debug)]
enum Running {
    Here(Child),
    There(Process),
}

impl Etcd {
    /// On this machine's loopback, at ports that were free a moment ago.
    pub fn on_loopback(tls: Option<Tls>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("millrace-etcd-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        // Both are held until both are known, lest they be the same.
        let listeners = [listener()?, listener()?];
        let [client, peer] = [&listeners[0], &listeners[1]].map(TcpListener::local_addr);
        let (client, peer) = (client.at("bind", "127.0.0.1")?, peer.at("bind", "127.0.0.1")?);
        drop(listeners);
        let mut etcd = Self { place: None, directory, client, peer, tls, process: None };
        etcd.start()?;
        Ok(etcd)
    }

    /// In a place of a lab, at its address.
    pub fn in_place(lab: &Lab, place: &str) -> Result<Self> {
        Self::in_place_with(lab, place, None)
    }

    /// The same; with certificates, in the fabric alone.
    pub fn in_place_with(lab: &Lab, place: &str, tls: Option<Tls>) -> Result<Self> {
        let place = lab.place(place)?;
        let mut etcd = Self {
            directory: lab.directory(&place.name).join("etcd"),
            client: (place.addresses.v4, 2379).into(),
            peer: (Ipv4Addr::LOCALHOST, 2380).into(),
            place: Some(place),
            tls,
            process: None,
        };
        etcd.start()?;
        Ok(etcd)
    }

    /// For `--etcd-endpoints`.
    pub fn endpoint(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.client)
    }

    /// Starts it, with what it held before, and waits until it answers.
    pub fn start(&mut self) -> Result<()> {
        fs::create_dir_all(&self.directory).at("create", &self.directory)?;
        let (client, peer) = (self.endpoint(), format!("http://{}", self.peer));
        let mut command = Command::new("etcd");
        command.args(["--name", "lab", "--logger", "zap", "--log-level", "warn"]);
        command.arg("--data-dir").arg(self.directory.join("data"));
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("lab={peer}")]);
        if let Some(tls) = &self.tls {
            command.arg("--cert-file").arg(tls.file("server.pem"));
            command.arg("--key-file").arg(tls.file("server.key"));
            if tls.wants_client {
                command.arg("--client-cert-auth").arg("--trusted-ca-file").arg(tls.file("ca.pem"));
            }
        }
        process::log_to(&mut command, &self.directory.join("log"))?;
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

    /// Leaves it running when this process ends (kept labs).
    pub fn let_go(mut self) {
        if let Some(Running::There(process)) = self.process.take() {
            process.let_go();
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
        ctl.env("ETCDCTL_API", "3").arg("--endpoints").arg(self.endpoint());
        if let Some(tls) = &self.tls {
            ctl.arg("--cacert").arg(tls.file("ca.pem"));
            ctl.arg("--cert").arg(tls.file("client.pem")).arg("--key").arg(tls.file("client.key"));
        }
        ctl.args(arguments);
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

    /// Forgets all that was before now.
    pub fn compact(&self) -> Result<()> {
        let text = self.ctl(&["endpoint", "status", "--write-out=fields"])?;
        let line = text.lines().find(|line| line.starts_with("\"Revision\""));
        let revision = line.and_then(|line| line.split(' ').next_back()).unwrap_or_default();
        self.ctl(&["compact", revision]).map(drop)
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

    /// Puts many keys, a hundred at a time; without TLS only.
    pub fn put_all(&self, entries: &[(String, String)]) -> Result<()> {
        for chunk in entries.chunks(CHUNK) {
            let put = |entry: &(String, String)| json!({"requestPut": put_request(entry)});
            let puts: Vec<Value> = chunk.iter().map(put).collect();
            self.post("/v3/kv/txn", &json!({"success": puts}))?;
        }
        Ok(())
    }

    /// Puts a key; returns when the request was sent, on [`clock`]. Without TLS only.
    pub fn put_timed(&self, entry: &(String, String)) -> Result<u64> {
        self.post("/v3/kv/put", &put_request(entry))
    }

    /// Asks etcd's JSON gateway on a connection of its own; returns when the request was sent.
    fn post(&self, path: &str, body: &Value) -> Result<u64> {
        let ask = || post(self.client, path, &body.to_string());
        let asked = match &self.place {
            Some(place) => place.enter(ask)?,
            None => ask(),
        };
        asked.at("post to", format!("{}{path}", self.endpoint()))
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

/// Of `etcdserverpb.PutRequest` as JSON.
fn put_request((key, value): &(String, String)) -> Value {
    json!({"key": BASE64_STANDARD.encode(key), "value": BASE64_STANDARD.encode(value)})
}

/// A POST over HTTP/1.0; anything but 200 is an error. Returns when it was sent.
fn post(to: SocketAddr, path: &str, body: &str) -> io::Result<u64> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let length = body.len();
    let request = format!("POST {path} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}");
    let sent = clock();
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        return Ok(sent);
    }
    Err(io::Error::other(answer))
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

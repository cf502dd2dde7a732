//! Connections to etcd: one endpoint at a time, the next one where that fails, all with the
//! same deadline. Files of TLS are read for each new connection, so that they may be rotated.

use std::{fs, future::Future, io, path::PathBuf, time::Duration};

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, Identity, KvClient, LeaseClient, TlsOptions,
    WatchClient,
};
use tokio::{sync::Mutex, time::timeout};

use crate::reason::chain;

/// No call takes longer; one that does is tried at the next endpoint.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that is silent this long is asked whether it lives. etcd refuses clients that
/// ask more often than every 5 s.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The longest answer that is taken, in bytes: a list or what happened at once, of values of at
/// most 1.5 MiB each.
const ANSWER: usize = 512 << 20;

/// Where etcd is, and who we are to it. Messages name the flags `--etcd-cafile`, `--etcd-certfile`,
/// `--etcd-keyfile`, `--etcd-username` and `--etcd-password`.
#[derive(Clone, Debug, Default)]
pub struct Access {
    pub endpoints: Vec<String>,
    pub ca: Option<PathBuf>,
    /// Our certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    pub user: Option<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("{0} answered nothing for {patience} s", patience = PATIENCE.as_secs())]
    Timeout(String),
    #[error("{endpoint}: {reason}{hint}", reason = reason(source), hint = hint(source))]
    Etcd { endpoint: String, source: Error },
    #[error("{flag} {path}: {source}")]
    File { flag: &'static str, path: PathBuf, source: io::Error },
    #[error("no endpoint of etcd is given")]
    NoEndpoint,
}

/// What an error says, without the codes and structures in which gRPC wraps it.
pub(super) fn reason(err: &Error) -> String {
    let Error::GRpcStatus(status) = err else { return chain(err) };
    match std::error::Error::source(status) {
        Some(source) if status.message().is_empty() => chain(source),
        Some(source) => format!("{}: {}", status.message(), chain(source)),
        None => format!("{} ({})", status.message(), status.code()),
    }
}

/// etcd says what is wrong in words; what to do about it is added where it is known.
fn hint(err: &Error) -> &'static str {
    let Error::GRpcStatus(status) = err else { return "" };
    let message = status.message();
    if message.contains("user name is empty") {
        "; give --etcd-username and --etcd-password"
    } else if message.contains("permission denied") {
        "; give the user a role with what the agent reads and writes under its prefix"
    } else {
        ""
    }
}

impl Access {
    fn options(&self, endpoint: &str) -> Result<ConnectOptions, EtcdError> {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(PATIENCE)
            .with_keep_alive(KEEP_ALIVE, PATIENCE)
            .with_keep_alive_while_idle(true)
            // A member that lost its cluster would keep a watch that tells nothing.
            .with_require_leader(true);
        if let Some((name, password)) = &self.user {
            options = options.with_user(name, password);
        }
        if endpoint.starts_with("https://") {
            options = options.with_tls(self.tls()?);
        }
        Ok(options)
    }

    fn tls(&self) -> Result<TlsOptions, EtcdError> {
        let read = |flag, path: &PathBuf| {
            fs::read(path).map_err(|source| EtcdError::File { flag, path: path.clone(), source })
        };
        let mut tls = TlsOptions::new();
        tls = match &self.ca {
            Some(path) => tls.ca_certificate(Certificate::from_pem(read("--etcd-cafile", path)?)),
            None => tls.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            let certificate = read("--etcd-certfile", certificate)?;
            let key = read("--etcd-keyfile", key)?;
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Ok(tls)
    }
}

/// The endpoint in use, and its connection once there is one.
#[derive(Default)]
struct Current {
    nth: usize,
    client: Option<Client>,
}

/// Calls go over one connection at a time.
pub struct Connections {
    access: Access,
    current: Mutex<Current>,
}

impl Connections {
    pub fn new(access: Access) -> Self {
        Self { access, current: Mutex::default() }
    }

    /// All endpoints, for people.
    pub fn name(&self) -> String {
        self.access.endpoints.join(",")
    }

    async fn client(&self) -> Result<(Client, usize), EtcdError> {
        let mut current = self.current.lock().await;
        let nth = current.nth;
        if let Some(client) = &current.client {
            return Ok((client.clone(), nth));
        }
        let endpoint = self.endpoint(nth)?;
        let options = self.access.options(&endpoint)?;
        let connected = timeout(PATIENCE, Client::connect([&endpoint], Some(options))).await;
        let client = connected
            .map_err(|_| EtcdError::Timeout(endpoint.clone()))?
            .map_err(|source| EtcdError::Etcd { endpoint, source })?;
        current.client = Some(client.clone());
        Ok((client, nth))
    }

    fn endpoint(&self, nth: usize) -> Result<String, EtcdError> {
        let endpoints = &self.access.endpoints;
        let at = nth.checked_rem(endpoints.len()).ok_or(EtcdError::NoEndpoint)?;
        Ok(endpoints[at].clone())
    }

    /// The next call meets the next endpoint, by a connection of its own: a token that etcd
    /// has forgotten, or a certificate that ran out, goes with the old one.
    async fn give_up(&self, nth: usize) {
        let mut current = self.current.lock().await;
        if current.nth == nth {
            *current = Current { nth: nth.wrapping_add(1), client: None };
        }
    }

    async fn call<T, F>(&self, mut ask: impl FnMut(Client) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut result = Err(EtcdError::NoEndpoint);
        for _ in 0..self.access.endpoints.len() {
            let (client, nth) = match self.client().await {
                Ok(client) => client,
                Err(err) => {
                    let nth = self.current.lock().await.nth;
                    self.give_up(nth).await;
                    result = Err(err);
                    continue;
                }
            };
            let endpoint = self.endpoint(nth)?;
            result = match timeout(PATIENCE, ask(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(source)) => Err(EtcdError::Etcd { endpoint, source }),
                Err(_) => Err(EtcdError::Timeout(endpoint)),
            };
            self.give_up(nth).await;
        }
        result
    }

    pub async fn kv<T, F>(&self, mut ask: impl FnMut(KvClient) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call(|client| ask(client.kv_client().max_decoding_message_size(ANSWER))).await
    }

    pub async fn lease<T, F>(&self, mut ask: impl FnMut(LeaseClient) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call(|client| ask(client.lease_client())).await
    }

    pub async fn watch<T, F>(&self, mut ask: impl FnMut(WatchClient) -> F) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call(|client| ask(client.watch_client().max_decoding_message_size(ANSWER))).await
    }
}

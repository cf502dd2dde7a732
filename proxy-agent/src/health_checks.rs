//! The servers behind `healthCheckNodePort`: one for each Service that has one, on the node's own
//! sockets. They follow what is wanted, whatever was said before: a server is opened, closed or
//! moved by comparing the two, and what could not be opened is tried again.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
    serve::Listener,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{oneshot, watch},
    time::sleep,
};
use tracing::{debug, info};

use crate::{
    events::{Events, Happening},
    health::is_stale,
    model::Name,
    service_health::{Answer, ServiceHealth, ServicesHealth},
    status::{Board, Problem},
};

/// A port that cannot be opened is tried again this often.
const AGAIN: Duration = Duration::from_secs(5);
/// Connections that wait to be accepted; what Go and Rust's library ask for.
const BACKLOG: i32 = 128;

/// Where servers listen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Where {
    /// At all addresses of the node, of both families.
    #[default]
    Everywhere,
    At(Vec<IpAddr>),
}

/// What there shall be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Wanted {
    services: ServicesHealth,
    at: Where,
}

/// All servers, for as long as this lives.
pub struct HealthChecks {
    wanted: watch::Sender<Wanted>,
}

impl HealthChecks {
    /// No server yet. Needs a tokio runtime, in which they will run.
    pub fn start(board: Arc<Board>, events: Events) -> Self {
        let (wanted, changes) = watch::channel(Wanted::default());
        let servers = Servers { board, events, open: BTreeMap::new(), failed: BTreeSet::new() };
        tokio::spawn(follow(changes, servers));
        Self { wanted }
    }

    /// From now on, there are these.
    pub fn set(&self, services: &ServicesHealth, at: Where) {
        self.wanted.send_if_modified(|wanted| {
            let is_new = wanted.services != *services || wanted.at != at;
            if is_new {
                *wanted = Wanted { services: services.clone(), at };
            }
            is_new
        });
    }
}

async fn follow(mut changes: watch::Receiver<Wanted>, mut servers: Servers) {
    let mut has_failed = false;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            // Whatever comes in between is a try, too.
            () = sleep(AGAIN), if has_failed => {}
        }
        let wanted = changes.borrow_and_update().clone();
        has_failed = servers.sync(&wanted).await;
    }
}

struct Servers {
    board: Arc<Board>,
    events: Events,
    open: BTreeMap<Name, Server>,
    /// Those that could not be opened when it was tried last: it was told then.
    failed: BTreeSet<Name>,
}

/// One Service's, on one port, at one address or more.
struct Server {
    port: u16,
    at: Where,
    local_endpoints: watch::Sender<usize>,
    /// Resolve once the port is free, when the sender is dropped.
    closed: Vec<oneshot::Receiver<()>>,
}

impl Servers {
    /// Closes first, because a port may go from one Service to another. Tells whether any could
    /// not be opened.
    async fn sync(&mut self, wanted: &Wanted) -> bool {
        let stays = |name: &Name, server: &Server| {
            let health = wanted.services.get(name);
            health.is_some_and(|health| health.port == server.port) && server.at == wanted.at
        };
        let (open, gone) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|(name, server)| stays(name, server));
        self.open = open;
        for (name, server) in gone {
            info!(service = %name, port = server.port, "its health check is closed");
            server.close().await;
        }
        let mut problems = Vec::new();
        let before = std::mem::take(&mut self.failed);
        for (name, health) in &wanted.services {
            if let Some(server) = self.open.get(name) {
                server.local_endpoints.send_if_modified(|count| {
                    std::mem::replace(count, health.local_endpoints) != health.local_endpoints
                });
                continue;
            }
            match Server::open(name, *health, &wanted.at, &self.board) {
                Ok(server) => {
                    info!(service = %name, port = health.port, "its health check is open");
                    self.open.insert(name.clone(), server);
                }
                Err((address, err)) => {
                    let problem = problem(name, address, &err);
                    if !before.contains(name) {
                        let why = problem.message.clone();
                        self.events.tell(Happening::NoServiceHealth(name.clone(), why));
                    }
                    self.failed.insert(name.clone());
                    problems.push(problem);
                }
            }
        }
        let has_failed = !problems.is_empty();
        self.board.set_problems("health checks", problems);
        has_failed
    }
}

fn problem(name: &Name, address: SocketAddr, err: &io::Error) -> Problem {
    let message = format!(
        "cannot listen at {address}: {err}; load balancers take this node for dead until the port \
         is free; tried every {} s",
        AGAIN.as_secs()
    );
    let field = Some("spec.healthCheckNodePort".into());
    Problem { field, ..Problem::new(Problem::NODE, format!("Service {name}"), message) }
}

/// What an answer is made of.
#[derive(Clone)]
struct Facts {
    name: Name,
    local_endpoints: watch::Receiver<usize>,
    board: Arc<Board>,
}

impl Server {
    /// At all addresses or none; fails with the one that cannot be had.
    fn open(
        name: &Name,
        health: ServiceHealth,
        at: &Where,
        board: &Arc<Board>,
    ) -> Result<Self, (SocketAddr, io::Error)> {
        let port = health.port;
        let listeners = match at {
            Where::Everywhere => vec![everywhere(port)?],
            Where::At(addresses) => {
                let addresses = addresses.iter().map(|&address| SocketAddr::new(address, port));
                addresses
                    .map(|address| bound(address).map_err(|err| (address, err)))
                    .collect::<Result<_, _>>()?
            }
        };
        let (sender, local_endpoints) = watch::channel(health.local_endpoints);
        let facts = Facts { name: name.clone(), local_endpoints, board: Arc::clone(board) };
        let closed = listeners.into_iter().map(|listener| serve(listener, facts.clone())).collect();
        Ok(Self { port, at: at.clone(), local_endpoints: sender, closed })
    }

    /// Returns once the port is free.
    async fn close(self) {
        let Self { local_endpoints, closed, .. } = self;
        drop(local_endpoints);
        for closed in closed {
            let _ = closed.await;
        }
    }
}

/// One socket for both families; of IPv4 alone where the kernel has no other.
fn everywhere(port: u16) -> Result<TcpListener, (SocketAddr, io::Error)> {
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    match bound(v6) {
        Err(err) if is_without_family(&err) => bound(v4).map_err(|err| (v4, err)),
        result => result.map_err(|err| (v6, err)),
    }
}

fn is_without_family(err: &io::Error) -> bool {
    matches!(err.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A listening socket. `bindv6only` says nothing here: the unspecified address means both
/// families, as it does to Go.
fn bound(address: SocketAddr) -> io::Result<TcpListener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, !address.ip().is_unspecified())?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// A listener that tells when its port is free again.
struct Telling {
    // Dropped in this order.
    listener: TcpListener,
    _closed: oneshot::Sender<()>,
}

impl Listener for Telling {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        Listener::accept(&mut self.listener).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// Answers until nobody tells the count any more. Open connections end with it: a load balancer
/// that keeps one must not go on being told of a Service that is gone.
fn serve(listener: TcpListener, facts: Facts) -> oneshot::Receiver<()> {
    let (sender, closed) = oneshot::channel();
    let mut count = facts.local_endpoints.clone();
    let over = async move { while count.changed().await.is_ok() {} };
    // Any path, any method.
    let router = Router::new().fallback(answer).with_state(facts);
    let listener = Telling { listener, _closed: sender };
    tokio::spawn(async move {
        if let Err(err) = axum::serve(listener, router).with_graceful_shutdown(over).await {
            debug!(%err, "a health check ended");
        }
    });
    closed
}

async fn answer(State(facts): State<Facts>) -> Response {
    let local_endpoints = *facts.local_endpoints.borrow();
    let answer = Answer::new(&facts.name, local_endpoints, !is_stale(&facts.board.state()));
    let code = if answer.is_good() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("x-load-balancing-endpoint-weight"), local_endpoints.to_string()),
    ];
    let body = serde_json::to_string(&answer).unwrap_or_default();
    (code, headers, body).into_response()
}

#[cfg(test)]
mod tests;

//! The status server: metrics and state on one address, health on another, as kube-proxy.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use agent_kit::server;
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::{Value, json};

use crate::{
    config::ServerAddress,
    events::{Events, Happening},
    kube_proxy::flags::{HEALTHZ_BIND_ADDRESS, METRICS_BIND_ADDRESS},
    metrics::Metrics,
    status::{self, Board, Problem, attachments, refused_new_flows},
    zpages,
};

/// Changes that have waited this long to be programmed make the agent unhealthy: twice
/// kube-proxy's sync period.
const STALE: Duration = Duration::from_mins(1);

/// All that is asked at the address of metrics.
const PATHS: &[&str] = &[
    "/configz",
    "/flagz",
    "/healthz",
    "/livez",
    "/metrics",
    "/metrics/slis",
    "/proxyMode",
    "/status",
    "/statusz",
];

/// What the answers are made of.
#[derive(Clone)]
pub struct Answers {
    pub board: Arc<Board>,
    pub metrics: Arc<Metrics>,
    /// The configuration, as `/configz` shows it.
    pub config: Value,
    /// The same in kube-proxy's words.
    pub kube_proxy: Value,
    pub bpffs: PathBuf,
    pub events: Events,
}

/// Where to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Addresses {
    pub metrics: ServerAddress,
    pub healthz: ServerAddress,
    /// One that is taken is an error, and not tried again.
    pub must_bind: bool,
}

/// Why that cannot be.
#[derive(Debug, thiserror::Error)]
#[error(
    "{flag}: cannot listen at {address}: {source}; give another address, end what has taken it, or \
     leave bindAddressHardFail out to have it tried again"
)]
pub struct BindError {
    flag: &'static str,
    address: SocketAddr,
    source: io::Error,
}

/// Answers at both addresses for as long as the runtime lives.
pub async fn serve(addresses: Addresses, answers: &Answers) -> Result<(), BindError> {
    let Addresses { metrics, healthz, must_bind } = addresses;
    let health = Router::new().route("/healthz", get(healthz_answer)).route("/livez", get(livez));
    let all = health
        .clone()
        .route("/metrics", get(metrics_text))
        .route("/metrics/slis", get(slis))
        .route("/proxyMode", get(proxy_mode))
        .route("/configz", get(configz))
        .route("/status", get(status_answer))
        .route("/flagz", get(flagz))
        .route("/statusz", get(statusz));
    let flags = [METRICS_BIND_ADDRESS, HEALTHZ_BIND_ADDRESS];
    let happenings: [fn(String) -> Happening; 2] = [Happening::NoMetrics, Happening::NoHealth];
    let healthz = healthz.0.filter(|healthz| Some(*healthz) != metrics.0);
    for (((address, router), flag), happening) in
        [(metrics.0, all), (healthz, health)].into_iter().zip(flags).zip(happenings)
    {
        let Some(address) = address else { continue };
        let router = router.with_state(answers.clone());
        let tell = teller(flag, answers, happening);
        if must_bind {
            let bound = server::spawn_bound(address, router, tell).await;
            bound.map_err(|source| BindError { flag, address, source })?;
        } else {
            server::spawn(address, router, tell);
        }
    }
    Ok(())
}

/// Takes down why there is no server at the moment.
fn teller(
    flag: &'static str,
    answers: &Answers,
    happening: fn(String) -> Happening,
) -> impl Fn(Option<String>) + Send + use<> {
    let (board, events) = (Arc::clone(&answers.board), answers.events.clone());
    let is_told = AtomicBool::new(false);
    move |trouble| {
        // It is tried again and again, and told once.
        let was_told = is_told.swap(trouble.is_some(), Ordering::Relaxed);
        if let (Some(why), false) = (&trouble, was_told) {
            events.tell(happening(why.clone()));
        }
        let problem = trouble.map(|message| Problem::new(Problem::NODE, flag, message));
        board.set_problems(flag, problem.into_iter().collect());
    }
}

/// Whether changes have waited too long to be programmed.
pub fn is_stale(state: &status::State) -> bool {
    state.behind_since.is_some_and(|since| since.elapsed() > STALE)
}

/// Go's zero time: not yet.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// The body of both health answers, field by field that of pkg/proxy/healthcheck/proxy_health.go.
fn health(board: &Board, with_node: bool) -> (StatusCode, Value) {
    let state = board.state();
    let now = jiff::Timestamp::now();
    let is_healthy = !is_stale(&state);
    let updated = state.last_sync.and_then(|at| jiff::SignedDuration::try_from(at.elapsed()).ok());
    let updated = updated.map(|age| (now - age).to_string());
    let mut body = json!({ "currentTime": now.to_string(), "healthy": is_healthy });
    let mut is_ok = is_healthy;
    if with_node {
        // Until the source has told everything once, this node is unknown, and no load
        // balancer should count on it.
        let eligible = state.is_synced && !state.is_leaving;
        is_ok &= eligible;
        body["nodeEligible"] = eligible.into();
    }
    // While nothing is amiss, what is programmed is as of now.
    let last = if is_ok { now.to_string() } else { updated.as_deref().unwrap_or(NEVER).into() };
    body["lastUpdated"] = last.into();
    if let Some(updated) = updated {
        // Both families are written at once.
        let family = json!({ "lastUpdated": updated, "healthy": is_healthy });
        body["status"] = json!({ "IPv4": family, "IPv6": family });
    }
    (if is_ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
}

fn answer(answers: &Answers, path: &str) -> Response {
    let (code, body) = health(&answers.board, path == "/healthz");
    answers.metrics.answered(path, code.as_u16());
    (code, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Json(body)).into_response()
}

async fn healthz_answer(State(answers): State<Answers>) -> Response {
    answer(&answers, "/healthz")
}

async fn livez(State(answers): State<Answers>) -> Response {
    answer(&answers, "/livez")
}

async fn proxy_mode() -> Response {
    ([(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], "millrace").into_response()
}

async fn metrics_text(State(answers): State<Answers>) -> Response {
    // It walks tables: not on a thread that carries changes.
    match tokio::task::spawn_blocking(move || answers.metrics.text()).await {
        Ok(text) => server::metrics(text),
        Err(err) => (StatusCode::INTERNAL_SERVER_ERROR, err.to_string()).into_response(),
    }
}

async fn slis(State(answers): State<Answers>) -> Response {
    server::metrics(answers.metrics.slis())
}

async fn flagz(State(answers): State<Answers>) -> String {
    zpages::flagz(&answers.config)
}

async fn statusz(State(answers): State<Answers>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    zpages::statusz(version, jiff::Timestamp::now(), answers.board.age(), PATHS)
}

async fn configz(State(answers): State<Answers>) -> Json<Value> {
    Json(json!({ "millrace": answers.config, "kubeproxy.config.k8s.io": answers.kube_proxy }))
}

async fn status_answer(State(answers): State<Answers>) -> Response {
    let mut status = answers.board.status();
    status.new_flows.refused = refused_new_flows(&answers.bpffs);
    match attachments(&answers.bpffs) {
        Ok(attachments) => status.attachments = attachments,
        Err(err) => {
            let problem = Problem::new(Problem::DEVICE, "links", err.to_string());
            status.problems.push(problem);
        }
    }
    Json(status).into_response()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_node_is_eligible_once_the_source_has_told_everything() {
        let board = Board::default();
        assert_eq!(health(&board, true).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(health(&board, false).0, StatusCode::OK);
        board.state().is_synced = true;
        assert_eq!(health(&board, true).0, StatusCode::OK);
        board.state().is_leaving = true;
        let (code, body) = health(&board, true);
        assert_eq!((code, &body["nodeEligible"]), (StatusCode::SERVICE_UNAVAILABLE, &json!(false)));
        // The proxy itself has nothing to complain of.
        assert_eq!((&body["healthy"], &body["lastUpdated"]), (&json!(true), &json!(NEVER)));
        let (code, body) = health(&board, false);
        assert_eq!((code, &body["nodeEligible"]), (StatusCode::OK, &Value::Null));
        assert_eq!(body["lastUpdated"], body["currentTime"]);
    }

    #[test]
    fn when_tables_were_last_written_is_told_by_family() {
        let board = Board::default();
        board.state().is_synced = true;
        assert_eq!(health(&board, true).1["status"], Value::Null);
        board.state().last_sync = Instant::now().checked_sub(Duration::from_secs(100));
        let (_, body) = health(&board, true);
        let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let age = |body: &Value, value: &Value| {
            time(&body["currentTime"]).duration_since(time(value)).as_secs()
        };
        assert_eq!(age(&body, &body["lastUpdated"]), 0);
        for family in ["IPv4", "IPv6"] {
            assert_eq!(age(&body, &body["status"][family]["lastUpdated"]), 100);
            assert_eq!(body["status"][family]["healthy"], true);
        }
        board.state().behind_since = Instant::now().checked_sub(Duration::from_secs(61));
        let (_, body) = health(&board, false);
        assert_eq!(age(&body, &body["lastUpdated"]), 100);
        assert_eq!(
            (&body["healthy"], &body["status"]["IPv6"]["healthy"]),
            (&json!(false), &json!(false))
        );
    }

    #[test]
    fn changes_that_wait_too_long_are_unhealthy() {
        let board = Board::default();
        board.state().is_synced = true;
        board.state().behind_since = Instant::now().checked_sub(Duration::from_secs(30));
        assert_eq!(health(&board, false).0, StatusCode::OK);
        board.state().behind_since = Instant::now().checked_sub(Duration::from_secs(61));
        assert_eq!(health(&board, false).0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(health(&board, true).0, StatusCode::SERVICE_UNAVAILABLE);
    }
}

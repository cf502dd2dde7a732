//! The status server: metrics and state on one address, flanneld's health answers on another.

use std::{net::SocketAddr, sync::Arc};

use agent_kit::server;
use axum::{Json, Router, extract::State, http::StatusCode, response::Response, routing::get};

use crate::{
    metrics::Metrics,
    peers::Peer,
    status::{Board, Kind, Problem, Status},
};

/// What the answers are made of.
#[derive(Clone)]
pub struct Answers {
    pub board: Arc<Board>,
    pub metrics: Arc<Metrics>,
}

/// Answers for as long as the runtime lives.
pub fn serve(metrics: SocketAddr, healthz: Option<SocketAddr>, answers: &Answers) {
    let health = Router::new()
        .route("/healthz", get(|| async { "flanneld is running" }))
        .route("/readyz", get(readyz));
    let all = health
        .clone()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status))
        .route("/peers", get(peers));
    listen("--metrics-bind-address", metrics, all, answers);
    if let Some(healthz) = healthz.filter(|healthz| *healthz != metrics) {
        listen("--healthz-port", healthz, health, answers);
    }
}

fn listen(flag: &'static str, address: SocketAddr, router: Router<Answers>, answers: &Answers) {
    let board = Arc::clone(&answers.board);
    server::spawn(address, router.with_state(answers.clone()), move |trouble| {
        let problem = trouble.map(|message| Problem::new(Kind::Node, flag, message));
        board.set_problems(flag, problem.into_iter().collect());
    });
}

/// flanneld's own words.
async fn readyz(State(answers): State<Answers>) -> (StatusCode, &'static str) {
    if answers.board.state().status.ready {
        (StatusCode::OK, "flanneld is ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "flanneld is not ready yet")
    }
}

async fn status(State(answers): State<Answers>) -> Json<Status> {
    Json(answers.board.status())
}

async fn peers(State(answers): State<Answers>) -> Json<Vec<Peer>> {
    Json(answers.board.state().peers.clone())
}

async fn metrics_text(State(answers): State<Answers>) -> Response {
    server::metrics(answers.metrics.text())
}

//! The status server: metrics and state on one address, flanneld's health answers on another.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tracing::{debug, warn};

use crate::{
    metrics::Metrics,
    peers::Peer,
    status::{Board, Kind, Problem, Status},
};

/// An address that is taken is tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// What the answers are made of.
#[derive(Clone)]
pub struct Answers {
    pub board: Arc<Board>,
    pub metrics: Arc<Metrics>,
}

/// Answers for as long as the runtime lives.
pub fn serve(metrics: SocketAddr, healthz: Option<SocketAddr>, answers: Answers) {
    let health = Router::new()
        .route("/healthz", get(|| async { "flanneld is running" }))
        .route("/readyz", get(readyz));
    let all = health
        .clone()
        .route("/metrics", get(metrics_text))
        .route("/status", get(status))
        .route("/peers", get(peers));
    let board = Arc::clone(&answers.board);
    let flag = "--metrics-bind-address";
    tokio::spawn(listen(flag, metrics, all.with_state(answers.clone()), board));
    if let Some(healthz) = healthz.filter(|healthz| *healthz != metrics) {
        let board = Arc::clone(&answers.board);
        tokio::spawn(listen("--healthz-port", healthz, health.with_state(answers), board));
    }
}

async fn listen(flag: &'static str, address: SocketAddr, router: Router, board: Arc<Board>) {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                debug!(%address, "listening");
                board.set_problems(flag, Vec::new());
                if let Err(err) = axum::serve(listener, router.clone()).await {
                    warn!(%address, %err, "the status server ended");
                }
            }
            Err(err) => {
                let message = format!("cannot listen at {address}: {err}; tried every 5 s");
                board.set_problems(flag, vec![Problem::new(Kind::Node, flag, message)]);
            }
        }
        tokio::time::sleep(BIND_AGAIN).await;
    }
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
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], answers.metrics.text()).into_response()
}

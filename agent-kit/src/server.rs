//! The status server of an agent.

use std::{io, net::SocketAddr, time::Duration};

use axum::{
    Router,
    http::header,
    response::{IntoResponse, Response},
};
use tokio::{net::TcpListener, time::sleep};
use tracing::{debug, warn};

/// An address that is taken is tried again this often.
const BIND_AGAIN: Duration = Duration::from_secs(5);

/// Answers at an address for as long as the runtime lives, in which it needs to be called.
/// `tell` is told why that is not possible at the moment, and nothing once it is.
pub fn spawn(address: SocketAddr, router: Router, tell: impl Fn(Option<String>) + Send + 'static) {
    tokio::spawn(serve(address, None, router, tell));
}

/// The same, for whom an address that is taken now is an error.
pub async fn spawn_bound(
    address: SocketAddr,
    router: Router,
    tell: impl Fn(Option<String>) + Send + 'static,
) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    tokio::spawn(serve(address, Some(listener), router, tell));
    Ok(())
}

async fn serve(
    address: SocketAddr,
    mut bound: Option<TcpListener>,
    router: Router,
    tell: impl Fn(Option<String>),
) {
    loop {
        let listener = match bound.take() {
            Some(listener) => Ok(listener),
            None => TcpListener::bind(address).await,
        };
        match listener {
            Ok(listener) => {
                debug!(%address, "listening");
                tell(None);
                if let Err(err) = axum::serve(listener, router.clone()).await {
                    warn!(%address, %err, "the status server ended");
                }
            }
            Err(err) => {
                let again = BIND_AGAIN.as_secs();
                tell(Some(format!("cannot listen at {address}: {err}; tried every {again} s")));
            }
        }
        sleep(BIND_AGAIN).await;
    }
}

/// An answer that Prometheus reads.
pub fn metrics(text: String) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

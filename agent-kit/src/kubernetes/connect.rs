//! The connection to the API server. One that dies without a word is noticed soon, which kube's
//! own would be after five minutes: an address of this node may change, or a machine on the way
//! be gone, and a watch that then hears nothing must not be taken for one of which all is well.

use std::time::Duration;

use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::TokioExecutor,
};
use kube::{Client, Config, Error, client::ConfigExt};
use tower::{BoxError, ServiceBuilder};

use super::requests::{Counted, RequestMetrics};

/// How long the other side may leave unacknowledged what it was sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// A connection that is silent this long is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The client that kube would make, with other settings of TCP, and without proxies.
pub(super) fn client(config: Config, metrics: &RequestMetrics) -> Result<Client, Error> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(PATIENCE));
    tcp.set_tcp_user_timeout(Some(PATIENCE));
    tcp.set_keepalive(Some(KEEP_ALIVE));
    tcp.set_keepalive_interval(Some(PATIENCE));
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(tcp)?);
    // Longer than the server keeps a watch in which nothing happens.
    connector.set_read_timeout(config.read_timeout);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .layer_fn(|inner| Counted { inner, metrics: metrics.clone() })
        .service(legacy::Client::builder(TokioExecutor::new()).build(connector));
    Ok(Client::new(service, config.default_namespace))
}

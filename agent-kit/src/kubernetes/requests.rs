//! Requests to the API server, counted under the names and labels that Kubernetes' own components
//! have for them (component-base/metrics/prometheus/restclient).

use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::http::{Method, Request, Response};
use futures::{FutureExt, future::BoxFuture};
use prometheus_client::{
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};
use tower::Service;

type Labels = Vec<(&'static str, String)>;

/// Counts for as long as somebody reads them.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    requests: Family<Labels, Counter>,
    durations: Family<Labels, Histogram>,
}

fn seconds() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self { requests: Family::default(), durations: Family::new_with_constructor(seconds) }
    }
}

impl RequestMetrics {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rest_client_requests",
            "Requests to the API server by method, host and code of the answer",
            self.requests.clone(),
        );
        registry.register(
            "rest_client_request_duration_seconds",
            "Time from a request to the API server to the begin of its answer",
            self.durations.clone(),
        );
    }

    fn answered(&self, method: &Method, host: &str, code: String, duration: Duration) {
        let (method, host) = (method.to_string(), host.to_owned());
        let labels = vec![("code", code), ("host", host.clone()), ("method", method.clone())];
        self.requests.get_or_create(&labels).inc();
        let labels = vec![("host", host), ("verb", method)];
        self.durations.get_or_create(&labels).observe(duration.as_secs_f64());
    }
}

/// A client whose requests are counted.
#[derive(Clone)]
pub(super) struct Counted<S> {
    pub(super) inner: S,
    pub(super) metrics: RequestMetrics,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>, Future: Send + 'static>,
    R: 'static,
    S::Error: 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (metrics, began) = (self.metrics.clone(), Instant::now());
        let method = request.method().clone();
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let answer = self.inner.call(request);
        async move {
            let answer = answer.await;
            // What client-go says where there is none.
            let code = answer.as_ref().map(|answer| answer.status().as_u16().to_string());
            let code = code.unwrap_or_else(|_| "<error>".into());
            metrics.answered(&method, &host, code, began.elapsed());
            answer
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::{Router, routing::get};
    use kube::Config;
    use prometheus_client::encoding::text::encode;
    use tokio::net::TcpListener;

    use super::*;
    use crate::kubernetes::connect;

    const DOCUMENT: &str = include_str!("../../../docs/metrics.md");

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn each_request_is_counted_by_how_it_was_answered() {
        let (listener, host) = listener().await;
        let router = Router::new().route("/version", get(|| async { "{}" }));
        tokio::spawn(async { axum::serve(listener, router).await });
        let (_, gone) = self::listener().await;
        let metrics = RequestMetrics::default();
        let ask = async |host: SocketAddr, path: &str| {
            let config = Config::new(format!("http://{host}").parse().unwrap());
            let client = connect::client(config, &metrics).unwrap();
            client.request_text(Request::get(path).body(Vec::new()).unwrap()).await
        };
        assert_eq!(ask(host, "/version").await.unwrap(), "{}");
        assert!(ask(host, "/nothing").await.is_err());
        assert!(ask(gone, "/version").await.is_err());

        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for (code, host) in [("200", host), ("404", host), ("<error>", gone)] {
            let labels = format!("{{code=\"{code}\",host=\"{host}\",method=\"GET\"}}");
            assert!(text.contains(&format!("\nrest_client_requests_total{labels} 1\n")), "{text}");
        }
        let count = format!("duration_seconds_count{{host=\"{host}\",verb=\"GET\"}} 2\n");
        assert!(text.contains(&format!("\nrest_client_request_{count}")), "{text}");
        for row in [
            "| `rest_client_requests_total` | counter | code host method |",
            "| `rest_client_request_duration_seconds` | histogram | host verb |",
        ] {
            assert!(DOCUMENT.contains(row), "{row}");
        }
    }
}

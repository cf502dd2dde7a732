//! The store in Kubernetes, before a server that knows Nodes and nothing else, but answers as
//! the API server does: lists, watches by version, strategic merges of the status subresource.

use std::{
    collections::BTreeMap,
    path::Path as FilePath,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, patch},
};
use flannel_agent::{
    annotation::{Annotations, DEFAULT_PREFIX},
    lease::{Attrs, Expiry, Vtep},
    mac::Mac,
    store::{
        Event, Request, Store, StoreError,
        kubernetes::{Cluster, Kubernetes},
    },
    subnet::Subnet,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, time::timeout};

/// Nodes, and all that happened to them by version.
#[derive(Default)]
struct Nodes {
    /// It answers no question for Nodes at the moment.
    is_down: bool,
    by_name: BTreeMap<String, Value>,
    events: Vec<(u64, Value)>,
}

#[derive(Clone)]
struct Server {
    state: Arc<Mutex<Nodes>>,
    version: watch::Sender<u64>,
}

impl Server {
    async fn start() -> (Self, String) {
        let server = Self { state: Arc::default(), version: watch::Sender::new(1) };
        let router = Router::new()
            .route("/api/v1/nodes", get(list))
            .route("/api/v1/nodes/{name}", get(read))
            .route("/api/v1/nodes/{name}/status", patch(merge))
            .with_state(server.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (server, url)
    }

    /// Writes a Node as a controller would.
    fn change(&self, kind: &str, name: &str, change: impl FnOnce(&mut Value)) -> Value {
        let mut state = self.state.lock().unwrap();
        let version = *self.version.borrow() + 1;
        let blank = || {
            json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": { "name": name, "annotations": {} },
                "spec": {},
                "status": {},
            })
        };
        let mut node = state.by_name.remove(name).unwrap_or_else(blank);
        change(&mut node);
        node["metadata"]["resourceVersion"] = version.to_string().into();
        if kind != "DELETED" {
            state.by_name.insert(name.into(), node.clone());
        }
        state.events.push((version, json!({ "type": kind, "object": node })));
        self.version.send_replace(version);
        node
    }

    fn add(&self, name: &str, cidrs: &[&str]) {
        self.change("ADDED", name, |node| node["spec"]["podCIDRs"] = json!(cidrs));
    }

    fn set_down(&self, is_down: bool) {
        self.state.lock().unwrap().is_down = is_down;
    }

    fn node(&self, name: &str) -> Value {
        self.state.lock().unwrap().by_name[name].clone()
    }
}

async fn list(
    State(server): State<Server>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Response {
    if server.state.lock().unwrap().is_down {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    if query.get("watch").is_none_or(|watch| watch == "false") {
        let state = server.state.lock().unwrap();
        let items: Vec<&Value> = state.by_name.values().collect();
        let metadata = json!({ "resourceVersion": server.version.borrow().to_string() });
        let list =
            json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": metadata, "items": items });
        return Json(list).into_response();
    }
    let from: u64 = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
    let lines = futures::stream::unfold(
        (server.version.subscribe(), server.state, from),
        |(mut version, state, from)| async move {
            loop {
                let news: Vec<(u64, Value)> = {
                    let state = state.lock().unwrap();
                    state.events.iter().filter(|(at, _)| *at > from).cloned().collect()
                };
                if let Some((last, _)) = news.last().cloned() {
                    let text: String =
                        news.iter().map(|(_, event)| event.to_string() + "\n").collect();
                    let chunk = Ok::<_, std::io::Error>(Bytes::from(text));
                    return Some((chunk, (version, state, last)));
                }
                version.changed().await.ok()?;
            }
        },
    );
    Body::from_stream(lines).into_response()
}

async fn read(State(server): State<Server>, Path(name): Path<String>) -> Response {
    match server.state.lock().unwrap().by_name.get(&name) {
        Some(node) => Json(node.clone()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn merge(State(server): State<Server>, Path(name): Path<String>, body: Bytes) -> Json<Value> {
    let patch: Value = serde_json::from_slice(&body).unwrap();
    Json(server.change("MODIFIED", &name, |node| {
        for (key, value) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            node["metadata"]["annotations"][key] = value.clone();
        }
        if let Some(conditions) = patch["status"].get("conditions") {
            node["status"]["conditions"] = conditions.clone();
        }
    }))
}

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}"#;

async fn store(url: &str, directory: &FilePath, node: &str) -> Arc<Kubernetes> {
    let net_config = directory.join("net-conf.json");
    std::fs::write(&net_config, DUAL).unwrap();
    let cluster = Cluster {
        kubeconfig: None,
        url: Some(url.into()),
        annotations: Annotations::new(DEFAULT_PREFIX).unwrap(),
        net_config,
        sets_available: true,
        node: Some(node.into()),
        pod: None,
    };
    Arc::new(Kubernetes::open(cluster).await.unwrap())
}

fn attrs(nth: u8) -> Attrs {
    let vtep = Vtep { vni: 1, mac: Mac([2, 0, 0, 0, 0, nth]), answers: false }.to_value();
    Attrs {
        public_ip: format!("192.168.78.{nth}").parse().ok(),
        public_ipv6: format!("fd00:78::{nth}").parse().ok(),
        backend_type: "vxlan".into(),
        backend_data: Some(vtep.clone()),
        backend_v6_data: Some(vtep),
    }
}

async fn request(store: &Kubernetes, nth: u8) -> Request {
    let config = store.config().await.unwrap();
    Request { config, attrs: attrs(nth), previous: Subnet::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_takes_its_pod_cidrs_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (server, url) = Server::start().await;
    server.add("node1", &["10.244.1.0/24", "fd00:10:244:1::/64"]);
    server.change("MODIFIED", "node1", |node| {
        node["metadata"]["annotations"] = json!({
            "flannel.alpha.coreos.com/public-ip-overwrite": "9.9.9.9",
            "flannel.alpha.coreos.com/node-public-ipv6": "fd00:78::99",
        });
    });
    let store = store(&url, directory.path(), "node1").await;
    assert_eq!(store.public().await.unwrap(), (None, "fd00:78::99".parse().ok()));
    assert_eq!(store.published(&[]).await.unwrap(), None);
    let held = store.acquire(&request(&store, 11).await).await.unwrap();
    assert_eq!(held.subnet.to_string(), "10.244.1.0/24,fd00:10:244:1::/64");
    assert_eq!(held.expires, Expiry::Never);
    let said = |name: &str| {
        server.node("node1")["metadata"]["annotations"][format!("{DEFAULT_PREFIX}/{name}")].clone()
    };
    assert_eq!(said("backend-data"), r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:0b"}"#);
    assert_eq!((said("kube-subnet-manager"), said("public-ip")), (json!("true"), json!("9.9.9.9")));
    let published = store.published(&[]).await.unwrap().unwrap();
    assert_eq!(published.backend_data, attrs(11).backend_data);
    // Once more writes nothing.
    let version = *server.version.borrow();
    store.acquire(&request(&store, 11).await).await.unwrap();
    assert_eq!(*server.version.borrow(), version);
    store.ready().await.unwrap();
    let condition = &server.node("node1")["status"]["conditions"][0];
    assert_eq!(
        (&condition["type"], &condition["status"], &condition["reason"]),
        (&json!("NetworkUnavailable"), &json!("False"), &json!("FlannelIsUp"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_or_with_a_foreign_pod_cidr_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (server, url) = Server::start().await;
    server.add("node1", &[]);
    server.add("node2", &["10.99.2.0/24", "fd00:10:244:2::/64"]);
    let one = store(&url, directory.path(), "node1").await;
    let error = one.acquire(&request(&one, 11).await).await.unwrap_err();
    assert!(error.is_passing() && error.to_string().contains("has no podCIDR"), "{error}");
    let two = store(&url, directory.path(), "node2").await;
    let error = two.acquire(&request(&two, 12).await).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused(_)), "{error}");
    assert!(error.to_string().contains("10.99.2.0/24 lies outside 10.244.0.0/16"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watch_follows_every_change_of_a_peer() {
    let directory = tempfile::tempdir().unwrap();
    let (server, url) = Server::start().await;
    for nth in [1, 2, 3] {
        let cidrs = [format!("10.244.{nth}.0/24"), format!("fd00:10:244:{nth}::/64")];
        server.add(&format!("node{nth}"), &[&cidrs[0], &cidrs[1]]);
    }
    let one = store(&url, directory.path(), "node1").await;
    let two = store(&url, directory.path(), "node2").await;
    one.acquire(&request(&one, 11).await).await.unwrap();
    let mut watch = Arc::clone(&one).watch();
    let mut next = async || {
        timeout(Duration::from_secs(20), watch.recv()).await.expect("an event").expect("a watch")
    };
    // Who does not take part is not there.
    let Event::Listed(entries) = next().await else { panic!("a list") };
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].key, "node1");
    two.acquire(&request(&two, 12).await).await.unwrap();
    let Event::Put(entry) = next().await else { panic!("node2") };
    assert_eq!((entry.key.as_str(), entry.lease.unwrap().attrs), ("node2", attrs(12)));
    // Another MAC, then another podCIDR: what flanneld does not see of a dual-stack peer.
    let held = two.acquire(&request(&two, 12).await).await.unwrap();
    let changed = Attrs { backend_data: attrs(13).backend_data, ..attrs(12) };
    two.renew(&held, &changed).await.unwrap();
    let Event::Put(entry) = next().await else { panic!("node2") };
    assert_eq!(entry.lease.unwrap().attrs, changed);
    server.change("MODIFIED", "node2", |node| node["spec"]["podCIDRs"] = json!(["10.244.9.0/24"]));
    let Event::Put(entry) = next().await else { panic!("node2") };
    assert_eq!(entry.lease.unwrap().subnet.to_string(), "10.244.9.0/24");
    server.change("DELETED", "node2", |_| {});
    assert_eq!(next().await, Event::Gone("node2".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_told_once_and_once_that_it_is_back() {
    let directory = tempfile::tempdir().unwrap();
    let (server, url) = Server::start().await;
    server.set_down(true);
    let mut watch = store(&url, directory.path(), "node1").await.watch();
    let mut within =
        async |seconds| timeout(Duration::from_secs(seconds), watch.recv()).await.ok().flatten();
    assert!(matches!(within(20).await, Some(Event::Trouble(_))));
    assert_eq!(within(3).await, None, "told again");
    server.set_down(false);
    assert_eq!(within(20).await, Some(Event::Recovered));
    assert_eq!(within(20).await, Some(Event::Listed(Vec::new())));
}

//! What ten thousand Services cost, one file for each and one for each EndpointSlice. Run by
//! hand: `cargo run --release -p proxy-agent --example scale`.

use std::{
    fmt::Write,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use proxy_agent::{compile::NodeFacts, directory::watch, source::Batch, state::State};
use tokio::sync::mpsc::Receiver;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SERVICES: u32 = 10_000;
const ROUNDS: usize = 10;
const CHANGES: u32 = 400;

fn service(number: u32) -> String {
    let (high, low) = (number >> 8, number & 255);
    format!(
        "apiVersion: v1
kind: Service
metadata:
  creationTimestamp: \"2026-01-01T00:00:00Z\"
  labels:
    app: app-{number}
  name: svc-{number}
  namespace: default
  resourceVersion: \"12345\"
  uid: 5a0b2d9e-24f3-4c0a-9f8e-{number:012}
spec:
  clusterIP: 10.96.{high}.{low}
  clusterIPs:
  - 10.96.{high}.{low}
  internalTrafficPolicy: Cluster
  ipFamilies:
  - IPv4
  ipFamilyPolicy: SingleStack
  ports:
  - name: http
    port: 80
    protocol: TCP
    targetPort: 8080
  selector:
    app: app-{number}
  sessionAffinity: None
  type: ClusterIP
status:
  loadBalancer: {{}}
"
    )
}

fn slice(number: u32, port: u32) -> String {
    let mut text = String::from("addressType: IPv4\napiVersion: discovery.k8s.io/v1\nendpoints:\n");
    for node in 1..=2 {
        write!(
            text,
            "- addresses:
  - 10.{node}.{}.{}
  conditions:
    ready: true
    serving: true
    terminating: false
  nodeName: node-{node}
  targetRef:
    kind: Pod
    name: app-{number}-{node}
    namespace: default
    uid: 7a0b2d9e-24f3-4c0a-9f8e-{number:012}
  zone: zone-a
",
            number >> 8,
            number & 255
        )
        .expect("string");
    }
    write!(
        text,
        "kind: EndpointSlice
metadata:
  creationTimestamp: \"2026-01-01T00:00:00Z\"
  generateName: svc-{number}-
  generation: 1
  labels:
    app: app-{number}
    endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
    kubernetes.io/service-name: svc-{number}
  name: svc-{number}-abcde
  namespace: default
  ownerReferences:
  - apiVersion: v1
    blockOwnerDeletion: true
    controller: true
    kind: Service
    name: svc-{number}
    uid: 5a0b2d9e-24f3-4c0a-9f8e-{number:012}
  resourceVersion: \"12345\"
  uid: 6a0b2d9e-24f3-4c0a-9f8e-{number:012}
ports:
- name: http
  port: {port}
  protocol: TCP
"
    )
    .expect("string");
    text
}

fn slice_file(directory: &Path, number: u32) -> std::path::PathBuf {
    directory.join(format!("slice-{number}.yaml"))
}

fn state() -> State {
    State::new(NodeFacts { name: "node-1".into(), ..NodeFacts::default() })
}

fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort();
    times
}

fn spread(name: &str, times: Vec<Duration>) {
    let times = sorted(times);
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!(
        "{name}: least {:?}, median {:?}, p99 {:?}, most {:?}",
        at(0),
        at(50),
        at(99),
        at(100)
    );
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("number")
}

fn first(directory: &Path) -> (Receiver<Batch>, State, [Duration; 2]) {
    let began = Instant::now();
    let mut batches = watch(directory.into()).expect("thread");
    let batch = batches.blocking_recv().expect("batch");
    let read = began.elapsed();
    assert!(batch.synced && batch.problems.is_empty());
    let applying = Instant::now();
    let mut state = state();
    let rows = state.apply(batch.changes);
    assert_eq!(rows.len(), SERVICES as usize);
    (batches, state, [read, applying.elapsed()])
}

fn main() {
    let directory = tempfile::tempdir().expect("directory");
    let path = directory.path();
    let before = resident_kib();
    for number in 0..SERVICES {
        fs::write(path.join(format!("svc-{number}.yaml")), service(number)).expect("file");
        fs::write(slice_file(path, number), slice(number, 8080)).expect("file");
    }
    let (mut batches, mut state, _) = first(path);
    println!("resident: {before} KiB before, {} KiB after", resident_kib());
    let (mut seen, mut compiled) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let next = path.join("next");
        fs::write(&next, slice(change * 7 % SERVICES, 9000 + change)).expect("file");
        let began = Instant::now();
        fs::rename(next, slice_file(path, change * 7 % SERVICES)).expect("rename");
        let batch = batches.blocking_recv().expect("batch");
        seen.push(began.elapsed());
        assert_eq!(state.apply(batch.changes).len(), 1);
        compiled.push(began.elapsed());
    }
    spread("one changed file to the receiver", seen);
    spread("one changed file to its row", compiled);
    drop((batches, state));
    let (mut read, mut applied) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (_, _, [r, a]) = first(path);
        read.push(r);
        applied.push(a);
    }
    spread("directory read", read);
    spread("state applied", applied);
    println!("resident: {} KiB after {ROUNDS} more", resident_kib());
}

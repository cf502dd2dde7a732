//! The scenarios of TestCategorizeEndpoints in kube-proxy's pkg/proxy/topology_test.go.

use std::{net::IpAddr, sync::Arc};

use super::{Candidate, Policies, Selection, select};
use crate::{
    desired::DesiredBackend,
    model::{Endpoint, Hints},
};

struct Case {
    name: &'static str,
    policies: &'static str,
    /// Of this node, which is called `here`.
    zone: Option<&'static str>,
    /// One a line: number, `local` or `remote`, what it is (`ready` if nothing is said), hints.
    endpoints: &'static [&'static str],
    cluster: &'static [u8],
    local: &'static [u8],
    any: bool,
}

fn policies(text: &str) -> Policies {
    Policies {
        internal_local: text.contains("iTP"),
        external_local: text.contains("eTP"),
        externally_accessible: text.contains("external"),
    }
}

fn address(number: u8) -> IpAddr {
    [10, 1, 0, number].into()
}

fn endpoint(text: &str) -> (bool, Endpoint) {
    let mut words = text.split_whitespace();
    let number = words.next().and_then(|word| word.parse().ok()).expect("number");
    let mut endpoint = Endpoint {
        address: address(number),
        ready: true,
        serving: true,
        terminating: false,
        weight: None,
        node: None,
        hints: None,
    };
    let mut hints = Hints::default();
    let mut local = false;
    for word in words {
        match word {
            "local" => local = true,
            "remote" => {}
            "unready" => (endpoint.ready, endpoint.serving) = (false, false),
            // Passes its probe, but is not meant to get traffic.
            "serving" => endpoint.ready = false,
            // What publishNotReadyAddresses has the controller say of a pod that ends.
            "published" => (endpoint.serving, endpoint.terminating) = (false, true),
            "draining" => (endpoint.ready, endpoint.terminating) = (false, true),
            "ended" => {
                (endpoint.ready, endpoint.serving, endpoint.terminating) = (false, false, true);
            }
            hint => match hint.split_once('=').expect("hint") {
                ("zone", names) => hints.zones = names.split(',').map(Arc::from).collect(),
                (_, names) => hints.nodes = names.split(',').map(Arc::from).collect(),
            },
        }
    }
    endpoint.hints = (hints != Hints::default()).then(|| Box::new(hints));
    (local, endpoint)
}

fn run(case: &Case) -> Selection {
    let endpoints: Vec<(bool, Endpoint)> = case.endpoints.iter().map(|e| endpoint(e)).collect();
    let candidates: Vec<Candidate> = endpoints
        .iter()
        .map(|(local, endpoint)| Candidate {
            backend: DesiredBackend { address: endpoint.address, port: 80, local: *local },
            endpoint,
        })
        .collect();
    select(&candidates, policies(case.policies), "here", case.zone)
}

fn numbers(backends: &[DesiredBackend]) -> Vec<IpAddr> {
    backends.iter().map(|backend| backend.address).collect()
}

#[test]
fn endpoints_are_selected_as_kube_proxy_does() {
    for case in CASES {
        let selection = run(case);
        let expected = |list: &[u8]| -> Vec<IpAddr> { list.iter().copied().map(address).collect() };
        let Selection { cluster, local, any } = &selection;
        assert_eq!(numbers(cluster), expected(case.cluster), "{}: cluster", case.name);
        assert_eq!(numbers(local), expected(case.local), "{}: local", case.name);
        assert_eq!(*any, case.any, "{}: any", case.name);
    }
}

const A: Option<&str> = Some("a");

const fn case(
    name: &'static str,
    policies: &'static str,
    zone: Option<&'static str>,
    endpoints: &'static [&'static str],
    cluster: &'static [u8],
    local: &'static [u8],
) -> Case {
    Case { name, policies, zone, endpoints, cluster, local, any: true }
}

const ZONED: &[&str] = &["1 remote zone=a", "2 remote zone=b", "3 remote zone=a"];
const MIXED: &[&str] = &["1 local", "2 remote"];
const REMOTE: &[&str] = &["1 remote", "2 remote"];
const REMOTE_DRAINING: &[&str] = &["1 remote draining", "2 remote ended"];
const BOTH: &[&str] = &["1 local draining", "2 remote draining"];
const FALLBACKS: &[&str] =
    &["1 remote", "2 local unready", "3 local draining", "4 remote draining"];

const CASES: &[Case] = &[
    case("every endpoint hinted, one to this zone", "", A, ZONED, &[1, 3], &[]),
    case(
        "eTP Local ignores hints",
        "eTP external",
        A,
        &["1 local zone=b", "2 remote zone=a"],
        &[2],
        &[1],
    ),
    case("iTP Local ignores hints", "iTP", A, &["1 local zone=b", "2 remote zone=a"], &[], &[1]),
    case("node without zone", "", None, ZONED, &[1, 2, 3], &[]),
    case("node with an empty zone", "", Some(""), ZONED, &[1, 2, 3], &[]),
    case("no endpoint hinted to this zone", "", Some("c"), ZONED, &[1, 2, 3], &[]),
    case(
        "an unready endpoint's hint does not count",
        "",
        A,
        &["1 remote zone=a", "2 remote unready zone=b"],
        &[1],
        &[],
    ),
    case(
        "an unready endpoint needs no hint",
        "",
        A,
        &["1 remote zone=a", "2 remote unready"],
        &[1],
        &[],
    ),
    case(
        "only an unready endpoint is hinted to this zone",
        "",
        A,
        &["1 remote unready zone=a", "2 remote zone=b"],
        &[2],
        &[],
    ),
    case("one ready endpoint without hint", "", A, &["1 remote zone=a", "2 remote"], &[1, 2], &[]),
    case(
        "several zones per endpoint",
        "",
        A,
        &["1 remote zone=a,b", "2 remote zone=b,c", "3 remote zone=c,a"],
        &[1, 3],
        &[],
    ),
    case("hinted to this node", "", A, &["1 local node=here", "2 remote node=there"], &[1], &[]),
    case(
        "hinted to this node, also without zone",
        "",
        None,
        &["1 local node=here", "2 remote node=there"],
        &[1],
        &[],
    ),
    case(
        "node hints go before zone hints",
        "",
        A,
        &["1 local node=here zone=b", "2 remote node=there zone=a"],
        &[1],
        &[],
    ),
    case(
        "some without node hint: by zone",
        "",
        A,
        &["1 local node=here zone=a", "2 remote zone=b"],
        &[1],
        &[],
    ),
    case(
        "none hinted to this node: by zone",
        "",
        A,
        &["1 remote node=x zone=a", "2 remote node=y zone=b"],
        &[1],
        &[],
    ),
    case(
        "none hinted to node or zone",
        "",
        A,
        &["1 remote node=x zone=b", "2 remote node=y zone=c"],
        &[1, 2],
        &[],
    ),
    case(
        "hints and place disagree",
        "iTP external",
        A,
        &["1 local node=there", "2 remote node=here"],
        &[2],
        &[1],
    ),
    case(
        "hints do not bind the fallback",
        "",
        A,
        &["1 remote draining zone=b", "2 remote draining zone=a"],
        &[1, 2],
        &[],
    ),
    Case { any: false, ..case("iTP Local, no endpoints", "iTP", A, &[], &[], &[]) },
    case("iTP Local, all remote", "iTP", A, REMOTE, &[], &[]),
    case("iTP Local, all local", "iTP", A, &["1 local", "2 local"], &[], &[1, 2]),
    case("iTP Local, mixed", "iTP", A, MIXED, &[], &[1]),
    Case {
        any: false,
        ..case("Cluster, none ready", "", A, &["1 remote unready", "2 local unready"], &[], &[])
    },
    case("Cluster, some ready", "", A, &["1 remote", "2 remote unready"], &[1], &[]),
    case("Cluster, all terminating and serving", "", A, BOTH, &[1, 2], &[]),
    case("Cluster, terminating beside ready", "", A, &["1 local draining", "2 remote"], &[2], &[]),
    Case {
        any: false,
        ..case("serving but neither ready nor terminating", "", A, &["1 remote serving"], &[], &[])
    },
    Case {
        any: false,
        ..case("terminating and no longer serving", "", A, &["1 remote ended"], &[], &[])
    },
    case(
        "published though it is not ready, and ends",
        "eTP external",
        A,
        &["1 local published", "2 remote", "3 local draining"],
        &[1, 2],
        &[1],
    ),
    case("iTP Cluster, eTP Cluster, mixed", "external", A, MIXED, &[1, 2], &[]),
    case("iTP Cluster, eTP Local, mixed", "eTP external", A, MIXED, &[1, 2], &[1]),
    case("iTP Local, eTP Cluster, mixed", "iTP external", A, MIXED, &[1, 2], &[1]),
    case("iTP Local, eTP Local, mixed", "iTP eTP external", A, MIXED, &[1, 2], &[1]),
    case("iTP Cluster, eTP Cluster, remote", "external", A, REMOTE, &[1, 2], &[]),
    case("iTP Cluster, eTP Local, remote", "eTP external", A, REMOTE, &[1, 2], &[]),
    case("iTP Local, eTP Cluster, remote", "iTP external", A, REMOTE, &[1, 2], &[]),
    case("iTP Local, eTP Local, remote", "iTP eTP external", A, REMOTE, &[1, 2], &[]),
    case("iTP Cluster, eTP Cluster, remote terminating", "external", A, REMOTE_DRAINING, &[1], &[]),
    case(
        "iTP Cluster, eTP Local, remote terminating",
        "eTP external",
        A,
        REMOTE_DRAINING,
        &[1],
        &[],
    ),
    case(
        "iTP Local, eTP Cluster, remote terminating",
        "iTP external",
        A,
        REMOTE_DRAINING,
        &[1],
        &[],
    ),
    case(
        "iTP Local, eTP Local, remote terminating",
        "iTP eTP external",
        A,
        REMOTE_DRAINING,
        &[1],
        &[],
    ),
    case("both lists terminating", "eTP external", A, BOTH, &[1, 2], &[1]),
    case("each list falls back on its own", "eTP external", A, FALLBACKS, &[1], &[3]),
    case("iTP Local falls back to terminating", "iTP", A, FALLBACKS, &[], &[3]),
    case("eTP Local without an external address", "eTP", A, MIXED, &[1, 2], &[]),
];

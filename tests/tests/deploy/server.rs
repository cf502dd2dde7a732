//! What a real API server makes of the manifests.

use lab::{
    Lab, LabSpec,
    api_server::{ApiServer, Verb},
    peers,
};
use serde_json::{Value, json};

use crate::manifest::{deploy, helm, kustomizations, kustomize, list, ok, only};

/// Every variant of the chart that has templates of its own.
const CHARTS: &[&[&str]] = &[
    &[],
    &["proxyAgent.kubeadm=true", "nodeSelector.millrace=true"],
    &["proxyAgent.kubeadm=true", "proxyAgent.kubeProxyConfig=true"],
    &["apiServer.host=10.0.0.1", "seccompProfile=Unconfined", "image.tag=1"],
    &["flannelAgent.createConfig=true", "flannelAgent.ipv6Network=fd00:10:244::/56"],
    &["proxyAgent.args={--nodeport-addresses=all}", "proxyAgent.podAnnotations.a=b"],
];

fn up() -> (ApiServer, Lab) {
    let lab = ok(Lab::up(LabSpec::default()));
    let server = ok(ApiServer::start(&lab, "fabric", &peers().join("kube-apiserver")));
    (server, lab)
}

/// The pod that a controller would make of a workload.
fn pod(workload: &Value) -> Value {
    let mut pod = workload["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = workload["metadata"]["name"].clone();
    pod["metadata"]["namespace"] = workload["metadata"]["namespace"].clone();
    pod
}

#[test]
fn a_server_takes_all_manifests() {
    let (server, _lab) = up();
    let rendered = kustomizations().into_iter().map(|directory| {
        let objects = kustomize(&directory);
        (directory.display().to_string(), objects)
    });
    let charts = CHARTS.iter().map(|values| (format!("helm {values:?}"), helm(values)));
    let mut kinds = Vec::new();
    for (source, objects) in rendered.chain(charts) {
        for object in &objects {
            let taken = server.dry_run(object).unwrap_or_else(|err| panic!("{source}: {err}"));
            assert_eq!(taken["metadata"]["name"], object["metadata"]["name"]);
            kinds.push(object["kind"].as_str().unwrap_or_default().to_owned());
            if object["kind"] == "DaemonSet" {
                // What is asked of pods is looked at only when they are made: that the class of
                // priority is there, for one.
                let taken = server.dry_run(&pod(object));
                let taken = taken.unwrap_or_else(|err| panic!("{source}: {err}"));
                assert_eq!(taken["spec"]["priority"], 2_000_001_000, "{source}");
                assert_eq!(taken["status"]["qosClass"], "Burstable", "{source}");
            }
        }
    }
    kinds.sort();
    kinds.dedup();
    let expected = [
        "ClusterRole",
        "ClusterRoleBinding",
        "ConfigMap",
        "DaemonSet",
        "Namespace",
        "ServiceAccount",
    ];
    assert_eq!(kinds, expected);
    // The server does look: a field that is none is refused, and nothing was kept.
    let base = kustomize(&deploy().join("kustomize/proxy-agent/base"));
    let mut wrong = only(&base, "DaemonSet").clone();
    wrong["spec"]["template"]["spec"]["hostNetworking"] = json!(true);
    let refusal = server.dry_run(&wrong).expect_err("an unknown field").to_string();
    assert!(refusal.contains("hostNetworking"), "{refusal}");
    let kept = ok(server.read("/apis/apps/v1/daemonsets"));
    assert_eq!(list(&kept, "/items"), [] as [Value; 0]);
}

/// The roles allow an agent what it asks for, and another verb or resource nobody.
#[test]
fn roles_allow_what_agents_do_and_no_more() {
    let (server, _lab) = up();
    for (agent, allowed) in [
        (
            "proxy-agent",
            &[
                ("list", "", "services"),
                ("watch", "", "services"),
                ("list", "discovery.k8s.io", "endpointslices"),
                ("watch", "discovery.k8s.io", "endpointslices"),
                ("list", "networking.k8s.io", "servicecidrs"),
                ("watch", "networking.k8s.io", "servicecidrs"),
                ("create", "events.k8s.io", "events"),
                ("patch", "events.k8s.io", "events"),
                ("list", "", "nodes"),
                ("watch", "", "nodes"),
                ("list", "", "pods"),
                ("watch", "", "pods"),
            ][..],
        ),
        (
            "flannel-agent",
            &[
                ("get", "", "nodes"),
                ("list", "", "nodes"),
                ("watch", "", "nodes"),
                ("patch", "", "nodes/status"),
            ],
        ),
    ] {
        let objects = kustomize(&deploy().join("kustomize").join(agent).join("base"));
        let roles = ["ClusterRole", "ClusterRoleBinding"].map(|kind| only(&objects, kind).clone());
        ok(server.send(Verb::Create, &roles));
        let account = only(&objects, "ServiceAccount");
        let user = format!(
            "system:serviceaccount:{}:{agent}",
            account["metadata"]["namespace"].as_str().unwrap_or_default()
        );
        assert_eq!(roles[1]["subjects"][0]["namespace"], account["metadata"]["namespace"]);
        let template = "/spec/template/spec/serviceAccountName";
        assert_eq!(only(&objects, "DaemonSet").pointer(template), Some(&json!(agent)));
        for verb in ["get", "list", "watch", "create", "patch", "delete"] {
            for (group, resource) in [
                ("", "services"),
                ("", "nodes"),
                ("", "nodes/status"),
                ("", "pods"),
                ("", "secrets"),
                ("discovery.k8s.io", "endpointslices"),
                ("networking.k8s.io", "servicecidrs"),
                ("events.k8s.io", "events"),
            ] {
                let expected = allowed.contains(&(verb, group, resource));
                assert_eq!(
                    may(&server, &user, verb, group, resource),
                    expected,
                    "{user}: {verb} {resource}"
                );
            }
        }
    }
}

/// Asks the server whether a user may do something.
fn may(server: &ApiServer, user: &str, verb: &str, group: &str, resource: &str) -> bool {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "metadata": {},
        "spec": {
            "user": user,
            "groups": ["system:serviceaccounts", "system:authenticated"],
            "resourceAttributes": {
                "verb": verb, "group": group, "resource": resource, "subresource": subresource,
            },
        },
    });
    let answer = ok(server.dry_run(&review));
    answer["status"]["allowed"] == true
}

//! What is refused, what is left out, and what is said of it.

use super::{Outcome, Reading, read};
use crate::model::{Object, Service, Strings};

fn reading(text: &str) -> Reading {
    read(text, &mut Strings::default()).expect("is YAML")
}

fn service_text(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n")
}

fn service(spec: &str) -> Service {
    let reading = reading(&service_text(spec));
    match &reading.objects[..] {
        [(_, Outcome::Good(Object::Service(service)))] => (**service).clone(),
        other => panic!("{other:?} {:?}", reading.problems),
    }
}

/// Outcome and problems, as an operator sees them.
fn outline(text: &str) -> Vec<String> {
    let reading = reading(text);
    let outcome = |outcome: &Outcome| match outcome {
        Outcome::Good(_) => "good",
        Outcome::Ignored => "ignored",
        Outcome::Refused => "refused",
    };
    let objects = reading.objects.iter().map(|(key, o)| format!("{key}: {}", outcome(o)));
    let problems =
        reading.problems.iter().map(|problem| format!("{} {problem}", problem.kind.label()));
    objects.chain(problems).collect()
}

#[track_caller]
fn refused(spec: &str, complaint: &str) {
    let outline = outline(&service_text(spec));
    assert_eq!(
        outline,
        ["Service default/web: refused".into(), format!("value Service default/web: {complaint}")]
    );
}

#[test]
fn defaults_are_the_api_servers() {
    let service = service("{clusterIP: 10.0.0.1, ports: [{port: 80}]}");
    assert_eq!(&*service.name.namespace, "default");
    assert_eq!(service.ports[0].proto, 6);
    assert_eq!(service.ports[0].node_port, 0);
    assert!(!service.internal_local && !service.external_local);
    assert_eq!(service.affinity_timeout_sec, None);
}

#[test]
fn affinity_has_a_default_timeout() {
    let timeout = |spec| service(spec).affinity_timeout_sec;
    assert_eq!(timeout("{clusterIP: 10.0.0.1, sessionAffinity: ClientIP}"), Some(10_800));
    let spec = "{clusterIP: 10.0.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 5}}}";
    assert_eq!(timeout(spec), Some(5));
}

#[test]
fn impossible_services_are_refused_with_field_and_remedy() {
    refused(
        "{clusterIP: 10.0.0.1, ports: [{port: 99999}]}",
        "spec.ports[0].port: 99999 is no port; write 1 to 65535",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{port: 0}]}",
        "spec.ports[0].port: 0 is no port; write 1 to 65535",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{name: a}]}",
        "spec.ports[0].port: is missing; write 1 to 65535",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{port: 1, nodePort: -1}]}",
        "spec.ports[0].nodePort: -1 is no port; write 1 to 65535",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{port: 1, protocol: tcp}]}",
        "spec.ports[0].protocol: unknown protocol \"tcp\"; write TCP, UDP or SCTP",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{name: a, port: 1}, {name: a, port: 2}]}",
        "spec.ports[1].name: two ports are named \"a\"; name them differently",
    );
    refused(
        "{clusterIP: 10.0.0.1, ports: [{name: a, port: 1}, {name: b, port: 1}]}",
        "spec.ports[1].port: two ports have number 1; leave one out",
    );
    refused(
        "{clusterIP: 10.0.0.300}",
        "spec.clusterIP: \"10.0.0.300\" is no IP address; write one such as 10.0.0.1",
    );
    refused(
        "{clusterIP: 127.0.0.1}",
        "spec.clusterIP: 127.0.0.1 is a loopback address; nothing can be reached there",
    );
    refused(
        "{clusterIPs: [10.0.0.1, 10.0.0.2]}",
        "spec.clusterIPs: has two addresses of one family; leave one out",
    );
    refused(
        "{clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}",
        "spec.clusterIPs[0]: is not 10.0.0.1 as spec.clusterIP says; make them equal",
    );
    refused(
        "{clusterIP: 10.0.0.1, type: Nodeport}",
        "spec.type: unknown type \"Nodeport\"; write ClusterIP, NodePort, LoadBalancer or ExternalName",
    );
    refused(
        "{clusterIP: 10.0.0.1, externalTrafficPolicy: local}",
        "spec.externalTrafficPolicy: unknown policy \"local\"; write Cluster or Local",
    );
    refused(
        "{clusterIP: 10.0.0.1, loadBalancerSourceRanges: [10.0.0.0/33]}",
        "spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is no CIDR; write one such as 10.0.0.0/8",
    );
    refused(
        "{clusterIP: 10.0.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 0}}}",
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds: 0 s is no timeout; write 1 to 86400",
    );
}

#[test]
fn sctp_is_a_protocol_like_the_others() {
    let spec =
        "{clusterIP: 10.0.0.1, ports: [{name: a, port: 1, protocol: SCTP}, {name: b, port: 1}]}";
    assert_eq!(outline(&service_text(spec)), ["Service default/web: good"]);
    let protocols: Vec<_> = service(spec).ports.iter().map(|port| port.proto).collect();
    assert_eq!(protocols, [132, 6]);
}

#[test]
fn what_belongs_to_no_family_of_the_service_is_left_out() {
    let spec = "{clusterIP: 10.0.0.1, externalIPs: [192.0.2.1, '2001:db8::1'], \
                loadBalancerSourceRanges: ['2001:db8::/32', 192.0.2.0/24]}";
    let ingress = "status: {loadBalancer: {ingress: [{ip: '2001:db8::2'}]}}\n";
    let left_out = [
        "spec.externalIPs: 2001:db8::1",
        "status.loadBalancer.ingress: 2001:db8::2",
        "spec.loadBalancerSourceRanges[0]: 2001:db8::/32",
    ];
    let left_out = left_out.map(|what| {
        format!("ignored Service default/web: {what} is left out: the Service has no such family")
    });
    let mut told = outline(&(service_text(spec) + ingress));
    assert_eq!(told.remove(0), "Service default/web: good");
    assert_eq!(told, left_out);
    assert_eq!(service(spec).source_ranges.len(), 1);
}

#[test]
fn ingress_counts_by_its_mode() {
    let ingress = "[{ip: 192.0.2.1}, {ip: 192.0.2.2, ipMode: VIP}, {ip: 192.0.2.3, ipMode: Proxy}, {hostname: lb.example}]";
    let text = service_text("{clusterIP: 10.0.0.1}")
        + &format!("status: {{loadBalancer: {{ingress: {ingress}}}}}\n");
    let reading = reading(&text);
    let Outcome::Good(Object::Service(service)) = &reading.objects[0].1 else { panic!() };
    let expected: [std::net::IpAddr; 2] =
        ["192.0.2.1", "192.0.2.2"].map(|text| text.parse().expect("address"));
    assert_eq!(*service.load_balancer_ips, expected);
}

#[test]
fn source_ranges_are_trimmed() {
    let spec = "{clusterIP: 10.0.0.1, loadBalancerSourceRanges: [' 10.0.0.0/8 ']}";
    assert_eq!(service(spec).source_ranges[0].to_string(), "10.0.0.0/8");
}

#[test]
fn what_kube_proxy_leaves_alone_is_left_alone() {
    let ignored = ["Service default/web: ignored"];
    assert_eq!(outline(&service_text("{clusterIP: None}")), ignored);
    assert_eq!(outline(&service_text("{clusterIPs: [None]}")), ignored);
    assert_eq!(outline(&service_text("{clusterIP: 10.0.0.1, type: ExternalName}")), ignored);
    for label in ["service-proxy-name: other", "headless: ''"] {
        let text = service_text("{clusterIP: 10.0.0.1}").replace(
            "{name: web}",
            &format!("{{name: web, labels: {{service.kubernetes.io/{label}}}}}"),
        );
        assert_eq!(outline(&text), ignored, "{label}");
    }
}

#[test]
fn a_service_without_address_is_told() {
    assert_eq!(
        outline(&service_text("{ports: [{port: 80}]}")),
        [
            "Service default/web: ignored",
            "ignored Service default/web: spec.clusterIP: has no address, and nothing here gives it one; write one, or None",
        ]
    );
}

#[test]
fn other_kinds_pass_in_silence() {
    let none: [&str; 0] = [];
    assert_eq!(outline("apiVersion: apps/v1\nkind: Deployment\nspec: {type: 5}\n"), none);
    let knative = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: a}\n";
    assert_eq!(outline(knative), none);
}

#[test]
fn what_cannot_be_told_is_told() {
    assert_eq!(
        outline("kind: Service\n"),
        ["value apiVersion: a Service without apiVersion; write one"]
    );
    assert_eq!(
        outline("metadata: {name: a}\n"),
        ["value kind: an object without kind; write apiVersion and kind"]
    );
    assert_eq!(
        outline("apiVersion: v1\nkind: Service\n"),
        ["value metadata.name: a Service without name; write one"]
    );
    assert_eq!(
        outline("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n"),
        [
            "value apiVersion: discovery.k8s.io/v1beta1 EndpointSlices are not read; write discovery.k8s.io/v1"
        ]
    );
    assert!(reading("kind: Service\n").unidentified);
}

fn slice_text(rest: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: web}}}}\n{rest}\n"
    )
}

#[test]
fn conditions_have_the_apis_defaults() {
    let rest = "addressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}, {addresses: [10.1.0.2, 10.1.0.3], conditions: {ready: false, serving: null, terminating: true}}]\nports: [{port: 80}, {name: all}, {port: 0}]";
    let reading = reading(&slice_text(rest));
    let Outcome::Good(Object::Endpoints(set)) = &reading.objects[0].1 else { panic!() };
    let slice = &set.slices[0];
    let conditions: Vec<_> =
        slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(conditions, [(true, true, false), (false, true, true)]);
    assert_eq!(slice.ports.len(), 1);
}

#[test]
fn impossible_slices_are_refused() {
    let outline = |rest: &str| outline(&slice_text(rest));
    assert_eq!(
        outline("addressType: IPv6\nendpoints: [{addresses: [10.1.0.1]}]"),
        [
            "EndpointSlice default/s: refused",
            "value EndpointSlice default/s: endpoints[0].addresses[0]: 10.1.0.1 is not of the slice's addressType",
        ]
    );
    assert_eq!(
        outline("addressType: Ipv4"),
        [
            "EndpointSlice default/s: refused",
            "value EndpointSlice default/s: addressType: unknown type \"Ipv4\"; write IPv4 or IPv6",
        ]
    );
    assert_eq!(
        outline("addressType: FQDN\nendpoints: [{addresses: [a.example]}]"),
        ["EndpointSlice default/s: ignored"]
    );
    assert_eq!(
        outline("addressType: IPv4\nendpoints: [{addresses: []}]"),
        [
            "EndpointSlice default/s: good",
            "ignored EndpointSlice default/s: endpoints[0].addresses: an endpoint without address is left out",
        ]
    );
}

#[test]
fn endpoints_become_a_slice_per_family() {
    let text = "apiVersion: v1\nkind: Endpoints\nmetadata: {name: web}\nsubsets:\n- addresses: [{ip: 10.1.0.1, nodeName: n}, {ip: '2001:db8::1'}]\n  notReadyAddresses: [{ip: 10.1.0.2}]\n  ports: [{port: 80}]\n";
    let reading = reading(text);
    let Outcome::Good(Object::Endpoints(set)) = &reading.objects[0].1 else { panic!() };
    let counts: Vec<_> =
        set.slices.iter().map(|slice| (slice.family, slice.endpoints.len())).collect();
    assert_eq!(counts, [(crate::desired::IpFamily::V4, 2), (crate::desired::IpFamily::V6, 1)]);
    assert!(!set.from_slice && !set.slices[0].endpoints[1].ready);
}

#[test]
fn a_node_tells_zone_and_addresses() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x, labels: {topology.kubernetes.io/zone: z}}\nspec: {podCIDR: 10.1.0.0/24, taints: [{key: ToBeDeletedByClusterAutoscaler}]}\nstatus: {addresses: [{type: InternalIP, address: 192.0.2.1}, {type: Hostname, address: n}]}\n";
    let reading = reading(text);
    let (key, Outcome::Good(Object::Node(node))) = &reading.objects[0] else { panic!() };
    assert_eq!(key.to_string(), "Node n");
    assert_eq!((node.zone.as_deref(), node.internal_ips.len(), node.going), (Some("z"), 1, true));
    assert_eq!(node.pod_cidrs.len(), 1);
}

#[test]
fn health_checks_are_those_of_load_balancers_with_local_policy() {
    let port = |spec: &str| {
        service(&format!("{{clusterIP: 10.0.0.1, ports: [{{port: 80}}], {spec}}}"))
            .health_check_node_port
    };
    let local = "externalTrafficPolicy: Local, healthCheckNodePort: 32000";
    assert_eq!(port(&format!("type: LoadBalancer, {local}")), 32_000);
    assert_eq!(port(&format!("type: NodePort, {local}")), 0);
    assert_eq!(port("type: LoadBalancer, healthCheckNodePort: 32000"), 0);
    let spec = "{clusterIP: 10.0.0.1, type: LoadBalancer, externalTrafficPolicy: Local}";
    assert_eq!(
        outline(&service_text(spec)),
        [
            "Service default/web: good",
            "ignored Service default/web: spec.healthCheckNodePort: is missing: a load balancer \
             cannot ask which nodes have endpoints, as externalTrafficPolicy Local needs; write a \
             port"
        ]
    );
    refused(
        "{clusterIP: 10.0.0.1, type: LoadBalancer, externalTrafficPolicy: Local, \
         healthCheckNodePort: 99999}",
        "spec.healthCheckNodePort: 99999 is no port; write 1 to 65535",
    );
}

#[test]
fn service_cidrs_have_no_namespace_and_a_bad_one_is_refused() {
    let text = |cidrs: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\n\
             metadata: {{name: kubernetes}}\nspec: {{cidrs: {cidrs}}}\n"
        )
    };
    let good = reading(&text("[10.96.0.7/16, 'fd00:96::/108']"));
    let [(key, Outcome::Good(Object::ServiceCIDR(told)))] = &good.objects[..] else { panic!() };
    assert_eq!((key.to_string(), told.cidrs.len()), ("ServiceCIDR kubernetes".into(), 2));
    assert_eq!(
        outline(&text("[10.96.0.0/16, many]")),
        [
            "ServiceCIDR kubernetes: refused",
            "value ServiceCIDR kubernetes: spec.cidrs[1]: \"many\" is no CIDR; write one such as \
             10.0.0.0/8",
        ]
    );
}

fn pod(metadata: &str, rest: &str) -> String {
    format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a, {metadata}}}\n{rest}\n")
}

#[test]
fn only_pods_left_out_of_the_socket_path_count() {
    let off = "uid: u, annotations: {millrace.io/socket-lb: \"off\"}";
    for (metadata, rest) in [
        ("uid: u", "spec: {nodeName: here}"),
        ("uid: u, annotations: {millrace.io/socket-lb: \"on\"}", ""),
        (off, "status: {phase: Succeeded}"),
        (off, "status: {phase: Failed}"),
    ] {
        assert_eq!(outline(&pod(metadata, rest)), ["Pod default/a: ignored"], "{metadata} {rest}");
    }
    assert_eq!(
        outline(&pod(off, "spec: {hostNetwork: true}")),
        [
            "Pod default/a: ignored",
            "ignored Pod default/a: spec.hostNetwork: socket-lb: off means nothing for a pod of the \
             host's network: no other path serves the node's own processes"
        ]
    );
    assert_eq!(
        outline(&pod("annotations: {millrace.io/socket-lb: \"off\"}", "")),
        [
            "Pod default/a: refused",
            "value Pod default/a: metadata.uid: a pod is found by its UID, and this one has none"
        ]
    );
}

#[test]
fn a_pod_is_known_as_its_kubelet_and_its_runtime_do() {
    let pod = |metadata: &str, rest: &str| {
        let off = "millrace.io/socket-lb: \"off\"";
        let text = pod(&metadata.replace("OFF", off), rest);
        match &reading(&text).objects[..] {
            [(_, Outcome::Good(Object::Pod(pod)))] => (**pod).clone(),
            other => panic!("{other:?}"),
        }
    };
    let plain = pod("uid: u, annotations: {OFF}", "spec: {nodeName: here}");
    assert_eq!((&*plain.uid, plain.node.as_deref()), ("u", Some("here")));
    let of_file = pod("uid: u, annotations: {OFF, kubernetes.io/config.mirror: hash}", "");
    assert_eq!((&*of_file.uid, of_file.node.as_deref()), ("hash", None));
    let statuses = "status: {containerStatuses: [{containerID: 'containerd://b'}, {}, \
                    {containerID: ''}], initContainerStatuses: [{containerID: 'cri-o://a'}]}";
    let running = pod("uid: u, annotations: {OFF}", statuses);
    assert_eq!(running.containers.iter().map(|id| &**id).collect::<Vec<_>>(), ["a", "b"]);
}

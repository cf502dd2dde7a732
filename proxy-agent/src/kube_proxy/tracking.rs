//! What `conntrack` of a KubeProxyConfiguration says to netfilter's connection tracking, in the kernel's
//! words. Pure.

use serde_json::Value;

use super::{
    document::Given,
    fields::{duration, find},
};
use crate::conntrack::Sysctls;

/// Times, and the names that the kernel has for them.
const TIMEOUTS: [(&str, &str); 4] = [
    ("conntrack.tcpEstablishedTimeout", "nf_conntrack_tcp_timeout_established"),
    ("conntrack.tcpCloseWaitTimeout", "nf_conntrack_tcp_timeout_close_wait"),
    ("conntrack.udpTimeout", "nf_conntrack_udp_timeout"),
    ("conntrack.udpStreamTimeout", "nf_conntrack_udp_timeout_stream"),
];

const LIBERAL: (&str, &str) = ("conntrack.tcpBeLiberal", "nf_conntrack_tcp_be_liberal");

/// What is to be set; zero leaves what there is, and what was not given has kube-proxy's default.
pub fn sysctls(given: &[Given]) -> Sysctls {
    let timeouts = TIMEOUTS.into_iter().filter_map(|(path, sysctl)| {
        let seconds = duration(value(given, path)?.as_str()?)?.as_secs();
        Some((sysctl, seconds.try_into().ok().filter(|&seconds| seconds > 0)?))
    });
    let (path, sysctl) = LIBERAL;
    let is_liberal = value(given, path).is_some_and(|value| value == true);
    timeouts.chain(is_liberal.then_some((sysctl, 1))).collect()
}

/// The last word counts.
fn value(given: &[Given], path: &str) -> Option<Value> {
    let given = given.iter().rfind(|given| given.field.path == path);
    given.map(|given| given.value.clone()).or_else(|| Some(find(path)?.default_value()))
}

#[cfg(test)]
mod tests {
    use super::{super::document, *};

    fn of(file: &str) -> Vec<(&'static str, u64)> {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let given = document::read(&format!("{head}{file}")).expect("sound").given;
        sysctls(&given).into_iter().collect()
    }

    #[test]
    fn connection_tracking_is_told_what_kube_proxy_tells_it() {
        let by_default = [
            ("nf_conntrack_tcp_timeout_close_wait", 3_600),
            ("nf_conntrack_tcp_timeout_established", 86_400),
        ];
        assert_eq!(of(""), by_default);
        assert_eq!(of("conntrack: {tcpCloseWaitTimeout: null, udpTimeout: 0s}"), by_default);
        assert_eq!(
            of("conntrack: {tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 2h, \
                tcpBeLiberal: true, udpTimeout: 1m30s, udpStreamTimeout: 3m}"),
            [
                ("nf_conntrack_tcp_be_liberal", 1),
                ("nf_conntrack_tcp_timeout_established", 7_200),
                ("nf_conntrack_udp_timeout", 90),
                ("nf_conntrack_udp_timeout_stream", 180),
            ]
        );
    }
}

//! Files as kubeadm writes them, and the arguments of its DaemonSet.

use clap::Parser;

use super::*;
use crate::config::{Cli, PodLink};

/// What kubeadm 1.35 writes for `--pod-network-cidr=10.244.0.0/16`.
const KUBEADM: &str = include_str!("kubeadm.yaml");

fn parse(line: &str) -> Result<RunArgs, clap::Error> {
    let words = std::iter::once("proxy-agent").chain(line.split_whitespace());
    Cli::try_parse_from(words).map(|cli| cli.run)
}

fn with_file(line: &str, text: &str) -> (RunArgs, Result<KubeProxyConfig, KubeProxyError>) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, text).unwrap();
    let mut args = parse(&format!("{line} --config={}", path.display())).unwrap();
    let resolved = resolve(&mut args);
    (args, resolved)
}

#[test]
fn what_kubeadm_writes_is_taken_without_a_word() {
    let (args, resolved) = with_file("--hostname-override=node7", KUBEADM);
    assert_eq!(resolved.unwrap().warnings, [""; 0]);
    assert_eq!(args.hostname_override.as_deref(), Some("node7"));
    assert_eq!(args.cluster_cidr, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(args.kubeconfig, Some("/var/lib/kube-proxy/kubeconfig.conf".into()));
    assert_eq!(args.metrics_bind_address, METRICS_ADDRESS);
    assert_eq!(args.healthz_bind_address, HEALTHZ_ADDRESS);
}

#[test]
fn a_file_goes_before_flags_that_both_have_and_tells() {
    let (args, resolved) = with_file(
        "--cluster-cidr=10.9.0.0/16 --nodeport-addresses=all --proxy-mode=ipvs --v=3 \
         --metrics-port=0 --pod-link=bridge:cni0",
        &KUBEADM.replace("nodePortAddresses: null", "nodePortAddresses: [10.0.0.0/8]\nodd: 1"),
    );
    let resolved = resolved.unwrap();
    assert_eq!(args.cluster_cidr, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(args.nodeport_addresses, "10.0.0.0/8".parse().unwrap());
    // Millrace's own.
    assert_eq!(args.pod_link, PodLink::Bridge("cni0".into()));
    let path = resolved.file.as_ref().unwrap().0.display();
    assert_eq!(
        resolved.warnings,
        [
            format!("{path}: odd is not known, and left out"),
            format!(
                "{path}: --v: 3 has no meaning here: say -v or -vv on the command line for more"
            ),
            "--proxy-mode does not count beside --config".to_owned(),
            "--cluster-cidr does not count beside --config".to_owned(),
            "--nodeport-addresses does not count beside --config".to_owned(),
            "--metrics-port has no meaning here: use --metrics-bind-address".to_owned(),
        ]
    );
}

#[test]
fn files_that_cannot_be_taken_are_named_with_all_their_faults() {
    let text = KUBEADM.replace("burst: 0", "burst: many").replace("mode: \"\"", "mode: fast");
    let (_, resolved) = with_file("", &text);
    let message = resolved.unwrap_err().to_string();
    let (first, rest) = message.split_once('\n').unwrap();
    assert!(
        first.starts_with("--config: /") && first.contains("config.conf: clientConnection.burst")
    );
    assert_eq!(rest, "  mode: \"fast\" cannot be; write iptables, ipvs, nftables");
    let mut args = parse("--config=/nowhere/at/all").unwrap();
    let err = resolve(&mut args).unwrap_err().to_string();
    assert!(err.starts_with("--config: cannot read /nowhere/at/all: "), "{err}");
}

#[test]
fn flags_mean_what_their_fields_do() {
    let mut args = parse(
        "--proxy-mode iptables --conntrack-max-per-core=0 --masquerade-all \
         --iptables-sync-period=30s --ipvs-strict-arp=false --bind-address 192.0.2.9 \
         --detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=cali \
         --oom-score-adj -998 --feature-gates=A=true --metrics-bind-address=0.0.0.0",
    )
    .unwrap();
    let warnings = resolve(&mut args).unwrap().warnings;
    let names: Vec<&str> = warnings.iter().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(names, ["--feature-gates", "--masquerade-all", "--oom-score-adj"]);
    assert_eq!(args.node_ip, ["192.0.2.9".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(args.pod_link, PodLink::Prefix("cali".into()));
    assert_eq!(args.metrics_bind_address.to_string(), "0.0.0.0:10249");
}

#[test]
fn flags_that_do_something_else_or_cannot_be_are_refused_with_a_remedy() {
    let refused = |line| parse(line).unwrap_err();
    let err = refused("--cleanup");
    assert_eq!(err.exit_code(), 2);
    assert_eq!(
        err.to_string().lines().next().unwrap(),
        "error: --cleanup of kube-proxy is not understood: run `proxy-agent cleanup --kube-proxy`"
    );
    assert!(refused("--init-only=true").to_string().contains("leave the step out"));
    assert!(parse("--init-only=false").is_ok());
    let err = refused("--conntrack-min=-3").to_string();
    assert_eq!(
        err.lines().next().unwrap(),
        "error: --conntrack-min: -3 cannot be; write a number from 0 to 2147483647"
    );
    assert!(refused("--conntrack-most=3").to_string().contains("--conntrack-most"));
}

#[test]
fn help_names_none_of_them() {
    use clap::CommandFactory;
    let help = Cli::command().render_long_help().to_string();
    assert!(help.contains("--cluster-cidr") && !help.contains("--conntrack"), "{help}");
}

#[test]
fn a_file_that_says_something_else_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.conf");
    fs::write(&path, KUBEADM).unwrap();
    let mut args = parse(&format!("--config={}", path.display())).unwrap();
    let resolved = resolve(&mut args).unwrap();
    assert_eq!(resolved.changed(), None);
    // As a ConfigMap is mounted: written anew, the same.
    fs::remove_file(&path).unwrap();
    assert_eq!(resolved.changed(), None);
    fs::write(&path, KUBEADM).unwrap();
    assert_eq!(resolved.changed(), None);
    fs::write(&path, KUBEADM.replace("10.244", "10.245")).unwrap();
    assert_eq!(resolved.changed(), Some(&*path));
}

#[test]
fn what_is_in_force_is_told_in_kube_proxys_words() {
    let (args, resolved) = with_file("", KUBEADM);
    let told = resolved.unwrap().in_force(&args, "node7");
    assert_eq!(told["kind"], "KubeProxyConfiguration");
    assert_eq!(told["clusterCIDR"], "10.244.0.0/16");
    assert_eq!(told["healthzBindAddress"], "0.0.0.0:10256");
    assert_eq!(told["hostnameOverride"], "node7");
    assert_eq!(told["nodePortAddresses"], json!(["primary"]));
    assert_eq!(told["conntrack"]["tcpEstablishedTimeout"], "24h");
    // Each field that is told can be read again.
    let text = serde_json::to_string(&told).unwrap();
    assert_eq!(document::read(&text).unwrap().unknown, [""; 0]);
}

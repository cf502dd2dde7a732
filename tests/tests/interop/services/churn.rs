//! Five thousand Services that come, change and go while the API server, its etcd, the agent and the
//! connection between them fail: what is programmed in the end is what the API server has, and whoever
//! talks to a Service that stays never notices.

use std::{collections::BTreeMap, net::IpAddr, time::Instant};

use super::*;

const SERVICES: u16 = 5_000;
/// Objects sent at a time.
const CHUNK: usize = 1_000;
/// The Service that is talked to.
const STEADY: u8 = 10;
/// How it is talked to.
const GENTLE: [&str; 4] = ["--lasting=4", "--rate=20", "--requests=20", "--datagrams=50"];
/// Passes to the agent before its connections are dead: some of the lists, never all.
const ENOUGH_KILOBYTES: u32 = 2_000;

/// Endpoint of each Service, by name.
type Endpoints = BTreeMap<String, String>;

fn named(number: u16) -> String {
    format!("churn-{number}")
}

fn cluster_ip(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    [10, 96, 16 + high, low].into()
}

/// The endpoints of each generation are others.
fn endpoint(number: u16, generation: u8) -> IpAddr {
    [10, 244, 16 + generation, 1 + (number % 250) as u8].into()
}

fn of_service(number: u16) -> Value {
    let service = Service::new(&named(number)).cluster_ip(cluster_ip(number)).port(ports()[0]);
    service.set("/spec/ipFamilyPolicy", json!("SingleStack")).build()
}

fn of_slice(number: u16, generation: u8) -> Value {
    let slice = Slice::new(&named(number), false, &ports()[..1]);
    slice.endpoint(endpoint(number, generation), "node2").build()
}

/// The API server's own and the agent's Services, as they shall be and as they are.
struct Churn {
    cluster: Cluster,
    wanted: Endpoints,
}

impl Churn {
    fn send(&self, verb: Verb, objects: &[Value]) {
        for chunk in objects.chunks(CHUNK) {
            ok(self.cluster.api.send(verb, chunk));
        }
    }

    fn create(&mut self, numbers: impl Iterator<Item = u16> + Clone) {
        let objects: Vec<_> =
            numbers.clone().flat_map(|it| [of_service(it), of_slice(it, 0)]).collect();
        self.send(Verb::Create, &objects);
        self.wanted.extend(numbers.map(|it| (named(it), endpoint(it, 0).to_string())));
    }

    fn change(&mut self, numbers: impl Iterator<Item = u16> + Clone, generation: u8) {
        let objects: Vec<_> = numbers.clone().map(|it| of_slice(it, generation)).collect();
        self.send(Verb::Replace, &objects);
        self.wanted.extend(numbers.map(|it| (named(it), endpoint(it, generation).to_string())));
    }

    fn delete(&mut self, numbers: impl Iterator<Item = u16> + Clone) {
        let objects: Vec<_> =
            numbers.clone().flat_map(|it| [of_service(it), of_slice(it, 0)]).collect();
        self.send(Verb::Delete, &objects);
        numbers.for_each(|it| drop(self.wanted.remove(&named(it))));
    }

    fn programmed(&self) -> Endpoints {
        let shown = self.cluster.show("services");
        let services = shown.as_array().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        services
            .map(|it| (text(&it["name"]), text(&it["backends"][0]["address"])))
            .filter(|(name, _)| name.starts_with("churn-"))
            .collect()
    }

    /// Waits for as long as something is still happening.
    fn wait(&self, what: &str) {
        println!("{what}");
        let mut last = (self.programmed(), Instant::now());
        while last.0 != self.wanted {
            sleep(Duration::from_millis(200));
            let now = self.programmed();
            if now != last.0 {
                last = (now, Instant::now());
            }
            if last.1.elapsed() > Duration::from_secs(30) {
                let differing: Vec<_> = self
                    .wanted
                    .iter()
                    .filter(|(name, it)| last.0.get(*name) != Some(it))
                    .map(|(name, it)| format!("{name}: {it}, not {:?}", last.0.get(name)))
                    .chain(last.0.keys().filter(|it| !self.wanted.contains_key(*it)).cloned())
                    .take(5)
                    .collect();
                panic!("{what}: {differing:?}\n{}", self.cluster.agent.log());
            }
        }
        self.cluster.wait_no_problem();
    }

    /// Has the server's side of connections with the agent end once that much has passed, without a
    /// word to the agent.
    fn starve(&self) {
        for rule in [
            "add table ip starve".into(),
            "add chain ip starve out { type filter hook output priority 0; }".into(),
            format!(
                "add rule ip starve out ip daddr 192.168.78.11 tcp sport 6443 \
                 quota over {ENOUGH_KILOBYTES} kbytes counter reject with tcp reset"
            ),
        ] {
            ok(self.cluster.lab.shell("fabric", &format!("nft '{rule}'")));
        }
    }

    fn has_starved(&self) -> bool {
        let rules = ok(self.cluster.lab.shell("fabric", "nft list table ip starve"));
        !rules.contains("counter packets 0 ")
    }
}

#[test]
fn thousands_of_services_are_churned_while_everything_fails() {
    let cluster = Cluster::up();
    cluster.create(STEADY, &["pod1b", "pod2b"]);
    cluster.wait_answered(STEADY, &["pod1b", "pod2b"]);
    let targets = peer::targets(addresses(STEADY).map(|ip| SocketAddr::new(ip, 80)));
    let targets = targets.iter().map(String::as_str);
    let arguments: Vec<_> = targets.chain(GENTLE).collect();
    let load = ok(peer::load(&ok(cluster.lab.place("pod1a")), &arguments));

    let mut churn = Churn { cluster, wanted: Endpoints::new() };
    churn.create(0..SERVICES);
    churn.wait("they come");

    // The agent is killed in the middle of changes.
    churn.change(0..SERVICES / 2, 1);
    ok(churn.cluster.agent.kill());
    ok(churn.cluster.agent.launch());
    churn.change(SERVICES / 2..SERVICES, 1);
    churn.wait("the agent was killed");

    // The server is killed, and what the agent missed meanwhile is forgotten.
    churn.delete((0..SERVICES).step_by(5));
    churn.cluster.cut_off("-I");
    churn.change((1..SERVICES).step_by(5), 2);
    churn.create(SERVICES..SERVICES + 500);
    ok(churn.cluster.api.compact());
    churn.cluster.api.stop();
    ok(churn.cluster.api.resume());
    churn.cluster.cut_off("-D");
    churn.change((2..SERVICES).step_by(5), 3);
    churn.wait("the server was killed");

    // Lists break off: what they did not come to is not taken for gone.
    churn.starve();
    ok(churn.cluster.agent.restart_unready());
    eventually("the lists break off", || churn.has_starved().then_some(()));
    churn.delete((3..SERVICES).step_by(5));
    assert_eq!(churn.cluster.source()["is_synced"], false);
    let left = churn.programmed();
    let before = usize::from(SERVICES - SERVICES / 5 + 500);
    assert_eq!(left.len(), before, "programmed beside a list that broke off");
    ok(churn.cluster.lab.shell("fabric", "nft delete table ip starve"));
    churn.wait("lists broke off");

    let load = ok(load.stop());
    assert!(load.connections > 0 && load.requests > 0 && load.udp_sent > 0, "{load:?}");
    assert_eq!((load.failed, load.resets, load.udp_missing), (0, 0, 0), "{load:?}");
}

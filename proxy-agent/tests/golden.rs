//! Manifests to the text of the rows that should be programmed: `golden/NAME.yaml` gives
//! `golden/NAME.txt`. `UPDATE_GOLDEN=1 cargo test -p proxy-agent --test golden` writes the
//! latter anew.
//!
//! The node is called `here`; its NodePorts answer at 192.0.2.1 and 2001:db8::1.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use datapath::{
    address::protocol, affinity, algorithm::Algorithm, frontend::kind, service::service_flags,
};
use proxy_agent::{
    compile::NodeFacts,
    desired::{Desired, DesiredBackend, DesiredService, DesiredSet, IpFamily, ServicePortKey},
    model::{Change, Strings},
    problem::Problem,
    reflect::{self, Outcome},
    state::State,
};

fn state() -> State {
    let addresses = ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("address"));
    let addresses: Vec<_> = addresses.into();
    State::new(NodeFacts {
        name: "here".into(),
        own: addresses.clone(),
        addresses,
        ..NodeFacts::default()
    })
}

fn changes(text: &str) -> (Vec<Change>, Vec<Problem>) {
    let reading = match reflect::read(text, &mut Strings::default()) {
        Ok(reading) => reading,
        Err(problem) => return (Vec::new(), vec![problem]),
    };
    let objects = reading.objects.into_iter();
    let puts = objects.filter_map(|(key, outcome)| match outcome {
        Outcome::Good(object) => Some(Change::Put(key, object)),
        Outcome::Ignored | Outcome::Refused => None,
    });
    (puts.collect(), reading.problems)
}

fn print(desired: &Desired, problems: &[Problem]) -> String {
    let mut text = String::new();
    for (key, service) in desired {
        print_service(&mut text, key, service).expect("writes to a string");
    }
    for problem in problems {
        writeln!(text, "problem ({}): {problem}", problem.kind.label()).expect("string");
    }
    if text.is_empty() { "nothing\n".into() } else { text }
}

fn print_service(
    text: &mut String,
    key: &ServicePortKey,
    service: &DesiredService,
) -> std::fmt::Result {
    let ServicePortKey { namespace, name, port, proto, family } = key;
    let protocol = protocol::name(*proto);
    write!(text, "{namespace}/{name}:{port} {protocol} IP{}", family_name(*family))?;
    for (flag, name) in [
        (service_flags::INTERNAL_LOCAL, "internal-local"),
        (service_flags::EXTERNAL_LOCAL, "external-local"),
        (service_flags::NODE_ADMITTED, "node-admitted"),
        (service_flags::PACKETS, "packets"),
    ] {
        if service.flags & flag != 0 {
            write!(text, " {name}")?;
        }
    }
    let algorithm = Algorithm::of(service.flags);
    if algorithm != Algorithm::Random {
        write!(text, " {algorithm:?}")?;
    }
    if service.affinity != 0 {
        write!(text, " affinity {} s", affinity::seconds(service.affinity))?;
    }
    writeln!(text)?;
    for frontend in &service.frontends {
        let kind = match frontend.kind {
            kind::CLUSTER_IP => "cluster IP",
            kind::NODE_PORT => "node port",
            kind::EXTERNAL_IP => "external IP",
            _ => "load balancer",
        };
        writeln!(text, "  {} {} {kind}", frontend.address, frontend.port)?;
    }
    if service.flags & service_flags::SOURCE_RANGES != 0 {
        let ranges: Vec<String> = service.ranges.iter().map(ToString::to_string).collect();
        writeln!(text, "  load balancer admits {}", ranges.join(", "))?;
    }
    writeln!(text, "  -> {}", print_set(&service.cluster))?;
    if service.flags & (service_flags::INTERNAL_LOCAL | service_flags::EXTERNAL_LOCAL) != 0 {
        writeln!(text, "  local -> {}", print_set(&service.local))?;
    }
    Ok(())
}

fn family_name(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "v4",
        IpFamily::V6 => "v6",
    }
}

/// What stands in several slots, once, with their number.
fn print_set(set: &DesiredSet) -> String {
    let backends = match set {
        DesiredSet::Backends(backends) => backends,
        DesiredSet::Reject => return "reject".into(),
        DesiredSet::Drop => return "drop".into(),
    };
    let mut slots: BTreeMap<&DesiredBackend, u32> = BTreeMap::new();
    for backend in backends {
        *slots.entry(backend).or_default() += 1;
    }
    let backend = |(backend, slots): (&DesiredBackend, u32)| {
        let local = if backend.local { " (here)" } else { "" };
        let slots = if slots == 1 { String::new() } else { format!(" ×{slots}") };
        format!("{} {}{local}{slots}", backend.address, backend.port)
    };
    slots.into_iter().map(backend).collect::<Vec<_>>().join(", ")
}

/// One at a time, in an order, then all away.
fn one_by_one(changes: impl Iterator<Item = Change> + Clone, expected: Option<&Desired>) {
    let mut state = state();
    for change in changes.clone() {
        state.apply([change]);
    }
    if let Some(expected) = expected {
        assert_eq!(state.desired(), expected);
    }
    for change in changes {
        let (Change::Put(key, _) | Change::Delete(key)) = change;
        state.apply([Change::Delete(key)]);
    }
    assert_eq!(*state.desired(), Desired::new());
    assert_eq!(state.problems(), []);
}

fn check(manifest: &Path) -> Result<(), String> {
    let name = manifest.display();
    let (changes, mut problems) = changes(&fs::read_to_string(manifest).expect("manifest"));
    let mut state = state();
    state.apply(changes.clone());
    problems.extend(state.problems());
    // Of two Services that claim one address, the first that came has it.
    let expected = state.problems().is_empty().then_some(state.desired());
    one_by_one(changes.iter().cloned(), expected);
    one_by_one(changes.iter().rev().cloned(), expected);
    let actual = print(state.desired(), &problems);
    let golden = manifest.with_extension("txt");
    if env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&golden, &actual).expect("golden file");
    }
    let expected = fs::read_to_string(&golden).unwrap_or_default();
    if expected == actual {
        return Ok(());
    }
    Err(format!("{name}: expected\n{expected}\nbut it is\n{actual}"))
}

#[test]
fn manifests_become_the_expected_rows() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files =
        fs::read_dir(directory).expect("directory").map(|entry| entry.expect("entry").path());
    let mut manifests: Vec<PathBuf> = files
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    manifests.sort();
    assert!(manifests.len() > 20, "{manifests:?}");
    let failures: Vec<String> = manifests.iter().filter_map(|path| check(path).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

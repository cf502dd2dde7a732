//! Files of manifests as operators and tools leave them: whole, half written, renamed over,
//! broken, impossible.

use std::{fs, path::PathBuf};

use lab::{
    agent::{Agent, SocketLb},
    manifests,
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, Plan, backends, eventually, ok},
    service::{Exposed, Target, cluster_ips, expose, name},
};

both! {
    file_appears_changes_and_disappears,
    file_renamed_over_is_read,
    half_written_file_changes_nothing_until_it_is_whole,
    list_and_several_documents_and_json_are_read,
    other_kinds_are_ignored_quietly,
    broken_file_changes_nothing_else_and_is_reported,
    impossible_port_is_reported_and_the_last_good_version_stays,
    broken_file_found_at_start_takes_nothing_away,
    broken_file_found_with_other_tables_takes_nothing_away,
    impossible_object_found_at_start_keeps_its_service,
    two_services_with_one_cluster_ip_are_reported,
}

fn path(cluster: &Cluster, file: &str) -> PathBuf {
    cluster.lab.manifests("node1").join(file)
}

fn write(cluster: &Cluster, file: &str, text: &str) {
    ok(fs::write(path(cluster, file), text));
}

/// A Service with its slices as YAML.
fn yaml(cluster: &Cluster, service: &Exposed) -> String {
    let documents = service.documents(&cluster.lab);
    let texts: Vec<String> = documents.iter().map(|one| ok(yaml_serde::to_string(one))).collect();
    format!("---\n{}", texts.join("---\n"))
}

fn problems(cluster: &Cluster) -> Vec<Value> {
    let status = cluster.show(&["status"]);
    status["problems"].as_array().cloned().unwrap_or_default()
}

/// Waits for a problem that names all of these, and returns it as text.
fn wait_problem(cluster: &Cluster, words: &[&str]) -> String {
    let what = format!("a problem that names {words:?}, not {:?}", problems(cluster));
    eventually(&what, || {
        let found = problems(cluster).into_iter().map(|problem| problem.to_string());
        found.into_iter().find(|text| words.iter().all(|word| text.contains(word)))
    })
}

fn wait_no_problem(cluster: &Cluster) {
    eventually("no problem is left", || problems(cluster).is_empty().then_some(()));
}

fn is_programmed(cluster: &Cluster, number: u8) -> bool {
    backends(&cluster.agents[0], number).is_some()
}

fn file_appears_changes_and_disappears(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[]);
    cluster.publish(&expose(10, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    // Changed in place, as an editor does that keeps the file.
    let changed = expose(10, &["pod1a", "pod1b"]);
    write(&cluster, &changed.file(), &yaml(&cluster, &changed));
    cluster.wait_programmed(&changed);
    cluster.withdraw(&changed);
    wait_no_problem(&cluster);
}

fn file_renamed_over_is_read(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1a"])]);
    let new = expose(10, &["pod1b"]);
    let fresh = cluster.lab.directory("node1").join("fresh");
    ok(fs::write(&fresh, yaml(&cluster, &new)));
    ok(fs::rename(&fresh, path(&cluster, &new.file())));
    cluster.wait_programmed(&new);
    // Under a name that is no manifest's it is as good as gone; under another it is back.
    ok(fs::rename(path(&cluster, &new.file()), path(&cluster, "web10.yaml.off")));
    eventually("it is gone", || (!is_programmed(&cluster, 10)).then_some(()));
    ok(fs::rename(path(&cluster, "web10.yaml.off"), path(&cluster, "again.yml")));
    cluster.wait_programmed(&new);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
}

fn half_written_file_changes_nothing_until_it_is_whole(mode: SocketLb) {
    use std::io::Write;

    let cluster = Plan::single(mode).up(&[expose(10, &["pod1a"]), expose(11, &["pod1b"])]);
    let new = expose(10, &["pod1b"]);
    let text = yaml(&cluster, &new);
    // Cut in the middle of the Service, within a line.
    let cut = text.find("clusterIPs").expect("a Service names its addresses") + 4;
    let mut file = ok(fs::File::create(path(&cluster, &new.file())));
    ok(file.write_all(&text.as_bytes()[..cut]));
    ok(file.sync_all());
    // Long enough for the agent to have read the half, were it to.
    cluster.publish(&expose(12, &["pod1b"]));
    cluster.reaches("pod1b", Target::ClusterIp(10), &["pod1a"], "pod1b");
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    ok(file.write_all(&text.as_bytes()[cut..]));
    drop(file);
    cluster.wait_programmed(&new);
    wait_no_problem(&cluster);
}

fn list_and_several_documents_and_json_are_read(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[]);
    let [list, several, single] = [10, 11, 12].map(|number| expose(number, &["pod1b"]));
    let items = list.documents(&cluster.lab);
    let document = json!({"apiVersion": "v1", "kind": "List", "items": items});
    write(&cluster, "list.yaml", &ok(yaml_serde::to_string(&document)));
    write(&cluster, "several.yml", &yaml(&cluster, &several));
    let items = single.documents(&cluster.lab);
    let document = json!({"apiVersion": "v1", "kind": "List", "items": items});
    write(&cluster, "single.json", &document.to_string());
    for service in [list, several, single] {
        cluster.wait_programmed(&service);
        cluster.reaches("pod1a", Target::ClusterIp(service.number), &["pod1b"], "pod1a");
    }
    wait_no_problem(&cluster);
}

fn other_kinds_are_ignored_quietly(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[]);
    let service = expose(10, &["pod1b"]);
    let mut text = yaml(&cluster, &service);
    text += "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}\n";
    text += "---\napiVersion: example.com/v1\nkind: Service\nmetadata: {name: odd}\n---\n# empty\n";
    write(&cluster, "mixed.yaml", &text);
    write(&cluster, "notes.txt", "not a manifest: at: all\n");
    cluster.wait_programmed(&service);
    wait_no_problem(&cluster);
}

fn broken_file_changes_nothing_else_and_is_reported(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"]), expose(11, &["pod1a"])]);
    write(&cluster, "web11.yaml", "kind: [Service\n  broken: {\n");
    wait_problem(&cluster, &["web11.yaml"]);
    let counted = eventually("the problem is counted", || {
        let count = cluster.metric("millrace_problems", &[]);
        (count > 0.5).then_some(count)
    });
    assert!((counted - 1.0).abs() < 0.5, "{counted} problems");
    // What the file held before stays in force, and so does all else.
    cluster.reaches("pod1b", Target::ClusterIp(11), &["pod1a"], "pod1b");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.publish(&expose(12, &["pod1b"]));
    // Removed: now it is gone.
    ok(fs::remove_file(path(&cluster, "web11.yaml")));
    eventually("it is gone", || (!is_programmed(&cluster, 11)).then_some(()));
    wait_no_problem(&cluster);
    assert!(cluster.metric("millrace_problems", &[]) < 0.5);
}

fn impossible_port_is_reported_and_the_last_good_version_stays(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    for (field, value, words) in [
        ("/spec/ports/0/port", json!(99_999), ["web10.yaml", "ports[0].port", "99999"]),
        (
            "/spec/clusterIPs/0",
            json!("10.96.0.999"),
            ["web10.yaml", "clusterIPs[0]", "10.96.0.999"],
        ),
    ] {
        let mut bad = expose(10, &["pod1a"]).with(|service| service.set(field, value));
        if field.contains("clusterIPs") {
            bad = bad.with(|service| service.set("/spec/clusterIP", json!("10.96.0.999")));
        }
        cluster.write(&bad);
        wait_problem(&cluster, &words);
        // The endpoints are another object, and good.
        cluster.wait_programmed(&expose(10, &["pod1a"]));
        cluster.answers("pod1b", Target::ClusterIp(10), &["pod1a"]);
        let problems = cluster.metric("millrace_problems", &[]);
        assert!(problems > 0.5, "{problems} problems counted");
        cluster.publish(&expose(10, &["pod1b"]));
        wait_no_problem(&cluster);
        cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    }
}

/// The agent begins anew, with nothing but the tables to tell what there was.
fn restart(cluster: &mut Cluster) {
    ok(cluster.agents[0].kill());
    ok(cluster.agents[0].launch());
    ok(cluster.agents[0].wait_ready());
}

fn broken_file_found_at_start_takes_nothing_away(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"]), expose(11, &["pod1a"])]);
    let broken = "kind: [Service\n  broken: {\n";
    write(&cluster, "web11.yaml", broken);
    restart(&mut cluster);
    let words = ["kept", "web11.yaml", "1 adopted Service", &name(11)];
    wait_problem(&cluster, &words);
    cluster.reaches("pod1b", Target::ClusterIp(11), &["pod1a"], "pod1b");
    cluster.answers("node1", Target::NodePort("node1", 11), &["pod1a"]);
    // All else goes on as ever.
    cluster.publish(&expose(12, &["pod1b"]));
    cluster.withdraw(&expose(10, &["pod1b"]));
    cluster.reaches("pod1b", Target::ClusterIp(11), &["pod1a"], "pod1b");
    // Repaired, it is followed.
    cluster.publish(&expose(11, &["pod1b"]));
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    wait_no_problem(&cluster);
    // Removed instead, so is what it held.
    write(&cluster, "web11.yaml", broken);
    restart(&mut cluster);
    wait_problem(&cluster, &words);
    cluster.reaches("pod1a", Target::ClusterIp(11), &["pod1b"], "pod1a");
    ok(fs::remove_file(path(&cluster, "web11.yaml")));
    eventually("it is gone", || (!is_programmed(&cluster, 11)).then_some(()));
    wait_no_problem(&cluster);
}

/// Tables of another size are made anew: what is kept moves along.
fn broken_file_found_with_other_tables_takes_nothing_away(mode: SocketLb) {
    let plan = Plan::single(mode);
    let mut options = plan.options();
    options.extra.push("--capacity=services=1024,backends=2048".into());
    let mut cluster = plan.up(&[expose(10, &["pod1b"]), expose(11, &["pod1a"])]);
    write(&cluster, "web11.yaml", "kind: [Service\n");
    ok(cluster.agents[0].kill());
    cluster.agents[0] = ok(Agent::start(&cluster.lab, "node1", options));
    wait_problem(&cluster, &["kept", "web11.yaml", &name(11)]);
    cluster.reaches("pod1b", Target::ClusterIp(11), &["pod1a"], "pod1b");
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    cluster.publish(&expose(11, &["pod1b"]));
    wait_no_problem(&cluster);
}

fn impossible_object_found_at_start_keeps_its_service(mode: SocketLb) {
    let mut cluster = Plan::single(mode).up(&[expose(10, &["pod1b"]), expose(11, &["pod1a"])]);
    let bad =
        expose(10, &["pod1b"]).with(|service| service.set("/spec/ports/0/port", json!(99_999)));
    cluster.write(&bad);
    ok(cluster.agents[0].kill());
    ok(cluster.lab.withdraw("web11.yaml"));
    ok(cluster.agents[0].launch());
    ok(cluster.agents[0].wait_ready());
    wait_problem(&cluster, &["kept", "web10.yaml", &name(10)]);
    cluster.reaches("pod1a", Target::ClusterIp(10), &["pod1b"], "pod1a");
    // Which object is bad is known, so the other Service is known to be gone.
    eventually("it is gone", || (!is_programmed(&cluster, 11)).then_some(()));
    // Its endpoints are other objects, and good.
    let moved =
        expose(10, &["pod1a"]).with(|service| service.set("/spec/ports/0/port", json!(99_999)));
    cluster.write(&moved);
    cluster.wait_programmed(&expose(10, &["pod1a"]));
    cluster.answers("pod1b", Target::ClusterIp(10), &["pod1a"]);
    cluster.publish(&expose(10, &["pod1b"]));
    wait_no_problem(&cluster);
}

fn two_services_with_one_cluster_ip_are_reported(mode: SocketLb) {
    let cluster = Plan::single(mode).up(&[expose(10, &["pod1b"])]);
    // Another Service that claims the first one's address.
    let [v4, v6] = cluster_ips(10);
    let port = manifests::Port::tcp("tcp", 80, 8080);
    let thief = manifests::Service::new("thief").cluster_ip(v4).cluster_ip(v6).port(port);
    let slices = ok(manifests::slices(&cluster.lab, "thief", &[port], &["pod1a"]));
    let mut documents = vec![thief.build()];
    documents.extend(slices);
    ok(cluster.lab.publish("thief.yaml", &documents));
    let problem = wait_problem(&cluster, &["thief", &name(10)]);
    assert!(problem.contains(&v4.to_string()) || problem.contains("clusterIP"), "{problem}");
    // Who was first keeps it.
    for _ in 0..4 {
        cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b"]);
    }
    ok(cluster.lab.withdraw("thief.yaml"));
    wait_no_problem(&cluster);
    cluster.answers("pod1a", Target::ClusterIp(10), &["pod1b"]);
}

//! Cases of text: what YAML allows around documents, and what is said of what does not fit.

use super::{Entry, parse, unfit};

/// Kind and name of each document, or what is wrong with it.
fn outline(text: &str) -> Vec<String> {
    match parse(text) {
        Ok(entries) => outlines(&entries),
        Err(fault) => vec![format!("syntax: {}|{}", fault.field, fault.message)],
    }
}

fn outlines(entries: &[Entry]) -> Vec<String> {
    let entry = |entry: &Entry| match entry {
        Entry::Document(document) => format!(
            "{} {}",
            document.kind.as_deref().unwrap_or("-"),
            document.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or("-")
        ),
        Entry::Fault(head, fault) => {
            let name = head.metadata.as_ref().and_then(|metadata| metadata.name.as_deref());
            let kind = head.kind.as_deref().unwrap_or("-");
            format!("{kind} {} bad: {}|{}", name.unwrap_or("-"), fault.field, fault.message)
        }
    };
    entries.iter().map(entry).collect()
}

#[test]
fn documents_are_told_apart() {
    let text = "---\nkind: A\n---\n# nothing\n---\nnull\n---\nkind: B\nmetadata: {name: b}\n...\n";
    assert_eq!(outline(text), ["A -", "B b"]);
    assert_eq!(outline(""), [""; 0]);
    assert_eq!(outline("# only a comment\n"), [""; 0]);
    assert_eq!(outline("---\n---\n"), [""; 0]);
}

#[test]
fn windows_files_are_read() {
    assert_eq!(
        outline("\u{feff}kind: A\r\nmetadata:\r\n  name: a\r\n---\r\nkind: B\r\n"),
        ["A a", "B -"]
    );
    assert_eq!(outline("\u{feff}{\"kind\": \"A\"}\r\n"), ["A -"]);
}

#[test]
fn json_comes_alone_or_in_a_row() {
    assert_eq!(outline("{\"kind\": \"A\"}\n{\"kind\": \"B\", \"spec\": null}\n"), ["A -", "B -"]);
    assert_eq!(outline("{\"kind\": \"A\"}\n---\n{\"kind\": \"B\"}\n"), ["A -", "B -"]);
}

#[test]
fn lists_are_unfolded() {
    let text = "kind: List\nitems:\n- kind: A\n  metadata: {name: a}\n- kind: List\n  items:\n  - kind: B\n- null\n";
    assert_eq!(outline(text), ["A a", "B -"]);
    assert_eq!(
        outline("kind: ServiceList\napiVersion: v1\nitems:\n- metadata: {name: a}\n"),
        ["Service a"]
    );
    assert_eq!(outline("kind: List\nitems: []\n"), [""; 0]);
}

#[test]
fn merge_keys_are_followed() {
    let text = "x: &x {name: a}\nkind: A\nmetadata:\n  <<: *x\n";
    assert_eq!(outline(text), ["A a"]);
}

#[test]
fn a_wrong_type_names_field_and_line() {
    let text = "kind: Service\nmetadata:\n  name: a\nspec:\n  ports:\n  - port: 80\n  - port: http\n---\nkind: B\n";
    assert_eq!(
        outline(text),
        [
            "Service a bad: spec.ports[1].port|invalid type: string \"http\", expected a number at line 7 column 11",
            "B -"
        ]
    );
}

#[test]
fn a_wrong_type_in_json_does_too() {
    assert_eq!(
        outline("{\"kind\": \"A\", \"spec\": {\"ports\": [{\"port\": \"x\"}]}}"),
        [
            "A - bad: spec.ports[0].port|invalid type: string \"x\", expected a number at line 1 column 43"
        ]
    );
}

#[test]
fn a_wrong_type_in_a_list_names_the_item_and_spares_the_others() {
    let text =
        "kind: List\nitems:\n- kind: A\n  metadata: {name: a}\n  spec: {type: [1]}\n- kind: B\n";
    assert_eq!(
        outline(text),
        ["A a bad: items[0].spec.type|invalid type: sequence, expected a string", "B -"]
    );
}

#[test]
fn broken_text_names_the_line() {
    let [message] = &outline("kind: A\nmetadata: {name: a\nspec: 1\n")[..] else { panic!() };
    assert!(message.starts_with("syntax: ") && message.contains("line 3"), "{message}");
    let [message] = &outline("kind: A\n---\nkind: B\nspec: {ports: [{port: x}\n---\nkind: C\n")[..]
    else {
        panic!()
    };
    assert!(message.starts_with("syntax: "), "{message}");
}

#[test]
fn what_is_no_object_is_said_to_be_none() {
    let [message] = &outline("apiVers")[..] else { panic!() };
    assert!(message.starts_with("- - bad: |invalid type: string"), "{message}");
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    let [message] = &outline("kind: A\nkind: B\n")[..] else { panic!() };
    assert!(message.contains("duplicate"), "{message}");
}

#[test]
fn what_is_wrong_with_an_object_that_is_json_has_no_line() {
    let outline = |value| outlines(&unfit(&value));
    let metadata = serde_json::json!({"name": "a", "labels": {"any": "<<"}});
    let ports = serde_json::json!([{"port": 80}, {"port": "http"}]);
    let wrong = serde_json::json!({"kind": "A", "metadata": metadata, "spec": {"ports": ports}});
    assert_eq!(
        outline(wrong),
        ["A a bad: spec.ports[1].port|invalid type: string \"http\", expected a number"]
    );
    for strange in [serde_json::json!("text"), serde_json::json!([1]), serde_json::json!(3)] {
        let told = outline(strange);
        assert!(told[0].starts_with("- - bad: "), "{told:?}");
    }
}

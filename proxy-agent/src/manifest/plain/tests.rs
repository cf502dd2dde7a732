//! The fast way agrees with the right one, or says nothing.

use proptest::{collection::vec, prelude::*, sample::select};
use serde::Deserialize;

use super::document;
use crate::manifest::document::Document;

/// All documents of the text, by the real parser.
fn slowly(text: &str) -> Result<Vec<Option<Document>>, yaml_serde::Error> {
    yaml_serde::Deserializer::from_str(text).map(Option::deserialize).collect()
}

fn check(text: &str) -> Result<bool, TestCaseError> {
    let Some(fast) = document(text) else { return Ok(false) };
    let slow = slowly(text).map_err(|error| TestCaseError::fail(format!("{text:?}: {error}")))?;
    prop_assert_eq!(format!("{:?}", [Some(fast)]), format!("{:?}", slow), "{:?}", text);
    Ok(true)
}

#[test]
fn what_kubectl_prints_is_plain() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let text = std::fs::read_to_string(directory.join("kubernetes.yaml")).expect("manifest");
    for part in text.split("---\n") {
        assert!(check(part).expect("agrees"), "{part}");
    }
    let list = "apiVersion: v1\nitems:\n- kind: Service\n  spec:\n    ports:\n    - name: http\n      port: 80\n- kind: Node\nkind: List\n";
    assert!(check(list).expect("agrees"));
}

#[test]
fn every_golden_manifest_is_read_alike() {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for file in std::fs::read_dir(directory).expect("directory") {
        let path = file.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            for part in std::fs::read_to_string(path).expect("manifest").split("---\n") {
                check(part).expect("agrees");
            }
        }
    }
}

/// Pieces of lines that mean much, in places that make sense often enough.
fn text() -> impl Strategy<Value = String> {
    let indent =
        select(vec!["", "", "  ", "  ", "    ", "- ", "- ", "  - ", "-   ", "   ", "- - "]);
    let key = select(vec![
        "kind:",
        "apiVersion:",
        "metadata:",
        "spec:",
        "ports:",
        "name:",
        "labels:",
        "items:",
        "kubernetes.io/service-name:",
        "type:",
        "port:",
        "endpoints:",
        "addresses:",
        "x:",
        "-x:",
        "\"name\":",
        "name :",
        "? x",
        "a b:",
        "<<:",
        "80:",
        "null:",
        "..:",
        "...:",
        "",
    ]);
    let value = select(vec![
        "",
        "",
        "",
        " a",
        " 80",
        " -1",
        " 080",
        " 1e3",
        " 0x50",
        " 1.5",
        " '80'",
        " \"80\"",
        " ''",
        " true",
        " True",
        " yes",
        " null",
        " Null",
        " ~",
        " {}",
        " []",
        " {a: b}",
        " [a]",
        " a: b",
        " a #b",
        " a#b",
        " # b",
        " a:",
        " 'a",
        " 'it''s'",
        " \"a\\n\"",
        " &x a",
        " *x",
        " !!str 1",
        " |",
        " >",
        " @",
        " -",
        " - a",
        "  a",
        " a ",
        " 10.0.0.1",
        " fd00::1",
        " ::1",
        " .inf",
        " ...",
        " ---",
        " 2026-01-01T00:00:00Z",
        " 9223372036854775808",
        " é",
        " a\tb",
        " .",
        " _",
    ]);
    let end = select(vec![
        "\n", "\n", "\n", "\n", "\n", "\n\n", "\r\n", "\n# c\n", "\n---\n", "\n...\n", "",
    ]);
    (vec((indent, key, value, end), 0..8)).prop_map(|lines| {
        let pieces = lines.iter().flat_map(|(indent, key, value, end)| [indent, key, value, end]);
        pieces.copied().collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn fast_is_right_or_silent(text in text()) {
        check(&text)?;
    }
}

//! Text of manifests, YAML or JSON, to documents: several documents, `List`s, and precise
//! complaints about what does not fit. Other kinds of object pass in silence.
//!
//! The parser is `yaml_serde`, serde_yaml as the YAML organization goes on with it: a Service or
//! EndpointSlice took it 33 µs (serde-saphyr: 74 µs), and it alone names the path of a field of
//! the wrong type. JSON goes to serde_json, which takes 2 µs, and so does YAML that is [`plain`].

pub mod document;
mod plain;

use serde::Deserialize;
use yaml_serde::Value;

use document::{Document, Head};

/// What was found in place of one document or item of a `List`.
#[derive(Debug)]
pub enum Entry {
    Document(Box<Document>),
    /// It is one of ours, or cannot be told, and a field has the wrong type.
    Fault(Head, Fault),
}

/// What does not fit, and where.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Path of the field; empty if there is none to blame.
    pub field: String,
    /// Says line and column where they are known.
    pub message: String,
}

impl Fault {
    /// For what was printed only to be parsed.
    fn forget_line(&mut self) {
        if let Some(at) = self.message.rfind(" at line ") {
            self.message.truncate(at);
        }
    }
}

/// The documents in `text`, items of `List`s one by one. `Err` if it is no YAML at all.
pub fn parse(text: &str) -> Result<Vec<Entry>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('{')
        && let Ok(documents) = json(text)
    {
        return Ok(entries(documents));
    }
    if let Some(document) = plain::document(text) {
        return Ok(entries([document]));
    }
    if text.contains("<<") {
        return parse_values(text);
    }
    // The first error ends the iteration: after a syntax error the iterator must not go on.
    let documents: Result<Vec<Option<Document>>, _> =
        yaml_serde::Deserializer::from_str(text).map(Option::deserialize).collect();
    match documents {
        Ok(documents) => Ok(entries(documents.into_iter().flatten())),
        Err(_) => parse_values(text),
    }
}

/// What is wrong with one object that is JSON already and no [`Document`].
pub fn unfit(value: &serde_json::Value) -> Vec<Entry> {
    // Only a parser of text knows paths, and all of JSON is YAML.
    let mut entries = parse(&value.to_string()).unwrap_or_else(|fault| {
        let head = Head::deserialize(value).unwrap_or_default();
        vec![Entry::Fault(head, fault)]
    });
    for entry in &mut entries {
        if let Entry::Fault(_, fault) = entry {
            fault.forget_line();
        }
    }
    entries
}

fn json(text: &str) -> serde_json::Result<Vec<Document>> {
    serde_json::Deserializer::from_str(text).into_iter().collect()
}

fn entries(documents: impl IntoIterator<Item = Document>) -> Vec<Entry> {
    let mut entries = Vec::new();
    for document in documents {
        unfold(document, &mut entries);
    }
    entries
}

/// Items of a list as the API prints it (`ServiceList`) bear no kind of their own.
fn unfold(mut document: Document, entries: &mut Vec<Entry>) {
    let Some(items) = document.items.take() else {
        entries.push(Entry::Document(Box::new(document)));
        return;
    };
    for mut item in items.into_iter().flatten() {
        if item.kind.is_none() {
            item.kind = item_kind(document.kind.as_deref());
            item.api_version.clone_from(&document.api_version);
        }
        unfold(item, entries);
    }
}

fn item_kind(list: Option<&str>) -> Option<String> {
    list?.strip_suffix("List").filter(|kind| !kind.is_empty()).map(Into::into)
}

/// The slow way, by generic values: for merge keys, and to say what exactly is wrong.
fn parse_values(text: &str) -> Result<Vec<Entry>, Fault> {
    let values: Result<Vec<Value>, _> =
        yaml_serde::Deserializer::from_str(text).map(Value::deserialize).collect();
    let mut values = values.map_err(|error| fault(&error, ""))?;
    // All documents are sound YAML, so that going on behind an error is allowed here.
    let located = yaml_serde::Deserializer::from_str(text).map(Option::<Document>::deserialize);
    let mut entries = Vec::new();
    for (value, located) in values.iter_mut().zip(located) {
        value.apply_merge().map_err(|error| fault(&error, ""))?;
        let error = located.err();
        unfold_value(value, "", error.as_ref(), &mut entries);
    }
    Ok(entries)
}

fn unfold_value(
    value: &Value,
    path: &str,
    located: Option<&yaml_serde::Error>,
    entries: &mut Vec<Entry>,
) {
    if value.is_null() {
        return;
    }
    if let Some(items) = value.get("items").and_then(Value::as_sequence)
        && value.get("kind").and_then(Value::as_str).is_none_or(|kind| kind.ends_with("List"))
    {
        for (index, item) in items.iter().enumerate() {
            let item = with_kind_of_list(item, value);
            unfold_value(&item, &format!("{path}items[{index}]."), None, entries);
        }
        return;
    }
    match yaml_serde::from_value::<Document>(value.clone()) {
        Ok(document) => unfold(document, entries),
        Err(error) => {
            let head: Head = yaml_serde::from_value(value.clone()).unwrap_or_default();
            let fault = match located {
                Some(located) => fault(located, path),
                None => fault_in_item(value, path).unwrap_or_else(|| fault(&error, path)),
            };
            entries.push(Entry::Fault(head, fault));
        }
    }
}

fn with_kind_of_list(item: &Value, list: &Value) -> Value {
    let mut item = item.clone();
    let kind = item_kind(list.get("kind").and_then(Value::as_str));
    if let (Some(kind), Some(map)) = (kind, item.as_mapping_mut())
        && !map.contains_key("kind")
    {
        map.insert("kind".into(), kind.into());
        map.insert("apiVersion".into(), list.get("apiVersion").cloned().unwrap_or_default());
    }
    item
}

/// Only a parser knows paths: print the item and parse that. Its lines mean nothing, then.
fn fault_in_item(item: &Value, path: &str) -> Option<Fault> {
    let text = yaml_serde::to_string(item).ok()?;
    let error = yaml_serde::from_str::<Document>(&text).err()?;
    let mut fault = fault(&error, path);
    fault.forget_line();
    Some(fault)
}

/// The parser puts the path before its message: `spec.ports[1].port: invalid type: …`.
fn fault(error: &yaml_serde::Error, path: &str) -> Fault {
    let text = error.to_string().replace("expected i64", "expected a number");
    match text.split_once(": ") {
        Some((field, message)) if !field.contains(' ') => {
            Fault { field: format!("{path}{field}"), message: message.into() }
        }
        _ => Fault { field: path.trim_end_matches('.').into(), message: text },
    }
}

#[cfg(test)]
mod tests;

//! The plain part of YAML that kubectl prints, read ten times as fast as all of YAML can be:
//! the first listing of ten thousand Services has to be read in a fraction of a second.
//!
//! Block mappings and sequences with scalars on one line are rewritten as JSON, which
//! serde_json reads. Whatever is not plain, or does not fit, is left to the real parser: either
//! this gives what that would have given, or nothing. A property test holds it to that.

use super::document::Document;

/// Deeper than any manifest.
const MAX_DEPTH: usize = 32;

/// `None` if the text is anything but one plain document.
pub(super) fn document(text: &str) -> Option<Document> {
    let text = text.strip_prefix("---\n").unwrap_or(text);
    let mut lines = Lines { rest: text, next: None };
    lines.advance()?;
    let mut json = String::with_capacity(text.len() * 5 / 4);
    node(&mut lines, 0, 0, &mut json)?;
    if lines.next.is_some() {
        return None;
    }
    serde_json::from_str(&json).ok()
}

/// A line without its indentation.
#[derive(Clone, Copy)]
struct Line<'a> {
    indent: usize,
    content: &'a str,
}

struct Lines<'a> {
    rest: &'a str,
    /// `None` at the end.
    next: Option<Line<'a>>,
}

impl<'a> Lines<'a> {
    /// Goes to the next line that says something; `None` if it is not plain.
    fn advance(&mut self) -> Option<()> {
        self.next = None;
        while !self.rest.is_empty() {
            let (line, rest) = self.rest.split_once('\n').unwrap_or((self.rest, ""));
            self.rest = rest;
            let content = line.trim_start_matches(' ');
            if !content.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                return None;
            }
            if !content.is_empty() && !content.starts_with('#') {
                let indent = line.len() - content.len();
                self.next = Some(Line { indent, content: content.trim_end_matches(' ') });
                break;
            }
        }
        Some(())
    }

    /// Takes what follows an item's dash for a line that begins where it stands.
    fn enter(&mut self, item: Line<'a>) -> Line<'a> {
        let content = item.content[1..].trim_start_matches(' ');
        let indent = item.indent + item.content.len() - content.len();
        let line = Line { indent, content };
        self.next = Some(line);
        line
    }
}

/// A mapping or a sequence whose lines begin in this column.
fn node(lines: &mut Lines, indent: usize, depth: usize, json: &mut String) -> Option<()> {
    let first = lines.next?;
    if first.indent != indent || depth > MAX_DEPTH {
        return None;
    }
    if is_item(first.content) {
        sequence(lines, indent, depth, json)
    } else {
        mapping(lines, indent, depth, json)
    }
}

fn is_item(content: &str) -> bool {
    content == "-" || content.starts_with("- ")
}

fn sequence(lines: &mut Lines, indent: usize, depth: usize, json: &mut String) -> Option<()> {
    json.push('[');
    while let Some(line) = lines.next.filter(|line| line.indent == indent && is_item(line.content))
    {
        if !json.ends_with('[') {
            json.push(',');
        }
        let item = lines.enter(line);
        if split_key(item.content).is_some() {
            mapping(lines, item.indent, depth + 1, json)?;
        } else {
            scalar(item.content, json)?;
            lines.advance()?;
            ends(lines, indent)?;
        }
    }
    json.push(']');
    ends(lines, indent)
}

fn mapping(lines: &mut Lines, indent: usize, depth: usize, json: &mut String) -> Option<()> {
    json.push('{');
    while let Some(line) = lines.next.filter(|line| line.indent == indent && !is_item(line.content))
    {
        let (key, value) = split_key(line.content)?;
        if !json.ends_with('{') {
            json.push(',');
        }
        quote(key, json);
        json.push(':');
        lines.advance()?;
        if value.is_empty() {
            below(lines, indent, depth, json)?;
        } else {
            scalar(value, json)?;
            ends(lines, indent)?;
        }
    }
    json.push('}');
    ends(lines, indent)
}

/// What stands below a key: something deeper, a sequence in the same column, or nothing.
fn below(lines: &mut Lines, indent: usize, depth: usize, json: &mut String) -> Option<()> {
    match lines.next {
        Some(line) if line.indent > indent => node(lines, line.indent, depth + 1, json),
        Some(line) if line.indent == indent && is_item(line.content) => {
            sequence(lines, indent, depth + 1, json)
        }
        _ => {
            json.push_str("null");
            Some(())
        }
    }
}

/// A line that is deeper than what has just ended would go on with it.
fn ends(lines: &Lines, indent: usize) -> Option<()> {
    lines.next.is_none_or(|line| line.indent <= indent).then_some(())
}

/// `key: value` or `key:`.
fn split_key(content: &str) -> Option<(&str, &str)> {
    let is_of_key = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-".contains(&byte);
    let length = content.bytes().position(|byte| !is_of_key(byte))?;
    let (key, rest) = content.split_at(length);
    let value = rest.strip_prefix(':')?;
    let is_plain = !key.is_empty() && !key.starts_with('-') && !key.starts_with("..");
    let is_separate = value.is_empty() || value.starts_with(' ');
    (is_plain && is_separate).then(|| (key, value.trim_start_matches(' ')))
}

fn scalar(text: &str, json: &mut String) -> Option<()> {
    match text.as_bytes() {
        b"{}" | b"[]" | b"null" | b"true" | b"false" => json.push_str(text),
        b"~" => json.push_str("null"),
        b"Null" | b"NULL" => return None,
        [quote @ (b'"' | b'\''), inner @ .., end] if quote == end => {
            if inner.iter().any(|byte| b"\"'\\".contains(byte)) {
                return None;
            }
            self::quote(&text[1..text.len() - 1], json);
        }
        bytes if is_number(bytes) => json.push_str(text),
        bytes if is_plain(bytes) => quote(text, json),
        _ => return None,
    }
    Some(())
}

/// As JSON writes it, and with no more digits than an i64 surely has.
fn is_number(bytes: &[u8]) -> bool {
    let digits = bytes.strip_prefix(b"-").unwrap_or(bytes);
    (1..=18).contains(&digits.len())
        && digits.iter().all(u8::is_ascii_digit)
        && (digits.len() == 1 || digits[0] != b'0')
}

/// Means itself: no colon before a space or at the end, no comment, nothing to escape.
fn is_plain(bytes: &[u8]) -> bool {
    let [first, .., last] = bytes else {
        return bytes.first().is_some_and(u8::is_ascii_alphanumeric);
    };
    let separates = |pair: &[u8]| pair == b": " || pair == b" #";
    (first.is_ascii_alphanumeric() || b"/._".contains(first))
        && *last != b':'
        && !bytes.iter().any(|byte| b"\"\\".contains(byte))
        && !bytes.windows(2).any(separates)
        && bytes != b"..."
}

fn quote(text: &str, json: &mut String) {
    json.push('"');
    json.push_str(text);
    json.push('"');
}

#[cfg(test)]
mod tests;

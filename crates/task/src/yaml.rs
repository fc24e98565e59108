//! YAML to a tree that knows of each value where it stands and how it was written.
//!
//! What a scalar is depends on who asks (task-yaml.md section 1): `id: 5` is the text `5`,
//! `keep: yes` is true, `timeout: "30"` is no number. So scalars stay text here, and
//! whoever wants a number or a truth value asks for one.

use std::collections::{HashMap, HashSet};

use granit_parser::{Event, Parser, ScalarStyle};

use crate::span::{Span, TaskError, Warning, Warnings};

/// Values in a document, those behind aliases counted each time they are used.
const NODES_MAX: usize = 100_000;
/// Bytes of scalars in a document, counted the same way.
const TEXT_MAX: usize = 8 << 20;
/// Lists and maps inside each other.
const DEPTH_MAX: usize = 64;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) at: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// `plain` means written without quotes, and not as a block.
    Scalar {
        text: String,
        plain: bool,
    },
    List(Vec<Node>),
    /// In the order of the text. Of equal keys, the last one counts.
    Map(Vec<(Node, Node)>),
}

/// What a scalar means by itself, by the rules of YAML 1.1.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(&'a str),
}

impl Node {
    pub(crate) fn is_null(&self) -> bool {
        self.scalar() == Some(Scalar::Null)
    }

    /// The literal text of a scalar that is not null.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } if !self.is_null() => Some(text),
            _ => None,
        }
    }

    pub(crate) fn scalar(&self) -> Option<Scalar<'_>> {
        match &self.kind {
            Kind::Scalar { text, plain: true } => Some(resolve(text)),
            Kind::Scalar { text, plain: false } => Some(Scalar::Text(text)),
            Kind::List(_) | Kind::Map(_) => None,
        }
    }

    /// What it is, for an error.
    pub(crate) fn what(&self) -> &'static str {
        match &self.kind {
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
            Kind::Scalar { plain: false, .. } => "a quoted text",
            Kind::Scalar { .. } => match self.scalar() {
                Some(Scalar::Bool(_)) => "a truth value",
                Some(Scalar::Int(_) | Scalar::Float(_)) => "a number",
                Some(Scalar::Null) => "nothing",
                _ => "a text",
            },
        }
    }
}

fn resolve(text: &str) -> Scalar<'_> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Scalar::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Scalar::Bool(false);
        }
        _ => (),
    }
    match number(text) {
        Some(number) => number,
        None => Scalar::Text(text),
    }
}

fn number(text: &str) -> Option<Scalar<'_>> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" => {
            let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
            return Some(Scalar::Float(sign * f64::INFINITY));
        }
        ".nan" | ".NaN" | ".NAN" => return Some(Scalar::Float(f64::NAN)),
        _ => (),
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let digits = text.replace('_', "");
    let (negative, magnitude) = match digits.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, digits.strip_prefix('+').unwrap_or(&digits)),
    };
    let (radix, magnitude) = match magnitude.get(..2) {
        Some("0x") => (16, &magnitude[2..]),
        Some("0o") => (8, &magnitude[2..]),
        Some("0b") => (2, &magnitude[2..]),
        Some(_) if magnitude.starts_with('0') && magnitude.bytes().all(|b| b.is_ascii_digit()) => {
            (8, &magnitude[1..])
        }
        _ => (10, magnitude),
    };
    let sign = if negative { "-" } else { "" };
    if magnitude.starts_with(|c: char| c.is_digit(radix))
        && let Ok(number) = i64::from_str_radix(&format!("{sign}{magnitude}"), radix)
    {
        return Some(Scalar::Int(number));
    }
    // `f64` also reads words such as `infinity`, which the first character rules out.
    let is_decimal = digits.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    digits.parse().ok().filter(|_| is_decimal).map(Scalar::Float)
}

/// Reads the first document of a text; `None` if there is nothing in it.
pub(crate) fn parse(text: &str, warnings: &mut Warnings) -> Result<Option<Node>, TaskError> {
    let options = granit_parser::options! {
        flow_nesting_limit: DEPTH_MAX,
        block_nesting_limit: DEPTH_MAX,
    };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|error| {
            let at =
                Span { line: error.marker().line(), column: error.marker().col() + 1, width: 1 };
            TaskError::at(at, format!("not valid YAML: {}", error.info()))
        })?;
        let (start, end) = (span.start, span.end);
        let width = match start.line() == end.line() {
            true => end.col().saturating_sub(start.col()).max(1),
            false => 1,
        };
        let at = Span { line: start.line(), column: start.col() + 1, width };
        if let Event::DocumentStart(..) = event
            && builder.root.is_some()
        {
            let message = "only the first of several YAML documents is read";
            warnings.add(|| Warning::at(at, message));
            break;
        }
        builder.take(event, at)?;
    }
    Ok(builder.root)
}

/// A list or map that is not closed yet.
struct Open {
    is_map: bool,
    children: Vec<Node>,
    anchor: usize,
    at: Span,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    /// Of all that was made so far.
    size: Size,
    root: Option<Node>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
    depth: usize,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, at: Span) -> Result<(), TaskError> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                let plain = style == ScalarStyle::Plain && !is_text;
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                self.add(Node { kind, at }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open { is_map: false, children: Vec::new(), anchor, at });
                Ok(())
            }
            Event::MappingStart(_, anchor, _) => {
                self.open.push(Open { is_map: true, children: Vec::new(), anchor, at });
                Ok(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let kind = match open.is_map {
                    true => Kind::Map(map(open.children)?),
                    false => Kind::List(open.children),
                };
                self.add(Node { kind, at: open.at }, open.anchor)
            }
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor) else {
                    return Err(TaskError::at(at, "a YAML alias must not be inside its anchor"));
                };
                let (node, size) = (node.clone(), size(node));
                self.count(size, at)?;
                self.place(node);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn add(&mut self, node: Node, anchor: usize) -> Result<(), TaskError> {
        let bytes = match &node.kind {
            Kind::Scalar { text, .. } => text.len(),
            _ => 0,
        };
        self.count(Size { nodes: 1, bytes, depth: 0 }, node.at)?;
        if anchor != 0 {
            // Anchors are copies too.
            self.count(size(&node), node.at)?;
            self.anchors.insert(anchor, node.clone());
        }
        self.place(node);
        Ok(())
    }

    fn place(&mut self, node: Node) {
        match self.open.last_mut() {
            Some(open) => open.children.push(node),
            None => self.root = Some(node),
        }
    }

    fn count(&mut self, more: Size, at: Span) -> Result<(), TaskError> {
        self.size.nodes += more.nodes;
        self.size.bytes += more.bytes;
        let problem = if self.size.nodes > NODES_MAX {
            format!("the YAML has more than {NODES_MAX} values, with aliases expanded")
        } else if self.size.bytes > TEXT_MAX {
            format!("the YAML has more than {TEXT_MAX} bytes of text, with aliases expanded")
        } else if self.open.len() + more.depth > DEPTH_MAX {
            format!("the YAML is nested deeper than {DEPTH_MAX} levels, with aliases expanded")
        } else {
            return Ok(());
        };
        Err(TaskError::at(at, problem))
    }
}

fn size(node: &Node) -> Size {
    let children: Vec<&Node> = match &node.kind {
        Kind::Scalar { text, .. } => return Size { nodes: 1, bytes: text.len(), depth: 0 },
        Kind::List(items) => items.iter().collect(),
        Kind::Map(entries) => entries.iter().flat_map(|(key, value)| [key, value]).collect(),
    };
    let mut sum = Size { nodes: 1, bytes: 0, depth: 0 };
    for child in children {
        let size = size(child);
        sum.nodes += size.nodes;
        sum.bytes += size.bytes;
        sum.depth = sum.depth.max(size.depth + 1);
    }
    sum
}

/// Keys and values in turn to entries, with what `<<` merges in put first: it yields to
/// what the map says itself.
fn map(children: Vec<Node>) -> Result<Vec<(Node, Node)>, TaskError> {
    let mut merged = Vec::new();
    let mut entries = Vec::new();
    let mut children = children.into_iter();
    while let (Some(key), Some(value)) = (children.next(), children.next()) {
        let is_merge = matches!(&key.kind, Kind::Scalar { text, plain: true } if text == "<<");
        match (is_merge, value.kind) {
            (false, kind) => entries.push((key, Node { kind, at: value.at })),
            (true, Kind::Map(more)) => merged.extend(more),
            (true, Kind::List(maps)) => {
                // Of several, the first one counts.
                for map in maps.into_iter().rev() {
                    let Kind::Map(more) = map.kind else {
                        return Err(TaskError::at(map.at, "`<<` takes a map or a list of maps"));
                    };
                    merged.extend(more);
                }
            }
            (true, Kind::Scalar { .. }) => {
                return Err(TaskError::at(value.at, "`<<` takes a map or a list of maps"));
            }
        }
    }
    let own: HashSet<&str> = entries.iter().filter_map(|(key, _)| key.text()).collect();
    merged.retain(|(key, _)| key.text().is_none_or(|text| !own.contains(text)));
    merged.extend(entries);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Node, String> {
        let root = parse(text, &mut Warnings::default()).map_err(|error| error.message)?;
        Ok(root.unwrap())
    }

    #[test]
    fn scalars_mean_what_yaml_1_1_says() {
        let cases = [
            ("~", Scalar::Null),
            ("Yes", Scalar::Bool(true)),
            ("yEs", Scalar::Text("yEs")),
            ("off", Scalar::Bool(false)),
            ("12", Scalar::Int(12)),
            ("-1_000", Scalar::Int(-1000)),
            ("0x1F", Scalar::Int(31)),
            ("010", Scalar::Int(8)),
            ("0", Scalar::Int(0)),
            ("1.9", Scalar::Float(1.9)),
            ("1e3", Scalar::Float(1000.0)),
            (".5", Scalar::Float(0.5)),
            ("-.inf", Scalar::Float(f64::NEG_INFINITY)),
            ("1.2.3", Scalar::Text("1.2.3")),
            ("0x", Scalar::Text("0x")),
            ("infinity", Scalar::Text("infinity")),
            (".", Scalar::Text(".")),
            ("99999999999999999999", Scalar::Float(1e20)),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text), expected, "{text}");
        }
    }

    #[test]
    fn a_map_wins_over_what_it_merges() {
        let node = read("a: &a {x: 1, y: 1}\nb: {<<: *a, y: 2}").unwrap();
        let Kind::Map(entries) = node.kind else { panic!("no map") };
        let Kind::Map(b) = &entries[1].1.kind else { panic!("no map") };
        let texts: Vec<_> = b.iter().map(|(key, value)| (key.text(), value.text())).collect();
        assert_eq!(texts, [(Some("x"), Some("1")), (Some("y"), Some("2"))]);
        assert!(read("{<<: 1}").is_err());
    }

    #[test]
    fn an_alias_bomb_is_refused_at_once() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let uses = vec![format!("*a{}", level - 1); 10].join(", ");
            text += &format!("a{level}: &a{level} [{uses}]\n");
        }
        let started = std::time::Instant::now();
        assert!(read(&text).unwrap_err().contains("more than 100000 values"));
        assert!(started.elapsed().as_secs() < 2);
        let wide = format!("a: &a {}\nb: [{}]", "x".repeat(1 << 20), "*a, ".repeat(20));
        assert!(read(&wide).unwrap_err().contains("bytes of text"));
        assert!(read("a: &a [*a]").unwrap_err().contains("inside its anchor"));
        assert!(read(&"[".repeat(100_000)).is_err());
        assert!(read(&"- ".repeat(100_000)).is_err());
    }

    #[test]
    fn only_the_first_document_is_read() {
        let mut warnings = Warnings::default();
        parse("a: 1\n---\nb: 1\n", &mut warnings).unwrap();
        let warnings = warnings.shown(|warning| warning);
        assert_eq!(warnings.len(), 1);
        assert_eq!(warnings[0].at.unwrap().line, 2);
        assert_eq!(parse("", &mut Warnings::default()).unwrap(), None);
    }
}

//! A JSON schema as syntax trees: one for the schema, and one for each recursive definition.
//!
//! Whatever the trees match is valid. What they leave out is listed at
//! [`Grammar::json_schema`](super::Grammar::json_schema).

use std::collections::{HashMap, HashSet};

use regex_syntax::hir::Hir;

use super::automaton::Automaton;
use super::compile::{self, MAX_TREES};
use super::json::{self, literal, optional, repeat, separator};
use super::value::Value;
use crate::error::{Error, Result};

/// Keywords that say nothing about what is valid.
const ANNOTATIONS: [&str; 13] = [
    "$schema",
    "$id",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "examples",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$anchor",
];

/// Keywords for values of some types, and those types.
const BY_TYPE: [(&str, &[&str]); 17] = [
    ("properties", &["object"]),
    ("required", &["object"]),
    ("additionalProperties", &["object"]),
    ("items", &["array"]),
    ("prefixItems", &["array"]),
    ("minItems", &["array"]),
    ("maxItems", &["array"]),
    ("minLength", &["string"]),
    ("maxLength", &["string"]),
    ("pattern", &["string"]),
    ("format", &["string"]),
    ("minimum", &["number", "integer"]),
    ("maximum", &["number", "integer"]),
    ("exclusiveMinimum", &["number", "integer"]),
    ("exclusiveMaximum", &["number", "integer"]),
    ("type", &[]),
    ("uniqueItems", &["array"]),
];

/// Keywords that are the whole of a schema.
const WHOLE: [&str; 6] = ["$ref", "const", "enum", "anyOf", "oneOf", "allOf"];

const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// Most nodes of the trees.
const MAX_NODES: usize = 1 << 18;

/// The name of the tree of any JSON value; no pointer is like it.
const ANY: &str = "any";

/// The automaton of a schema.
pub fn json_schema(text: &str) -> Result<Automaton> {
    let wrong = |what: String| Error::argument("json_schema", what);
    let root = Value::parse(text).map_err(|e| wrong(format!("expected JSON, found {e}")))?;
    let mut translator = Translator {
        root: &root,
        recursive: HashMap::new(),
        names: vec![String::new()],
        path: Vec::new(),
        n_open: 0,
    };
    let mut trees = vec![
        translator
            .schema(&root)
            .map_err(|e| wrong(translator.at(&e)))?,
    ];
    while let Some(name) = translator.names.get(trees.len()).cloned() {
        translator.path = vec![format!("#{name}")];
        let tree = match root.pointer(&name) {
            _ if name == ANY => translator.any_tree(),
            Some(schema) => translator.schema(schema),
            None => Err(format!(
                "$ref: expected a place in the schema, found #{name}"
            )),
        };
        trees.push(tree.map_err(|e| wrong(translator.at(&e)))?);
    }
    compile::trees(&trees).map_err(wrong)
}

struct Translator<'a> {
    root: &'a Value,
    /// Whether what a pointer leads to refers to itself, for pointers seen.
    recursive: HashMap<String, bool>,
    /// Pointers of the trees; the first is that of the schema itself, which nothing calls.
    names: Vec<String>,
    /// Where in the schema we are, for messages.
    path: Vec<String>,
    n_open: usize,
}

impl Translator<'_> {
    fn at(&self, what: &str) -> String {
        match self.path.is_empty() {
            true => what.to_owned(),
            false => format!("{}: {what}", self.path.join("/")),
        }
    }

    /// Translates a part of the present schema.
    fn part(&mut self, name: &str, schema: &Value) -> Result<Hir, String> {
        self.path.push(name.to_owned());
        let tree = self.schema(schema)?;
        self.path.pop();
        Ok(tree)
    }

    fn schema(&mut self, schema: &Value) -> Result<Hir, String> {
        let members = match schema {
            Value::Bool(true) => return self.call(ANY),
            Value::Bool(false) => return Ok(Hir::fail()),
            Value::Object(members) => members,
            other => return Err(format!("expected a schema, found {other}")),
        };
        let names = members.iter().map(|(name, _)| name.as_str());
        let rules: Vec<&str> = names.filter(|name| !ANNOTATIONS.contains(name)).collect();
        let is_known = |name: &str| WHOLE.contains(&name) || BY_TYPE.iter().any(|k| k.0 == name);
        if let Some(name) = rules.iter().find(|name| !is_known(name)) {
            return Err(format!("keyword {name:?} is not supported"));
        }
        let Some(whole) = rules.iter().copied().find(|name| WHOLE.contains(name)) else {
            return self.by_type(schema, &rules);
        };
        let takes_type = matches!(whole, "const" | "enum");
        let is_extra = |name: &&&str| **name != whole && !(takes_type && **name == "type");
        if let Some(other) = rules.iter().find(is_extra) {
            return Err(format!(
                "keyword {whole:?} together with {other:?} is not supported"
            ));
        }
        let value = schema.member(whole).expect("a keyword that was found");
        match (whole, value) {
            ("$ref", Value::String(pointer)) => self.reference(pointer),
            ("const", value) => self.constants(schema, std::slice::from_ref(value)),
            ("enum", Value::Array(values)) => self.constants(schema, values),
            ("allOf", Value::Array(schemas)) if schemas.len() == 1 => {
                self.part("allOf", &schemas[0])
            }
            ("allOf", Value::Array(_)) => {
                Err("keyword \"allOf\" of several schemas is not supported".into())
            }
            ("anyOf" | "oneOf", Value::Array(schemas)) => {
                if whole == "oneOf" {
                    self.check_exclusive(schemas)?;
                }
                let mut parts = Vec::new();
                for (i, schema) in schemas.iter().enumerate() {
                    parts.push(self.part(&format!("{whole}/{i}"), schema)?);
                }
                Ok(Hir::alternation(parts))
            }
            (name, other) => Err(format!("{name}: unexpected value {other}")),
        }
    }

    /// A schema elsewhere in the document: called if it refers to itself, else copied here.
    fn reference(&mut self, pointer: &str) -> Result<Hir, String> {
        let name = (pointer.strip_prefix('#'))
            .filter(|name| name.is_empty() || name.starts_with('/'))
            .ok_or_else(|| format!("$ref: expected \"#\" or \"#/...\", found {pointer:?}"))?;
        let target = (self.root.pointer(name))
            .ok_or_else(|| format!("$ref: expected a place in the schema, found {pointer:?}"))?;
        if self.is_recursive(name) {
            return self.call(name);
        }
        if self.n_open > 64 {
            return Err("$ref: expected at most 64 references in each other, found more".into());
        }
        self.n_open += 1;
        let tree = self.part(pointer, target)?;
        self.n_open -= 1;
        Ok(tree)
    }

    fn is_recursive(&mut self, name: &str) -> bool {
        if let Some(&known) = self.recursive.get(name) {
            return known;
        }
        let mut seen: HashSet<String> = HashSet::new();
        let mut queue = vec![name.to_owned()];
        while let Some(next) = queue.pop() {
            let mut found = Vec::new();
            if let Some(schema) = self.root.pointer(&next) {
                references(schema, &mut found);
            }
            queue.extend(found.into_iter().filter(|name| seen.insert(name.clone())));
        }
        let is_recursive = seen.contains(name);
        self.recursive.insert(name.to_owned(), is_recursive);
        is_recursive
    }

    /// A call of a tree, which is translated later.
    fn call(&mut self, name: &str) -> Result<Hir, String> {
        let known = self.names.iter().skip(1).position(|n| n == name);
        let number = match known {
            Some(n) => n + 1,
            None => {
                self.names.push(name.to_owned());
                self.names.len() - 1
            }
        };
        match number < MAX_TREES {
            true => Ok(compile::call(number)),
            false => Err(format!(
                "expected fewer than {MAX_TREES} recursive definitions"
            )),
        }
    }

    /// Any JSON value.
    fn any_tree(&mut self) -> Result<Hir, String> {
        let any = self.call(ANY)?;
        Ok(Hir::alternation(vec![
            literal("null"),
            json::boolean(),
            json::number(true),
            json::string(0, None),
            list("[", any.clone(), 0, None, "]"),
            list("{", property(json::string(0, None), any), 0, None, "}"),
        ]))
    }

    fn constants(&mut self, schema: &Value, values: &[Value]) -> Result<Hir, String> {
        let types = types(schema)?;
        let values = values.iter().filter(|value| match &types {
            Some(types) => types.iter().any(|t| is_of_type(value, t)),
            None => true,
        });
        Ok(Hir::alternation(
            values.map(|v| literal(&v.to_string())).collect(),
        ))
    }

    fn by_type(&mut self, schema: &Value, rules: &[&str]) -> Result<Hir, String> {
        let types = match types(schema)? {
            Some(types) => types,
            None if rules.is_empty() => return self.call(ANY),
            // Without a type, the keywords name it.
            None => {
                let implied = |t: &&str| {
                    (BY_TYPE.iter()).any(|(name, types)| rules.contains(name) && types.contains(t))
                };
                TYPES
                    .into_iter()
                    .filter(|&t| t != "integer")
                    .filter(implied)
                    .collect()
            }
        };
        let mut parts = Vec::new();
        for name in types {
            parts.push(match name {
                "null" => literal("null"),
                "boolean" => json::boolean(),
                "integer" => integer(schema)?,
                "number" => number(schema)?,
                "string" => string(schema)?,
                "array" => self.array(schema)?,
                "object" => self.object(schema)?,
                other => return Err(format!("type: unknown type {other:?}")),
            });
        }
        Ok(Hir::alternation(parts))
    }

    fn array(&mut self, schema: &Value) -> Result<Hir, String> {
        if !matches!(
            schema.member("uniqueItems"),
            None | Some(Value::Bool(false))
        ) {
            return Err("keyword \"uniqueItems\" is not supported".into());
        }
        let min = count(schema, "minItems")?.unwrap_or(0);
        let max = count(schema, "maxItems")?;
        let item = match schema.member("items") {
            Some(Value::Array(_)) => {
                return Err("items: expected one schema, found several; use prefixItems".into());
            }
            Some(items) => self.part("items", items)?,
            None => self.call(ANY)?,
        };
        let mut prefix = Vec::new();
        match schema.member("prefixItems") {
            None => {}
            Some(Value::Array(items)) => {
                for (i, items) in items.iter().enumerate() {
                    prefix.push(self.part(&format!("prefixItems/{i}"), items)?);
                }
            }
            Some(other) => return Err(format!("prefixItems: expected schemas, found {other}")),
        }
        if prefix.is_empty() {
            return Ok(list("[", item, min, max, "]"));
        }
        if max.is_some_and(|max| max < min) {
            return Ok(Hir::fail());
        }
        prefix.truncate(max.unwrap_or(u32::MAX) as usize);
        // From the end: what may follow the first items.
        let n = prefix.len() as u32;
        let more = Hir::concat(vec![separator(","), item]);
        let mut tail = repeat(more, min.saturating_sub(n), max.map(|max| max - n));
        for (i, item) in prefix.into_iter().enumerate().rev() {
            let comma = if i == 0 { Hir::empty() } else { separator(",") };
            tail = Hir::concat(vec![comma, item, tail]);
            if (i as u32) >= min {
                tail = optional(tail);
            }
        }
        Ok(Hir::concat(vec![literal("["), tail, literal("]")]))
    }

    fn object(&mut self, schema: &Value) -> Result<Hir, String> {
        let properties = match schema.member("properties") {
            None => &[][..],
            Some(Value::Object(properties)) => properties,
            Some(other) => return Err(format!("properties: expected an object, found {other}")),
        };
        let required = names(schema.member("required")).map_err(|e| format!("required: {e}"))?;
        let others = schema.member("additionalProperties");
        let unnamed = (required.iter()).filter(|r| properties.iter().all(|p| p.0 != **r));
        let unnamed: Vec<(String, Value)> = unnamed
            .map(|name| {
                let schema = others.cloned().unwrap_or(Value::Bool(true));
                ((*name).to_owned(), schema)
            })
            .collect();
        if properties.is_empty() && unnamed.is_empty() {
            let value = match others {
                Some(others) => self.part("additionalProperties", others)?,
                None => self.call(ANY)?,
            };
            let member = property(json::string(0, None), value);
            return Ok(list("{", member, 0, None, "}"));
        }
        let mut parts = Vec::new();
        for (name, value) in properties.iter().chain(&unnamed) {
            let value = self.part(&format!("properties/{name}"), value)?;
            let name_text = literal(&Value::String(name.clone()).to_string());
            parts.push((
                property(name_text, value),
                required.contains(&name.as_str()),
            ));
        }
        // The first property is any of those up to the first that is required.
        let n_first = parts
            .iter()
            .position(|p| p.1)
            .map_or(parts.len(), |n| n + 1);
        let nodes: usize = parts.iter().map(|p| n_nodes(&p.0)).sum();
        if nodes.saturating_mul(n_first) > MAX_NODES {
            return Err("expected a smaller schema, found too many optional properties".into());
        }
        let mut alternatives = Vec::new();
        for first in 0..n_first {
            let mut all = vec![parts[first].0.clone()];
            for (part, is_required) in &parts[first + 1..] {
                let more = Hir::concat(vec![separator(","), part.clone()]);
                all.push(if *is_required { more } else { optional(more) });
            }
            alternatives.push(Hir::concat(all));
        }
        let inner = Hir::alternation(alternatives);
        let inner = if required.is_empty() {
            optional(inner)
        } else {
            inner
        };
        Ok(Hir::concat(vec![literal("{"), inner, literal("}")]))
    }

    /// Refuses alternatives of which several may hold.
    fn check_exclusive(&self, schemas: &[Value]) -> Result<(), String> {
        for (j, b) in schemas.iter().enumerate() {
            for (i, a) in schemas[..j].iter().enumerate() {
                if !self.are_exclusive(a, b) {
                    return Err(format!(
                        "oneOf: expected alternatives that exclude each other by type or by a required \
                         constant property, found {i} and {j}; use anyOf"
                    ));
                }
            }
        }
        Ok(())
    }

    fn are_exclusive(&self, a: &Value, b: &Value) -> bool {
        let (a, b) = (self.resolved(a), self.resolved(b));
        if let (Some(a), Some(b)) = (constants(a), constants(b)) {
            return !a.iter().any(|value| b.contains(value));
        }
        if let (Some(a), Some(b)) = (types_of(a), types_of(b)) {
            let overlap = |a: &&str, b: &&str| {
                a == b || matches!((*a, *b), ("integer", "number") | ("number", "integer"))
            };
            if !a.iter().any(|a| b.iter().any(|b| overlap(a, b))) {
                return true;
            }
        }
        let required = |schema| names(Value::member(schema, "required")).unwrap_or_default();
        let is_object = |schema| types_of(schema).is_some_and(|types| types == ["object"]);
        let property = |schema: &'_ Value, name| {
            let property = schema.member("properties")?.member(name)?;
            Some(self.resolved(property).clone())
        };
        is_object(a)
            && is_object(b)
            && required(a).iter().any(|name| {
                let (Some(a), Some(b)) = (property(a, name), property(b, name)) else {
                    return false;
                };
                let (Some(a), Some(b_values)) = (constants(&a), constants(&b)) else {
                    return false;
                };
                !a.iter().any(|value| b_values.contains(value))
            })
    }

    /// What a schema refers to, if it does; itself otherwise.
    fn resolved<'v>(&'v self, mut schema: &'v Value) -> &'v Value {
        for _ in 0..16 {
            let Some(Value::String(pointer)) = schema.member("$ref") else {
                break;
            };
            let target = pointer
                .strip_prefix('#')
                .and_then(|name| self.root.pointer(name));
            schema = target.unwrap_or(schema);
        }
        schema
    }
}

/// A name, a colon and a value.
fn property(name: Hir, value: Hir) -> Hir {
    Hir::concat(vec![name, separator(":"), value])
}

/// `min` to `max` items between brackets.
fn list(begin: &str, item: Hir, min: u32, max: Option<u32>, end: &str) -> Hir {
    let more = Hir::concat(vec![separator(","), item.clone()]);
    let items = match max {
        Some(0) => Hir::empty(),
        _ => {
            let more = repeat(more, min.saturating_sub(1), max.map(|max| max - 1));
            Hir::concat(vec![item, more])
        }
    };
    let items = if min == 0 { optional(items) } else { items };
    let is_possible = max.is_none_or(|max| min <= max);
    match is_possible {
        true => Hir::concat(vec![literal(begin), items, literal(end)]),
        false => Hir::fail(),
    }
}

fn string(schema: &Value) -> Result<Hir, String> {
    let (min, max) = (count(schema, "minLength")?, count(schema, "maxLength")?);
    let has_length = min.is_some() || max.is_some();
    match (schema.member("pattern"), schema.member("format")) {
        (None, None) if min > max && max.is_some() => Ok(Hir::fail()),
        (None, None) => Ok(json::string(min.unwrap_or(0), max)),
        (Some(Value::String(pattern)), None) if !has_length => json::pattern(pattern),
        (None, Some(Value::String(name))) if !has_length => {
            json::format(name).ok_or_else(|| format!("format {name:?} is not supported"))
        }
        _ => Err(
            "expected one of pattern, format and a length, found several or another value".into(),
        ),
    }
}

fn number(schema: &Value) -> Result<Hir, String> {
    let bounds = ["maximum", "exclusiveMinimum", "exclusiveMaximum"];
    if let Some(name) = bounds.iter().find(|name| schema.member(name).is_some()) {
        return Err(format!("keyword {name:?} is supported for integers only"));
    }
    match schema.member("minimum") {
        None => Ok(json::number(true)),
        Some(Value::Number(n)) if n.as_f64() == Some(0.0) => Ok(json::number(false)),
        Some(other) => Err(format!("minimum: expected 0 for numbers, found {other}")),
    }
}

fn integer(schema: &Value) -> Result<Hir, String> {
    let bound = |name: &str| match schema.member(name) {
        None => Ok(None),
        Some(Value::Number(n)) => Ok(n.as_f64()),
        Some(other) => Err(format!("{name}: expected a number, found {other}")),
    };
    let above = bound("exclusiveMinimum")?.map(|n| n.floor() + 1.0);
    let below = bound("exclusiveMaximum")?.map(|n| n.ceil() - 1.0);
    let min = bound("minimum")?
        .map(f64::ceil)
        .into_iter()
        .chain(above)
        .reduce(f64::max);
    let max = bound("maximum")?
        .map(f64::floor)
        .into_iter()
        .chain(below)
        .reduce(f64::min);
    // A float beyond 64 bits becomes the nearest integer of 64 bits.
    Ok(json::integer(min.map(|n| n as i64), max.map(|n| n as i64)))
}

fn count(schema: &Value, name: &str) -> Result<Option<u32>, String> {
    match schema.member(name) {
        None => Ok(None),
        Some(Value::Number(n)) => match n.as_f64() {
            // Whole numbers may be written with a point.
            Some(n) if n.fract() == 0.0 && (0.0..=1e6).contains(&n) => Ok(Some(n as u32)),
            _ => Err(format!("{name}: expected 0 to 1000000, found {n}")),
        },
        Some(other) => Err(format!("{name}: expected a number, found {other}")),
    }
}

/// A list of strings, or none.
fn names(value: Option<&Value>) -> Result<Vec<&str>, String> {
    let items = match value {
        None => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(format!("expected a list of strings, found {other}")),
    };
    let names = items.iter().map(|item| match item {
        Value::String(name) => Ok(name.as_str()),
        other => Err(format!("expected a string, found {other}")),
    });
    names.collect()
}

/// The types that a schema names; `None` if it names none.
fn types(schema: &Value) -> Result<Option<Vec<&str>>, String> {
    let types = match schema.member("type") {
        None => return Ok(None),
        Some(Value::String(name)) => vec![name.as_str()],
        list => names(list).map_err(|e| format!("type: {e}"))?,
    };
    match types.iter().find(|name| !TYPES.contains(name)) {
        Some(unknown) => Err(format!("type: unknown type {unknown:?}")),
        None => Ok(Some(types)),
    }
}

/// The types of the values that a schema accepts, as far as it shows.
fn types_of(schema: &Value) -> Option<Vec<&str>> {
    if let Ok(Some(types)) = types(schema) {
        return Some(types);
    }
    let constants = constants(schema)?;
    let of = |value: &&Value| TYPES.into_iter().find(|name| is_of_type(value, name));
    constants.iter().map(of).collect()
}

/// The only values that a schema accepts, if it lists them.
fn constants(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.member("const"), schema.member("enum")) {
        (Some(value), _) => Some(vec![value]),
        (_, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(n) => {
            let is_whole = n.as_f64().is_some_and(|n| n.fract() == 0.0);
            name == "number" || name == "integer" && is_whole
        }
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    }
}

/// The pointers in a schema.
fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(pointer) if name == "$ref" => {
                        found.extend(pointer.strip_prefix('#').map(str::to_owned));
                    }
                    _ => references(value, found),
                }
            }
        }
        _ => {}
    }
}

fn n_nodes(tree: &Hir) -> usize {
    1 + tree.kind().subs().iter().map(n_nodes).sum::<usize>()
}

//! Typed reading of configuration files: every wrong type, range or missing key is an error that
//! names the key. Callers decide about unknown keys; foreign layouts ignore them.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::input;

/// Largest configuration that is read; those of published models have some 5 KB.
const MAX_CONFIG: usize = 1 << 20;

/// Most values in a JSON text that is read whole. A value takes up to 700 bytes of memory, and down to 2 of text.
const MAX_VALUES: usize = 1 << 16;

/// Reads and parses the configuration at `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is too large or not JSON.
pub fn read(path: &Path) -> Result<Value> {
    read_up_to(path, MAX_CONFIG)
}

/// Reads and parses a JSON file of at most `limit` bytes.
///
/// # Errors
/// As [`read`].
pub fn read_up_to(path: &Path, limit: usize) -> Result<Value> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::format(
            path,
            "expected a JSON file, found no regular file",
        ));
    }
    let text = input::read(path, limit)?;
    parse(&text).map_err(|e| Error::format(path, format!("expected JSON, found a fault: {e}")))
}

/// Parses JSON as Python and editors write it: a byte order mark is skipped, and `NaN`, `Infinity` and `-Infinity` become
/// strings, which [`Object::threshold`] reads.
///
/// # Errors
/// The fault, or that there are too many values.
pub fn parse(text: &[u8]) -> serde_json::Result<Value> {
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Err(serde_json::Error::custom(
            "the text is UTF-16; save it as UTF-8",
        ));
    }
    let text = quote_constants(text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text));
    let mut json = serde_json::Deserializer::from_slice(&text);
    let value = Counted(&Cell::new(0)).deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Puts the constants that Python writes and JSON lacks in quotes.
fn quote_constants(text: &[u8]) -> Cow<'_, [u8]> {
    const CONSTANTS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let (mut quoted, mut copied) = (Vec::new(), 0);
    let (mut at, mut in_string) = (0, false);
    while at < text.len() {
        let constant = (!in_string)
            .then(|| CONSTANTS.into_iter().find(|c| text[at..].starts_with(c)))
            .flatten();
        if let Some(constant) = constant {
            quoted.extend_from_slice(&text[copied..at]);
            quoted.extend([b"\"", constant, b"\""].concat());
            at += constant.len();
            copied = at;
            continue;
        }
        match text[at] {
            b'\\' if in_string => at += 1,
            b'"' => in_string = !in_string,
            _ => {}
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    quoted.extend_from_slice(&text[copied..]);
    Cow::Owned(quoted)
}

/// Builds a [`Value`] and counts the values in it.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.0.set(self.0.get() + 1);
        if self.0.get() > MAX_VALUES {
            return Err(D::Error::custom(format!(
                "expected at most {MAX_VALUES} values, found more"
            )));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self)? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = object.next_key()? {
            map.insert(key, object.next_value_seed(self)?);
        }
        Ok(map.into())
    }
}

/// A JSON object and the path of keys that leads to it, for messages.
#[derive(Clone)]
pub struct Object<'a> {
    map: &'a Map<String, Value>,
    prefix: String,
}

impl<'a> Object<'a> {
    /// The outermost value of a file.
    pub fn root(value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Object {
                map,
                prefix: String::new(),
            }),
            other => Err(Error::config(
                "",
                format!("expected an object, found {}", describe(other)),
            )),
        }
    }

    /// The full name of a key.
    pub fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Whether the key is there, be it with the value null.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.map.keys().map(String::as_str)
    }

    /// The value of a key; `None` if it is absent or null.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, key: &str, expected: &str) -> Result<T> {
        let found = match self.map.get(key) {
            None => "nothing".to_string(),
            Some(value) => describe(value),
        };
        Err(Error::config(
            self.key(key),
            format!("expected {expected}, found {found}"),
        ))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(v) => Ok(Some(v)),
                None => self.wrong(key, expected),
            },
        }
    }

    /// An object; absent and null are `None`.
    pub fn object(&self, key: &str) -> Result<Option<Object<'a>>> {
        self.typed(key, "an object", |v| {
            Some(Object {
                map: v.as_object()?,
                prefix: format!("{}{key}.", self.prefix),
            })
        })
    }

    /// A whole number that fits; absent and null are `None`. `4.0` counts as whole.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, SIZE, as_size)
    }

    /// A number whose single-precision value is finite; absent and null are `None`.
    pub fn number(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a finite number", |v| {
            Some(v.as_f64()? as f32).filter(|v| v.is_finite())
        })
    }

    /// A number, or an infinity in one of the spellings `Infinity`, `"Infinity"` and `{"__float__": "Infinity"}`;
    /// absent and null are `None`.
    pub fn threshold(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |v| {
            let number = match v.get("__float__").unwrap_or(v).as_str() {
                Some("Infinity" | "inf") => f32::INFINITY,
                Some("-Infinity" | "-inf") => f32::NEG_INFINITY,
                _ => Some(v.as_f64()? as f32).filter(|v| v.is_finite())?,
            };
            Some(number)
        })
    }

    /// true or false; absent and null are `None`.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string; absent and null are `None`.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// A list of whole numbers; absent and null are `None`.
    pub fn sizes(&self, key: &str) -> Result<Option<Vec<usize>>> {
        self.typed(key, "a list of whole numbers", |v| {
            v.as_array()?.iter().map(as_size).collect()
        })
    }

    /// What was asked for must be there: turns `None` into an error.
    pub fn required<T>(&self, key: &str, expected: &str, value: Option<T>) -> Result<T> {
        match value {
            Some(v) => Ok(v),
            None => self.wrong(key, expected),
        }
    }

    /// A whole number that must be there.
    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.required(key, SIZE, self.size(key)?)
    }

    /// A number that must be there.
    pub fn required_number(&self, key: &str) -> Result<f32> {
        self.required(key, "a finite number", self.number(key)?)
    }

    /// true or false, which must be there.
    pub fn required_flag(&self, key: &str) -> Result<bool> {
        self.required(key, "true or false", self.flag(key)?)
    }

    /// For our own schema: all these keys are there (be it as null) and no others.
    pub fn check_keys(&self, keys: &[&str]) -> Result<()> {
        for key in keys {
            if !self.has(key) {
                return self.wrong(key, "a value");
            }
        }
        match self.keys().find(|k| !keys.contains(k)) {
            None => Ok(()),
            Some(key) => Err(Error::config(
                self.key(key),
                "expected no such key; a newer program may have written it",
            )),
        }
    }

    /// An object that must be there.
    pub fn required_object(&self, key: &str) -> Result<Object<'a>> {
        self.required(key, "an object", self.object(key)?)
    }
}

const SIZE: &str = "a whole number from 0 to 2^53";

fn as_size(value: &Value) -> Option<usize> {
    /// Above this not every whole number is a float.
    const LIMIT: u64 = 1 << 53;
    let n = match value.as_u64() {
        Some(n) => n,
        None => {
            let f = value.as_f64()?;
            (f >= 0.0 && f.fract() == 0.0 && f <= LIMIT as f64).then_some(f as u64)?
        }
    };
    usize::try_from(n).ok().filter(|_| n <= LIMIT)
}

/// A value for a message: the kind, and the value itself if it is short.
fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) => format!("the string {:?}", s.chars().take(40).collect::<String>()),
        Value::Array(a) => format!("a list of {}", a.len()),
        Value::Object(_) => "an object".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_as_python_writes_it_is_read() {
        let text =
            b"\xef\xbb\xbf{\"a\": Infinity, \"b\": -Infinity, \"c\": [NaN, \"Infinity \\\" NaN\"],
            \"d\": {\"__float__\": \"Infinity\"}, \"e\": \"-Infinity\", \"f\": 1.5, \"g\": NaN}";
        let value = parse(text).unwrap();
        assert_eq!(value["c"], serde_json::json!(["NaN", "Infinity \" NaN"]));
        let root = Object::root(&value).unwrap();
        let infinity = f32::INFINITY;
        for (key, expected) in [
            ("a", infinity),
            ("b", -infinity),
            ("d", infinity),
            ("e", -infinity),
            ("f", 1.5),
        ] {
            assert_eq!(root.threshold(key).unwrap(), Some(expected), "{key}");
        }
        assert!(root.threshold("g").is_err() && root.threshold("c").is_err());
        assert!(root.number("a").is_err(), "only thresholds are infinite");
        assert!(parse(b"{\"a\": Infinit}").is_err() && parse(b"\"\\").is_err());
    }

    #[test]
    fn the_number_of_values_is_limited() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n - 2)).into_bytes();
        assert!(parse(&list(MAX_VALUES)).is_ok());
        let message = parse(&list(MAX_VALUES + 1)).unwrap_err().to_string();
        assert!(message.contains("at most 65536 values"), "{message}");
        assert!(parse(&b"[".repeat(1 << 20)).is_err());
    }

    #[test]
    fn wrong_types_name_the_key_what_was_expected_and_what_was_found() {
        let value = serde_json::json!({"a": {
            "neg": -1, "frac": 1.5, "huge": 1e300, "text": "12", "list": [1, "x"], "null": null,
            "whole": 4.0,
        }});
        let root = Object::root(&value).unwrap();
        let a = root.required_object("a").unwrap();
        let message = |r: Result<Option<usize>>| r.unwrap_err().to_string();
        for (key, found) in [("neg", "-1"), ("frac", "1.5"), ("huge", "1e+300")] {
            let m = message(a.size(key));
            assert!(
                m.contains(&format!("\"a.{key}\"")) && m.contains(found),
                "{m}"
            );
        }
        assert!(message(a.size("text")).contains("the string \"12\""));
        assert!(a.sizes("list").is_err());
        assert!(a.number("huge").is_err());
        assert_eq!(a.size("null").unwrap(), None);
        assert_eq!(a.size("absent").unwrap(), None);
        assert_eq!(a.size("whole").unwrap(), Some(4));
        let m = a.required_size("absent").unwrap_err().to_string();
        assert!(m.contains("found nothing"), "{m}");
        assert!(Object::root(&Value::Null).is_err());
    }
}

//! Typed reading of configuration files: every wrong type, range or missing key is an error that
//! names the key. Callers decide about unknown keys; foreign layouts ignore them.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest JSON file that is read; an index of a sharded 7B model has some 60 KB.
const MAX_FILE: u64 = 16 << 20;

/// Reads and parses the JSON file at `path`.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::Format`] if it is too large or not JSON.
pub fn read(path: &Path) -> Result<Value> {
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !meta.is_file() {
        return Err(Error::format(
            path,
            "expected a JSON file, found no regular file",
        ));
    }
    if meta.len() > MAX_FILE {
        return Err(Error::format(
            path,
            format!(
                "expected JSON of at most {MAX_FILE} bytes, found {}",
                meta.len()
            ),
        ));
    }
    let text = std::fs::read(path).map_err(|e| Error::io(path, e))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::format(path, format!("expected JSON, found a fault: {e}")))
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

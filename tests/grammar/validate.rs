//! A validator of JSON schemas by their definition, for the keywords that the grammar supports. It
//! shares no code with it.

use serde_json::Value;

/// Whether `value` is valid under `schema`, a part of `root`.
pub fn is_valid(root: &Value, schema: &Value, value: &Value) -> bool {
    let members = match schema {
        Value::Bool(all) => return *all,
        Value::Object(members) => members,
        _ => panic!("no schema: {schema}"),
    };
    let valid = |schema: &Value, value: &Value| is_valid(root, schema, value);
    let any = |schemas: &Value| {
        schemas
            .as_array()
            .unwrap()
            .iter()
            .filter(|s| valid(s, value))
            .count()
    };
    let number = value.as_f64();
    let n_chars = value.as_str().map(|s| s.chars().count() as f64);
    let items = value.as_array();
    let n_prefix = members
        .get("prefixItems")
        .map_or(0, |p| p.as_array().unwrap().len());
    members.iter().all(|(keyword, rule)| {
        let limit = rule.as_f64().unwrap_or(f64::NAN);
        match keyword.as_str() {
            "$ref" => valid(root.pointer(&rule.as_str().unwrap()[1..]).unwrap(), value),
            "type" => match rule {
                Value::String(name) => has_type(value, name),
                names => names
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|n| has_type(value, n.as_str().unwrap())),
            },
            "const" => rule == value,
            "enum" => rule.as_array().unwrap().contains(value),
            "anyOf" => any(rule) > 0,
            "oneOf" => any(rule) == 1,
            "allOf" => any(rule) == rule.as_array().unwrap().len(),
            "minimum" => number.is_none_or(|n| n >= limit),
            "maximum" => number.is_none_or(|n| n <= limit),
            "exclusiveMinimum" => number.is_none_or(|n| n > limit),
            "exclusiveMaximum" => number.is_none_or(|n| n < limit),
            "minLength" => n_chars.is_none_or(|n| n >= limit),
            "maxLength" => n_chars.is_none_or(|n| n <= limit),
            "pattern" => value
                .as_str()
                .is_none_or(|s| matches_pattern(rule.as_str().unwrap(), s)),
            "format" => value
                .as_str()
                .is_none_or(|s| has_format(rule.as_str().unwrap(), s)),
            "minItems" => items.is_none_or(|i| i.len() as f64 >= limit),
            "maxItems" => items.is_none_or(|i| i.len() as f64 <= limit),
            "items" => items.is_none_or(|i| i.iter().skip(n_prefix).all(|item| valid(rule, item))),
            "prefixItems" => items.is_none_or(|i| {
                let rules = rule.as_array().unwrap();
                i.iter().zip(rules).all(|(item, rule)| valid(rule, item))
            }),
            "required" => value.as_object().is_none_or(|object| {
                let names = rule.as_array().unwrap();
                names
                    .iter()
                    .all(|name| object.contains_key(name.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|object| {
                let rules = rule.as_object().unwrap();
                object
                    .iter()
                    .all(|(name, v)| rules.get(name).is_none_or(|rule| valid(rule, v)))
            }),
            "additionalProperties" => value.as_object().is_none_or(|object| {
                let named = members.get("properties").and_then(Value::as_object);
                let is_named = |name: &str| named.is_some_and(|n| n.contains_key(name));
                object
                    .iter()
                    .all(|(name, v)| is_named(name) || valid(rule, v))
            }),
            "$defs" | "definitions" | "title" => true,
            other => panic!("the validator does not know {other}"),
        }
    })
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => panic!("no type: {name}"),
    }
}

/// The patterns of the schemas, checked without the grammar.
fn matches_pattern(pattern: &str, text: &str) -> bool {
    match pattern {
        r"^[a-z]+@[a-z]+\.(org|net)$" => {
            let is_word = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_lowercase());
            let host = text.strip_suffix(".org").or(text.strip_suffix(".net"));
            host.and_then(|h| h.split_once('@'))
                .is_some_and(|(a, b)| is_word(a) && is_word(b))
        }
        "\\d{2}|^\\s?[\"\\\\é]+\\S$" => {
            let two_digits = text
                .as_bytes()
                .windows(2)
                .any(|w| w.iter().all(u8::is_ascii_digit));
            let is_space = |c: char| c.is_whitespace() && c != '\u{85}' || c == '\u{feff}';
            let chars: Vec<char> = text.chars().collect();
            let whole = |chars: &[char]| match chars {
                [inner @ .., last] => {
                    !inner.is_empty()
                        && inner.iter().all(|c| "\"\\é".contains(*c))
                        && !is_space(*last)
                }
                [] => false,
            };
            let skip = usize::from(chars.first().is_some_and(|&c| is_space(c)));
            two_digits || whole(&chars) || whole(&chars[skip..])
        }
        _ => panic!("the validator does not know the pattern {pattern}"),
    }
}

fn has_format(name: &str, text: &str) -> bool {
    let number =
        |range: std::ops::Range<usize>| text.get(range).and_then(|s| s.parse::<u32>().ok());
    let is_date = |text: &str| {
        let days = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let (year, month, day) = (number(0..4), number(5..7), number(8..10));
        text.len() == 10
            && text.bytes().enumerate().all(|(i, b)| {
                if i == 4 || i == 7 {
                    b == b'-'
                } else {
                    b.is_ascii_digit()
                }
            })
            && year.is_some_and(|y| y > 0)
            && month.is_some_and(|m| (1..=12).contains(&m))
            && day.is_some_and(|d| d >= 1 && d <= days[month.unwrap() as usize - 1])
    };
    match name {
        "date" => is_date(text),
        "date-time" => {
            let (hour, minute, second) = (number(11..13), number(14..16), number(17..19));
            let zone = text[19..].trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
            is_date(&text[..10])
                && text.as_bytes()[10] == b'T'
                && hour.is_some_and(|h| h < 24)
                && minute.is_some_and(|m| m < 60)
                && second.is_some_and(|s| s < 60)
                && (zone == "Z" || zone.len() == 6 && (zone.starts_with(['+', '-'])))
        }
        "uuid" => {
            let groups: Vec<usize> = text.split('-').map(str::len).collect();
            groups == [8, 4, 4, 4, 12] && text.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())
        }
        _ => panic!("the validator does not know the format {name}"),
    }
}

//! Grammars: what they allow, that nothing they allow is a dead end, and that what comes out is valid.

#[path = "../common/random.rs"]
mod random;
mod schemas;
mod validate;

use std::time::Instant;

use blt::grammar::{Grammar, Matcher};
use blt::sampler::SamplerConfig;
use blt::{FinishReason, GenerateOptions, Model, Session, SessionOptions};
use random::Random;
use schemas::SCHEMAS;
use serde_json::Value;
use validate::is_valid;

/// A text of the grammar, each byte drawn from those allowed.
fn walk(mut matcher: Matcher, max_bytes: usize, random: &mut Random) -> Vec<u8> {
    let mut text = Vec::new();
    loop {
        let allowed = matcher.allowed();
        let bytes: Vec<u8> = (0..=255).filter(|&b| allowed.contains(b)).collect();
        assert_eq!(bytes.is_empty(), allowed.must_end());
        if bytes.is_empty() || allowed.may_end() && random.below(4) == 0 {
            assert!(
                allowed.may_end(),
                "a dead end after {:?}",
                String::from_utf8_lossy(&text)
            );
            return text;
        }
        // Punctuation more often than letters, or strings would seldom end.
        let marks: Vec<u8> = (bytes.iter().copied())
            .filter(|b| !b.is_ascii_alphanumeric() && *b < 128)
            .collect();
        let byte = match random.below(2) == 0 && !marks.is_empty() {
            true => marks[random.below(marks.len())],
            false => bytes[random.below(bytes.len())],
        };
        assert!(matcher.push(byte));
        text.push(byte);
        assert!(
            text.len() <= max_bytes,
            "{:?}",
            String::from_utf8_lossy(&text)
        );
    }
}

#[test]
fn what_a_schema_allows_is_valid() {
    for (name, schema) in SCHEMAS {
        let grammar = Grammar::json_schema(schema).unwrap_or_else(|e| panic!("{name}: {e}"));
        let schema: Value = serde_json::from_str(schema).unwrap();
        let mut random = Random(7);
        let mut lengths = std::collections::BTreeSet::new();
        for round in 0..200 {
            // From the shortest to plenty.
            let max_bytes = grammar.shortest() + random.below(2 + 2 * round);
            let text = walk(
                grammar.matcher(Some(max_bytes)).unwrap(),
                max_bytes,
                &mut random,
            );
            lengths.insert(text.len());
            let text = String::from_utf8(text).unwrap_or_else(|e| panic!("{name}: {e}"));
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {text}: {e}"));
            assert!(is_valid(&schema, &schema, &value), "{name}: {text}");
        }
        let least = if matches!(name, "boolean" | "const") {
            1
        } else {
            4
        };
        assert!(lengths.len() >= least, "{name}: {lengths:?}");
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[test]
fn without_a_limit_recursion_ends_too() {
    for name in ["any", "tree", "expression", "list"] {
        let schema = SCHEMAS.iter().find(|s| s.0 == name).unwrap().1;
        let grammar = Grammar::json_schema(schema).unwrap();
        // As deep as possible: the first bracket that is allowed, always.
        let mut matcher = grammar.matcher(None).unwrap();
        let mut text = Vec::new();
        let mut random = Random(3);
        while !matcher.allowed().must_end() {
            let allowed = matcher.allowed();
            let preferred = if text.len() < 500 {
                *b"[{,:"
            } else {
                *b"]}\":"
            };
            let next = preferred.into_iter().find(|&b| allowed.contains(b));
            let next = next.unwrap_or_else(|| {
                let bytes: Vec<u8> = (0..=255).filter(|&b| allowed.contains(b)).collect();
                bytes[random.below(bytes.len())]
            });
            assert!(matcher.push(next));
            text.push(next);
            assert!(text.len() < 20_000, "{name}");
        }
        let value: Value = serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
        let deepest = depth(&value);
        assert!((20..=110).contains(&deepest), "{name}: {deepest} deep");
    }
}

#[test]
fn regular_expressions_match_from_beginning_to_end() {
    let matches = |pattern: &str, text: &[u8]| {
        let mut matcher = Grammar::regex(pattern).unwrap().matcher(None).unwrap();
        text.iter().all(|&byte| matcher.push(byte)) && matcher.allowed().may_end()
    };
    let cases: [(&str, &[u8], bool); 16] = [
        ("a|ab", b"ab", true), // no alternative hides a longer one
        ("a|ab", b"a", true),
        ("a|ab", b"abb", false),
        ("a*?b", b"aab", true), // lazy or not is the same
        ("^x+$", b"xx", true),
        ("x$|xy", b"xy", true),
        ("", b"", true),
        ("", b"x", false),
        ("(?i)straße", "STRASSE".as_bytes(), false),
        ("(?i)straße", "STRAẞE".as_bytes(), true),
        (".", "é".as_bytes(), true),
        (".", b"\xc3", false),
        (r"(?-u:\xFF\x01)+", b"\xff\x01\xff\x01", true), // a call, had it been a schema
        (r"[^a-y]", b"z", true),
        (r"(?s-u:.){3}", b"\x00\xff\n", true),
        (r"\d{2,3}", "٣٤".as_bytes(), true),
    ];
    for (pattern, text, expected) in cases {
        assert_eq!(matches(pattern, text), expected, "{pattern:?} {text:?}");
    }
}

#[test]
fn no_byte_leads_to_a_dead_end() {
    // After "a" the automaton has states for "b" alone, as no text continues after "ac".
    let grammar = Grammar::regex(r"a(b|c[x&&y]|d^)").unwrap();
    let mut matcher = grammar.matcher(None).unwrap();
    assert!(matcher.push(b'a'));
    let allowed: Vec<u8> = (0..=255)
        .filter(|&b| matcher.allowed().contains(b))
        .collect();
    assert_eq!(allowed, [b'b']);
    assert!(!matcher.push(b'c'));
    assert!(matcher.allowed().may_end() && matcher.allowed().must_end());
}

#[test]
fn a_limit_leaves_room_for_the_end() {
    let grammar = Grammar::regex("<[a-z]*>(long tail)?").unwrap();
    assert_eq!(grammar.shortest(), 2);
    assert!(grammar.matcher(Some(1)).is_err());
    let mut matcher = grammar.matcher(Some(4)).unwrap();
    assert!(b"<ab".iter().all(|&byte| matcher.push(byte)));
    assert!(!matcher.allowed().contains(b'c') && matcher.allowed().contains(b'>'));
    assert!(matcher.push(b'>'));
    assert!(matcher.allowed().must_end() && matcher.allowed().may_end());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let cases = [
        ("{", "expected JSON"),
        (r#"{"a": 1, "a": 2}"#, "comes twice"),
        ("[]", "expected a schema"),
        (r#"{"type": "text"}"#, "unknown type \"text\""),
        (r#"{"not": {}}"#, "\"not\" is not supported"),
        (
            r#"{"properties": {"x": {"if": true}}}"#,
            "properties/x: keyword \"if\" is not supported",
        ),
        (
            r#"{"items": {"uniqueItems": true}}"#,
            "\"uniqueItems\" is not supported",
        ),
        (r#"{"patternProperties": {}}"#, "\"patternProperties\""),
        (r#"{"allOf": [{}, {}]}"#, "\"allOf\" of several"),
        (
            r#"{"anyOf": [{}], "type": "null"}"#,
            "\"anyOf\" together with \"type\"",
        ),
        (
            r#"{"oneOf": [{"type": "number"}, {"type": "integer"}]}"#,
            "exclude each other",
        ),
        (
            r#"{"oneOf": [{"type": "object"}, {"type": "object"}]}"#,
            "exclude each other",
        ),
        (
            r#"{"type": "string", "format": "email"}"#,
            "format \"email\"",
        ),
        (
            r#"{"type": "string", "pattern": "\\ba"}"#,
            "word boundaries",
        ),
        (r#"{"type": "string", "pattern": "(?=a)"}"#, "look-around"),
        (
            r#"{"type": "string", "pattern": "a^b"}"#,
            "^ and $ at its ends only",
        ),
        (r#"{"type": "number", "maximum": 3}"#, "integers only"),
        (
            r#"{"type": "string", "maxLength": -1}"#,
            "expected 0 to 1000000",
        ),
        (
            r#"{"type": "string", "minLength": 200000}"#,
            "expected a smaller one",
        ),
        (
            r##"{"$ref": "#/nowhere"}"##,
            "expected a place in the schema",
        ),
        (r##"{"$ref": "http://example.org/s"}"##, "expected \"#\""),
        (r##"{"$ref": "#"}"##, "found nothing"),
        (
            r##"{"anyOf": [{"type": "null"}, {"$ref": "#"}]}"##,
            "refers to itself first",
        ),
        (
            r##"{"type": "array", "minItems": 1, "items": {"$ref": "#"}}"##,
            "found nothing",
        ),
        ("false", "found nothing"),
        (
            r#"{"type": "integer", "minimum": 3, "maximum": 2}"#,
            "found nothing",
        ),
    ];
    for (schema, expected) in cases {
        let error = Grammar::json_schema(schema).expect_err(schema).to_string();
        assert!(
            error.contains(expected) && error.starts_with("json_schema: "),
            "{schema}: {error}"
        );
    }
    for (pattern, expected) in [
        ("(", "unclosed group"),
        ("[x&&y]", "found nothing"),
        (r"(a{1000}){1000}", "smaller"),
    ] {
        let error = Grammar::regex(pattern).expect_err(pattern).to_string();
        assert!(
            error.contains(expected) && error.starts_with("regex: "),
            "{pattern}: {error}"
        );
    }
}

/// The bytes generated, and why they ended.
fn generate(session: &Session, options: &GenerateOptions) -> (Vec<u8>, Option<FinishReason>) {
    let mut session = session.clone();
    let mut generator = session.generate(options).unwrap();
    let bytes: Vec<u8> = generator.by_ref().map(Result::unwrap).collect();
    (bytes, generator.finish_reason())
}

fn model() -> Model {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/hf-gqa/model");
    Model::options().threads(1).open(path).unwrap()
}

/// A thousand texts at a temperature at which the model writes noise: all valid, with drafts and without.
#[test]
fn what_a_model_generates_is_valid_and_drafts_do_not_change_it() {
    let mut session = Session::new(&model(), SessionOptions::default()).unwrap();
    session.feed(b"The data: ").unwrap();
    let mut n_accepted = 0;
    for (name, schema) in SCHEMAS {
        let grammar = Grammar::json_schema(schema).unwrap();
        let schema: Value = serde_json::from_str(schema).unwrap();
        for seed in 0..50 {
            let options = GenerateOptions {
                max_bytes: Some(grammar.shortest() + seed as usize),
                sampler: SamplerConfig {
                    temperature: 1.5,
                    top_p: None,
                    min_p: None,
                    seed,
                    ..SamplerConfig::default()
                },
                grammar: Some(grammar.clone()),
                draft: Some(0),
                ..GenerateOptions::default()
            };
            let (bytes, reason) = generate(&session, &options);
            let text = String::from_utf8(bytes.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
            let value: Value =
                serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {text}: {e}"));
            assert!(is_valid(&schema, &schema, &value), "{name}: {text}");
            let drafting = GenerateOptions {
                draft: Some(5),
                ..options
            };
            assert_eq!(
                generate(&session, &drafting),
                (bytes, reason),
                "{name}, seed {seed}"
            );
            let mut fork = session.clone();
            fork.generate(&drafting).unwrap().for_each(drop);
            n_accepted += fork.draft_counts().n_accepted;
        }
    }
    assert!(n_accepted > 1000, "drafts were made: {n_accepted}");
}

#[test]
fn the_end_is_chosen_where_the_grammar_ends_and_limits_are_checked_first() {
    let mut session = Session::new(&model(), SessionOptions::default()).unwrap();
    session.feed(b"x").unwrap();
    let mut options = GenerateOptions {
        grammar: Some(Grammar::regex("abc(de)?").unwrap()),
        max_bytes: Some(2),
        ..GenerateOptions::default()
    };
    assert!(session.generate(&options).is_err());
    options.sampler.ignore_eos = true;
    for (max_bytes, expected) in [(3, "abc"), (4, "abc"), (5, "abcde"), (50, "abcde")] {
        options.max_bytes = Some(max_bytes);
        let (bytes, reason) = generate(&session, &options);
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            expected,
            "at most {max_bytes}"
        );
        let is_full = max_bytes == expected.len();
        let expected = if is_full {
            FinishReason::MaxBytes
        } else {
            FinishReason::Eos
        };
        assert_eq!(reason, Some(expected), "at most {max_bytes}");
    }
}

/// Measures the cost of a byte; run with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement: cargo test --test grammar cost -- --ignored --nocapture"]
fn cost() {
    let mut worst = 0.0f64;
    for (name, schema) in SCHEMAS {
        let start = Instant::now();
        let grammar = Grammar::json_schema(schema).unwrap();
        let compile = start.elapsed();
        let mut random = Random(1);
        let texts: Vec<Vec<u8>> = (0..200)
            .map(|_| walk(grammar.matcher(Some(2000)).unwrap(), 2000, &mut random))
            .collect();
        let n_bytes: usize = texts.iter().map(Vec::len).sum();
        let start = Instant::now();
        let mut n_allowed = 0;
        for text in &texts {
            let mut matcher = grammar.matcher(Some(2000)).unwrap();
            for &byte in text {
                n_allowed += usize::from(std::hint::black_box(matcher.allowed()).contains(byte));
                matcher.push(byte);
            }
        }
        assert_eq!(n_allowed, n_bytes);
        let per_byte = start.elapsed().as_secs_f64() * 1e9 / n_bytes as f64;
        worst = worst.max(per_byte);
        println!(
            "{name}: {per_byte:.0} ns a byte, compiled in {compile:.1?}, {} KB",
            grammar.n_bytes() / 1024
        );
    }
    assert!(worst < 1000.0, "{worst:.0} ns");
}

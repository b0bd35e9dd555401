//! Syntax trees of JSON texts: strings, numbers, and what stands between values.

use regex_syntax::hir::{Class, ClassUnicode, ClassUnicodeRange, Hir, HirKind, Look, Repetition};

/// Most digits of an integer, and most before a number's point: all of them fit into 64 bits.
const MAX_DIGITS: u32 = 18;
const MAX_INTEGER: i64 = 10_i64.pow(MAX_DIGITS) - 1;

/// A text as it is.
pub fn literal(text: &str) -> Hir {
    Hir::literal(text.as_bytes())
}

/// A tree `min` to `max` times.
pub fn repeat(sub: Hir, min: u32, max: Option<u32>) -> Hir {
    let (greedy, sub) = (true, Box::new(sub));
    Hir::repetition(Repetition {
        min,
        max,
        greedy,
        sub,
    })
}

/// A tree or nothing.
pub fn optional(sub: Hir) -> Hir {
    repeat(sub, 0, Some(1))
}

/// A colon or comma, and the space that may follow it.
pub fn separator(text: &str) -> Hir {
    Hir::concat(vec![literal(text), optional(literal(" "))])
}

fn one_of(ranges: &[(char, char)]) -> Hir {
    let ranges = ranges.iter().map(|&(a, b)| ClassUnicodeRange::new(a, b));
    Hir::class(Class::Unicode(ClassUnicode::new(ranges)))
}

fn digits(n: u32) -> Hir {
    repeat(one_of(&[('0', '9')]), n, Some(n))
}

/// A string of `min` to `max` characters.
pub fn string(min: u32, max: Option<u32>) -> Hir {
    quoted(repeat(character(), min, max))
}

/// A tree between quotation marks.
pub fn quoted(content: Hir) -> Hir {
    Hir::concat(vec![literal("\""), content, literal("\"")])
}

/// A character in a string.
fn character() -> Hir {
    let all = [('\0', char::MAX)].map(|(a, b)| ClassUnicodeRange::new(a, b));
    escaped_class(&ClassUnicode::new(all))
}

/// A character of a class in a string: as it is if it can be, else escaped.
fn escaped_class(class: &ClassUnicode) -> Hir {
    let special = [('\0', '\x1f'), ('"', '"'), ('\\', '\\')];
    let special = special.map(|(a, b)| ClassUnicodeRange::new(a, b));
    let special = ClassUnicode::new(special);
    let mut plain = class.clone();
    plain.difference(&special);
    let mut escaped = class.clone();
    escaped.intersect(&special);
    let chars = (escaped.iter()).flat_map(|range| range.start()..=range.end());
    let escapes = chars.map(|c| literal(&escape(c)));
    Hir::alternation(
        [Hir::class(Class::Unicode(plain))]
            .into_iter()
            .chain(escapes)
            .collect(),
    )
}

/// A character as it stands in a string.
fn escape(c: char) -> String {
    let quoted = serde_json::Value::from(c.to_string()).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

/// `true` or `false`.
pub fn boolean() -> Hir {
    Hir::alternation(vec![literal("true"), literal("false")])
}

/// A number; at least 0 if there is no sign.
pub fn number(signed: bool) -> Hir {
    let sign = if signed {
        optional(literal("-"))
    } else {
        Hir::empty()
    };
    let more = repeat(one_of(&[('0', '9')]), 0, Some(MAX_DIGITS - 1));
    let whole = Hir::alternation(vec![
        literal("0"),
        Hir::concat(vec![one_of(&[('1', '9')]), more]),
    ]);
    let fraction = Hir::concat(vec![
        literal("."),
        repeat(one_of(&[('0', '9')]), 1, Some(MAX_DIGITS - 1)),
    ]);
    let exponent = Hir::concat(vec![
        one_of(&[('e', 'e'), ('E', 'E')]),
        optional(one_of(&[('+', '+'), ('-', '-')])),
        repeat(one_of(&[('0', '9')]), 1, Some(2)), // far from what overflows
    ]);
    Hir::concat(vec![sign, whole, optional(fraction), optional(exponent)])
}

/// An integer of `min` to `max`, of at most 18 digits.
pub fn integer(min: Option<i64>, max: Option<i64>) -> Hir {
    let min = min.unwrap_or(-MAX_INTEGER).max(-MAX_INTEGER);
    let max = max.unwrap_or(MAX_INTEGER).min(MAX_INTEGER);
    let mut parts = Vec::new();
    if max >= 0 && min <= max {
        parts.push(range(min.max(0), max));
    }
    if min < 0 && min <= max {
        let magnitudes = range(max.min(-1).abs(), min.abs());
        parts.push(Hir::concat(vec![literal("-"), magnitudes]));
    }
    Hir::alternation(parts)
}

/// An integer of `low` to `high`, neither below 0, without leading zeros.
fn range(low: i64, high: i64) -> Hir {
    let mut parts = Vec::new();
    let (mut first, mut last) = (0_i64, 9_i64); // with that many digits
    for n_digits in 1..=MAX_DIGITS {
        let (from, to) = (low.max(first), high.min(last));
        if from <= to {
            let width = n_digits as usize;
            let text = |n: i64| format!("{n:0width$}").into_bytes();
            parts.push(same_length(&text(from), &text(to)));
        }
        first = last + 1;
        last = last.saturating_mul(10).saturating_add(9);
    }
    Hir::alternation(parts)
}

/// Numbers of `low` to `high`, which have the same number of digits.
fn same_length(low: &[u8], high: &[u8]) -> Hir {
    let (Some((&a, low)), Some((&b, high))) = (low.split_first(), high.split_first()) else {
        return Hir::empty();
    };
    let n = low.len();
    let all = |digits: &[u8], digit| digits.iter().all(|&d| d == digit);
    let one = |from: u8, to: u8| one_of(&[(from.into(), to.into())]);
    if a == b {
        return Hir::concat(vec![one(a, a), same_length(low, high)]);
    }
    // The first digit at the edges, and between them.
    let (mut from, mut to) = (a, b);
    let mut parts = Vec::new();
    if !all(low, b'0') {
        parts.push(Hir::concat(vec![
            one(a, a),
            same_length(low, &vec![b'9'; n]),
        ]));
        from += 1;
    }
    if !all(high, b'9') {
        parts.push(Hir::concat(vec![
            one(b, b),
            same_length(&vec![b'0'; n], high),
        ]));
        to -= 1;
    }
    if from <= to {
        parts.push(Hir::concat(vec![one(from, to), digits(n as u32)]));
    }
    Hir::alternation(parts)
}

/// A string of a `format`; `None` if the format is unknown. Dates leave 29 February out, times leap
/// seconds.
pub fn format(name: &str) -> Option<Hir> {
    const DATE: &str = "[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)\
                        |02-(0[1-9]|1[0-9]|2[0-8]))";
    const TIME: &str = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])";
    let pattern = match name {
        "date" => DATE.replacen(
            "[0-9]{4}",
            "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})",
            1,
        ),
        "time" => TIME.into(),
        "date-time" => format!("{DATE}T{TIME}").replacen(
            "[0-9]{4}",
            "(000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})",
            1,
        ),
        "uuid" => "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}".into(),
        _ => return None,
    };
    let tree = regex_syntax::parse(&pattern);
    Some(quoted(tree.expect("a regular expression")))
}

/// A string in which an ECMA-262 regular expression matches somewhere.
pub fn pattern(pattern: &str) -> Result<Hir, String> {
    let what = |why: &str| format!("pattern {pattern:?}: {why}");
    let tree = regex_syntax::parse(&from_ecma(pattern).map_err(|e| what(&e))?).map_err(|e| {
        let text = e.to_string();
        what(text.lines().last().unwrap_or_default())
    })?;
    Ok(quoted(search(&tree).map_err(|e| what(&e))?))
}

/// The texts in which a tree matches somewhere.
fn search(tree: &Hir) -> Result<Hir, String> {
    let parts: &[Hir] = match tree.kind() {
        HirKind::Alternation(parts) => {
            let parts: Result<Vec<Hir>, String> = parts.iter().map(search).collect();
            return Ok(Hir::alternation(parts?));
        }
        HirKind::Capture(capture) if !capture.sub.properties().look_set().is_empty() => {
            return search(&capture.sub);
        }
        HirKind::Concat(parts) => parts,
        _ => std::slice::from_ref(tree),
    };
    let is = |part: &Hir, look: Look| matches!(part.kind(), HirKind::Look(l) if *l == look);
    let from_start = parts.first().is_some_and(|part| is(part, Look::Start));
    let to_end = parts.last().is_some_and(|part| is(part, Look::End));
    let inner = &parts[usize::from(from_start)..];
    let inner = &inner[..inner.len() - usize::from(to_end && !inner.is_empty())];
    let anything = || repeat(character(), 0, None);
    let mut all = Vec::new();
    if !from_start {
        all.push(anything());
    }
    for part in inner {
        all.push(escaped(part)?);
    }
    if !to_end {
        all.push(anything());
    }
    Ok(Hir::concat(all))
}

/// What a tree matches, as it stands in a string.
fn escaped(tree: &Hir) -> Result<Hir, String> {
    let each = |parts: &[Hir]| {
        parts
            .iter()
            .map(escaped)
            .collect::<Result<Vec<Hir>, String>>()
    };
    Ok(match tree.kind() {
        HirKind::Empty => Hir::empty(),
        HirKind::Literal(bytes) => {
            let text = std::str::from_utf8(&bytes.0).map_err(|e| e.to_string())?;
            literal(&text.chars().map(escape).collect::<String>())
        }
        HirKind::Class(Class::Unicode(class)) => escaped_class(class),
        HirKind::Class(Class::Bytes(class)) => {
            let class = class
                .to_unicode_class()
                .ok_or("expected characters, found bytes")?;
            escaped_class(&class)
        }
        HirKind::Look(_) => {
            return Err("expected ^ and $ at its ends only, and no other assertion".into());
        }
        HirKind::Repetition(repetition) => {
            repeat(escaped(&repetition.sub)?, repetition.min, repetition.max)
        }
        HirKind::Capture(capture) => escaped(&capture.sub)?,
        HirKind::Concat(parts) => Hir::concat(each(parts)?),
        HirKind::Alternation(parts) => Hir::alternation(each(parts)?),
    })
}

/// An ECMA-262 regular expression in the syntax of `regex-syntax`, where both have other words for the
/// same characters.
fn from_ecma(pattern: &str) -> Result<String, String> {
    const SPACE: &str = "\\t\\n\\x0b\\x0c\\r \\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\
                         \\x{205f}\\x{3000}\\x{feff}";
    let mut out = String::new();
    let mut in_class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let next = chars
                    .next()
                    .ok_or("expected something after \\, found its end")?;
                let set = match next {
                    'd' | 'D' => "0-9",
                    'w' | 'W' => "A-Za-z0-9_",
                    's' | 'S' => SPACE,
                    'b' | 'B' => return Err("word boundaries are not supported".into()),
                    _ => {
                        out.extend(['\\', next]);
                        continue;
                    }
                };
                let negated = if next.is_ascii_uppercase() { "^" } else { "" };
                out.push_str(&format!("[{negated}{set}]"));
            }
            '.' if !in_class => out.push_str("[^\\n\\r\\x{2028}\\x{2029}]"),
            '[' if in_class => out.push_str("\\["),
            '&' | '~' if in_class => out.extend(['\\', c]),
            '[' => {
                in_class = true;
                out.push('[');
            }
            ']' => {
                in_class = false;
                out.push(']');
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

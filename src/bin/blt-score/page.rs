//! A self-contained page that shows a text as the model reads it: cut into patches, each byte
//! coloured by its entropy, and the entropy curve with the threshold, as in the first figures of the
//! BLT paper.

use std::fmt::Write;

use blt::Session;
use blt::config::PatchingMode;
use blt::vocab::id_to_byte;

use super::csv::SPECIAL;
use super::scorer::{ScoredId, Totals};
use blt::cli::units;

/// Bytes of text shown. Browsers are slow beyond.
const MAX_TEXT: usize = 512 << 10;
/// Bytes on the curve.
const MAX_CURVE: usize = 2000;
/// Shades between no doubt and the largest.
const SHADES: usize = 10;

/// Writes a page.
#[derive(Debug)]
pub struct Page {
    source: String,
    patching: String,
    threshold: Option<f32>,
    ids: Vec<ScoredId>,
    n_seen: usize,
}

impl Page {
    /// A page about the text called `source`, read by `session`.
    pub fn new(source: &str, session: &Session) -> Self {
        let config = &session.model().config().patcher;
        let config = session.options().patcher.as_ref().unwrap_or(config);
        let by_entropy = config.mode == PatchingMode::Entropy;
        let patching = match (by_entropy, config.monotonicity) {
            (false, _) => format!("{} patching", config.mode),
            (true, false) => format!("patches start above {:.4} nats", config.threshold),
            (true, true) => format!(
                "patches start at a rise of more than {:.4} nats",
                config.threshold
            ),
        };
        Page {
            source: source.into(),
            patching,
            // A rise has no line to cross.
            threshold: (by_entropy && !config.monotonicity).then_some(config.threshold),
            ids: Vec::new(),
            n_seen: 0,
        }
    }

    /// Adds an id to the text.
    pub fn add(&mut self, scored: ScoredId) {
        self.n_seen += 1;
        if self.ids.len() < MAX_TEXT {
            self.ids.push(scored);
        }
    }

    /// The page.
    pub fn render(&self, totals: &Totals) -> String {
        let has_entropy = self.ids.iter().any(|s| s.entropy.is_finite());
        // Without an entropy model the model's own surprise is shown in its place.
        let scale = match has_entropy {
            true => Scale::new("entropy", "nats", &self.ids, |s| s.entropy),
            false => Scale::new("surprisal", "bits", &self.ids, |s| {
                s.bits.map_or(f32::NAN, |b| b as f32)
            }),
        };
        let mut page = String::from(HEAD);
        let source = escape(&self.source);
        let _ = writeln!(
            page,
            "<title>{source}: patches</title>\n</head>\n<body>\n<h1>{source}</h1>"
        );
        let _ = writeln!(
            page,
            "<p>{} bytes in {} patches of {:.2} bytes; {:.4} bits per byte; {}.</p>",
            units::count(totals.n as u64),
            units::count(totals.patches as u64),
            totals.mean_patch_length(),
            totals.bits_per_byte(),
            self.patching
        );
        self.curve(&mut page, &scale);
        self.text(&mut page, &scale);
        page.push_str("</body>\n</html>\n");
        page
    }

    /// The value of each byte as a line, the bytes under it, patch starts as upright lines.
    fn curve(&self, page: &mut String, scale: &Scale) {
        const STEP: usize = 12; // pixels per byte
        const HEIGHT: f32 = 160.0;
        const LEFT: usize = 44;
        let ids = &self.ids[..self.ids.len().min(MAX_CURVE)];
        let x = |i: usize| LEFT + i * STEP + STEP / 2;
        let y = |value: f32| 10.0 + HEIGHT * (1.0 - value / scale.max);
        let (width, bottom) = (x(ids.len()), y(0.0));
        let _ = writeln!(
            page,
            "<h2>{} ({}) before each byte</h2>",
            scale.name, scale.unit
        );
        if ids.len() < self.n_seen {
            let _ = writeln!(page, "<p>The first {} bytes.</p>", ids.len());
        }
        let _ = writeln!(
            page,
            "<div class=\"scroll\"><svg width=\"{width}\" height=\"{}\" role=\"img\" \
             aria-label=\"{} curve\">",
            bottom + 40.0,
            scale.name
        );
        for value in [0.0, scale.max / 2.0, scale.max] {
            let _ = writeln!(
                page,
                "<text class=\"axis\" x=\"{}\" y=\"{:.1}\">{value:.2}</text>\
                 <line class=\"grid\" x1=\"{LEFT}\" x2=\"{width}\" y1=\"{:.1}\" y2=\"{:.1}\"/>",
                LEFT - 6,
                y(value) + 4.0,
                y(value),
                y(value)
            );
        }
        for (i, _) in ids.iter().enumerate().filter(|(_, s)| s.starts_patch) {
            let at = x(i) - STEP / 2;
            let _ = writeln!(
                page,
                "<line class=\"cut\" x1=\"{at}\" x2=\"{at}\" y1=\"10\" y2=\"{:.1}\"/>",
                bottom + 24.0
            );
        }
        if let (Some(threshold), "entropy") = (self.threshold, scale.name) {
            let at = y(threshold.clamp(0.0, scale.max));
            let _ = writeln!(
                page,
                "<line class=\"threshold\" x1=\"{LEFT}\" x2=\"{width}\" y1=\"{at:.1}\" \
                 y2=\"{at:.1}\"><title>threshold {threshold:.4} nats</title></line>"
            );
        }
        page.push_str("<polyline class=\"curve\" points=\"");
        for (i, scored) in ids.iter().enumerate() {
            let value = (scale.value)(scored);
            if value.is_finite() {
                let _ = write!(page, "{},{:.1} ", x(i), y(value));
            }
        }
        page.push_str("\"/>\n");
        for (i, scored) in ids.iter().enumerate() {
            let label = id_to_byte(scored.id).map_or("\u{25a1}".into(), label);
            let small = if label.chars().count() > 1 {
                " small"
            } else {
                ""
            };
            let _ = writeln!(
                page,
                "<text class=\"byte{small}\" x=\"{}\" y=\"{:.1}\">{label}</text>",
                x(i),
                bottom + 18.0
            );
        }
        page.push_str("</svg></div>\n");
    }

    /// The text itself, a span per patch, in it a run per shade.
    fn text(&self, page: &mut String, scale: &Scale) {
        let _ = writeln!(page, "<h2>patches</h2>");
        if self.ids.len() < self.n_seen {
            let _ = writeln!(
                page,
                "<p>The first {} of {} bytes.</p>",
                units::count(self.ids.len() as u64),
                units::count(self.n_seen as u64)
            );
        }
        page.push_str("<p class=\"legend\">0 ");
        for shade in 0..SHADES {
            let _ = write!(page, "<i class=\"e{shade}\">&#160;&#160;&#160;</i>");
        }
        let _ = writeln!(
            page,
            " {:.2} {}</p>\n<div class=\"text\">",
            scale.max, scale.unit
        );
        let mut first = 0;
        for patch in self.ids.chunk_by(|_, next| !next.starts_patch) {
            let bits: f64 = patch.iter().filter_map(|s| s.bits).sum();
            let value = (scale.value)(&patch[0]);
            let _ = write!(
                page,
                "<span title=\"byte {first}, length {}, {} {value:.3} {}, {bits:.2} bits\">",
                patch.len(),
                scale.name,
                scale.unit
            );
            shaded(page, scale, patch);
            page.push_str("</span>");
            first += patch.len();
        }
        page.push_str("</div>\n");
    }
}

/// What the colours and the curve show.
struct Scale {
    name: &'static str,
    unit: &'static str,
    max: f32,
    value: fn(&ScoredId) -> f32,
}

impl Scale {
    fn new(
        name: &'static str,
        unit: &'static str,
        ids: &[ScoredId],
        value: fn(&ScoredId) -> f32,
    ) -> Self {
        let values = ids.iter().map(value).filter(|v| v.is_finite());
        let max = values.fold(0.0, f32::max);
        let max = if max > 0.0 { max } else { 1.0 };
        Scale {
            name,
            unit,
            max,
            value,
        }
    }

    fn shade(&self, scored: &ScoredId) -> usize {
        let share = (self.value)(scored) / self.max;
        // A NaN becomes 0.
        ((share * SHADES as f32) as usize).min(SHADES - 1)
    }
}

/// The characters of a patch in runs of one shade. Bytes that are no whole character, because it is
/// cut by the patch or broken, appear in hexadecimal.
fn shaded(page: &mut String, scale: &Scale, patch: &[ScoredId]) {
    let mut run: Option<usize> = None;
    let mut put = |shade: usize, text: &str| {
        if run != Some(shade) {
            if run.is_some() {
                page.push_str("</i>");
            }
            let _ = write!(page, "<i class=\"e{shade}\">");
            run = Some(shade);
        }
        page.push_str(text);
    };
    for piece in patch.chunk_by(|a, b| id_to_byte(a.id).is_some() == id_to_byte(b.id).is_some()) {
        let bytes: Vec<u8> = piece.iter().filter_map(|s| id_to_byte(s.id)).collect();
        if bytes.is_empty() {
            for scored in piece {
                let name = SPECIAL[usize::from(scored.id)];
                put(scale.shade(scored), &format!("<b>{name}</b>"));
            }
            continue;
        }
        let mut at = 0;
        for chunk in bytes.utf8_chunks() {
            for c in chunk.valid().chars() {
                put(scale.shade(&piece[at]), &visible(c));
                at += c.len_utf8();
            }
            for byte in chunk.invalid() {
                put(scale.shade(&piece[at]), &format!("<b>{byte:02x}</b>"));
                at += 1;
            }
        }
    }
    if run.is_some() {
        page.push_str("</i>");
    }
}

/// A character in the text: line ends and tabs shown and kept, other invisible ones shown.
fn visible(c: char) -> String {
    match c {
        '\n' => "\u{23ce}\n".into(),
        '\t' => "\u{21e5}\t".into(),
        '\0'..='\x1f' | '\x7f' => label(c as u8),
        '\u{80}'..='\u{9f}'
        | '\u{ad}'
        | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}'
        | '\u{feff}'
        | '\u{fff9}'..='\u{fffb}' => {
            format!("<b>U+{:04X}</b>", u32::from(c))
        }
        c if (u32::from(c) & 0xfffe) == 0xfffe => format!("<b>U+{:04X}</b>", u32::from(c)),
        c => escape(c.encode_utf8(&mut [0; 4])),
    }
}

/// A byte on the axis.
fn label(byte: u8) -> String {
    match byte {
        b' ' => "\u{2423}".into(),
        b'\n' => "\u{23ce}".into(),
        b'\t' => "\u{21e5}".into(),
        0x21..=0x7e => escape(&char::from(byte).to_string()),
        0..=0x1f => char::from_u32(0x2400 + u32::from(byte)).map_or_else(String::new, String::from),
        _ => format!("{byte:02x}"),
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Everything before the title. The shades are one colour, thicker and thicker, so that they suit
/// light and dark pages.
const HEAD: &str = "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\"/>
<meta name=\"viewport\" content=\"width=device-width\"/>
<style>
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }
h1 { font-size: 1.3em; overflow-wrap: anywhere; }
h2 { font-size: 1.05em; }
i, b { font-style: normal; font-weight: normal; }
b { font-size: .75em; border: 1px solid currentColor; border-radius: 3px; margin: 0 1px; padding: 0 1px; }
.scroll { overflow-x: auto; }
.text, svg { font-family: ui-monospace, monospace; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.8; }
.text span { border-left: 2px solid #2a6fdb; padding-left: 1px; }
.axis { font-size: 11px; text-anchor: end; fill: currentColor; }
.byte { font-size: 13px; text-anchor: middle; fill: currentColor; }
.small { font-size: 8px; }
.grid { stroke: currentColor; opacity: .2; }
.cut { stroke: #2a6fdb; opacity: .6; }
.threshold { stroke: #d22; stroke-dasharray: 6 4; }
.curve { fill: none; stroke: #e8590c; stroke-width: 1.5; }
.e0 { background: rgba(232, 89, 12, .02); }
.e1 { background: rgba(232, 89, 12, .10); }
.e2 { background: rgba(232, 89, 12, .19); }
.e3 { background: rgba(232, 89, 12, .28); }
.e4 { background: rgba(232, 89, 12, .37); }
.e5 { background: rgba(232, 89, 12, .46); }
.e6 { background: rgba(232, 89, 12, .55); }
.e7 { background: rgba(232, 89, 12, .64); }
.e8 { background: rgba(232, 89, 12, .73); }
.e9 { background: rgba(232, 89, 12, .82); }
</style>
";

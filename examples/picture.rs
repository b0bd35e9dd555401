//! Draws a text as the model reads it, as SVG: cut into patches, each byte shaded by its entropy, the entropy curve
//! above. The picture in the README is made by
//!
//! ```sh
//! cargo run --release --example picture -- models/default.safetensors \
//!     "Tom and his sister went to the park to see a big brown dog." > docs/patches.svg
//! ```

use std::fmt::Write;

use blt::{Model, Session, SessionOptions};

/// Pixels per byte.
const STEP: usize = 14;
/// Pixels left of the text, and above the curve.
const LEFT: usize = 40;
const TOP: f32 = 12.0;
/// Pixels from the largest entropy to zero.
const HEIGHT: f32 = 110.0;

/// Draws `text`; `Err` for a model without an entropy model.
pub fn draw(model: &Model, text: &str) -> Result<String, Box<dyn std::error::Error>> {
    let mut session = Session::new(model, SessionOptions::new().entropies(true))?;
    session.feed(text.as_bytes())?;
    // Position 0 is the begin-of-sequence id, so entropy i is that before byte i.
    let entropies = &session.entropies()[..text.len()];
    let max = entropies.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let x = |i: usize| LEFT + i * STEP;
    let y = |entropy: f32| TOP + HEIGHT * (1.0 - entropy / max);
    let (width, bottom) = (x(text.len()) + 10, y(0.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {0}\" width=\"{width}\" height=\"{0}\" \
         font-family=\"monospace\">\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        bottom + 46.0
    );
    for entropy in [0.0, max / 2.0, max] {
        let at = y(entropy);
        writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" font-size=\"11\" text-anchor=\"end\" fill=\"#555\">{entropy:.1}</text>\
             <path d=\"M{LEFT} {at:.1}H{width}\" stroke=\"#ddd\"/>",
            LEFT - 6,
            at + 4.0
        )?;
    }
    let threshold = y(model.config().patcher.threshold.min(max));
    writeln!(
        svg,
        "<path d=\"M{LEFT} {threshold:.1}H{width}\" stroke=\"#d22\" stroke-dasharray=\"6 4\"/>"
    )?;
    for (i, (byte, entropy)) in text.bytes().zip(entropies).enumerate() {
        writeln!(
            svg,
            "<rect x=\"{}\" y=\"{:.1}\" width=\"{STEP}\" height=\"26\" fill=\"#e8590c\" fill-opacity=\"{:.2}\"/>\
             <text x=\"{}\" y=\"{:.1}\" font-size=\"16\" text-anchor=\"middle\">{}</text>",
            x(i),
            bottom + 10.0,
            0.8 * entropy / max,
            x(i) + STEP / 2,
            bottom + 28.0,
            label(byte)
        )?;
        if session.patch_starts().contains(&(i + 1)) {
            let (top, end) = (TOP, bottom + 36.0);
            writeln!(
                svg,
                "<path d=\"M{} {top}V{end:.1}\" stroke=\"#2a6fdb\"/>",
                x(i)
            )?;
        }
    }
    svg.push_str("<polyline fill=\"none\" stroke=\"#e8590c\" stroke-width=\"1.5\" points=\"");
    for (i, entropy) in entropies.iter().enumerate() {
        write!(svg, "{},{:.1} ", x(i) + STEP / 2, y(*entropy))?;
    }
    svg.push_str("\"/>\n</svg>\n");
    Ok(svg)
}

fn label(byte: u8) -> String {
    match byte {
        b' ' => "\u{2423}".into(),
        b'&' => "&amp;".into(),
        b'<' => "&lt;".into(),
        0x21..=0x7e => char::from(byte).into(),
        _ => format!("{byte:02x}"),
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, text] = &args[..] else {
        return Err("usage: picture MODEL TEXT".into());
    };
    print!("{}", draw(&Model::open(model)?, text)?);
    Ok(())
}

//! Loss curves as an SVG picture, alone or in an HTML page.

use std::fmt::Write;

use serde_json::Value;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;

/// Points (step, bits per byte) of one curve.
type Curve = Vec<(f64, f64)>;

fn curve(lines: &[Value], key: &str) -> Curve {
    let point = |v: &Value| Some((v["step"].as_f64()?, v[key].as_f64()?));
    lines
        .iter()
        .filter_map(point)
        .filter(|p| p.1.is_finite())
        .collect()
}

/// A step between ticks that is 1, 2 or 5 times a power of ten, for about `n` of them.
fn tick(span: f64, n: f64) -> f64 {
    let raw = (span / n).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(raw.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * power)
        .into_iter()
        .find(|&t| t >= raw)
        .unwrap_or(raw)
}

/// The picture of a log: bits per byte in training and validation over the steps.
pub fn svg(log: &str) -> String {
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .collect();
    let curves = [
        ("training", "#1f77b4", curve(&lines, "bits_per_byte")),
        (
            "validation",
            "#d62728",
            curve(&lines, "valid_bits_per_byte"),
        ),
    ];
    let points = || curves.iter().flat_map(|(_, _, c)| c);
    let last = points().map(|p| p.0).fold(1.0, f64::max);
    let low = points()
        .map(|p| p.1)
        .fold(f64::INFINITY, f64::min)
        .min(8.0)
        .floor()
        .max(0.0);
    // The first steps of a run from nothing would flatten the rest.
    let high = points()
        .map(|p| p.1)
        .fold(low + 0.5, f64::max)
        .min(low + 4.0);
    let x = |step: f64| LEFT + step / last * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| TOP + (high - v.min(high)) / (high - low) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut line = |text: String| {
        svg.push_str(&text);
        svg.push('\n');
    };
    let step = tick(high - low, 6.0);
    let mut v = low;
    while v <= high + 1e-9 {
        line(format!(
            "<path d=\"M{LEFT} {0:.1}H{1}\" stroke=\"#ddd\"/><text x=\"{2}\" y=\"{3:.1}\" \
             text-anchor=\"end\">{v:.2}</text>",
            y(v),
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(v) + 4.0
        ));
        v += step;
    }
    let step = tick(last, 8.0);
    let mut s = 0.0;
    while s <= last + 1e-9 {
        line(format!(
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{s}</text>",
            x(s),
            HEIGHT - BOTTOM + 18.0
        ));
        s += step;
    }
    line(format!(
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\
         <text x=\"{LEFT}\" y=\"18\">bits per byte</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    ));
    for (i, (name, colour, curve)) in curves.iter().enumerate() {
        let mut path = String::new();
        for (j, &(step, v)) in curve.iter().enumerate() {
            let _ = write!(
                path,
                "{}{:.1} {:.1}",
                if j == 0 { 'M' } else { 'L' },
                x(step),
                y(v)
            );
        }
        line(format!(
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>\
             <text x=\"{}\" y=\"18\" fill=\"{colour}\">{name}</text>",
            WIDTH - 200.0 + 90.0 * i as f64
        ));
    }
    svg.push_str("</svg>\n");
    svg
}

/// A page with the plot.
pub fn html(log: &str) -> String {
    format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>blt-train</title>\n\
         <body style=\"max-width:60em;margin:2em auto\">\n{}</body>\n",
        svg(log)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_are_drawn_whatever_the_log_holds() {
        let log = "{\"step\": 1, \"bits_per_byte\": 8.0}\nnot json\n{\"step\": 2, \
                   \"valid_bits_per_byte\": 2.5}\n{\"step\": 3, \"bits_per_byte\": 2.0}\n";
        let svg = svg(log);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert_eq!(svg.matches('L').count(), 1, "{svg}");
        for odd in ["", "{}", "{\"step\": 0, \"bits_per_byte\": 0}"] {
            assert!(!html(odd).contains("NaN"), "{odd}");
        }
    }
}

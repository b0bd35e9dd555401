//! The progress of long work, on standard error: a bar on a terminal, a plain line every few seconds elsewhere. Short
//! work shows nothing.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use super::units;

/// Time between two drawings of the bar.
const REDRAW: Duration = Duration::from_millis(100);
/// Time before the first drawing of the bar.
const PATIENCE: Duration = Duration::from_millis(500);
/// Time between two plain lines.
const LINE: Duration = Duration::from_secs(5);
/// Characters of the bar itself.
const WIDTH: u64 = 24;

/// A progress report.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    /// Bytes to do, if known.
    total: Option<u64>,
    style: Style,
    start: Instant,
    next: Instant,
    drawn: bool,
}

#[derive(Debug, PartialEq)]
enum Style {
    Silent,
    Bar,
    Lines,
}

impl Progress {
    /// A report on `what` (such as `"scoring"`), which comes to `total` bytes; none if `quiet`.
    pub fn new(what: &'static str, total: Option<u64>, quiet: bool) -> Self {
        let (style, wait) = match (quiet, std::io::stderr().is_terminal()) {
            (true, _) => (Style::Silent, Duration::ZERO),
            (false, true) => (Style::Bar, PATIENCE),
            (false, false) => (Style::Lines, LINE),
        };
        let start = Instant::now();
        Progress {
            what,
            total: total.filter(|&t| t > 0),
            style,
            start,
            next: start + wait,
            drawn: false,
        }
    }

    /// Records that `done` bytes are done, and draws if it is time to.
    pub fn set(&mut self, done: u64) {
        if self.style == Style::Silent {
            return;
        }
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let line = self.line(done, now - self.start);
        match self.style {
            Style::Bar => {
                // Erase the rest of the line: the text before may have been longer.
                crate::err!("\r{line}\x1b[K");
                self.next = now + REDRAW;
            }
            _ => {
                crate::errln!("{line}");
                self.next = now + LINE;
            }
        }
        self.drawn = true;
    }

    /// Removes the bar.
    pub fn finish(self) {
        if self.style == Style::Bar && self.drawn {
            crate::err!("\r\x1b[K");
        }
    }

    fn line(&self, done: u64, elapsed: Duration) -> String {
        let rate = done as f64 / elapsed.as_secs_f64().max(1e-9);
        let speed = format!("{}/s", units::memory(rate as u64));
        let Some(total) = self.total else {
            return format!("{} {}, {speed}", self.what, units::memory(done));
        };
        let part = (done as f64 / total as f64).min(1.0);
        let left =
            Duration::from_secs_f64((total.saturating_sub(done) as f64 / rate.max(1e-9)).min(1e9));
        let numbers = format!(
            "{:3.0} % of {}, {speed}, {} left",
            100.0 * part,
            units::memory(total),
            units::duration(left)
        );
        if self.style == Style::Lines {
            return format!("{} {}", self.what, numbers.trim_start());
        }
        let full = (part * WIDTH as f64) as usize;
        let (full, empty) = ("#".repeat(full), ".".repeat(WIDTH as usize - full));
        format!("{} [{full}{empty}] {numbers}", self.what)
    }
}

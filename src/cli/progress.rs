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
    unit: Unit,
    /// How much was done at the start.
    first: u64,
    /// How much is done at the end, if known.
    total: Option<u64>,
    style: Style,
    start: Instant,
    next: Instant,
    drawn: bool,
}

#[derive(Debug, Clone, Copy)]
enum Unit {
    Bytes,
    Steps,
}

impl Unit {
    fn amount(self, n: u64) -> String {
        match self {
            Unit::Bytes => units::memory(n),
            Unit::Steps => format!("{} steps", units::count(n)),
        }
    }

    fn speed(self, per_second: f64) -> String {
        match self {
            Unit::Bytes => format!("{}/s", units::memory(per_second as u64)),
            Unit::Steps => format!("{per_second:.1} steps/s"),
        }
    }
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
            unit: Unit::Bytes,
            first: 0,
            total: total.filter(|&t| t > 0),
            style,
            start,
            next: start + wait,
            drawn: false,
        }
    }

    /// A report on steps from `first` to `total` by a program that prints lines of its own: a bar on a terminal, nothing
    /// elsewhere.
    pub fn steps(what: &'static str, first: u64, total: u64, quiet: bool) -> Self {
        let mut progress = Progress::new(what, Some(total), quiet);
        (progress.unit, progress.first) = (Unit::Steps, first);
        if progress.style == Style::Lines {
            progress.style = Style::Silent;
        }
        progress
    }

    /// Records that this much is done, and draws if it is time to.
    pub fn set(&mut self, done: u64) {
        if self.style == Style::Silent {
            return;
        }
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let line = self.line(done);
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

    /// Removes the bar, before other text or at the end. The next [`Progress::set`] may draw it again.
    pub fn clear(&mut self) {
        if self.style == Style::Bar && self.drawn {
            crate::err!("\r\x1b[K");
            self.drawn = false;
        }
    }

    /// Removes the bar at the end.
    pub fn finish(mut self) {
        self.clear();
    }

    /// How much is done per second, pauses included.
    fn rate(&self, done: u64) -> f64 {
        let elapsed = self.start.elapsed().as_secs_f64();
        done.saturating_sub(self.first) as f64 / elapsed.max(1e-9)
    }

    /// Time left at the rate so far; none if the end is not known.
    pub fn left(&self, done: u64) -> Option<Duration> {
        let todo = self.total?.saturating_sub(done) as f64;
        Some(Duration::from_secs_f64(
            (todo / self.rate(done).max(1e-9)).min(1e9),
        ))
    }

    fn line(&self, done: u64) -> String {
        let speed = self.unit.speed(self.rate(done));
        let (Some(total), Some(left)) = (self.total, self.left(done)) else {
            return format!("{} {}, {speed}", self.what, self.unit.amount(done));
        };
        let part = (done as f64 / total as f64).min(1.0);
        let numbers = format!(
            "{:3.0} % of {}, {speed}, {} left",
            100.0 * part,
            self.unit.amount(total),
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

//! The learning rate over the steps of a run.

use crate::error::{Error, Result};

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// Along half a cosine.
    Cosine,
    /// In a straight line.
    Linear,
    /// Not at all until the last part of the run, then in a straight line: a run can be prolonged
    /// or cut short without starting over.
    Trapezoid,
    /// Not at all.
    Constant,
}

impl std::str::FromStr for Decay {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "cosine" => Ok(Decay::Cosine),
            "linear" => Ok(Decay::Linear),
            "trapezoid" => Ok(Decay::Trapezoid),
            "constant" => Ok(Decay::Constant),
            _ => Err(Error::argument(
                "decay",
                format!("expected cosine, linear, trapezoid or constant, found \"{s}\""),
            )),
        }
    }
}

/// A learning-rate schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    /// The highest rate.
    pub peak: f64,
    /// The last rate, as a share of the highest.
    pub floor: f64,
    /// Steps over which it rises.
    pub warmup: u64,
    /// Steps in all.
    pub steps: u64,
    /// Share of the steps over which a trapezoid falls.
    pub cooldown: f64,
    /// How it falls.
    pub decay: Decay,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let first = match self.decay {
            Decay::Trapezoid => {
                let last_part = (self.steps as f64 * self.cooldown) as u64;
                self.steps.saturating_sub(last_part).max(self.warmup)
            }
            _ => self.warmup,
        };
        let span = self.steps.saturating_sub(first).max(1) as f64;
        let done = (step.saturating_sub(first) as f64 / span).min(1.0);
        let height = match self.decay {
            Decay::Cosine => (1.0 + (std::f64::consts::PI * done).cos()) / 2.0,
            Decay::Linear | Decay::Trapezoid => 1.0 - done,
            Decay::Constant => 1.0,
        };
        self.peak * (self.floor + (1.0 - self.floor) * height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_rise_stay_and_fall() {
        let mut s = Schedule {
            peak: 1.0,
            floor: 0.1,
            warmup: 10,
            steps: 110,
            cooldown: 0.5,
            decay: Decay::Cosine,
        };
        assert!((s.at(0) - 0.1).abs() < 1e-12 && (s.at(9) - 1.0).abs() < 1e-12);
        assert!((s.at(60) - 0.55).abs() < 1e-12 && (s.at(110) - 0.1).abs() < 1e-12);
        s.decay = Decay::Linear;
        assert!((s.at(60) - 0.55).abs() < 1e-12 && (s.at(85) - 0.325).abs() < 1e-12);
        s.decay = Decay::Trapezoid;
        assert!((s.at(54) - 1.0).abs() < 1e-12 && s.at(80) < 0.7);
        s.decay = Decay::Constant;
        assert!((s.at(1000) - 1.0).abs() < 1e-12);
    }
}

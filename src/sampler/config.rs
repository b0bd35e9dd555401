//! Settings of the sampler, their defaults for bytes, and their ranges.

use crate::error::{Error, Result};

/// How to choose the next id.
///
/// The defaults are made for bytes. A token model draws once per three or four bytes, from a
/// distribution with a long tail of reasonable choices. A byte model draws several times per word,
/// most of the time with almost no doubt (the rest of a word follows from its first letters), and
/// the tail it does have is misspellings. So:
///
/// - `top_p` 0.95 and `min_p` 0.02: where the model is sure, only the sure byte survives; a tail of
///   half a percent at each byte would otherwise break one word in forty. At the start of a word,
///   where dozens of first letters share the probability, both leave the real choices.
/// - `temperature` 0.8: flattening acts on every one of those draws, so the usual 1.0 strays sooner.
/// - no `top_k`: there are only 256 bytes, and how many are plausible changes from one to many
///   within a word.
/// - `repeat_penalty` 1, that is off: punishing bytes punishes letters, and `e` must come back.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerConfig {
    /// Logits are divided by this; 0 always takes the largest logit (of equal ones the lowest id).
    pub temperature: f32,
    /// Keep only this many of the largest logits; of equal ones the lower ids.
    pub top_k: Option<usize>,
    /// Keep the fewest most probable ids whose probabilities add up to at least this.
    pub top_p: Option<f32>,
    /// Keep the ids with at least this share of the largest probability.
    pub min_p: Option<f32>,
    /// Positive logits of bytes seen lately are divided by this, negative ones multiplied; 1: off.
    pub repeat_penalty: f32,
    /// How many ids back the penalty looks, in bytes (not tokens: a line of text is about 80).
    pub repeat_window: usize,
    /// Start of the random numbers.
    pub seed: u64,
    /// Never choose a special id other than EOS.
    pub ban_special: bool,
    /// Never choose EOS, which otherwise ends a generation.
    pub ignore_eos: bool,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: None,
            top_p: Some(0.95),
            min_p: Some(0.02),
            repeat_penalty: 1.0,
            repeat_window: 256,
            seed: 0,
            ban_special: true,
            ignore_eos: false,
        }
    }
}

impl SamplerConfig {
    /// Settings that always take the most probable id.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    /// Checks that every number is in its range.
    ///
    /// # Errors
    /// [`Error::Argument`] naming the first that is not.
    pub fn validate(&self) -> Result<()> {
        let wrong = |name, expected: &str, found: &dyn std::fmt::Display| {
            Err(Error::argument(
                name,
                format!("expected {expected}, found {found}"),
            ))
        };
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return wrong("temperature", "0 or a positive number", &self.temperature);
        }
        if self.top_k == Some(0) {
            return wrong("top_k", "at least 1", &0);
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return wrong("top_p", "a number above 0 and at most 1", &p);
        }
        if let Some(p) = self.min_p.filter(|p| !(0.0..=1.0).contains(p)) {
            return wrong("min_p", "a number from 0 to 1", &p);
        }
        if !(self.repeat_penalty.is_finite() && self.repeat_penalty > 0.0) {
            return wrong("repeat_penalty", "a positive number", &self.repeat_penalty);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let d = SamplerConfig::default;
        let with_t = |temperature| SamplerConfig { temperature, ..d() };
        let with_p = |p| SamplerConfig {
            top_p: Some(p),
            ..d()
        };
        let with_m = |p| SamplerConfig {
            min_p: Some(p),
            ..d()
        };
        let with_r = |repeat_penalty| SamplerConfig {
            repeat_penalty,
            ..d()
        };
        let no_k = SamplerConfig {
            top_k: Some(0),
            ..d()
        };
        let nan = f32::NAN;
        let cases = [
            (
                "temperature",
                vec![with_t(-0.1), with_t(nan), with_t(1. / 0.)],
            ),
            ("top_k", vec![no_k]),
            ("top_p", vec![with_p(0.0), with_p(1.1), with_p(nan)]),
            ("min_p", vec![with_m(-0.1), with_m(1.1), with_m(nan)]),
            (
                "repeat_penalty",
                vec![with_r(0.0), with_r(-1.0), with_r(nan)],
            ),
        ];
        for (name, configs) in cases {
            for config in configs {
                let message = config.validate().unwrap_err().to_string();
                assert!(message.starts_with(name), "{message}");
            }
        }
        assert!(d().validate().is_ok());
    }
}

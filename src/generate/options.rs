//! Settings of a generation: as fields, or in a chain of methods of the same names.

use crate::grammar::Grammar;
use crate::sampler::SamplerConfig;

/// Settings of a generation.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// Most bytes to generate; `None`: until something else stops.
    pub max_bytes: Option<usize>,
    /// How bytes are chosen.
    pub sampler: SamplerConfig,
    /// Byte strings that end the generation; they are not handed out.
    pub stop: Vec<Vec<u8>>,
    /// Bytes to draft at a time, up to [`MAX_DRAFT`](super::MAX_DRAFT); 0: none; `None`: the number that is fastest, up to 16.
    ///
    /// Drafting is self-speculation (arXiv:2605.08044): the local decoder writes ahead on its own, and the
    /// other networks read what it wrote at once, so that their weights come from memory once for several bytes.
    /// Bytes that the sampler would not have chosen are rejected. The text, the logits and the session are
    /// the same bits with and without drafts; bytes just come in bursts. The sizes of the networks and the
    /// share of drafted bytes accepted lately decide how many it pays to draft; none where weights stay in
    /// the processor's caches. Sessions of Bolmo models and sessions on a GPU never draft. Sessions that
    /// generate together share each reading of the weights already: they draft only if a number is given.
    pub draft: Option<usize>,
    /// Grammar that the text obeys, from its first byte on. With `max_bytes` the text is completed within
    /// them: it matches even if nothing but the limit ends it. A stop string ends it wherever it comes.
    pub grammar: Option<Grammar>,
}

impl GenerateOptions {
    /// The settings of [`GenerateOptions::default`], to be changed in a chain.
    ///
    /// ```
    /// use blt::GenerateOptions;
    /// use blt::sampler::SamplerConfig;
    ///
    /// let options = GenerateOptions::new().max_bytes(200).seed(7).stop("\n\n");
    /// assert_eq!(options.sampler.seed, 7);
    /// let options = GenerateOptions::new().sampler(SamplerConfig::greedy());
    /// # assert_eq!(options.sampler.temperature, 0.0);
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`GenerateOptions::max_bytes`].
    #[must_use]
    pub fn max_bytes(mut self, n: usize) -> Self {
        self.max_bytes = Some(n);
        self
    }

    /// Sets [`GenerateOptions::sampler`].
    #[must_use]
    pub fn sampler(mut self, sampler: SamplerConfig) -> Self {
        self.sampler = sampler;
        self
    }

    /// Sets the seed of [`GenerateOptions::sampler`].
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.sampler.seed = seed;
        self
    }

    /// Sets [`GenerateOptions::draft`].
    #[must_use]
    pub fn draft(mut self, n_bytes: usize) -> Self {
        self.draft = Some(n_bytes);
        self
    }

    /// Sets [`GenerateOptions::grammar`].
    #[must_use]
    pub fn grammar(mut self, grammar: Grammar) -> Self {
        self.grammar = Some(grammar);
        self
    }

    /// Adds to [`GenerateOptions::stop`].
    #[must_use]
    pub fn stop(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stop.push(bytes.into());
        self
    }
}

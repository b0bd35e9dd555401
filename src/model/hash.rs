//! Which row of each hash embedding table a byte reads (paper section 3.2.1).
//!
//! Table rows are looked up elsewhere; here are only the row numbers. Both published
//! implementations agree on them, on every n-gram length, table size and prime
//! (`tests/patcher_and_hash.rs`):
//!
//! ```text
//! H   = sum over i in 0..g of ids[j - g + 1 + i] * prime^i    wrapping at 64 bits
//! row = H mod vocab                                           in 0..vocab, also for H < 0
//! ```
//!
//! The oldest id has power 0. Positions left of the text count as id 0.

use crate::config::HashConfig;
use crate::error::{Error, Result};
use crate::vocab::Id;

/// One prime per hash function. A twelfth function takes the first one again, as in transformers;
/// the original implementation stops there.
const PRIMES: [i64; 11] = [
    1_000_000_007,
    5_915_587_277,
    1_500_450_271,
    3_267_000_013,
    5_754_853_343,
    4_093_082_899,
    9_576_890_767,
    3_628_273_133,
    2_860_486_313,
    5_463_458_053,
    3_367_900_313,
];

/// Longest n-gram that is accepted; the published models use up to 8.
const MAX_GROUP_SIZE: usize = 64;

/// Row of one n-gram in the table of one hash function: the definition, one n-gram at a time.
///
/// `window` holds the n-gram's ids, oldest first, and is shorter than `group_size` only at the
/// start of a text. If it is longer, the last `group_size` ids count.
///
/// # Panics
/// If `vocab` is 0.
pub fn hash_row(window: &[Id], group_size: usize, function: usize, vocab: usize) -> usize {
    let window = &window[window.len().saturating_sub(group_size)..];
    let prime = PRIMES[function % PRIMES.len()];
    let mut power = 1i64;
    for _ in window.len()..group_size {
        power = power.wrapping_mul(prime);
    }
    let mut sum = 0i64;
    for &id in window {
        sum = sum.wrapping_add(i64::from(id).wrapping_mul(power));
        power = power.wrapping_mul(prime);
    }
    sum.rem_euclid(vocab as i64) as usize
}

/// [`hash_row`] for all tables of a model, with the powers of the primes computed once.
#[derive(Debug, Clone)]
pub struct NgramHasher {
    group_sizes: Vec<usize>, // (n_group_sizes)
    n_functions: usize,
    vocab: i64,
    powers: Vec<i64>, // (n_functions or 11 if that is less, max_group)
    max_group: usize,
}

impl NgramHasher {
    /// A hasher for the tables of `config`; with no n-gram lengths it has no tables.
    ///
    /// # Errors
    /// [`Error::Config`] for an empty table or an n-gram length that is not 1 to 64.
    pub fn new(config: &HashConfig) -> Result<Self> {
        let vocab = i64::try_from(config.vocab).unwrap_or(0);
        if !config.group_sizes.is_empty() && vocab == 0 {
            return Err(Error::config(
                "encoder_hash_byte_group_vocab",
                format!("expected at least 1 row, found {}", config.vocab),
            ));
        }
        for &group_size in &config.group_sizes {
            if !(1..=MAX_GROUP_SIZE).contains(&group_size) {
                return Err(Error::config(
                    "encoder_hash_byte_group_size",
                    format!("expected 1 to {MAX_GROUP_SIZE}, found {group_size}"),
                ));
            }
        }
        let max_group = config.group_sizes.iter().copied().max().unwrap_or(0);
        let mut powers = Vec::new();
        for &prime in PRIMES.iter().take(config.n_functions) {
            let mut power = 1i64;
            for _ in 0..max_group {
                powers.push(power);
                power = power.wrapping_mul(prime);
            }
        }
        Ok(Self {
            group_sizes: config.group_sizes.clone(),
            n_functions: config.n_functions,
            vocab,
            powers,
            max_group,
        })
    }

    /// Number of tables: function-major, n-gram lengths in order within a function.
    pub fn n_tables(&self) -> usize {
        self.group_sizes.len() * self.n_functions
    }

    /// The factors of a table's n-grams: what each id is multiplied by, the oldest first.
    pub fn powers(&self, table: usize) -> &[i64] {
        let (function, group) = (
            table / self.group_sizes.len(),
            table % self.group_sizes.len(),
        );
        let first = function % PRIMES.len() * self.max_group;
        &self.powers[first..first + self.group_sizes[group]]
    }

    /// Writes into `out` (n_tables) the row in each table for the n-grams that end at `position`.
    ///
    /// Reads `ids[..=position]`, of which only the ids of the last n-gram matter. Allocates nothing.
    ///
    /// # Panics
    /// If `position` is not inside `ids` or `out` has not one place per table.
    pub fn rows(&self, ids: &[Id], position: usize, out: &mut [usize]) {
        assert_eq!(out.len(), self.n_tables(), "one row per table");
        if out.is_empty() {
            return;
        }
        let seen = &ids[..=position];
        let n_groups = self.group_sizes.len();
        for (function, out) in out.chunks_exact_mut(n_groups).enumerate() {
            let first = function % PRIMES.len() * self.max_group;
            let powers = &self.powers[first..first + self.max_group];
            for (row, &group_size) in out.iter_mut().zip(&self.group_sizes) {
                let window = &seen[seen.len().saturating_sub(group_size)..];
                // Ids left of the text are 0: they add nothing, but use up the low powers.
                let powers = &powers[group_size - window.len()..group_size];
                let sum = window.iter().zip(powers).fold(0i64, |sum, (&id, &power)| {
                    sum.wrapping_add(i64::from(id).wrapping_mul(power))
                });
                *row = sum.rem_euclid(self.vocab) as usize;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocab::encode;

    fn config(group_sizes: &[usize], vocab: usize, n_functions: usize) -> HashConfig {
        HashConfig {
            group_sizes: group_sizes.to_vec(),
            vocab,
            n_functions,
        }
    }

    #[test]
    fn rows_are_those_of_the_published_models() {
        // Computed with both published implementations.
        let expected: [(usize, [usize; 11]); 3] = [
            (
                3,
                [
                    443987, 245324, 222431, 177454, 49679, 369833, 346140, 246329, 257314, 329734,
                    478030,
                ],
            ),
            (
                4,
                [
                    437197, 241614, 499803, 92981, 412278, 390458, 263958, 339201, 116879, 402659,
                    154035,
                ],
            ),
            (
                8,
                [
                    172383, 320688, 324181, 339215, 208897, 325590, 131923, 299004, 354181, 8223,
                    395207,
                ],
            ),
        ];
        let ids = encode(b"my name is", true);
        let hasher = NgramHasher::new(&config(&[3, 4, 8], 500_002, 1)).unwrap();
        let mut out = [0; 3];
        for position in 0..ids.len() {
            hasher.rows(&ids, position, &mut out);
            for (table, (group_size, rows)) in expected.iter().enumerate() {
                assert_eq!(
                    out[table], rows[position],
                    "group {group_size} at {position}"
                );
            }
        }
    }

    #[test]
    fn tables_are_function_major_and_the_twelfth_function_is_the_first() {
        let sizes = [5, 1, 3];
        let hasher = NgramHasher::new(&config(&sizes, 65_521, 13)).unwrap();
        let ids: Vec<Id> = (0..40).map(|i| (i * 97 + 5) % 260).collect();
        let mut out = vec![0; hasher.n_tables()];
        assert_eq!(out.len(), 39);
        for position in 0..ids.len() {
            hasher.rows(&ids, position, &mut out);
            for function in 0..13 {
                for (g, &size) in sizes.iter().enumerate() {
                    let window = &ids[(position + 1).saturating_sub(size)..=position];
                    assert_eq!(
                        out[function * 3 + g],
                        hash_row(window, size, function, 65_521),
                        "function {function}, group {size}, position {position}"
                    );
                }
            }
            assert_eq!(out[..6], out[33..], "functions 11, 12 equal 0, 1");
        }
    }

    #[test]
    fn text_before_the_start_is_id_0() {
        let padded: Vec<Id> = [0; 8].into_iter().chain([1, 77, 250, 4]).collect();
        for size in 1..=8 {
            for n in 1..=4 {
                let window = &padded[8 + n - size.min(n)..8 + n];
                let full = &padded[8 + n - size..8 + n];
                assert_eq!(
                    hash_row(window, size, 2, 500_002),
                    hash_row(full, size, 2, 500_002)
                );
            }
        }
    }

    #[test]
    fn impossible_tables_are_refused_and_no_tables_are_fine() {
        for (bad, key) in [
            (config(&[3], 0, 1), "vocab"),
            (config(&[3, 0], 7, 1), "size"),
            (config(&[usize::MAX], 7, 1), "size"),
        ] {
            let message = NgramHasher::new(&bad).unwrap_err().to_string();
            assert!(message.contains(key), "{message}");
        }
        let none = NgramHasher::new(&config(&[], 0, 1)).unwrap();
        none.rows(&[1], 0, &mut []);
        assert_eq!(none.n_tables(), 0);
    }
}

//! How many bytes it pays to draft.

use std::ops::AddAssign;

use crate::error::{Error, Result};
use crate::model::NetworkBytes;

/// Most bytes drafted at a time.
pub const MAX_DRAFT: usize = 64;

/// Most bytes of a draft whose length is not given.
const MAX_AUTO_DRAFT: usize = 16;

/// Bytes of weights that stay in the processor's caches: reading them again is cheap, and a draft only
/// adds rows.
const CACHED_BYTES: f64 = 6e6;

/// Number of additional rows that cost at most as much as reading the weights.
const ROWS_PER_READ: f64 = 10.0;

/// Share of its cost that a draft must save at least, compared to reading byte by byte.
const MIN_GAIN: f64 = 0.05;

/// How sequences draft.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DraftPolicy {
    /// Bytes drafted at a time; `None`: the number that is fastest.
    length: Option<usize>,
}

/// How drafting went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DraftCounts {
    /// Drafts made.
    pub n_drafts: usize,
    /// Bytes drafted, the first of each draft, which is certain, included.
    pub n_drafted: usize,
    /// Drafted bytes that were accepted.
    pub n_accepted: usize,
    /// Patches that these bytes closed.
    pub n_patches: usize,
    /// Drafts in which patches were closed: the global transformer ran, and the decoder again.
    pub n_closing: usize,
}

impl AddAssign for DraftCounts {
    fn add_assign(&mut self, other: Self) {
        self.n_drafts += other.n_drafts;
        self.n_drafted += other.n_drafted;
        self.n_accepted += other.n_accepted;
        self.n_patches += other.n_patches;
        self.n_closing += other.n_closing;
    }
}

/// How often drafted bytes have been accepted lately; the last drafts count most.
#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptanceRate {
    n_accepted: f64,
    n_rejected: f64,
}

impl Default for AcceptanceRate {
    /// 98 %, the middle of what is published.
    fn default() -> Self {
        AcceptanceRate {
            n_accepted: 24.5,
            n_rejected: 0.5,
        }
    }
}

impl AcceptanceRate {
    /// Records a draft in which `n_accepted` bytes after the first were accepted, and whether one was
    /// rejected.
    pub fn record(&mut self, n_accepted: usize, rejected: bool) {
        self.n_accepted = self.n_accepted * 0.9 + n_accepted as f64;
        self.n_rejected = (self.n_rejected * 0.9).max(0.01) + f64::from(u8::from(rejected));
    }

    /// Moves towards the default, once for every byte that is read without a draft, so that a session
    /// tries drafting again some time after it stopped.
    pub fn decay(&mut self) {
        let start = AcceptanceRate::default();
        self.n_accepted += (start.n_accepted - self.n_accepted) * 0.01;
        self.n_rejected += (start.n_rejected - self.n_rejected) * 0.01;
    }

    /// Bytes of a draft of `n` that will be accepted at this rate.
    fn expected(&self, n: usize) -> f64 {
        let p = self.n_accepted / (self.n_accepted + self.n_rejected);
        (1.0 - p.powi(n as i32)) / (1.0 - p)
    }
}

impl DraftPolicy {
    /// Drafts of `length` bytes; 0 or 1: none; `None`: the number that is fastest.
    ///
    /// # Errors
    /// [`Error::Argument`] if there are more than [`MAX_DRAFT`].
    pub fn new(length: Option<usize>) -> Result<Self> {
        match length.filter(|&n| n > MAX_DRAFT) {
            None => Ok(DraftPolicy { length }),
            Some(n) => Err(Error::argument(
                "draft",
                format!("expected at most {MAX_DRAFT} bytes, found {n}"),
            )),
        }
    }

    /// Bytes of the next draft, at most `room`; below 2: none. `networks` has no entropy model where it
    /// does not run. Where `n_sequences` read together, they share each reading of the weights already,
    /// and only draft if a length is given.
    pub(super) fn draft_length(
        &self,
        networks: &NetworkBytes,
        rate: &AcceptanceRate,
        patches_per_byte: f64,
        n_sequences: usize,
        room: usize,
    ) -> usize {
        match self.length {
            Some(n) => n.min(room),
            None if n_sequences > 1 => 0,
            None => best_length(networks, rate, patches_per_byte, room.min(MAX_AUTO_DRAFT)),
        }
    }
}

/// The length up to `max` that makes the accepted bytes cheapest; 1 if no draft pays. The cost of a
/// network is the bytes of weights it reads: that is what drafting saves.
fn best_length(
    networks: &NetworkBytes,
    rate: &AcceptanceRate,
    patches_per_byte: f64,
    max: usize,
) -> usize {
    let &NetworkBytes {
        entropy,
        encoder,
        global,
        decoder,
    } = networks;
    let per_byte = encoder + decoder;
    if per_byte + entropy + global < CACHED_BYTES {
        return 1;
    }
    let plain = per_byte + entropy + patches_per_byte * global;
    // Rows that are read together still have to be computed.
    let together = |rows: f64| 1.0 + (rows - 1.0).max(0.0) / ROWS_PER_READ;
    let drafted = |n: usize| {
        let rows = n as f64;
        let closes = 1.0 - (1.0 - patches_per_byte).max(0.0).powi(n as i32);
        let verifying = together(rows) * (entropy + closes * decoder)
            + closes * together(rows * patches_per_byte) * global;
        (rows * per_byte + verifying) / rate.expected(n)
    };
    let costs = (2..=max).map(|n| (n, drafted(n)));
    match costs.min_by(|a, b| a.1.total_cmp(&b.1)) {
        Some((n, cost)) if cost < (1.0 - MIN_GAIN) * plain => n,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The released 1B model.
    const NETWORKS: NetworkBytes = NetworkBytes {
        entropy: 198e6,
        encoder: 26e6,
        global: 2560e6,
        decoder: 268e6,
    };

    /// With four bytes a patch.
    fn length(rate: &AcceptanceRate) -> usize {
        best_length(&NETWORKS, rate, 0.25, 16)
    }

    #[test]
    fn drafts_are_as_long_as_bytes_are_accepted() {
        let mut rate = AcceptanceRate::default();
        assert!(length(&rate) >= 8, "the first one");
        (0..20).for_each(|_| rate.record(15, false));
        assert_eq!(length(&rate), 16);
        (0..20).for_each(|_| rate.record(5, true));
        let medium = length(&rate);
        assert!((2..16).contains(&medium), "{medium}");
        (0..20).for_each(|_| rate.record(0, true));
        assert_eq!(length(&rate), 1);
    }

    #[test]
    fn a_session_whose_drafts_were_rejected_tries_again() {
        let mut rate = AcceptanceRate::default();
        (0..20).for_each(|_| rate.record(0, true));
        let attempt = (0..).find(|_| {
            rate.decay();
            length(&rate) > 1
        });
        let bytes = attempt.expect("some time");
        assert!((10..1000).contains(&bytes), "after {bytes} bytes");
    }

    #[test]
    fn nothing_is_gained_where_only_the_decoder_is_large() {
        let networks = NetworkBytes {
            entropy: 0.0,
            global: 1e6,
            ..NETWORKS
        };
        assert_eq!(
            best_length(&networks, &AcceptanceRate::default(), 0.25, 16),
            1
        );
    }

    #[test]
    fn sequences_that_read_together_draft_only_if_told_to() {
        let rate = AcceptanceRate::default();
        let length = |policy: DraftPolicy, n| policy.draft_length(&NETWORKS, &rate, 0.25, n, 100);
        assert!(length(DraftPolicy::default(), 1) > 1);
        assert_eq!(length(DraftPolicy::default(), 2), 0);
        assert_eq!(length(DraftPolicy::new(Some(5)).unwrap(), 2), 5);
        assert!(DraftPolicy::new(Some(MAX_DRAFT + 1)).is_err());
    }
}

//! Bytes to ids and back; the special ids, and nothing else.
//!
//! The model reads ids: byte `b` is id `b + 4`, ids 0 to 3 are special.

use smallvec::SmallVec;

/// An id: a special id, or a byte plus [`BYTE_OFFSET`].
pub type Id = u16;

/// Begin-of-example id; also what the n-gram hash reads left of the text.
pub const BOE: Id = 0;
/// Begin-of-sequence id, fed before a prompt.
pub const BOS: Id = 1;
/// End-of-sequence id.
pub const EOS: Id = 2;
/// The delimiter id of BPE patching.
pub const BPE: Id = 3;
/// Difference between a byte and its id.
pub const BYTE_OFFSET: Id = 4;
/// Number of ids: 4 special ones and 256 bytes.
pub const VOCAB_SIZE: usize = 260;

/// What the ids that a model chooses stand for.
///
/// A BLT chooses among [`VOCAB_SIZE`] ids and [`EOS`] ends its texts. A Bolmo model chooses among twice that number: an id from
/// [`VOCAB_SIZE`] on is the one [`VOCAB_SIZE`] below it, with the flag that it ends a patch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choices {
    stop_ids: SmallVec<[Id; 2]>,
    has_flags: bool,
}

impl Default for Choices {
    /// The ids of a BLT.
    fn default() -> Self {
        Choices {
            stop_ids: SmallVec::from_slice(&[EOS]),
            has_flags: false,
        }
    }
}

impl Choices {
    /// The ids of a model that chooses ids with flags and ends its texts with any of `stop_ids`.
    pub fn with_flags(stop_ids: &[Id]) -> Self {
        Choices {
            stop_ids: stop_ids.into(),
            has_flags: true,
        }
    }

    /// Number of ids that can be chosen.
    pub fn n_ids(&self) -> usize {
        match self.has_flags {
            true => 2 * VOCAB_SIZE,
            false => VOCAB_SIZE,
        }
    }

    /// Whether ids carry flags.
    pub fn has_flags(&self) -> bool {
        self.has_flags
    }

    /// The id without its flag.
    pub fn plain(&self, id: Id) -> Id {
        match self.has_flags {
            true => id % VOCAB_SIZE as Id,
            false => id,
        }
    }

    /// Whether the id ends the text.
    pub fn is_stop(&self, id: Id) -> bool {
        self.stop_ids.contains(&self.plain(id))
    }

    /// The id's byte; `None` for special ids.
    pub fn byte(&self, id: Id) -> Option<u8> {
        id_to_byte(self.plain(id))
    }

    /// Whether the id stands for no byte and does not end the text. A model with flags cannot read such an id.
    pub fn is_special(&self, id: Id) -> bool {
        self.plain(id) < BYTE_OFFSET && !self.is_stop(id)
    }
}

/// The id of a byte.
pub fn byte_to_id(byte: u8) -> Id {
    Id::from(byte) + BYTE_OFFSET
}

/// The byte of an id; `None` for special ids and for numbers that are no ids.
pub fn id_to_byte(id: Id) -> Option<u8> {
    u8::try_from(id.checked_sub(BYTE_OFFSET)?).ok()
}

/// The ids of a text, with BOS in front if asked.
pub fn encode(text: &[u8], bos: bool) -> Vec<Id> {
    bos.then_some(BOS)
        .into_iter()
        .chain(text.iter().copied().map(byte_to_id))
        .collect()
}

/// The bytes among `ids`; special ids vanish.
pub fn decode(ids: &[Id]) -> Vec<u8> {
    ids.iter().copied().filter_map(id_to_byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_an_id_of_its_own_and_comes_back() {
        let bytes: Vec<u8> = (0..=255).collect();
        let ids = encode(&bytes, true);
        assert_eq!(ids[0], BOS);
        assert_eq!(ids[1..], (4..260).collect::<Vec<Id>>()[..]);
        assert_eq!(decode(&ids), bytes);
    }

    #[test]
    fn special_ids_and_numbers_out_of_range_are_no_bytes() {
        for id in [BOE, BOS, EOS, BPE, 260, 65535] {
            assert_eq!(id_to_byte(id), None, "id {id}");
        }
    }
}

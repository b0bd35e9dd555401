//! A set of bytes.

/// A set of bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByteSet([u64; 4]);

impl ByteSet {
    /// Whether a byte is in the set.
    pub fn contains(&self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 != 0
    }

    /// Adds a byte.
    #[cfg(feature = "grammar")]
    pub fn insert(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    /// Adds the bytes of another set.
    pub fn extend(&mut self, bytes: &ByteSet) {
        for (own, new) in self.0.iter_mut().zip(bytes.0) {
            *own |= new;
        }
    }

    /// Whether there is no byte in the set.
    pub fn is_empty(&self) -> bool {
        self.0 == [0; 4]
    }
}

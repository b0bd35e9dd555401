//! Numbers as little-endian bytes, out and in, with a checksum; knows nothing of what they mean.
//!
//! [`Reader`] trusts no length: it compares the size with the remaining bytes before anything
//! is allocated.

use std::io::{self, Write};

use half::f16;

/// A 64-bit checksum of a run of bytes, independent of how the run is cut.
///
/// Finds damage, not malice: anybody can compute it.
#[derive(Debug, Clone, Default)]
pub struct Checksum {
    hash: u64,
    n_bytes: u64,
    tail: [u8; 8], // the first n_bytes % 8 are waiting for the rest of their word
}

impl Checksum {
    /// Takes more bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        let n_tail = (self.n_bytes % 8) as usize;
        self.n_bytes += bytes.len() as u64;
        if n_tail > 0 {
            let n = bytes.len().min(8 - n_tail);
            self.tail[n_tail..n_tail + n].copy_from_slice(&bytes[..n]);
            if n_tail + n < 8 {
                return;
            }
            self.mix(u64::from_le_bytes(self.tail));
            bytes = &bytes[n..];
        }
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|&w| self.mix(u64::from_le_bytes(w)));
        self.tail[..rest.len()].copy_from_slice(rest);
    }

    /// The checksum of what has been taken.
    pub fn finish(mut self) -> u64 {
        let n_tail = (self.n_bytes % 8) as usize;
        self.tail[n_tail..].fill(0);
        self.mix(u64::from_le_bytes(self.tail));
        self.mix(self.n_bytes);
        self.hash
    }

    fn mix(&mut self, word: u64) {
        // An odd factor and the shift make each step a bijection of the hash: two runs that differ
        // in one word never end alike.
        self.hash = (self.hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.hash ^= self.hash >> 32;
    }
}

/// Writes numbers and counts them into a checksum.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    checksum: Checksum,
}

impl<W: Write> Writer<W> {
    /// A writer to `out`, which should be buffered.
    pub fn new(out: W) -> Self {
        Writer {
            out,
            checksum: Checksum::default(),
        }
    }

    /// Bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.out.write_all(bytes)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> io::Result<()> {
        self.bytes(&[value])
    }

    /// A number of 32 bits.
    pub fn u32(&mut self, value: u32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    /// A size, in 64 bits.
    pub fn size(&mut self, value: usize) -> io::Result<()> {
        self.u64(value as u64)
    }

    /// A size or none: a byte 0, or 1 and the size.
    pub fn optional_size(&mut self, value: Option<usize>) -> io::Result<()> {
        self.u8(value.is_some().into())?;
        value.map_or(Ok(()), |v| self.size(v))
    }

    /// The bits of single-precision numbers.
    pub fn f32s(&mut self, values: &[f32]) -> io::Result<()> {
        values.iter().try_for_each(|v| self.bytes(&v.to_le_bytes()))
    }

    /// The bits of half-precision numbers.
    pub fn f16s(&mut self, values: &[f16]) -> io::Result<()> {
        values.iter().try_for_each(|v| self.bytes(&v.to_le_bytes()))
    }

    /// Writes the checksum of everything before it and flushes.
    pub fn finish(mut self) -> io::Result<()> {
        let checksum = self.checksum.finish();
        self.out.write_all(&checksum.to_le_bytes())?;
        self.out.flush()
    }
}

/// Why bytes could not be read; what was expected and what was found.
pub type ReadError = String;

/// Reads numbers from bytes, of which it trusts none.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Bytes not read yet.
    pub fn n_left(&self) -> usize {
        self.rest.len()
    }

    /// The next `n` bytes; `what` names them in the message.
    pub fn bytes(&mut self, what: &str, n: usize) -> Result<&'a [u8], ReadError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(n) else {
            let left = self.n_left();
            return Err(format!("{what}: expected {n} bytes, found {left}"));
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ReadError> {
        let bytes = self.bytes(what, N)?;
        Ok(bytes.try_into().expect("as many bytes as asked for"))
    }

    /// One byte.
    pub fn u8(&mut self, what: &str) -> Result<u8, ReadError> {
        self.array::<1>(what).map(|[b]| b)
    }

    /// A byte that is 0 or 1.
    pub fn flag(&mut self, what: &str) -> Result<bool, ReadError> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(format!("{what}: expected 0 or 1, found {other}")),
        }
    }

    /// A number of 32 bits.
    pub fn u32(&mut self, what: &str) -> Result<u32, ReadError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A number of 64 bits.
    pub fn u64(&mut self, what: &str) -> Result<u64, ReadError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A size.
    pub fn size(&mut self, what: &str) -> Result<usize, ReadError> {
        let value = self.u64(what)?;
        usize::try_from(value).map_err(|_| format!("{what}: expected a size, found {value}"))
    }

    /// A size or none.
    pub fn optional_size(&mut self, what: &str) -> Result<Option<usize>, ReadError> {
        match self.flag(what)? {
            true => self.size(what).map(Some),
            false => Ok(None),
        }
    }

    /// The bits of a single-precision number.
    pub fn f32(&mut self, what: &str) -> Result<f32, ReadError> {
        self.array(what).map(f32::from_le_bytes)
    }

    /// `n` single-precision numbers.
    pub fn f32s(&mut self, what: &str, n: usize) -> Result<Vec<f32>, ReadError> {
        let bytes = self.bytes(what, n.saturating_mul(4))?;
        let (words, _) = bytes.as_chunks::<4>();
        Ok(words.iter().map(|&w| f32::from_le_bytes(w)).collect())
    }

    /// `n` half-precision numbers, widened.
    pub fn f16s(&mut self, what: &str, n: usize) -> Result<Vec<f32>, ReadError> {
        let bytes = self.bytes(what, n.saturating_mul(2))?;
        let (words, _) = bytes.as_chunks::<2>();
        let widen = |&w| f16::from_le_bytes(w).to_f32();
        Ok(words.iter().map(widen).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checksum(parts: &[&[u8]]) -> u64 {
        let mut sum = Checksum::default();
        parts.iter().for_each(|p| sum.update(p));
        sum.finish()
    }

    #[test]
    fn the_checksum_is_of_the_bytes_not_of_their_cuts() {
        let bytes: Vec<u8> = (0..61).collect();
        let whole = checksum(&[&bytes]);
        for a in 0..=bytes.len() {
            for b in a..=bytes.len() {
                let parts = [&bytes[..a], &bytes[a..b], &bytes[b..]];
                assert_eq!(checksum(&parts), whole, "cut at {a} and {b}");
            }
        }
    }

    #[test]
    fn the_checksum_sees_every_bit_and_the_length() {
        let bytes = [0u8; 29];
        let whole = checksum(&[&bytes]);
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(checksum(&[&other]), whole, "bit {bit}");
        }
        for n in 0..bytes.len() {
            assert_ne!(checksum(&[&bytes[..n]]), whole, "length {n}");
        }
    }

    #[test]
    fn what_was_written_is_read_and_what_was_not_is_refused() {
        let mut out = Vec::new();
        let mut writer = Writer::new(&mut out);
        writer.u32(7).unwrap();
        writer.optional_size(None).unwrap();
        writer.optional_size(Some(9)).unwrap();
        writer.f32s(&[1.5, f32::INFINITY]).unwrap();
        writer.f16s(&[f16::from_f32(-0.75)]).unwrap();
        writer.u8(2).unwrap();
        writer.finish().unwrap();
        let mut reader = Reader::new(&out);
        assert_eq!(reader.u32("a"), Ok(7));
        assert_eq!(reader.optional_size("b"), Ok(None));
        assert_eq!(reader.optional_size("c"), Ok(Some(9)));
        assert_eq!(reader.f32s("d", 2), Ok(vec![1.5, f32::INFINITY]));
        assert_eq!(reader.f16s("h", 1), Ok(vec![-0.75]));
        assert_eq!(reader.flag("e"), Err("e: expected 0 or 1, found 2".into()));
        assert_eq!(
            reader.f32s("f", usize::MAX),
            Err(format!("f: expected {} bytes, found 8", usize::MAX))
        );
        assert_eq!(reader.n_left(), 8);
    }
}

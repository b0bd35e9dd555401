//! bfloat16 in 12 bits: the exponents of neighbouring weights are much alike, so four bits tell them.
//!
//! # Bytes
//!
//! A row of `cols` weights is cut into groups of 128, the last padded with zeros. It takes [`Bf12::row_bytes`]:
//!
//! | bytes | content |
//! |---|---|
//! | 192 a group | 128 bytes, sign (bit 7) and mantissa (bits 0 to 6) of a weight each; 64 bytes, the exponent codes |
//! | 1 a group | `base` |
//! | 4 a slot | exceptions: column (24 bits), exponent (8 bits); 0xffffffff where there is none |
//!
//! as many slots as fit before the next multiple of 64 bytes, and 8 at least. Weight `k` of a group has byte
//! [`place`]`(k)` and the nibble of that number: the lower ones of the 64 bytes, then the upper ones. Instructions
//! which merge the bytes of two vectors in lanes of 128 bits then give weights in order.
//!
//! Code 0 stands for exponent 0 (zero, and numbers below 2^-126), code `c` for `base + c`. A weight more than
//! 2^14 times smaller than the largest of its group, one in some ten thousand, is an exception. Of a row
//! with more exceptions than slots the last become the nearest that codes can say, which is off by less than
//! 2^-14 of that largest; otherwise nothing is lost, and results are those of plain bfloat16, bit for bit.

use half::bf16;

/// Weights that share a base.
pub(crate) const GROUP: usize = 128;
/// Bytes of a group, without its base.
pub(crate) const GROUP_BYTES: usize = GROUP + GROUP / 2;
/// Bytes of an exception.
const SLOT: usize = 4;
const LEAST_SLOTS: usize = 8;
/// More columns than an exception can number: the last number is that of an empty slot.
const MAX_COLS: usize = 1 << 24;
/// Largest code.
const CODES: u8 = 15;

/// Packed rows, which [`crate::Weights::Bf12`] is a matrix of.
#[derive(Debug)]
pub enum Bf12 {}

impl Bf12 {
    /// Bytes of a row of `cols` weights, a multiple of 64; `None` if that overflows, or for more columns than
    /// exceptions can number, 2^24 and more.
    pub fn row_bytes(cols: usize) -> Option<usize> {
        let groups = cols.div_ceil(GROUP);
        match cols {
            0 => Some(0),
            1..MAX_COLS => {
                let least = groups * (GROUP_BYTES + 1) + LEAST_SLOTS * SLOT;
                Some(least.next_multiple_of(64))
            }
            _ => None,
        }
    }

    /// Rounds a row to bfloat16, to the nearest, ties to even, and packs it; see [`crate::Weights::Bf12`] for
    /// what may be lost.
    ///
    /// # Panics
    /// If `out` does not have [`Bf12::row_bytes`].
    pub fn pack_row(row: &[f32], out: &mut [u8]) {
        assert_eq!(
            Some(out.len()),
            Bf12::row_bytes(row.len()),
            "bytes of a row"
        );
        pack_row(row, out);
    }
}

/// Where weight `k` of a group has its byte; those of eight weights follow each other.
#[inline(always)]
pub(crate) fn place(k: usize) -> usize {
    k / 64 * 64 + k % 32 / 8 * 16 + k % 64 / 32 * 8 + k % 8
}

/// The parts of a row: groups, bases, exceptions.
#[inline(always)]
pub(crate) fn parts(row: &[u8], cols: usize) -> (&[[u8; GROUP_BYTES]], &[u8], Exceptions<'_>) {
    let groups = cols.div_ceil(GROUP);
    let (planes, rest) = row.split_at(groups * GROUP_BYTES);
    let (bases, slots) = rest.split_at(groups);
    (planes.as_chunks().0, bases, Exceptions(slots.as_chunks().0))
}

/// The exceptions of a row that are not yet put in, in the order of their columns.
#[derive(Clone, Copy)]
pub(crate) struct Exceptions<'a>(&'a [[u8; SLOT]]);

impl Exceptions<'_> {
    /// Column and exponent of the first.
    #[inline(always)]
    fn first(&self) -> Option<(usize, u32)> {
        let slot = u32::from_le_bytes(*self.0.first()?);
        Some(((slot & 0xff_ffff) as usize, slot >> 24))
    }

    /// The column of the first, or more than any row has.
    #[inline(always)]
    pub(crate) fn next(&self) -> usize {
        self.first().map_or(usize::MAX, |(column, _)| column)
    }

    /// Sets the exponents of those in the columns of `weights`, which begin with `first`, and returns the
    /// column of the next.
    #[cold]
    #[inline(never)]
    pub(crate) fn put_in(&mut self, first: usize, weights: &mut [f32]) -> usize {
        while let Some((column, exponent)) = self.first()
            && column < first + weights.len()
        {
            self.0 = &self.0[1..];
            // Out of order in a file that is not ours: let alone.
            if let Some(at) = column.checked_sub(first) {
                let bits = weights[at].to_bits() & 0x807f_ffff;
                weights[at] = f32::from_bits(bits | exponent << 23);
            }
        }
        self.next()
    }
}

/// The weight whose byte is at `at` in a group, exceptions apart.
#[inline(always)]
pub(crate) fn weight(group: &[u8; GROUP_BYTES], base: u8, at: usize) -> f32 {
    let byte = u32::from(group[at]);
    let code = group[GROUP + at % 64] >> (at / 64 * 4) & CODES;
    let exponent = if code == 0 {
        0
    } else {
        base.wrapping_add(code)
    };
    f32::from_bits((byte & 0x80) << 24 | u32::from(exponent) << 23 | (byte & 0x7f) << 16)
}

/// All weights of a row (cols), by the definition.
pub(crate) fn unpack_row(row: &[u8], out: &mut [u16]) {
    let (groups, bases, mut exceptions) = parts(row, out.len());
    for (i, out) in out.chunks_mut(GROUP / 2).enumerate() {
        let (g, first) = (i / 2, i % 2 * GROUP / 2);
        let mut values = [0.0; GROUP / 2];
        for (k, value) in values.iter_mut().enumerate() {
            *value = weight(&groups[g], bases[g], place(first + k));
        }
        exceptions.put_in(i * GROUP / 2, &mut values);
        for (out, value) in out.iter_mut().zip(values) {
            *out = (value.to_bits() >> 16) as u16;
        }
    }
}

/// See [`Bf12::pack_row`].
fn pack_row(row: &[f32], out: &mut [u8]) {
    let groups = row.len().div_ceil(GROUP);
    let (planes, rest) = out.split_at_mut(groups * GROUP_BYTES);
    let (bases, slots) = rest.split_at_mut(groups);
    planes.fill(0);
    slots.fill(0xff);
    let mut slots = slots.as_chunks_mut::<SLOT>().0.iter_mut();
    let exponent = |w: u16| (w >> 7 & 0xff) as u8;
    let groups = row.chunks(GROUP).zip(planes.chunks_exact_mut(GROUP_BYTES));
    for (g, ((values, group), base)) in groups.zip(bases).enumerate() {
        let mut weights = [0; GROUP];
        for (weight, &value) in weights.iter_mut().zip(values) {
            *weight = bf16::from_f32(value).to_bits();
        }
        let largest = weights.iter().map(|&w| exponent(w)).max().unwrap_or(0);
        *base = largest.saturating_sub(CODES);
        for (k, &w) in weights.iter().enumerate() {
            let (mut byte, mut code) = ((w >> 8 & 0x80 | w & 0x7f) as u8, 0);
            match exponent(w) {
                0 => {}
                e if e > *base => code = e - *base,
                e => match slots.next() {
                    Some(slot) => {
                        let column = (g * GROUP + k) as u32;
                        *slot = (u32::from(e) << 24 | column).to_le_bytes();
                    }
                    // Rounded to zero, or to the smallest that has a code.
                    None => {
                        byte &= 0x80;
                        code = u8::from(e == *base && w & 0x7f != 0);
                    }
                },
            }
            let at = place(k);
            group[at] = byte;
            group[GROUP + at % 64] |= code << (at / 64 * 4);
        }
    }
}

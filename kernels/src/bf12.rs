//! bfloat16 in 12 bits: the exponents of neighbouring weights are similar, so four bits are enough for them.
//!
//! # Bytes
//!
//! A row of `cols` weights is split into groups of 128, and the last group is padded with zeros. A row has
//! [`Bf12::row_bytes`] bytes:
//!
//! | bytes | content |
//! |---|---|
//! | 192 per group | 128 bytes: sign (bit 7) and mantissa (bits 0 to 6) of one weight each; 64 bytes: the exponent codes |
//! | 1 per group | `base` |
//! | 4 per slot | an exception: column (24 bits), exponent (8 bits); 0xffffffff in an empty slot |
//!
//! There are at least 8 slots, and all that fit before the next multiple of 64 bytes. Weight `k` of a group uses byte
//! [`byte_index`]`(k)` and the nibble of the same index, where the lower nibbles of the 64 bytes come before the upper
//! nibbles. In this order, instructions that interleave the bytes of two vectors within 128-bit lanes give the weights
//! in sequence.
//!
//! Code 0 means exponent 0 (zero, and numbers below 2^-126), and code `c` means exponent `base + c`. A weight that is
//! more than 2^14 times smaller than the largest of its group is an exception; about one in ten thousand is. If a row
//! has more exceptions than slots, the last exceptions are rounded to the nearest value that has a code. The error is
//! less than 2^-14 of the largest weight of the group. Otherwise packing is lossless, and results have the same bits as
//! with plain bfloat16.

use half::bf16;

/// Weights that share a base.
pub(crate) const GROUP: usize = 128;
/// Bytes of a group, without its base.
pub(crate) const GROUP_BYTES: usize = GROUP + GROUP / 2;
/// Bytes of an exception.
const SLOT: usize = 4;
const MIN_SLOTS: usize = 8;
/// The first number of columns that is too large for an exception: the last column number marks an empty slot.
const MAX_COLS: usize = 1 << 24;
/// Largest code.
const MAX_CODE: u8 = 15;

/// The row format of [`crate::Weights::Bf12`].
#[derive(Debug)]
pub enum Bf12 {}

impl Bf12 {
    /// The size in bytes of a row of `cols` weights, a multiple of 64. `None` for 2^24 columns or more, which exceptions
    /// cannot number.
    pub fn row_bytes(cols: usize) -> Option<usize> {
        let groups = cols.div_ceil(GROUP);
        match cols {
            0 => Some(0),
            1..MAX_COLS => {
                let min_bytes = groups * (GROUP_BYTES + 1) + MIN_SLOTS * SLOT;
                Some(min_bytes.next_multiple_of(64))
            }
            _ => None,
        }
    }

    /// Rounds a row to bfloat16, to nearest, ties to even, and packs it. See [`crate::Weights::Bf12`] for when this is
    /// lossy.
    ///
    /// # Panics
    /// If `out` does not have [`Bf12::row_bytes`] bytes.
    pub fn pack_row(row: &[f32], out: &mut [u8]) {
        assert_eq!(
            Some(out.len()),
            Bf12::row_bytes(row.len()),
            "bytes of a row"
        );
        pack_row(row, out);
    }
}

/// The index of the byte of weight `k` of a group. The bytes of each eight weights are contiguous.
#[inline(always)]
pub(crate) fn byte_index(k: usize) -> usize {
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

/// The exceptions of a row that have not been applied yet, in column order.
#[derive(Clone, Copy)]
pub(crate) struct Exceptions<'a>(&'a [[u8; SLOT]]);

impl Exceptions<'_> {
    /// Column and exponent of the first exception.
    #[inline(always)]
    fn first(&self) -> Option<(usize, u32)> {
        let slot = u32::from_le_bytes(*self.0.first()?);
        Some(((slot & 0xff_ffff) as usize, slot >> 24))
    }

    /// The column of the first exception, or `usize::MAX`.
    #[inline(always)]
    pub(crate) fn next(&self) -> usize {
        self.first().map_or(usize::MAX, |(column, _)| column)
    }

    /// Sets the exponents of the exceptions among `weights`, the columns from `first` on. Returns the column of the next
    /// exception.
    #[cold]
    #[inline(never)]
    pub(crate) fn apply(&mut self, first: usize, weights: &mut [f32]) -> usize {
        while let Some((column, exponent)) = self.first()
            && column < first + weights.len()
        {
            self.0 = &self.0[1..];
            // A file that we did not write may have exceptions out of order. They are ignored.
            if let Some(index) = column.checked_sub(first) {
                let bits = weights[index].to_bits() & 0x807f_ffff;
                weights[index] = f32::from_bits(bits | exponent << 23);
            }
        }
        self.next()
    }
}

/// The weight whose byte has index `index` in a group, without exceptions.
#[inline(always)]
pub(crate) fn weight(group: &[u8; GROUP_BYTES], base: u8, index: usize) -> f32 {
    let byte = u32::from(group[index]);
    let code = group[GROUP + index % 64] >> (index / 64 * 4) & MAX_CODE;
    let exponent = if code == 0 {
        0
    } else {
        base.wrapping_add(code)
    };
    f32::from_bits((byte & 0x80) << 24 | u32::from(exponent) << 23 | (byte & 0x7f) << 16)
}

/// Unpacks a row (cols), by the definition.
pub(crate) fn unpack_row(row: &[u8], out: &mut [u16]) {
    let (groups, bases, mut exceptions) = parts(row, out.len());
    for (i, out) in out.chunks_mut(GROUP / 2).enumerate() {
        let (g, first) = (i / 2, i % 2 * GROUP / 2);
        let mut values = [0.0; GROUP / 2];
        for (k, value) in values.iter_mut().enumerate() {
            *value = weight(&groups[g], bases[g], byte_index(first + k));
        }
        exceptions.apply(i * GROUP / 2, &mut values);
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
        *base = largest.saturating_sub(MAX_CODE);
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
                    // Round to zero, or to the smallest value that has a code.
                    None => {
                        byte &= 0x80;
                        code = u8::from(e == *base && w & 0x7f != 0);
                    }
                },
            }
            let index = byte_index(k);
            group[index] = byte;
            group[GROUP + index % 64] |= code << (index / 64 * 4);
        }
    }
}

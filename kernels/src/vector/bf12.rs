//! Matrices of [`crate::bf12`] weights times one or two vectors, and their rows.
//!
//! ```text
//! for two rows, for a group of columns:
//!     acc[r][i] += x[i][k..] * unpack(w[r][k..])      16 lanes each, k in steps of 16
//! out[i][r] = tree sum of acc[r][i]
//! ```
//!
//! 1. The order of sums is that of `vector::linear`, so the bits are those of the same weights in bfloat16.
//! 2. Two rows are taken at a time, because the additions of one row wait for each other. The next rows are prefetched
//!    in memory order, as one stream.
//! 3. A group with an exception, about one in a hundred, is stored to memory, where the exponent is replaced.

use core::ops::Range;

use super::simd::Simd;
use crate::bf12::{Bf12, Exceptions, GROUP, GROUP_BYTES, parts};
use crate::scalar::LANES;
use crate::view::ViewMut;

/// How far ahead packed weights are prefetched.
const PREFETCH_BYTES: usize = 8 * 1024;

/// Vectors of half a group.
const HALF: usize = GROUP / 2 / LANES;

/// A row that is read half a group at a time, in order.
#[derive(Clone, Copy)]
struct Row<'a> {
    groups: *const u8,
    bases: *const u8,
    exceptions: Exceptions<'a>,
    /// The column of the next exception.
    next: usize,
}

impl<'a> Row<'a> {
    #[inline(always)]
    fn new(row: &'a [u8], cols: usize) -> Self {
        let (groups, bases, exceptions) = parts(row, cols);
        Row {
            groups: groups.as_ptr().cast(),
            bases: bases.as_ptr(),
            exceptions,
            next: exceptions.next(),
        }
    }

    /// Unpacks half of group `g`, without exceptions.
    ///
    /// # Safety
    /// The row has that group, and `half` is 0 or 1.
    #[inline(always)]
    unsafe fn plain<S: Simd>(&self, s: S, g: usize, half: usize) -> [S::V; HALF] {
        // SAFETY: the caller guarantees the group.
        unsafe { s.unpack(self.groups.add(g * GROUP_BYTES), half, *self.bases.add(g)) }
    }

    /// Unpacks half of group `g`.
    ///
    /// # Safety
    /// The row has that group, and `half` is 0 or 1.
    #[inline(always)]
    unsafe fn unpack<S: Simd>(&mut self, s: S, g: usize, half: usize) -> [S::V; HALF] {
        // SAFETY: the caller guarantees it.
        let v = unsafe { self.plain(s, g, half) };
        let first = g * GROUP + half * GROUP / 2;
        if self.next >= first + GROUP / 2 {
            return v;
        }
        let mut values = [[0.0; LANES]; HALF];
        for (values, v) in values.iter_mut().zip(v) {
            *values = s.to_array(v);
        }
        self.next = self.exceptions.apply(first, values.as_flattened_mut());
        let mut out = v;
        for (v, values) in out.iter_mut().zip(&values) {
            *v = s.load_array(values);
        }
        out
    }
}

/// See [`crate::bf12`]. `out`: (cols).
#[inline(always)]
pub(crate) fn unpack_row<S: Simd>(s: S, row: &[u8], out: &mut [u16]) {
    let mut row = Row::new(row, out.len());
    let (whole, rest) = out.as_chunks_mut::<{ GROUP / 2 }>();
    let n = whole.len();
    for (i, out) in whole.iter_mut().enumerate() {
        unpack_half(s, &mut row, i, out);
    }
    if !rest.is_empty() {
        let mut last = [0; GROUP / 2];
        unpack_half(s, &mut row, n, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Unpacks half group `i`, which the row has.
#[inline(always)]
fn unpack_half<S: Simd>(s: S, row: &mut Row<'_>, i: usize, out: &mut [u16; GROUP / 2]) {
    if i.is_multiple_of(2) {
        for line in 0..GROUP_BYTES / 64 {
            s.prefetch_streaming(
                row.groups
                    .wrapping_add(i / 2 * GROUP_BYTES + PREFETCH_BYTES + line * 64),
            );
        }
    }
    // SAFETY: the row has columns in this half.
    let v = unsafe { row.unpack(s, i / 2, i % 2) };
    let mut values = [[0.0; LANES]; HALF];
    for (values, v) in values.iter_mut().zip(v) {
        *values = s.to_array(v);
    }
    for (out, value) in out.iter_mut().zip(values.as_flattened()) {
        *out = (value.to_bits() >> 16) as u16;
    }
}

/// See [`crate::linear`], for up to two inputs.
#[inline(always)]
pub(crate) fn linear_bf12<S: Simd>(
    s: S,
    w: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut ViewMut<'_, f32>,
) {
    match out.shape().0 {
        0 => (),
        1 => multiply::<S, 1>(s, w, cols, [x], out),
        _ => {
            let (first, second) = x.split_at(cols);
            multiply::<S, 2>(s, w, cols, [first, second], out);
        }
    }
}

#[inline(always)]
fn multiply<S: Simd, const INPUTS: usize>(
    s: S,
    w: &[u8],
    cols: usize,
    x: [&[f32]; INPUTS],
    out: &mut ViewMut<'_, f32>,
) {
    assert!(x.iter().all(|x| x.len() == cols));
    let bytes = Bf12::row_bytes(cols).expect("columns");
    let prefetch = PREFETCH_BYTES.next_multiple_of(2 * bytes);
    let mut pairs = w.chunks_exact(2 * bytes);
    let mut row_index = 0;
    for pair in &mut pairs {
        let rows = [
            Row::new(&pair[..bytes], cols),
            Row::new(&pair[bytes..], cols),
        ];
        let start = pair.as_ptr().wrapping_add(prefetch);
        let sums = dots(s, rows, start..start.wrapping_add(2 * bytes), x);
        for (i, sums) in sums.into_iter().enumerate() {
            out.row(i)[row_index..row_index + 2].copy_from_slice(&sums);
        }
        row_index += 2;
    }
    for row in pairs.remainder().chunks_exact(bytes) {
        let row = Row::new(row, cols);
        let sums = dots(s, [row, row], w.as_ptr()..w.as_ptr(), x);
        for (i, [sum, _]) in sums.into_iter().enumerate() {
            out.row(i)[row_index] = sum;
        }
    }
}

/// The dot products of each input with both rows. Prefetches the bytes in `prefetch` meanwhile.
#[inline(always)]
fn dots<S: Simd, const INPUTS: usize>(
    s: S,
    [mut a, mut b]: [Row<'_>; 2],
    mut prefetch: Range<*const u8>,
    x: [&[f32]; INPUTS],
) -> [[f32; 2]; INPUTS] {
    let cols = x[0].len();
    let (groups, rest) = (cols / GROUP, cols % GROUP);
    let (mut sums_a, mut sums_b) = ([s.splat(0.0); INPUTS], [s.splat(0.0); INPUTS]);
    let mut g = 0;
    while g < groups {
        // Groups without exceptions, in a loop without calls, so that the sums stay in registers.
        let end = groups.min(a.next.min(b.next) / GROUP);
        while g < end {
            for line in 0..2 * GROUP_BYTES / 64 {
                s.prefetch_streaming(prefetch.start.wrapping_add(line * 64));
            }
            prefetch.start = prefetch.start.wrapping_add(2 * GROUP_BYTES);
            for half in 0..2 {
                // SAFETY: the rows have all columns of the group.
                unsafe {
                    sums_a = add_half(s, a.plain(s, g, half), x, (g, half), sums_a);
                    sums_b = add_half(s, b.plain(s, g, half), x, (g, half), sums_b);
                }
            }
            g += 1;
        }
        if g < groups {
            for half in 0..2 {
                // SAFETY: as above.
                unsafe {
                    sums_a = add_half(s, a.unpack(s, g, half), x, (g, half), sums_a);
                    sums_b = add_half(s, b.unpack(s, g, half), x, (g, half), sums_b);
                }
            }
            g += 1;
        }
    }
    while prefetch.start < prefetch.end {
        s.prefetch_streaming(prefetch.start);
        prefetch.start = prefetch.start.wrapping_add(64);
    }
    for half in 0..rest.div_ceil(GROUP / 2) {
        let x = x.map(|x| &x[groups * GROUP + half * GROUP / 2..]);
        for (row, sums) in [(&mut a, &mut sums_a), (&mut b, &mut sums_b)] {
            // SAFETY: the last group has columns in this half.
            let w = unsafe { row.unpack(s, groups, half) };
            for i in 0..INPUTS {
                for (w, x) in w.into_iter().zip(x[i].chunks(LANES)) {
                    let sum = s.fma(w, s.load_padded(x, 0.0), sums[i]);
                    sums[i] = s.first(x.len(), sum, sums[i]);
                }
            }
        }
    }
    core::array::from_fn(|i| [s.sum(sums_a[i]), s.sum(sums_b[i])])
}

/// Adds the products of half `half` of group `g` with the inputs to `sums`.
///
/// # Safety
/// The inputs have all columns of the group.
#[inline(always)]
unsafe fn add_half<S: Simd, const INPUTS: usize>(
    s: S,
    w: [S::V; HALF],
    x: [&[f32]; INPUTS],
    (g, half): (usize, usize),
    mut sums: [S::V; INPUTS],
) -> [S::V; INPUTS] {
    for (j, w) in w.into_iter().enumerate() {
        let k = g * GROUP + half * GROUP / 2 + j * LANES;
        for (sum, x) in sums.iter_mut().zip(x) {
            // SAFETY: the caller guarantees the columns.
            let x = unsafe { s.load(x.as_ptr().add(k)) };
            *sum = s.fma(w, x, *sum);
        }
    }
    sums
}

//! Rotary positions, and rows on their way into and out of a sequence's memory: rope.cu.

use super::Row;
use super::driver::Buffer;
use super::ops::{Ops, ROW_THREADS, Slice, u32_arg};
use crate::error::Result;
use crate::ops::Heads;

impl Ops {
    /// Turns the heads of the queries in qkv (n, queries + keys + values) in place and enters keys,
    /// turned, and values in planes `plane` and the next. `angles`: (n, head_dim), cosines, then sines.
    pub fn rope_append(
        &self,
        n: usize,
        heads: Heads,
        qkv: &Buffer,
        rows: Slice<'_>,
        angles: Slice<'_>,
        plane: usize,
    ) -> Result<()> {
        let q_dim = heads.n_heads * heads.head_dim;
        let kv_dim = heads.n_kv_heads * heads.head_dim;
        let args = [
            qkv.holding(n * (q_dim + 2 * kv_dim)),
            rows.0.after(rows.1, n * Row::UNITS),
            angles.0.after(angles.1, n * heads.head_dim),
            u32_arg(plane),
            u32_arg(q_dim),
            u32_arg(kv_dim),
            u32_arg(heads.head_dim / 2),
        ];
        // SAFETY: the arguments of `rope_append` in rope.cu, sizes checked; rows come from `GpuRing::row`.
        unsafe {
            qkv.gpu()
                .launch(self.rope_append, [n, 1], ROW_THREADS, &args)
        }
    }

    /// Enters the `planes` pieces of `dim` of each row of x at its position, in the planes from `plane` on.
    pub fn scatter(
        &self,
        n: usize,
        x: &Buffer,
        rows: Slice<'_>,
        (plane, planes): (usize, usize),
        dim: usize,
    ) -> Result<()> {
        let args = [
            x.holding(n * planes * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(plane),
            u32_arg(planes),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `scatter` in rope.cu, sizes checked; rows come from `GpuRing::row`.
        unsafe { x.gpu().launch(self.scatter, [n, 1], ROW_THREADS, &args) }
    }

    /// Fetches x (n, dim) from `plane` of each row's memory, at its position.
    pub fn gather(
        &self,
        n: usize,
        x: &Buffer,
        rows: Slice<'_>,
        plane: usize,
        dim: usize,
    ) -> Result<()> {
        let args = [
            x.holding(n * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(plane),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `gather` in rope.cu, sizes checked; rows come from `GpuRing::row`.
        unsafe { x.gpu().launch(self.gather, [n, 1], ROW_THREADS, &args) }
    }

    /// Elementwise maxima of what each row sees in `plane` of its memory, whose rows are `dim` wide, into
    /// out (n, dim).
    pub fn max_pool(
        &self,
        n: usize,
        rows: Slice<'_>,
        plane: usize,
        dim: usize,
        out: &Buffer,
    ) -> Result<()> {
        let args = [
            out.holding(n * dim),
            rows.0.after(rows.1, n * Row::UNITS),
            u32_arg(plane),
            u32_arg(dim),
        ];
        // SAFETY: the arguments of `max_pool` in rope.cu, sizes checked; rows come from `GpuRing::row`.
        unsafe { out.gpu().launch(self.max_pool, [n, 1], ROW_THREADS, &args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::KvType;
    use crate::cuda::GpuRing;
    use crate::cuda::ops::testing::{assert_near, device, kept, noise, rows, upload};

    /// Rings that wrap: what is put is taken, rounded where halves are kept, and the maximum is that of what
    /// is seen.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn rows_of_a_store_are_put_taken_and_pooled() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let (dim, capacity, n) = (70, 9, 14);
        let mut x = noise(n * 2 * dim, 47);
        // Of the last row: between two halves, the largest and beyond it, the smallest and below them.
        let last = [
            0x3f80_1000u32,
            0x3f80_3000,
            0xbf80_1000,
            0x477f_e000,
            0x477f_efff,
            0x477f_f000,
            0xff7f_ffff,
            0x3380_0000,
            0x3300_0000,
            0x3300_0001,
            0x33c0_0000,
            0x387f_e000,
            0x3880_0000,
            0x8000_0000,
            0x8000_0001,
        ]
        .map(f32::from_bits);
        let end = x.len();
        x[end - last.len()..].copy_from_slice(&last);
        for kv in KvType::ALL {
            let mut ring = GpuRing::new(&gpu, kv, (3, dim), Some(capacity)).unwrap();
            ring.reserve(n).unwrap();
            for (position, row) in x.chunks(2 * dim).enumerate() {
                let at = rows(&gpu, &[ring.row(position, 0..1)]);
                let row = upload(&gpu, row);
                ops.scatter(1, &row, (&at, 0), (1, 2), dim).unwrap();
            }
            let x = kept(kv, &x);
            let put = |position: usize, plane: usize| &x[(2 * position + plane - 1) * dim..][..dim];
            let seen = [5..6, 6..14, 11..13, 13..14];
            let list: Vec<Row> = (seen.iter())
                .map(|s| ring.row(s.start, s.clone()))
                .collect();
            let list = rows(&gpu, &list);
            let out = gpu.alloc(seen.len() * dim * 4).unwrap();
            for plane in [1, 2] {
                ops.gather(seen.len(), &out, (&list, 0), plane, dim)
                    .unwrap();
                let found = gpu.read_f32s(&out, seen.len() * dim).unwrap();
                for (row, s) in found.chunks(dim).zip(&seen) {
                    assert_eq!(
                        row,
                        put(s.start, plane),
                        "{kv}, plane {plane}, row {}",
                        s.start
                    );
                }
                ops.max_pool(seen.len(), (&list, 0), plane, dim, &out)
                    .unwrap();
                let found = gpu.read_f32s(&out, seen.len() * dim).unwrap();
                for (row, s) in found.chunks(dim).zip(&seen) {
                    for (i, &found) in row.iter().enumerate() {
                        let expected =
                            (s.clone()).fold(f32::NEG_INFINITY, |m, p| m.max(put(p, plane)[i]));
                        assert_eq!(found, expected, "{kv}, plane {plane}, {s:?}, column {i}");
                    }
                }
            }
        }
    }

    /// Queries and keys are turned by their angles, values are not; halves are the same numbers, rounded.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn positions_turn_queries_and_keys() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 6,
        };
        let (n, q_dim, kv_dim, half) = (3, 24, 12, 3);
        let (qkv, angles) = (noise(n * (q_dim + 2 * kv_dim), 53), noise(n * 2 * half, 59));
        let turns = upload(&gpu, &angles);
        let [exact, halves] = KvType::ALL.map(|kv| {
            let ring = GpuRing::new(&gpu, kv, (2, kv_dim), Some(4)).unwrap();
            let list: Vec<Row> = (0..n).map(|i| ring.row(2 + i, 0..1)).collect();
            let list = rows(&gpu, &list);
            let on_device = upload(&gpu, &qkv);
            ops.rope_append(n, heads, &on_device, (&list, 0), (&turns, 0), 0)
                .unwrap();
            let turned = gpu.read_f32s(&on_device, qkv.len()).unwrap();
            let out = gpu.alloc(n * kv_dim * 4).unwrap();
            let plane = |plane| {
                ops.gather(n, &out, (&list, 0), plane, kv_dim).unwrap();
                gpu.read_f32s(&out, n * kv_dim).unwrap()
            };
            (turned, plane(0), plane(1))
        });
        let (turned, keys, values) = exact;
        let rounded = |values: &[f32]| kept(KvType::F16, values);
        assert_eq!(halves, (turned.clone(), rounded(&keys), rounded(&values)));
        for i in 0..n {
            let row = &qkv[i * (q_dim + 2 * kv_dim)..][..q_dim + 2 * kv_dim];
            let angle = &angles[i * 2 * half..][..2 * half];
            let expected = |from: &[f32], at: usize| {
                let pair = at / 2;
                let (cos, sin) = (angle[pair % half], angle[half + pair % half]);
                let (a, b) = (from[2 * pair], from[2 * pair + 1]);
                let turned = [a * cos - b * sin, a * sin + b * cos];
                f64::from(turned[at % 2])
            };
            for at in 0..q_dim {
                let found = turned[i * (q_dim + 2 * kv_dim) + at];
                assert_near(
                    &format!("query {i}, column {at}"),
                    found,
                    expected(&row[..q_dim], at),
                );
            }
            for at in 0..kv_dim {
                let found = keys[i * kv_dim + at];
                assert_near(
                    &format!("key {i}, column {at}"),
                    found,
                    expected(&row[q_dim..], at),
                );
            }
            assert_eq!(
                values[i * kv_dim..][..kv_dim],
                row[q_dim + kv_dim..],
                "value {i}"
            );
        }
    }
}

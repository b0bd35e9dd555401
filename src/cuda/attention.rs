//! Softmax attention over cached keys: attention.cu.

use super::Row;
use super::driver::{Arg, Buffer};
use super::ops::{MAX_ROWS, Ops, Slice, u32_arg};
use super::splits::{MAX_HEAD_DIM, MAX_SHARED, MAX_SPLITS, PARTIAL_BYTES};
use crate::error::Result;
use crate::ops::Heads;

/// What an attention does with its rows.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// (n, [`Row::UNITS`]).
    pub rows: Slice<'a>,
    /// [`splits`] of the most positions that a row sees. Changes how long it takes, and nothing else.
    pub splits: usize,
    /// The plane of the keys; values are in the next.
    pub plane: usize,
    /// Width of the rows that begin with the queries.
    pub q_stride: usize,
    /// Rotary angles, if keys and values that follow the queries are to be entered first: for rows of
    /// different sequences.
    pub angles: Option<Slice<'a>>,
}

impl Ops {
    /// Softmax attention of the queries in q into out (n, n_heads * head_dim).
    pub fn attention(&self, n: usize, q: &Buffer, with: Attention<'_>, out: &Buffer) -> Result<()> {
        let Heads {
            n_heads,
            n_kv_heads,
            head_dim,
        } = with.heads;
        assert!(head_dim <= MAX_HEAD_DIM);
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let least = match with.angles {
            Some(_) => q_dim + 2 * kv_dim,
            None => q_dim,
        };
        assert!(with.q_stride >= least);
        for first in (0..n).step_by(MAX_ROWS) {
            let n = MAX_ROWS.min(n - first);
            let of_angles = |a: Slice<'_>| a.0.after(a.1 + first * head_dim, n * head_dim);
            let blocks = with.splits.min(MAX_SHARED / (n * n_heads)).max(1);
            let of_heads = if blocks > 1 { n * n_heads } else { 0 };
            let (partials, grid) = (&self.partials, [n_heads * blocks, n]);
            let args = [
                q.after(first * with.q_stride, n * with.q_stride),
                (with.rows.0).after(with.rows.1 + first * Row::UNITS, n * Row::UNITS),
                with.angles.map_or(Arg::Pointer(0), of_angles),
                out.after(first * q_dim, n * q_dim),
                (partials.parts).holding_bytes(of_heads * MAX_SPLITS * head_dim * PARTIAL_BYTES),
                partials.arrivals.holding(of_heads),
                u32_arg(with.q_stride),
                u32_arg(with.plane),
                u32_arg(n_heads),
                u32_arg(n_kv_heads),
                u32_arg(head_dim),
            ];
            // SAFETY: the arguments of `attention` in attention.cu, sizes checked; rows come from
            // `GpuRing::row`, and positions are taken modulo the capacity, so no range can leave the rings.
            // Launches that share parts and arrivals are in one stream, so one has them at a time.
            unsafe { q.gpu().launch(self.attention, grid, 256, &args)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;

    use super::*;
    use crate::cache::KvType;
    use crate::cuda::ops::testing::{assert_near, device, kept, noise, rows, upload};
    use crate::cuda::{Gpu, GpuRing, Graph, splits};

    /// Positions 0..n with keys and values of (n, kv_dim) each.
    fn filled(
        (gpu, ops): (&Arc<Gpu>, &Ops),
        kv: KvType,
        (limit, kv_dim): (usize, usize),
        (k, v): (&[f32], &[f32]),
    ) -> GpuRing {
        let n = k.len() / kv_dim;
        let mut ring = GpuRing::new(gpu, kv, (2, kv_dim), Some(limit)).unwrap();
        ring.reserve(n).unwrap();
        // No two in a launch that lie in the same place.
        for first in (0..n).step_by(limit) {
            let positions = first..n.min(first + limit);
            let row = |p| [&k[p * kv_dim..][..kv_dim], &v[p * kv_dim..][..kv_dim]].concat();
            let x: Vec<f32> = positions.clone().flat_map(row).collect();
            let list: Vec<Row> = positions.map(|p| ring.row(p, p..p + 1)).collect();
            let at = rows(gpu, &list);
            ops.scatter(list.len(), &upload(gpu, &x), (&at, 0), (0, 2), kv_dim)
                .unwrap();
        }
        ring
    }

    /// The head's average of the values at the positions `seen`, by the softmax of the scores.
    fn reference(
        (q, k, v): (&[f32], &[f32], &[f32]),
        seen: Range<usize>,
        (stride, at): (usize, usize),
    ) -> Vec<f64> {
        let of = |plane: &[f32], p: usize| -> Vec<f64> {
            let columns = &plane[p * stride + at..][..q.len()];
            columns.iter().map(|&x| f64::from(x)).collect()
        };
        let weight = |p| {
            let dot: f64 = q.iter().zip(of(k, p)).map(|(&a, b)| f64::from(a) * b).sum();
            (dot / (q.len() as f64).sqrt()).exp()
        };
        let (mut average, mut sum) = (vec![0.0; q.len()], 0.0);
        for p in seen {
            let weight = weight(p);
            sum += weight;
            average
                .iter_mut()
                .zip(of(v, p))
                .for_each(|(to, x)| *to += weight * x);
        }
        average.iter().map(|x| x / sum).collect()
    }

    /// Ranges of one key, of several tiles, around the bounds of splits; rings that have wrapped; heads that
    /// share keys. And the same bits for a row alone and among others, with however many blocks.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn attention_is_the_softmax_average() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let all = 3100; // positions entered: those within the limit of the last are left
        for (n_heads, n_kv_heads, head_dim, limit, kv) in [
            (1, 1, 8, 400, KvType::F32),
            (4, 2, 64, 2500, KvType::F32),
            (4, 2, 64, 2500, KvType::F16),
            (3, 1, 200, 600, KvType::F32),
            (3, 1, 200, 600, KvType::F16),
            (2, 1, 6, 2500, KvType::F32),
            (2, 1, 12, 600, KvType::F16),
        ] {
            let heads = Heads {
                n_heads,
                n_kv_heads,
                head_dim,
            };
            let lengths = [
                1, 63, 127, 128, 129, 255, 256, 257, 384, 511, 2047, 2048, 2049, 2450,
            ];
            let lengths = lengths.into_iter().filter(|&length| length <= limit);
            // Not all to the last position.
            let visible: Vec<_> = (lengths.enumerate())
                .map(|(i, length)| (all - i % 7 - length, all - i % 7))
                .map(|(from, to)| from.max(all - limit)..to)
                .collect();
            let (n, q_dim, kv_dim) = (visible.len(), n_heads * head_dim, n_kv_heads * head_dim);
            let q = noise(n * q_dim, 11);
            let (k, v) = (noise(all * kv_dim, 13), noise(all * kv_dim, 17));
            let ring = filled((&gpu, &ops), kv, (limit, kv_dim), (&k, &v));
            let (k, v) = (kept(kv, &k), kept(kv, &v));
            let run = |first: usize, n: usize, splits: usize| {
                let seen = visible[first..][..n].iter().map(|v| ring.row(0, v.clone()));
                let seen = rows(&gpu, &seen.collect::<Vec<_>>());
                let out = gpu.alloc(n * q_dim * 4).unwrap();
                let with = Attention {
                    heads,
                    rows: (&seen, 0),
                    splits,
                    plane: 0,
                    q_stride: q_dim,
                    angles: None,
                };
                let q = upload(&gpu, &q[first * q_dim..][..n * q_dim]);
                ops.attention(n, &q, with, &out).unwrap();
                gpu.read_f32s(&out, n * q_dim).unwrap()
            };
            let found = run(0, n, 1);
            for (i, (q, found)) in q.chunks(head_dim).zip(found.chunks(head_dim)).enumerate() {
                let (seen, head) = (visible[i / n_heads].clone(), i % n_heads);
                let at = head / (n_heads / n_kv_heads) * head_dim;
                let expected = reference((q, &k, &v), seen.clone(), (kv_dim, at));
                for (d, (&found, expected)) in found.iter().zip(expected).enumerate() {
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-5,
                        "{heads:?} {kv} {seen:?} head {head} column {d}: expected {expected}, found {found}"
                    );
                }
            }
            for blocks in [2, 3, 16] {
                assert!(run(0, n, blocks) == found, "{heads:?} {kv} {blocks} blocks");
            }
            for (i, seen) in visible.iter().enumerate() {
                let alone = run(i, 1, splits(seen.len()));
                assert!(
                    alone == found[i * q_dim..][..q_dim],
                    "{heads:?} {kv} {seen:?}"
                );
            }
        }
    }

    /// A range longer than its ring goes round in it, also where a block reads more keys at once than that has.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn no_range_leaves_its_ring() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 8,
        };
        let (limit, dim) = (5, heads.head_dim);
        let (q, k, v) = (
            noise(dim, 43),
            noise(limit * dim, 47),
            noise(limit * dim, 53),
        );
        let ring = filled((&gpu, &ops), KvType::F32, (limit, dim), (&k, &v));
        for n in [3, 700, 9000] {
            let row = rows(&gpu, &[ring.row(0, 0..n)]);
            let out = gpu.alloc(dim * 4).unwrap();
            let with = Attention {
                heads,
                rows: (&row, 0),
                splits: splits(n),
                plane: 0,
                q_stride: dim,
                angles: None,
            };
            ops.attention(1, &upload(&gpu, &q), with, &out).unwrap();
            let round = |plane: &[f32]| plane.repeat(n.div_ceil(limit));
            let expected = reference((&q, &round(&k), &round(&v)), 0..n, (dim, 0));
            for (found, expected) in gpu.read_f32s(&out, dim).unwrap().into_iter().zip(expected) {
                assert_near(&format!("{n} positions"), found, expected);
            }
        }
    }

    /// One graph, started as a sequence grows past bounds of splits.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn a_graph_follows_a_growing_sequence() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 2,
            n_kv_heads: 2,
            head_dim: 32,
        };
        let dim = 64;
        let (k, v) = (noise(2100 * dim, 31), noise(2100 * dim, 37));
        let ring = filled((&gpu, &ops), KvType::F32, (4000, dim), (&k, &v));
        let (q, table) = (
            upload(&gpu, &noise(dim, 41)),
            rows(&gpu, &[ring.row(0, 0..1)]),
        );
        let out = gpu.alloc(dim * 4).unwrap();
        let attend = |splits| {
            let with = Attention {
                heads,
                rows: (&table, 0),
                splits,
                plane: 0,
                q_stride: dim,
                angles: None,
            };
            ops.attention(1, &q, with, &out)
        };
        for recorded in [4, 16] {
            let graph = Graph::record(&gpu, || attend(recorded)).unwrap();
            for seen in [1, 255, 256, 257, 383, 384, 1300, 2047, 2048, 2100, 3] {
                gpu.write_u32s(&table, &ring.row(0, 0..seen).units())
                    .unwrap();
                attend(1).unwrap();
                let expected = gpu.read_f32s(&out, dim).unwrap();
                for _ in 0..2 {
                    gpu.write_u32s(&out, &vec![0; dim]).unwrap();
                    graph.launch().unwrap();
                    let found = gpu.read_f32s(&out, dim).unwrap();
                    assert_eq!(
                        found, expected,
                        "{seen} seen, recorded for {recorded} splits"
                    );
                }
            }
        }
    }

    /// Entering and turning in the attention's launch is what rope_append does before it.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn rows_of_different_sequences_enter_their_own_keys() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
        };
        let (n, q_dim, kv_dim) = (3, 64, 32);
        let qkv = noise(n * (q_dim + 2 * kv_dim), 19);
        let angles = upload(&gpu, &noise(n * heads.head_dim, 23));
        let run = |kv: KvType, fused: bool, splits: usize| {
            // Positions before the rows: in one split, in two; in four, in a ring that has wrapped.
            let stores = [4, 299, 700].map(|n| {
                let (k, v) = (noise(n * kv_dim, 29), noise(n * kv_dim, 31));
                (n, filled((&gpu, &ops), kv, (600, kv_dim), (&k, &v)))
            });
            let row = |(n, ring): &(usize, GpuRing)| ring.row(*n, n.saturating_sub(530)..n + 1);
            let list = rows(&gpu, &stores.each_ref().map(row));
            let (qkv, out) = (upload(&gpu, &qkv), gpu.alloc(n * q_dim * 4).unwrap());
            if !fused {
                let at = ((&list, 0), (&angles, 0));
                ops.rope_append(n, heads, &qkv, at.0, at.1, 0).unwrap();
            }
            let with = Attention {
                heads,
                rows: (&list, 0),
                splits,
                plane: 0,
                q_stride: q_dim + 2 * kv_dim,
                angles: fused.then_some((&angles, 0)),
            };
            ops.attention(n, &qkv, with, &out).unwrap();
            let entered = gpu.alloc(n * kv_dim * 4).unwrap();
            ops.gather(n, &entered, (&list, 0), 0, kv_dim).unwrap();
            let mut found = gpu.read_f32s(&out, n * q_dim).unwrap();
            found.extend(gpu.read_f32s(&entered, n * kv_dim).unwrap());
            found
        };
        for kv in KvType::ALL {
            let expected = run(kv, false, 1);
            for splits in [1, 4] {
                assert_eq!(run(kv, true, splits), expected, "{kv}, {splits} splits");
            }
        }
    }

    /// Sessions read together can be more rows than a grid has.
    #[test]
    #[ignore = "needs a CUDA device"]
    fn more_rows_than_a_grid_are_several_launches() {
        let gpu = device();
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 4,
        };
        let ring = GpuRing::new(&gpu, KvType::F32, (2, 4), Some(4)).unwrap();
        let values = [[0.0; 4], [1.0, -2.0, 3.0, 4.0]].concat();
        let row = rows(&gpu, &[ring.row(0, 0..1)]);
        ops.scatter(1, &upload(&gpu, &values), (&row, 0), (0, 2), 4)
            .unwrap();
        let n = MAX_ROWS + 2;
        let list = rows(&gpu, &vec![ring.row(0, 0..1); n]);
        let with = Attention {
            heads,
            rows: (&list, 0),
            splits: 1,
            plane: 0,
            q_stride: 4,
            angles: None,
        };
        let out = gpu.alloc(n * 16).unwrap();
        ops.attention(n, &upload(&gpu, &vec![0.5; n * 4]), with, &out)
            .unwrap();
        let found = gpu.read_f32s(&out, n * 4).unwrap();
        assert!(found.chunks(4).all(|row| row == &values[4..]));
    }
}

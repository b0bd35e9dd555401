//! Softmax attention over cached keys: attention.cu.

use super::Row;
use super::driver::{Arg, Buffer};
use super::ops::{At, MAX_ROWS, Ops, u32_arg};
use crate::error::Result;
use crate::ops::Heads;

/// Widest head of the attention kernel.
pub const MAX_HEAD_DIM: usize = 256;

/// What an attention does with its rows.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// Head counts and width.
    pub heads: Heads,
    /// (n, [`Row::UNITS`]).
    pub rows: At<'a>,
    /// The side of the keys; values are in the next.
    pub side: usize,
    /// Width of the rows that begin with the queries.
    pub q_stride: usize,
    /// Rotary angles, if keys and values that follow the queries are to be entered first: for rows of
    /// different sequences.
    pub angles: Option<At<'a>>,
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
            let of_angles = |a: At<'_>| a.0.after(a.1 + first * head_dim, n * head_dim);
            let args = [
                q.after(first * with.q_stride, n * with.q_stride),
                (with.rows.0).after(with.rows.1 + first * Row::UNITS, n * Row::UNITS),
                with.angles.map_or(Arg::Pointer(0), of_angles),
                out.after(first * q_dim, n * q_dim),
                u32_arg(with.q_stride),
                u32_arg(with.side),
                u32_arg(n_kv_heads),
                u32_arg(head_dim),
            ];
            // SAFETY: the arguments of `attention` in attention.cu, sizes checked; rows come from
            // `Store::row`, and positions are taken modulo the capacity, so no range can leave the rings.
            unsafe { q.gpu().launch(self.attention, [n_heads, n], 256, &args)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Store;
    use crate::cuda::ops::testing::{device, noise, rows, upload};

    /// Ranges of one key and of several tiles, rings that wrap, heads that share keys.
    #[test]
    fn attention_is_the_softmax_average() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        for (n_heads, n_kv_heads, head_dim, capacity) in [
            (1, 1, 8, 400),
            (4, 2, 64, 300),
            (3, 1, 200, 300),
            (2, 1, 6, 300),
        ] {
            let heads = Heads {
                n_heads,
                n_kv_heads,
                head_dim,
            };
            let visible = [0..1, 5..133, 250..520, 7..263];
            let (n, kv_dim) = (visible.len(), n_kv_heads * head_dim);
            let q = noise(n * n_heads * head_dim, 11);
            let mut store = Store::new(&gpu, 2, kv_dim, Some(capacity)).unwrap();
            store.reserve(600).unwrap();
            let kv = noise(2 * capacity * kv_dim, 13);
            let (k, v) = kv.split_at(capacity * kv_dim);
            for position in 0..capacity {
                let of_side = |side: &[f32]| side[position * kv_dim..][..kv_dim].to_vec();
                let x = upload(&gpu, &[of_side(k), of_side(v)].concat());
                let row = rows(&gpu, &[store.row(position, 0..1)]);
                ops.put_rows(1, &x, (&row, 0), (0, 2), kv_dim).unwrap();
            }
            let seen: Vec<Row> = visible.iter().map(|v| store.row(0, v.clone())).collect();
            let seen = rows(&gpu, &seen);
            let out = gpu.alloc(q.len() * 4).unwrap();
            let with = Attention {
                heads,
                rows: (&seen, 0),
                side: 0,
                q_stride: n_heads * head_dim,
                angles: None,
            };
            ops.attention(n, &upload(&gpu, &q), with, &out).unwrap();
            let out = gpu.read_f32s(&out, q.len()).unwrap();
            for (i, (q, out)) in q.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
                let kv_head = i % n_heads / (n_heads / n_kv_heads);
                let rows: Vec<usize> = (visible[i / n_heads].clone())
                    .map(|p| p % capacity * kv_dim + kv_head * head_dim)
                    .collect();
                let score = |&at: &usize| {
                    let dot: f64 = q
                        .iter()
                        .zip(&k[at..])
                        .map(|(&a, &b)| f64::from(a) * f64::from(b))
                        .sum();
                    (dot / (head_dim as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = rows.iter().map(score).collect();
                let sum: f64 = weights.iter().sum();
                for (d, &found) in out.iter().enumerate() {
                    let expected: f64 = rows
                        .iter()
                        .zip(&weights)
                        .map(|(at, w)| w * f64::from(v[at + d]))
                        .sum::<f64>()
                        / sum;
                    assert!(
                        (f64::from(found) - expected).abs() < 1e-5,
                        "{heads:?} row {i} column {d}: expected {expected}, found {found}"
                    );
                }
            }
        }
    }

    /// Entering and turning in the attention's launch is what rope_append does before it.
    #[test]
    fn rows_of_different_sequences_enter_their_own_keys() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 4,
            n_kv_heads: 2,
            head_dim: 16,
        };
        let (n, q_dim, kv_dim) = (3, 64, 32);
        let qkv = noise(n * (q_dim + 2 * kv_dim), 19);
        let angles = upload(&gpu, &noise(n * heads.head_dim, 23));
        let run = |fused: bool| {
            let stores: Vec<Store> = (0..n)
                .map(|_| Store::new(&gpu, 2, kv_dim, Some(64)).unwrap())
                .collect();
            for store in &stores {
                let row = rows(
                    &gpu,
                    &(0..4).map(|p| store.row(p, 0..1)).collect::<Vec<_>>(),
                );
                let x = upload(&gpu, &noise(4 * 2 * kv_dim, 29));
                ops.put_rows(4, &x, (&row, 0), (0, 2), kv_dim).unwrap();
            }
            let list: Vec<Row> = stores.iter().map(|s| s.row(4, 1..5)).collect();
            let list = rows(&gpu, &list);
            let (qkv, out) = (upload(&gpu, &qkv), gpu.alloc(n * q_dim * 4).unwrap());
            if !fused {
                let at = ((&list, 0), (&angles, 0));
                ops.rope_append(n, heads, &qkv, at.0, at.1, 0).unwrap();
            }
            let with = Attention {
                heads,
                rows: (&list, 0),
                side: 0,
                q_stride: q_dim + 2 * kv_dim,
                angles: fused.then_some((&angles, 0)),
            };
            ops.attention(n, &qkv, with, &out).unwrap();
            let entered = gpu.alloc(n * kv_dim * 4).unwrap();
            ops.take_rows(n, &entered, (&list, 0), 0, kv_dim).unwrap();
            let mut found = gpu.read_f32s(&out, n * q_dim).unwrap();
            found.extend(gpu.read_f32s(&entered, n * kv_dim).unwrap());
            found
        };
        assert_eq!(run(true), run(false));
    }

    /// Sessions read together can be more rows than a grid has.
    #[test]
    fn more_rows_than_a_grid_are_several_launches() {
        let Some(gpu) = device() else { return };
        let ops = Ops::new(&gpu).unwrap();
        let heads = Heads {
            n_heads: 1,
            n_kv_heads: 1,
            head_dim: 4,
        };
        let store = Store::new(&gpu, 2, 4, Some(4)).unwrap();
        let values = [[0.0; 4], [1.0, -2.0, 3.0, 4.0]].concat();
        let row = rows(&gpu, &[store.row(0, 0..1)]);
        ops.put_rows(1, &upload(&gpu, &values), (&row, 0), (0, 2), 4)
            .unwrap();
        let n = MAX_ROWS + 2;
        let list = rows(&gpu, &vec![store.row(0, 0..1); n]);
        let with = Attention {
            heads,
            rows: (&list, 0),
            side: 0,
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

//! The lanes of every sum, and the order in which they are added: see the crate's contract.

/// The number of lanes of every sum.
pub(crate) const LANES: usize = 16;

/// Adds the lanes: the upper half to the lower half, until one lane remains.
#[inline]
pub(crate) fn tree(lanes: [f32; LANES], add: impl Fn(f32, f32) -> f32) -> f32 {
    let mut l = lanes;
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            l[i] = add(l[i], l[i + half]);
        }
    }
    l[0]
}

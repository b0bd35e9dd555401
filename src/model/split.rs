//! Rows of several sequences lie one after the other; here they are told apart again.

/// Cuts `data` into one piece per sequence, of the given lengths.
///
/// # Panics
/// If `data` is shorter than all pieces together.
pub(crate) fn split<T>(
    mut data: &[T],
    lengths: impl Iterator<Item = usize>,
) -> impl Iterator<Item = &[T]> {
    lengths.map(move |n| data.split_off(..n).expect("a piece for every sequence"))
}

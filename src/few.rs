//! A list that needs no memory of its own while it has one element: a single sequence is the usual case.

use std::iter::Chain;
use std::ops::{Deref, DerefMut};
use std::{option, vec};

/// Elements in order.
#[derive(Debug)]
pub enum Few<T> {
    /// One.
    One([T; 1]),
    /// Any other number.
    Many(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few::Many(Vec::new())
    }
}

impl<T> Extend<T> for Few<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, items: I) {
        for item in items {
            *self = match std::mem::take(self) {
                Few::One([first]) => Few::Many(vec![first, item]),
                Few::Many(many) if many.is_empty() => Few::One([item]),
                Few::Many(mut many) => {
                    many.push(item);
                    Few::Many(many)
                }
            };
        }
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut few = Few::default();
        few.extend(items);
        few
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = Chain<option::IntoIter<T>, vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        let (one, many) = match self {
            Few::One([one]) => (Some(one), Vec::new()),
            Few::Many(many) => (None, many),
        };
        one.into_iter().chain(many)
    }
}

impl<T> Deref for Few<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }
}

impl<T> DerefMut for Few<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Few::One(one) => one,
            Few::Many(many) => many,
        }
    }
}

//! Where a tensor is in a file of another layout.

/// Where a tensor is: under the first of these names that the file has, all of it or a slice.
pub(super) struct Source {
    pub names: Vec<String>,
    pub slice: Option<(usize, usize)>, // (number, of how many equal runs of rows)
}

impl Source {
    /// All of the tensor with this name.
    pub fn named(name: impl Into<String>) -> Source {
        Source {
            names: vec![name.into()],
            slice: None,
        }
    }

    /// All of the tensor with one of these names.
    pub fn either(first: &str, second: &str) -> Source {
        Source {
            names: vec![first.into(), second.into()],
            slice: None,
        }
    }

    /// Run `number` of `count` equal runs of rows.
    pub fn rows_of(name: &str, number: usize, count: usize) -> Source {
        Source {
            names: vec![name.into()],
            slice: Some((number, count)),
        }
    }
}

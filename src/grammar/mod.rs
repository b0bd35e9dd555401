//! Text that obeys a grammar: a regular expression or a JSON schema.
//!
//! The model writes bytes, so a grammar is an automaton over bytes: no vocabulary has to be mapped to
//! it and no token straddles its edges. Before each byte a [`Matcher`] gives the
//! [`Sampler`](crate::sampler::Sampler) which bytes can follow and whether the text may end. From every
//! state it allows, the grammar can be completed, so generation never runs into a dead end. With a limit
//! on the number of bytes, it leaves enough of them to complete the text: what is generated matches
//! even if the limit ends it.
//!
//! ```
//! # #[cfg(feature = "grammar")] {
//! use blt::grammar::Grammar;
//!
//! let mut matcher = Grammar::regex("[0-9]{4}-[0-9]{2}")?.matcher(None)?;
//! assert!(matcher.push(b'2'));
//! assert!(!matcher.allowed().contains(b'-'));
//! assert!(b"024-07".iter().all(|&byte| matcher.push(byte)));
//! assert!(matcher.allowed().may_end());
//! # }
//! # Ok::<(), blt::Error>(())
//! ```
//!
//! `automaton` holds the tables, `matcher` walks them; they know nothing of regular expressions.
//! `compile` makes rules from syntax trees with the crate `regex-automata`, `join` makes tables from rules, and
//! `schema` makes syntax trees from a JSON schema. These need the feature `grammar`.

mod automaton;
mod byte_set;
#[cfg(feature = "grammar")]
mod compile;
#[cfg(feature = "grammar")]
mod join;
#[cfg(feature = "grammar")]
mod json;
mod matcher;
#[cfg(feature = "grammar")]
mod schema;
#[cfg(feature = "grammar")]
mod value;

use std::fmt;
use std::sync::Arc;

use automaton::Automaton;
pub use matcher::{Allowed, Matcher};

use crate::error::{Error, Result};

/// A compiled grammar. Cloning is cheap: clones share the tables.
#[derive(Clone)]
pub struct Grammar {
    automaton: Arc<Automaton>,
}

impl Grammar {
    /// The grammar of the texts that a regular expression matches from beginning to end.
    ///
    /// The syntax is that of the crate `regex`. `(?-u:\xFF)` matches a byte that is not UTF-8. Look-around
    /// assertions, `^` and `$` included, are allowed where they can hold.
    ///
    /// # Errors
    /// [`Error::Argument`] for a syntax error, an expression that matches no text, or one whose automaton is
    /// too large.
    #[cfg(feature = "grammar")]
    pub fn regex(pattern: &str) -> Result<Self> {
        Ok(Grammar::new(compile::regex(pattern)?))
    }

    /// The grammar of the JSON texts that a JSON schema (draft 2020-12) accepts.
    ///
    /// The texts are UTF-8 without white space, except for an optional space after each `:` and `,`.
    /// Properties come in the order in which the schema lists them. Every text of the grammar is valid, but
    /// not every valid text is in the grammar: an object has no properties that the schema does not name, an
    /// integer has at most 18 digits, and a string escapes only what JSON cannot hold plainly.
    ///
    /// Keywords: `type`, `enum`, `const`, `anyOf`, `oneOf` if its alternatives exclude each other by type
    /// or by a required constant property, `allOf` of one schema, `$ref` within the document (recursion
    /// included), `$defs`, `definitions`; `properties`, `required`, `additionalProperties`; `items`,
    /// `prefixItems`, `minItems`, `maxItems`; `minLength`, `maxLength`, `pattern`, `format` (`date`, `time`,
    /// `date-time`, `uuid`); `minimum`, `maximum`, `exclusiveMinimum`, `exclusiveMaximum` of integers, and
    /// `minimum: 0` of numbers. Annotations such as `title` are ignored.
    ///
    /// # Errors
    /// [`Error::Argument`] for text that is not JSON, any other keyword, a combination of keywords that
    /// is not supported, a schema that accepts nothing, or one whose automaton is too large.
    #[cfg(feature = "grammar")]
    pub fn json_schema(schema: &str) -> Result<Self> {
        Ok(Grammar::new(schema::json_schema(schema)?))
    }

    #[cfg(feature = "grammar")]
    fn new(automaton: Automaton) -> Self {
        Grammar {
            automaton: Arc::new(automaton),
        }
    }

    /// Number of bytes of the shortest text that matches.
    pub fn shortest(&self) -> usize {
        self.automaton.shortest()
    }

    /// Bytes of memory that the tables take.
    pub fn n_bytes(&self) -> usize {
        self.automaton.n_bytes()
    }

    /// A matcher before the first byte. The text is completed within `max_bytes` if there is such a limit.
    ///
    /// # Errors
    /// [`Error::Argument`] if no text that short matches.
    pub fn matcher(&self, max_bytes: Option<usize>) -> Result<Matcher> {
        if let Some(found) = max_bytes.filter(|&n| n < self.shortest()) {
            return Err(Error::argument(
                "max_bytes",
                format!(
                    "expected at least {}, the length of the shortest text that matches the grammar, \
                     found {found}",
                    self.shortest()
                ),
            ));
        }
        Ok(Matcher::new(&self.automaton, max_bytes))
    }
}

impl fmt::Debug for Grammar {
    /// The size; tables are long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Grammar({} bytes)", self.n_bytes())
    }
}

impl PartialEq for Grammar {
    /// Whether both are clones of one grammar.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.automaton, &other.automaton)
    }
}

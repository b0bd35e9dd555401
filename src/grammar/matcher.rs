//! Where a text stands in a grammar, and what can follow.
//!
//! A position is a set of stacks: the states that are active, each with the states where the rules
//! that called its rule continue. A grammar without recursion has one active state and no stack. Stacks
//! share what they have in common, so a position is cheap to clone.

use std::fmt;
use std::sync::Arc;

use super::automaton::{Automaton, DEAD, StateId};
use super::byte_set::ByteSet;

/// Rules that may be open in each other before the text is completed the shortest way. JSON nests at
/// most a few levels in a rule, and common parsers refuse more than 128.
const MAX_DEPTH: u32 = 32;

/// Most stacks. Beyond, the last ones are dropped: the text still matches, but not every text can be
/// reached. Only recursive alternatives that begin with the same long text come near it.
const MAX_STACKS: usize = 64;

/// What may follow a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowed {
    bytes: ByteSet,
    may_end: bool,
}

impl Allowed {
    /// Whether the byte may follow.
    pub fn contains(&self, byte: u8) -> bool {
        self.bytes.contains(byte)
    }

    /// Whether the text matches as it is.
    pub fn may_end(&self) -> bool {
        self.may_end
    }

    /// Whether no byte may follow.
    pub fn must_end(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// A position in a text that obeys a [`Grammar`](super::Grammar).
#[derive(Clone)]
pub struct Matcher {
    automaton: Arc<Automaton>,
    stacks: Vec<Stack>,
    /// Bytes that the text may still have.
    budget: Option<usize>,
}

impl fmt::Debug for Matcher {
    /// Where it stands; the tables are long.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (f.debug_struct("Matcher").field("stacks", &self.stacks))
            .field("budget", &self.budget)
            .finish()
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Stack {
    state: StateId,
    callers: Option<Arc<Caller>>,
}

/// A rule that waits for the one it has called.
#[derive(Debug, PartialEq)]
struct Caller {
    back: StateId,
    /// Fewest bytes that complete it and its own callers.
    distance: u32,
    /// How many callers there are, this one included.
    depth: u32,
    callers: Option<Arc<Caller>>,
}

impl Stack {
    fn distance(&self, automaton: &Automaton) -> u32 {
        automaton.distance(self.state).saturating_add(self.rest())
    }

    /// Fewest bytes that complete the callers.
    fn rest(&self) -> u32 {
        self.callers.as_ref().map_or(0, |caller| caller.distance)
    }

    fn depth(&self) -> u32 {
        self.callers.as_ref().map_or(0, |caller| caller.depth)
    }
}

impl PartialEq for Matcher {
    /// Whether both stand at the same position of the same grammar.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.automaton, &other.automaton)
            && self.budget == other.budget
            && self.stacks == other.stacks
    }
}

impl Matcher {
    pub(super) fn new(automaton: &Arc<Automaton>, max_bytes: Option<usize>) -> Self {
        let mut matcher = Matcher {
            automaton: Arc::clone(automaton),
            stacks: Vec::new(),
            budget: max_bytes,
        };
        let start = Stack {
            state: 0,
            callers: None,
        };
        matcher.enter(start, u32::MAX);
        matcher
    }

    /// Whether both obey clones of one grammar.
    pub(crate) fn has_same_grammar(&self, other: &Matcher) -> bool {
        Arc::ptr_eq(&self.automaton, &other.automaton)
    }

    /// What may follow.
    pub fn allowed(&self) -> Allowed {
        let mut bytes = ByteSet::default();
        let bound = self.bound();
        for stack in &self.stacks {
            match bound {
                None => bytes.extend(self.automaton.allowed(stack.state)),
                Some(bound) => {
                    let rest = stack.rest();
                    for (class, next) in self.automaton.edges(stack.state) {
                        if self.automaton.distance(next).saturating_add(rest) < bound {
                            bytes.extend(class);
                        }
                    }
                }
            }
        }
        let is_complete =
            |stack: &Stack| stack.callers.is_none() && self.automaton.distance(stack.state) == 0;
        Allowed {
            bytes,
            may_end: self.stacks.is_empty() || self.stacks.iter().any(is_complete),
        }
    }

    /// Takes the next byte; `false` if it may not follow. Then the text may only end.
    pub fn push(&mut self, byte: u8) -> bool {
        let bound = self.bound().unwrap_or(u32::MAX);
        let stacks = std::mem::take(&mut self.stacks);
        if let [
            Stack {
                state,
                callers: None,
            },
        ] = stacks[..]
        {
            // The usual case, without any memory of its own.
            let next = self.automaton.next(state, byte);
            if next != DEAD
                && self.automaton.calls(next).is_empty()
                && self.automaton.distance(next) < bound
            {
                self.stacks = stacks;
                self.stacks[0].state = next;
                self.budget = self.budget.map(|budget| budget.saturating_sub(1));
                return true;
            }
        }
        for Stack { state, callers } in stacks {
            let next = self.automaton.next(state, byte);
            if next != DEAD {
                self.enter(
                    Stack {
                        state: next,
                        callers,
                    },
                    bound,
                );
            }
        }
        self.budget = self.budget.map(|budget| budget.saturating_sub(1));
        !self.stacks.is_empty()
    }

    /// What the distance after the next byte must stay below; `None` if every byte leads there.
    fn bound(&self) -> Option<u32> {
        let distances = self.stacks.iter().map(|s| s.distance(&self.automaton));
        let (shortest, farthest) = (distances.clone().min()?, distances.max()?);
        let is_deep = self.stacks.iter().any(|stack| stack.depth() > MAX_DEPTH);
        let by_depth = is_deep.then_some(shortest); // from here it only falls
        let budget = self.budget.and_then(|budget| u32::try_from(budget).ok());
        let reach = farthest.saturating_add(self.automaton.max_detour());
        let by_bytes = budget.filter(|&budget| budget <= reach);
        by_depth.into_iter().chain(by_bytes).min()
    }

    /// Adds a stack, and all that it stands for without another byte: rules that end here, rules that are
    /// called here. Stacks at a distance of
    /// `bound` or more are left out.
    fn enter(&mut self, stack: Stack, bound: u32) {
        if stack.distance(&self.automaton) >= bound
            || self.stacks.len() >= MAX_STACKS
            || self.stacks.contains(&stack)
        {
            return;
        }
        let automaton = Arc::clone(&self.automaton);
        self.stacks.push(stack.clone());
        if let Some(caller) = stack
            .callers
            .as_ref()
            .filter(|_| automaton.distance(stack.state) == 0)
        {
            let ended = Stack {
                state: caller.back,
                callers: caller.callers.clone(),
            };
            self.enter(ended, bound);
        }
        for call in automaton.calls(stack.state) {
            let caller = Caller {
                back: call.back,
                distance: automaton.distance(call.back).saturating_add(stack.rest()),
                depth: stack.depth() + 1,
                callers: stack.callers.clone(),
            };
            let called = Stack {
                state: call.start,
                callers: Some(Arc::new(caller)),
            };
            self.enter(called, bound);
        }
    }
}

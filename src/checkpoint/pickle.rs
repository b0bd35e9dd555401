//! A reader for the pickles of `torch.save`: dictionaries of tensors, nothing else.
//!
//! A pickle is a program for a stack machine that can call anything. This machine knows only the
//! opcodes that checkpoints use and only the callables below; all others are refused by name, and
//! nothing is executed. Values live in one arena and refer to each other by number, so that deep
//! nesting and cycles cost no recursion. Size, stack and number of values are bounded.

use std::collections::HashMap;

use crate::tensor::DType;

/// Largest pickle that is read; a 7B checkpoint with its optimizer has one of about 200 KB.
pub const MAX_PICKLE: usize = 4 << 20;
/// Most values, and most of them on the stack at once; a tensor takes about 20.
const MAX_VALUES: usize = 1 << 18;
/// Most tensors, most axes of each and longest key of a storage: a pickle can repeat a tensor for a few bytes each time.
/// The optimiser of a 7B model has some 1500 tensors of at most two axes.
const MAX_TENSORS: usize = 1 << 15;
const MAX_AXES: usize = 8;
const MAX_KEY: usize = 256;
/// Most marks open at once.
const MAX_MARKS: usize = 1024;

/// Elements of a torch storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorageType {
    /// The name of the class in torch.
    pub name: &'static str,
    /// Our type for it; `None` if this engine does not read it.
    pub dtype: Option<DType>,
}

const STORAGES: [StorageType; 10] = [
    storage("FloatStorage", Some(DType::F32)),
    storage("HalfStorage", Some(DType::F16)),
    storage("BFloat16Storage", Some(DType::Bf16)),
    storage("DoubleStorage", None),
    storage("LongStorage", None),
    storage("IntStorage", None),
    storage("ShortStorage", None),
    storage("CharStorage", None),
    storage("ByteStorage", None),
    storage("BoolStorage", None),
];

const fn storage(name: &'static str, dtype: Option<DType>) -> StorageType {
    StorageType { name, dtype }
}

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef {
    /// The type of the elements.
    pub storage: StorageType,
    /// Name of the storage in the archive.
    pub key: String,
    /// Elements of the whole storage.
    pub storage_len: u64,
    /// First element, in the storage.
    pub offset: u64,
    /// Length of each axis.
    pub shape: Vec<u64>,
    /// Distance of neighbours along each axis, in elements.
    pub stride: Vec<u64>,
}

/// Number of a value in the arena.
type Id = u32;

#[derive(Debug)]
enum Node {
    None,
    Bool,
    Int(i64),
    Float,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// The value of a call that has no effect here; see [`INERT`].
    Inert,
    Storage(Box<StorageRef>),
    Tensor(Box<TensorRef>),
}

#[derive(Debug)]
struct StorageRef {
    kind: StorageType,
    key: String,
    len: u64, // in elements
}

/// The callables that may be named.
#[derive(Debug, Clone, Copy)]
enum Global {
    OrderedDict,
    RebuildTensor,
    /// A parameter is the tensor that it is made of.
    RebuildParameter,
    Storage(StorageType),
    /// One of [`INERT`].
    Inert,
}

/// Classes and functions that training scripts store beside the weights. Their values are read as values without content:
/// nothing is called or built, and a tensor in one of them is not found.
const INERT: [(&str, &str); 28] = [
    ("__builtin__", "set"),
    ("__builtin__", "frozenset"),
    ("__builtin__", "complex"),
    ("builtins", "set"),
    ("builtins", "frozenset"),
    ("builtins", "complex"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "float32"),
    ("torch", "float16"),
    ("torch", "bfloat16"),
    ("torch", "int64"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
    ("argparse", "Namespace"),
    ("collections", "Counter"),
    ("collections", "defaultdict"),
    ("collections", "deque"),
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("pathlib", "PosixPath"),
    ("omegaconf.dictconfig", "DictConfig"),
];

/// Keys under which training scripts put the state dict.
const STATE_DICT_KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

type Fallible<T> = Result<T, String>;

/// The tensors of the state dict in a pickle: the dictionary under one of [`STATE_DICT_KEYS`] if there is one, else the
/// outermost dictionary. Values that are not tensors are skipped.
///
/// # Errors
/// What is not allowed, or what was expected and what was found.
pub fn state_dict(bytes: &[u8]) -> Fallible<HashMap<String, TensorRef>> {
    if bytes.len() > MAX_PICKLE {
        return Err(format!(
            "expected a pickle of at most {MAX_PICKLE} bytes, found {}",
            bytes.len()
        ));
    }
    let mut machine = Machine::new(bytes);
    let root = machine.run()?;
    machine.tensors(root)
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>, // heights of the stack
    memo: HashMap<u32, Id>,
    n_tensors: usize,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Machine {
            bytes,
            at: 0,
            nodes: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            n_tensors: 0,
        }
    }

    /// Runs to the end; the result is the value that is left.
    fn run(&mut self) -> Fallible<Id> {
        if self.take(2)? != [0x80, 2] {
            return Err("expected a pickle of protocol 2, found another".into());
        }
        loop {
            let start = self.at;
            let opcode = self.take(1)?[0];
            match opcode {
                b'.' => {
                    let value = self.pop()?;
                    return match self.stack.is_empty() && self.marks.is_empty() {
                        true => Ok(value),
                        false => {
                            Err("expected one value at the end of the pickle, found more".into())
                        }
                    };
                }
                _ => self.step(opcode, start)?,
            }
        }
    }

    fn step(&mut self, opcode: u8, start: usize) -> Fallible<()> {
        match opcode {
            b'N' => self.push(Node::None),
            0x88 | 0x89 => self.push(Node::Bool),
            b'J' => {
                let value = i32::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.push(Node::Int(value.into()))
            }
            b'M' => {
                let value = u16::from_le_bytes(self.array()?);
                self.push(Node::Int(value.into()))
            }
            0x8a => {
                let value = self.long()?;
                self.push(Node::Int(value))
            }
            b'G' => {
                self.take(8)?;
                self.push(Node::Float)
            }
            b'X' => {
                let length = u32::from_le_bytes(self.array()?);
                let text = std::str::from_utf8(self.take(length as usize)?)
                    .map_err(|_| format!("expected UTF-8 in the string at offset {start}"))?;
                self.push(Node::Text(text.into()))
            }
            b'(' => {
                if self.marks.len() == MAX_MARKS {
                    return Err(format!(
                        "expected at most {MAX_MARKS} open marks, found more"
                    ));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b')' => self.push(Node::Tuple(Vec::new())),
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.push(Node::Tuple(items))
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Node::Tuple(items))
            }
            b']' => self.push(Node::List(Vec::new())),
            b'a' => {
                let items = self.pop_many(1)?;
                self.append(items)
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(items)
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b's' => {
                let items = self.pop_many(2)?;
                self.set_items(&items)
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set_items(&items)
            }
            b'q' => {
                let slot = self.take(1)?[0];
                self.remember(slot.into())
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.remember(slot)
            }
            b'h' => {
                let slot = self.take(1)?[0];
                self.recall(slot.into())
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)
            }
            b'c' => {
                let global = self.global()?;
                self.push(Node::Global(global))
            }
            b'Q' => self.persistent_id(),
            b'R' => self.reduce(),
            0x81 => self.new_object(),
            b'b' => self.build(),
            _ => Err(format!(
                "pickle opcode {} at offset {start} is not allowed",
                opcode_name(opcode)
            )),
        }
    }

    fn take(&mut self, n: usize) -> Fallible<&'a [u8]> {
        let bytes = self.bytes[self.at..]
            .get(..n)
            .ok_or("expected more of the pickle, found its end")?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Fallible<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    /// A whole number of up to 8 bytes.
    fn long(&mut self) -> Fallible<i64> {
        let length = usize::from(self.take(1)?[0]);
        if length > 8 {
            return Err(format!(
                "expected a number of at most 8 bytes, found {length}"
            ));
        }
        let bytes = self.take(length)?;
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut array = [if negative { 0xff } else { 0 }; 8];
        array[..length].copy_from_slice(bytes);
        Ok(i64::from_le_bytes(array))
    }

    fn line(&mut self) -> Fallible<String> {
        const MAX: usize = 256;
        let rest = &self.bytes[self.at..];
        let end = rest[..rest.len().min(MAX)].iter().position(|&b| b == b'\n');
        let end = end.ok_or_else(|| format!("expected a name of at most {MAX} bytes"))?;
        self.at += end + 1;
        Ok(rest[..end].escape_ascii().to_string())
    }

    fn global(&mut self) -> Fallible<Global> {
        let (module, name) = (self.line()?, self.line()?);
        match (module.as_str(), name.as_str()) {
            ("collections", "OrderedDict") => Ok(Global::OrderedDict),
            ("torch._utils", "_rebuild_tensor_v2") => Ok(Global::RebuildTensor),
            ("torch._utils", "_rebuild_parameter") => Ok(Global::RebuildParameter),
            named if INERT.contains(&named) => Ok(Global::Inert),
            ("torch", name) if STORAGES.iter().any(|s| s.name == name) => {
                let kind = STORAGES.into_iter().find(|s| s.name == name);
                Ok(Global::Storage(kind.expect("just found")))
            }
            _ => Err(format!(
                "global {module}.{name} is not allowed; save the weights alone: torch.save(model.state_dict(), PATH)"
            )),
        }
    }

    fn push(&mut self, node: Node) -> Fallible<()> {
        if self.nodes.len() == MAX_VALUES {
            return Err(format!("expected at most {MAX_VALUES} values, found more"));
        }
        self.nodes.push(node);
        self.push_id((self.nodes.len() - 1) as Id)
    }

    fn push_id(&mut self, id: Id) -> Fallible<()> {
        if self.stack.len() == MAX_VALUES {
            return Err(format!(
                "expected at most {MAX_VALUES} values on the stack, found more"
            ));
        }
        self.stack.push(id);
        Ok(())
    }

    fn pop(&mut self) -> Fallible<Id> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(format!(
                "pickle takes a value that is not there before offset {}",
                self.at
            ));
        }
        Ok(self.stack.pop().expect("not empty"))
    }

    fn pop_many(&mut self, n: usize) -> Fallible<Vec<Id>> {
        let mut items = Vec::with_capacity(n);
        for _ in 0..n {
            items.push(self.pop()?);
        }
        items.reverse();
        Ok(items)
    }

    fn pop_to_mark(&mut self) -> Fallible<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| {
            format!(
                "pickle goes back to a mark that is not there before offset {}",
                self.at
            )
        })?;
        Ok(self.stack.split_off(mark))
    }

    fn append(&mut self, items: Vec<Id>) -> Fallible<()> {
        let list = self.pop()?;
        match &mut self.nodes[list as usize] {
            Node::List(values) => values.extend(items),
            Node::Inert => {}
            other => {
                return Err(format!(
                    "expected a list to append to, found {}",
                    other.kind()
                ));
            }
        }
        self.push_id(list)
    }

    fn set_items(&mut self, items: &[Id]) -> Fallible<()> {
        if !items.len().is_multiple_of(2) {
            return Err("expected keys and values in pairs, found a key alone".into());
        }
        let dict = self.pop()?;
        match &mut self.nodes[dict as usize] {
            Node::Dict(values) => values.extend(items.chunks_exact(2).map(|kv| (kv[0], kv[1]))),
            Node::Inert => {}
            other => return Err(format!("expected a dict to fill, found {}", other.kind())),
        }
        self.push_id(dict)
    }

    fn remember(&mut self, slot: u32) -> Fallible<()> {
        let value = self.pop()?;
        if self.memo.len() == MAX_VALUES {
            return Err(format!(
                "expected at most {MAX_VALUES} remembered values, found more"
            ));
        }
        self.memo.insert(slot, value);
        self.push_id(value)
    }

    fn recall(&mut self, slot: u32) -> Fallible<()> {
        let value = self.memo.get(&slot).copied();
        self.push_id(value.ok_or_else(|| format!("pickle recalls slot {slot}, which is empty"))?)
    }

    /// `("storage", class, key, location, number of elements)`
    fn persistent_id(&mut self) -> Fallible<()> {
        let id = self.pop()?;
        let parts = self.tuple(id, "a persistent id")?;
        let &[tag, class, key, _location, len] = parts else {
            return Err(format!(
                "expected a persistent id of 5 values, found {}",
                parts.len()
            ));
        };
        if self.text(tag, "a persistent id's tag")? != "storage" {
            return Err("expected a persistent id of a storage, found another".into());
        }
        let Node::Global(Global::Storage(kind)) = self.node(class) else {
            return Err(format!(
                "expected a storage class in a persistent id, found {}",
                self.node(class).kind()
            ));
        };
        let key = self.text(key, "a storage's key")?;
        if key.len() > MAX_KEY {
            return Err(format!(
                "expected a storage's key of at most {MAX_KEY} bytes, found {}",
                key.len()
            ));
        }
        let storage = StorageRef {
            kind: *kind,
            key: key.to_string(),
            len: self.count(len, "a storage's length")?,
        };
        self.push(Node::Storage(storage.into()))
    }

    /// Calls one of the callables.
    fn reduce(&mut self) -> Fallible<()> {
        let (args, callable) = (self.pop()?, self.pop()?);
        let args = self.tuple(args, "arguments")?;
        let node = match self.node(callable) {
            Node::Global(Global::OrderedDict) if args.is_empty() => Node::Dict(Vec::new()),
            Node::Global(Global::OrderedDict) => {
                return Err("expected OrderedDict to be called without arguments".into());
            }
            Node::Global(Global::RebuildTensor) => {
                let tensor = self.rebuild(args)?;
                self.n_tensors += 1;
                if self.n_tensors > MAX_TENSORS {
                    return Err(format!(
                        "expected at most {MAX_TENSORS} tensors, found more"
                    ));
                }
                Node::Tensor(tensor.into())
            }
            // `(tensor, requires_grad, hooks)`
            Node::Global(Global::RebuildParameter) => match args {
                [tensor, _, _] => return self.push_id(*tensor),
                _ => {
                    return Err(format!(
                        "expected 3 arguments to _rebuild_parameter, found {}",
                        args.len()
                    ));
                }
            },
            Node::Global(Global::Inert) => Node::Inert,
            other => return Err(format!("expected a callable, found {}", other.kind())),
        };
        self.push(node)
    }

    /// A new object of a class, which can only be one without effect.
    fn new_object(&mut self) -> Fallible<()> {
        let (args, class) = (self.pop()?, self.pop()?);
        self.tuple(args, "arguments")?;
        match self.node(class) {
            Node::Global(Global::Inert) => self.push(Node::Inert),
            other => Err(format!("expected a class, found {}", other.kind())),
        }
    }

    /// `(storage, offset, size, stride, requires_grad, hooks[, metadata])`
    fn rebuild(&self, args: &[Id]) -> Fallible<TensorRef> {
        let &[storage, offset, shape, stride, _, _, ..] = args else {
            return Err(format!(
                "expected 6 or 7 arguments to _rebuild_tensor_v2, found {}",
                args.len()
            ));
        };
        let Node::Storage(storage_ref) = self.node(storage) else {
            return Err(format!(
                "expected a storage to make a tensor of, found {}",
                self.node(storage).kind()
            ));
        };
        let counts = |id: Id, what: &str| -> Fallible<Vec<u64>> {
            let items = self.tuple(id, what)?;
            if items.len() > MAX_AXES {
                return Err(format!(
                    "expected at most {MAX_AXES} numbers as {what}, found {}",
                    items.len()
                ));
            }
            items.iter().map(|&n| self.count(n, what)).collect()
        };
        Ok(TensorRef {
            storage: storage_ref.kind,
            key: storage_ref.key.clone(),
            storage_len: storage_ref.len,
            offset: self.count(offset, "a tensor's offset")?,
            shape: counts(shape, "a tensor's shape")?,
            stride: counts(stride, "a tensor's strides")?,
        })
    }

    /// Attributes of a dict (torch keeps `_metadata` there) are read and dropped.
    fn build(&mut self) -> Fallible<()> {
        self.pop()?;
        let target = self.pop()?;
        match self.node(target) {
            Node::Dict(_) | Node::Inert => self.push_id(target),
            other => Err(format!(
                "expected a dict to give attributes, found {}",
                other.kind()
            )),
        }
    }

    fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    fn tuple(&self, id: Id, what: &str) -> Fallible<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Ok(items),
            other => Err(format!(
                "expected a tuple as {what}, found {}",
                other.kind()
            )),
        }
    }

    fn text(&self, id: Id, what: &str) -> Fallible<&str> {
        match self.node(id) {
            Node::Text(text) => Ok(text),
            other => Err(format!(
                "expected a string as {what}, found {}",
                other.kind()
            )),
        }
    }

    fn count(&self, id: Id, what: &str) -> Fallible<u64> {
        match self.node(id) {
            Node::Int(n) => {
                u64::try_from(*n).map_err(|_| format!("expected at least 0 as {what}, found {n}"))
            }
            other => Err(format!(
                "expected a number as {what}, found {}",
                other.kind()
            )),
        }
    }

    fn tensors(&self, root: Id) -> Fallible<HashMap<String, TensorRef>> {
        let Node::Dict(outer) = self.node(root) else {
            return Err(format!(
                "expected a pickle of a dict, found {}",
                self.node(root).kind()
            ));
        };
        let model =
            outer
                .iter()
                .find_map(|&(key, value)| match (self.node(key), self.node(value)) {
                    (Node::Text(key), Node::Dict(inner)) => {
                        STATE_DICT_KEYS.contains(&key.as_str()).then_some(inner)
                    }
                    _ => None,
                });
        let mut tensors = HashMap::new();
        for &(key, value) in model.unwrap_or(outer) {
            if let (Node::Text(name), Node::Tensor(tensor)) = (self.node(key), self.node(value))
                && tensors
                    .insert(name.clone(), TensorRef::clone(tensor))
                    .is_some()
            {
                return Err(format!("expected each tensor once, found {name:?} twice"));
            }
        }
        Ok(tensors)
    }
}

impl Node {
    fn kind(&self) -> &'static str {
        match self {
            Node::None => "None",
            Node::Bool => "a bool",
            Node::Int(_) => "a number",
            Node::Float => "a float",
            Node::Text(_) => "a string",
            Node::Tuple(_) => "a tuple",
            Node::List(_) => "a list",
            Node::Dict(_) => "a dict",
            Node::Global(_) => "a global",
            Node::Inert => "an object",
            Node::Storage(_) => "a storage",
            Node::Tensor(_) => "a tensor",
        }
    }
}

/// The names of the opcodes that are refused.
fn opcode_name(opcode: u8) -> String {
    let name = match opcode {
        b'0' => "POP",
        b'1' => "POP_MARK",
        b'2' => "DUP",
        b'F' => "FLOAT",
        b'I' => "INT",
        b'L' => "LONG",
        b'S' => "STRING",
        b'V' => "UNICODE",
        b'P' => "PERSID",
        b'T' => "BINSTRING",
        b'U' => "SHORT_BINSTRING",
        b'B' => "BINBYTES",
        b'C' => "SHORT_BINBYTES",
        b'd' => "DICT",
        b'l' => "LIST",
        b'g' => "GET",
        b'p' => "PUT",
        b'i' => "INST",
        b'o' => "OBJ",
        0x80 => "PROTO",
        0x82..=0x84 => "EXT",
        0x8b => "LONG4",
        0x8c => "SHORT_BINUNICODE",
        0x8d => "BINUNICODE8",
        0x8e => "BINBYTES8",
        0x8f => "EMPTY_SET",
        0x90 => "ADDITEMS",
        0x91 => "FROZENSET",
        0x92 => "NEWOBJ_EX",
        0x93 => "STACK_GLOBAL",
        0x94 => "MEMOIZE",
        0x95 => "FRAME",
        0x96 => "BYTEARRAY8",
        0x97 => "NEXT_BUFFER",
        0x98 => "READONLY_BUFFER",
        _ => return format!("{opcode:#04x}"),
    };
    name.to_string()
}

/// Builds pickles for tests.
#[cfg(test)]
pub(super) mod testing {
    /// Opcodes one after the other, protocol 2.
    pub struct Pickle(pub Vec<u8>);

    impl Pickle {
        pub fn new() -> Self {
            Pickle(vec![0x80, 2])
        }

        pub fn op(mut self, bytes: &[u8]) -> Self {
            self.0.extend(bytes);
            self
        }

        pub fn text(self, text: &str) -> Self {
            self.op(b"X")
                .op(&(text.len() as u32).to_le_bytes())
                .op(text.as_bytes())
        }

        pub fn int(self, n: i32) -> Self {
            self.op(b"J").op(&n.to_le_bytes())
        }

        pub fn ints(self, list: &[i32]) -> Self {
            list.iter().fold(self.op(b"("), |p, &n| p.int(n)).op(b"t")
        }

        pub fn global(self, module: &str, name: &str) -> Self {
            self.op(format!("c{module}\n{name}\n").as_bytes())
        }

        pub fn storage(self, class: &str, key: &str, len: i32) -> Self {
            self.op(b"(")
                .text("storage")
                .global("torch", class)
                .text(key)
                .text("cpu")
                .int(len)
                .op(b"tQ")
        }

        /// A tensor of the storage that `storage` pushes.
        pub fn tensor(
            self,
            storage: impl Fn(Self) -> Self,
            offset: i32,
            shape: &[i32],
            stride: &[i32],
        ) -> Self {
            let p = self.global("torch._utils", "_rebuild_tensor_v2").op(b"(");
            storage(p)
                .int(offset)
                .ints(shape)
                .ints(stride)
                .op(&[0x89])
                .global("collections", "OrderedDict")
                .op(b")RtR")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Pickle;
    use super::*;

    fn float(p: Pickle) -> Pickle {
        p.storage("FloatStorage", "0", 6)
    }

    #[test]
    fn the_state_dict_is_under_model_or_outermost() {
        let inner = |p: Pickle| {
            p.global("collections", "OrderedDict")
                .op(b")R(")
                .text("w")
                .tensor(float, 1, &[2, 2], &[2, 1])
                .text("step")
                .int(7)
                .op(b"u")
                .op(b"}b") // attributes of the dict
        };
        let outermost = state_dict(&inner(Pickle::new()).op(b".").0).unwrap();
        let p = inner(Pickle::new().op(b"}(").text("model"))
            .text("optim")
            .op(b"]");
        let under_model = state_dict(&p.op(b"u.").0).unwrap();
        assert_eq!(outermost, under_model);
        for key in STATE_DICT_KEYS {
            let p = inner(Pickle::new().op(b"}(").text("epoch").int(3).text(key));
            assert_eq!(state_dict(&p.op(b"u.").0).unwrap(), outermost, "{key}");
        }
        let expected = TensorRef {
            storage: STORAGES[0],
            key: "0".into(),
            storage_len: 6,
            offset: 1,
            shape: vec![2, 2],
            stride: vec![2, 1],
        };
        assert_eq!(outermost, HashMap::from([("w".to_string(), expected)]));
    }

    #[test]
    fn what_scripts_store_beside_the_weights_is_skipped() {
        let p = Pickle::new().op(b"}(").text("w");
        // A parameter, as `torch.nn.Parameter` is stored.
        let p = (p.global("torch._utils", "_rebuild_parameter").op(b"("))
            .tensor(float, 1, &[2, 2], &[2, 1])
            .op(&[0x88])
            .global("collections", "OrderedDict")
            .op(b")RtR");
        // torch.Size([2, 3]), {1}, a numpy scalar, Namespace(lr=1), defaultdict(x=1).
        let p = (p.text("size").global("torch", "Size").ints(&[2, 3])).op(b"\x85R");
        let p = (p.text("set").global("__builtin__", "set").op(b"]").int(1)).op(b"a\x85R");
        let dtype = |p: Pickle| {
            (p.global("numpy", "dtype")
                .op(b"(")
                .text("f8")
                .int(0)
                .int(1)
                .op(b"tR"))
            .op(b"(")
            .int(3)
            .text("<")
            .op(b"NNN")
            .int(-1)
            .int(-1)
            .int(0)
            .op(b"tb")
        };
        let bytes = |p: Pickle| {
            let p = p.global("_codecs", "encode").op(b"(");
            p.text("abcdefgh").text("latin1").op(b"tR")
        };
        let p = p
            .text("loss")
            .global("numpy.core.multiarray", "scalar")
            .op(b"(");
        let p = bytes(dtype(p)).op(b"tR");
        let p = (p
            .text("args")
            .global("argparse", "Namespace")
            .op(b")\x81}")
            .text("lr")
            .int(1))
        .op(b"sb");
        let p = (p
            .text("counts")
            .global("collections", "defaultdict")
            .op(b")R(")
            .text("x")
            .int(1))
        .op(b"u");
        let p = (p.text("queue").global("collections", "deque")).op(b")R");
        let p = p.int(1).op(b"a");
        let found = state_dict(&p.op(b"u.").0).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found["w"].shape, [2, 2]);
        // A tensor in one of them is not found, and one that is needed but is none is missed.
        let p = Pickle::new()
            .op(b"}(")
            .text("w")
            .global("torch", "Size")
            .ints(&[1]);
        assert!(state_dict(&p.op(b"\x85Ru.").0).unwrap().is_empty());
        let message = state_dict(&Pickle::new().int(1).op(b")\x81.").0).unwrap_err();
        assert!(message.contains("expected a class"), "{message}");
    }

    #[test]
    fn other_globals_are_refused_by_name() {
        for (module, name) in [
            ("os", "system"),
            ("posix", "system"),
            ("builtins", "eval"),
            ("__builtin__", "getattr"),
            ("torch", "load"),
            ("torch", "FloatStorage.from_file"),
            ("torch.storage", "FloatStorage"),
            ("torch._utils", "_rebuild_tensor_v3"),
            ("collections", "UserDict"),
            ("torch", "Size.__class__"),
            ("", ""),
        ] {
            let p = Pickle::new().global(module, name).text("touch x");
            let message = state_dict(&p.op(&[0x85]).op(b"R.").0).unwrap_err();
            let start = format!("global {module}.{name} is not allowed; save the weights alone");
            assert!(message.starts_with(&start), "{message}");
        }
        let message = state_dict(b"\x80\x02c\x1b[2J\nx\n.").unwrap_err();
        assert!(
            message.starts_with("global \\x1b[2J.x is not allowed"),
            "{message}"
        );
    }

    #[test]
    fn opcodes_that_state_dicts_do_not_need_are_refused_by_name() {
        let allowed = b"NJKMGX()]}aesuqrhjctQRb.\x81\x85\x86\x87\x88\x89\x8a";
        for opcode in 0..=u8::MAX {
            let message = state_dict(&[0x80, 2, b'N', opcode]).unwrap_err();
            let refused = message.ends_with("at offset 3 is not allowed");
            assert_eq!(
                refused,
                !allowed.contains(&opcode),
                "{opcode:#04x}: {message}"
            );
        }
        for (opcode, name) in [
            (0x93, "STACK_GLOBAL"),
            (b'i', "INST"),
            (0x92, "NEWOBJ_EX"),
            (0xff, "0xff"),
        ] {
            let message = state_dict(&[0x80, 2, opcode]).unwrap_err();
            assert_eq!(
                message,
                format!("pickle opcode {name} at offset 2 is not allowed")
            );
        }
        assert!(
            state_dict(&[0x80, 4, b'}', b'.'])
                .unwrap_err()
                .contains("protocol 2")
        );
    }

    /// A tensor costs a few bytes each time it is made again, and some 300 bytes of memory.
    #[test]
    fn the_number_of_tensors_is_limited() {
        let p = Pickle::new()
            .global("torch._utils", "_rebuild_tensor_v2")
            .op(b"q\x00(");
        let mut p = float(p).int(0).ints(&[1]).ints(&[1]).op(&[0x89]);
        p = p.global("collections", "OrderedDict").op(b")Rtq\x01");
        let many = |n: usize| Pickle([&p.0[..], &b"h\x00h\x01R".repeat(n)].concat());
        let message = state_dict(&many(MAX_TENSORS + 1).0).unwrap_err();
        assert!(message.contains("at most 32768 tensors"), "{message}");
        let message = state_dict(&many(MAX_TENSORS).op(b".").0).unwrap_err();
        assert!(message.contains("found more"), "{message}");
    }

    #[test]
    fn nonsense_is_refused() {
        let new = Pickle::new;
        let rebuild = || new().global("torch._utils", "_rebuild_tensor_v2");
        let cases = [
            ("nothing", Pickle(vec![]), "found its end"),
            ("no end", new().op(b"}"), "found its end"),
            ("two values", new().op(b"}}."), "found more"),
            ("open mark", new().op(b"(}."), "found more"),
            ("no value", new().op(b"."), "not there"),
            (
                "a number alone",
                new().int(1).op(b"."),
                "a dict, found a number",
            ),
            ("value under a mark", new().op(b"}(N"), "found its end"),
            ("pop under a mark", new().op(b"}(\x85"), "not there"),
            ("no mark", new().op(b"}t"), "a mark that is not there"),
            ("a key alone", new().op(b"}(Nu"), "a key alone"),
            ("items for a list", new().op(b"](NNu"), "found a list"),
            ("append to a dict", new().op(b"}Na"), "found a dict"),
            ("attributes of a list", new().op(b"]}b"), "found a list"),
            ("empty slot", new().op(b"h\x07"), "slot 7, which is empty"),
            (
                "long string",
                new().op(b"X\xff\xff\xff\xffabc"),
                "found its end",
            ),
            ("bad string", new().op(b"X\x01\0\0\0\xff"), "UTF-8"),
            (
                "long number",
                new().op(b"\x8a\xff").op(&[1; 255]),
                "at most 8 bytes",
            ),
            (
                "endless global",
                new().op(b"c").op(&[b'a'; 1000]),
                "at most 256",
            ),
            (
                "id of a number",
                new().int(3).op(b"Q"),
                "a tuple as a persistent id",
            ),
            (
                "short id",
                new().ints(&[1, 2]).op(b"Q"),
                "5 values, found 2",
            ),
            (
                "id of numbers",
                new().ints(&[1, 2, 3, 4, 5]).op(b"Q"),
                "found a number",
            ),
            (
                "id of a module",
                new().op(b"(").text("module").op(b"NNNNtQ"),
                "of a storage, found another",
            ),
            (
                "id of no class",
                new().op(b"(").text("storage").op(b"NNNNtQ"),
                "storage class in a persistent id, found None",
            ),
            (
                "negative length",
                new().storage("FloatStorage", "0", -1),
                "at least 0",
            ),
            (
                "long key",
                new().storage("FloatStorage", &"k".repeat(300), 1),
                "found 300",
            ),
            (
                "call a tuple",
                new().op(b"))R"),
                "a callable, found a tuple",
            ),
            (
                "call a storage",
                new().global("torch", "FloatStorage").op(b")R"),
                "found a global",
            ),
            (
                "call without a tuple",
                rebuild().op(b"NR"),
                "a tuple as arguments",
            ),
            ("too few arguments", rebuild().op(b")R"), "6 or 7 arguments"),
            (
                "tensor of nothing",
                rebuild().op(b"(NNNNNNtR"),
                "a storage to make",
            ),
            (
                "dict with arguments",
                new().global("collections", "OrderedDict").op(b"N\x85R"),
                "without arguments",
            ),
            (
                "negative axis",
                new().tensor(float, 0, &[-1], &[1]),
                "at least 0",
            ),
            (
                "many axes",
                new().tensor(float, 0, &[1; 65], &[1; 65]),
                "found 65",
            ),
            (
                "twice",
                (0..2)
                    .fold(new().op(b"}("), |p, _| {
                        p.text("w").tensor(float, 0, &[1], &[1])
                    })
                    .op(b"u."),
                "\"w\" twice",
            ),
        ];
        for (case, p, expected) in cases {
            let message = state_dict(&p.0).expect_err(case);
            assert!(message.contains(expected), "{case}: {message}");
        }
    }

    #[test]
    fn bombs_are_bounded_and_cycles_end() {
        let new = Pickle::new;
        let repeat = |p: Pickle, bytes: &[u8], n: usize| p.op(&bytes.repeat(n));
        let refused = [
            (
                "values",
                repeat(new(), b"N", MAX_VALUES + 1),
                "at most 262144 values",
            ),
            (
                "recalls",
                repeat(new().op(b"Nq\0"), b"h\0", MAX_VALUES),
                "on the stack",
            ),
            (
                "marks",
                repeat(new(), b"(", MAX_MARKS + 1),
                "1024 open marks",
            ),
            (
                "size",
                repeat(new(), b"N", MAX_PICKLE),
                "at most 4194304 bytes",
            ),
            // Lists in lists in lists: no recursion reads or drops them.
            (
                "depth",
                repeat(repeat(new(), b"]", 100_000), b"a", 99_999).op(b"."),
                "a dict, found a list",
            ),
            // Each tuple holds the one before ten times: 10^50 leaves if anybody counted them.
            (
                "laughs",
                repeat(new().op(b")"), b"q\0(h\0h\0h\0h\0h\0h\0h\0h\0h\0h\0t", 50).op(b"."),
                "found more",
            ),
        ];
        for (case, p, expected) in refused {
            let message = state_dict(&p.0).expect_err(case);
            assert!(message.contains(expected), "{case}: {message}");
        }
        // A dict whose model is itself.
        let p = new().op(b"}q\0").text("model").op(b"h\0s.");
        assert!(state_dict(&p.0).unwrap().is_empty());
    }

    #[test]
    fn a_pickle_cut_short_anywhere_is_refused() {
        let p = Pickle::new()
            .op(b"}")
            .text("w")
            .tensor(float, 0, &[6], &[1])
            .op(b"s.");
        assert_eq!(state_dict(&p.0).unwrap().len(), 1);
        for n in 0..p.0.len() {
            assert!(state_dict(&p.0[..n]).is_err(), "{n} bytes");
        }
    }
}

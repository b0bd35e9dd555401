"""Executes PTX kernels on the CPU, one block at a time, with the block's threads as numpy arrays.

The threads with the smallest program counter go first, so that warps diverge and converge again as on a GPU. Checked
on the way, each an `Error`: bounds and alignment of every access, whole warps at `mma` and `shfl`, and races in shared
memory: a byte that one thread writes and another reads or writes with no barrier between them. Memory of the device
and shared memory start as 0xff bytes, which are NaNs. `Block.issued` counts executed warp-instructions.

Not simulated: reordering of memory between blocks (they run one after the other), caches, time, and machine code: this
is the PTX, from which the machine code is made.
"""

import re
import struct

import numpy as np

from formats import bf16_bits

WARP = 32
np.seterr(all="ignore")

TYPES = {
    "f32": np.float32, "f64": np.float64, "pred": np.bool_,
    "b8": np.uint8, "b16": np.uint16, "b32": np.uint32, "b64": np.uint64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
    "s8": np.int8, "s16": np.int16, "s32": np.int32, "s64": np.int64,
}  # fmt: skip
# By the prefix of a register's name; the longer prefixes first.
REGISTERS = {
    "%rs": np.uint16, "%rd": np.uint64, "%fd": np.float64, "%SP": np.uint64,
    "%p": np.bool_, "%r": np.uint32, "%f": np.float32,
}  # fmt: skip


class Error(Exception):
    """What a kernel must not do."""


class Memory:
    """Memory of the device, with a gap between allocations."""

    BASE = 0x10000000

    def __init__(self, size=8 << 20):
        self.bytes = np.full(size, 255, np.uint8)
        self.starts, self.ends, self.top = [], [], 256

    def put(self, array):
        """Copies an array to an allocation of its own; returns its address."""
        raw = np.ascontiguousarray(array).view(np.uint8).ravel()
        at = -(-self.top // 256) * 256
        self.bytes[at : at + raw.size] = raw
        self.starts.append(at)
        self.ends.append(at + raw.size)
        self.top = at + raw.size + 256
        return self.BASE + at

    def get(self, address, shape, dtype=np.float32):
        n = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes[address - self.BASE :][:n].view(dtype).reshape(shape).copy()

    def check(self, at, size, what):
        found = np.searchsorted(self.starts, at, "right") - 1
        outside = (found < 0) | (at + size > np.array(self.ends)[np.maximum(found, 0)])
        if outside.any():
            raise Error(f"{what}: {int(outside.sum())} threads outside of allocated memory")
        if (at % size).any():
            raise Error(f"{what}: an address is not a multiple of {size}")


class Kernel:
    """The instructions of one entry: (guard, opcode's parts, operands)."""

    def __init__(self, text, name):
        start = text.index(f".entry {name}(")
        end = text.find(".entry ", start + 8)
        head, body = text[start : end if end > 0 else len(text)].split("{", 1)
        self.name = name
        self.params = re.findall(r"\.param \.(\w+) (\w+)", head)
        self.shared, self.n_shared = {}, 0
        outside = text[: text.index(".entry")]
        for align, variable, n in re.findall(r"\.shared \.align (\d+) \.\w+ (\w+)(?:\[(\d+)\])?;", outside + body):
            at = -(-self.n_shared // int(align)) * int(align)
            self.shared[variable], self.n_shared = at, at + int(n or 4)
        self.code, self.labels = [], {}
        for line in body.split("\n"):
            line = line.strip()
            if label := re.match(r"(\$\w+):$", line):
                self.labels[label[1]] = len(self.code)
                continue
            if not line or line in "{}" or line.startswith(("//", ".")):
                continue
            line = line.strip("{}").strip()
            if line:
                self.code.append(self.parse(line))

    @staticmethod
    def parse(line):
        found = re.match(r"(?:@(!?)(%p\d+) )?([a-z][\w.:]*)\s*(.*?);?$", line)
        if not found:
            raise Error(f"cannot parse {line}")
        negated, guard, opcode, operands = found.groups()
        operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", operands)
        return guard and (negated == "!", guard), opcode.split("."), operands


def names(operand):
    """The registers of a vector operand, or the one of a scalar."""
    return [name.strip() for name in operand.strip("{}").split(",")]


class Block:
    """One block of a launch."""

    def __init__(self, kernel, memory, args, block, grid, n_threads):
        self.kernel, self.memory, self.n = kernel, memory, n_threads
        self.args = {name: value for (_, name), value in zip(kernel.params, args, strict=True)}
        self.special = {"%tid.x": np.arange(n_threads), "%ntid.x": n_threads}
        for axis, at, extent in zip("xyz", block, grid):
            self.special[f"%ctaid.{axis}"], self.special[f"%nctaid.{axis}"] = at, extent
        self.registers, self.issued = {}, 0
        n = max(kernel.n_shared, 1)
        self.shared, self.local = np.full(n, 255, np.uint8), np.zeros((n_threads, 256), np.uint8)
        # Of each shared byte: the barriers before it was written and read last, and by which thread; -2 for several.
        self.written, self.writer, self.read, self.reader = (np.full(n, -1) for _ in range(4))
        self.barriers = 0

    def register(self, name):
        if name not in self.registers:
            dtype = next(t for prefix, t in REGISTERS.items() if name.startswith(prefix))
            self.registers[name] = np.zeros(self.n, dtype)
        return self.registers[name]

    def value(self, operand, kind):
        dtype = np.dtype(TYPES[kind])
        if operand in self.special:
            return np.broadcast_to(self.special[operand], self.n).astype(dtype)
        if operand[0] == "%":
            value = self.register(operand)
            return value.view(dtype) if value.dtype.itemsize == dtype.itemsize else value.astype(dtype)
        if operand[:2] in ("0f", "0d"):
            return np.full(self.n, struct.unpack(">" + "fd"[operand[1] == "d"], bytes.fromhex(operand[2:]))[0], dtype)
        if operand in self.kernel.shared:
            return np.full(self.n, self.kernel.shared[operand]).astype(dtype)
        if operand.startswith("__local"):
            return np.zeros(self.n, dtype)
        if dtype == np.bool_:
            return np.full(self.n, int(operand) != 0)
        unsigned = np.dtype(f"u{dtype.itemsize}")
        return np.full(self.n, int(operand) & (1 << 8 * dtype.itemsize) - 1, np.uint64).astype(unsigned).view(dtype)

    def put(self, name, value, mask):
        if name == "_":
            return
        to = self.register(name)
        if value.dtype != to.dtype:
            same_size = value.dtype.itemsize == to.dtype.itemsize and np.bool_ not in (value.dtype, to.dtype)
            value = value.view(to.dtype) if same_size else value.astype(to.dtype)
        to[mask] = value[mask]

    def run(self, limit=3_000_000):
        counter = np.zeros(self.n, np.int64)
        waiting, done = np.zeros(self.n, bool), np.zeros(self.n, bool)
        first_lanes = np.arange(0, self.n, WARP)
        for _ in range(limit):
            running = ~(waiting | done)
            if not running.any():
                if not waiting.any():
                    return
                if done.any():
                    raise Error(f"{self.kernel.name}: a barrier after some threads have left")
                self.barriers += 1
                waiting[:] = False
                continue
            at = int(counter[running].min())
            mask = running & (counter == at)
            guard, opcode, operands = self.kernel.code[at]
            lanes = np.add.reduceat(mask, first_lanes)
            self.issued += int((lanes > 0).sum())
            if opcode[0] in ("mma", "shfl") and ((lanes > 0) & (lanes < WARP)).any():
                raise Error(f"{self.kernel.name}: part of a warp at {'.'.join(opcode)}")
            active = mask
            if guard is not None:
                flag = self.register(guard[1])
                active = mask & (~flag if guard[0] else flag)
            counter[mask] = at + 1
            if opcode[0] == "bra":
                counter[active] = self.kernel.labels[operands[0]]
            elif opcode[0] == "ret":
                done |= active
            elif opcode[0] in ("bar", "barrier"):
                waiting |= active
            elif active.any():
                self.execute(opcode, operands, active)
        raise Error(f"{self.kernel.name}: no end after {limit} instructions")

    def execute(self, opcode, o, mask):
        run = getattr(self, f"do_{opcode[0]}", None)
        if run is not None:
            run(opcode, o, mask)
            return
        plain = ARITHMETIC.get(opcode[0])
        if plain is None:
            raise Error(f"unknown instruction {'.'.join(opcode)}")
        kind = opcode[-1]
        self.put(o[0], plain(*(self.value(x, kind) for x in o[1:])), mask)

    # Memory.

    def address(self, operand):
        base, _, offset = operand[1:-1].partition("+")
        if base in self.kernel.shared:
            start = np.full(self.n, self.kernel.shared[base], np.int64)
        else:
            start = self.value(base, "s64")
        return start + int(offset or 0)

    def do_ld(self, opcode, o, mask):
        kind = opcode[-1]
        dtype = np.dtype(TYPES[kind])
        if "param" in opcode:
            self.put(o[0], np.full(self.n, self.args[o[1][1:-1]]).astype(dtype), mask)
            return
        targets = names(o[0])
        at, memory = self.access(opcode, o[1], dtype.itemsize * len(targets), mask)
        for i, target in enumerate(targets):
            raw = memory(at + i * dtype.itemsize, dtype.itemsize)
            value = np.zeros(self.n, dtype)
            value[mask] = raw.view(dtype).ravel()
            to = self.register(target)
            # A narrow type is extended, by its sign if it has one.
            self.put(target, value if to.dtype.itemsize == dtype.itemsize else value.astype(to.dtype), mask)

    def do_st(self, opcode, o, mask):
        kind = opcode[-1]
        dtype = np.dtype(TYPES[kind])
        sources = names(o[1])
        at, memory = self.access(opcode, o[0], dtype.itemsize * len(sources), mask, store=True)
        for i, source in enumerate(sources):
            raw = np.ascontiguousarray(self.value(source, kind)[mask]).view(np.uint8).reshape(-1, dtype.itemsize)
            places = at + i * dtype.itemsize
            memory(places, dtype.itemsize, raw)
            # Threads that write one place at once must write the same.
            if (memory(places, dtype.itemsize) != raw).any():
                raise Error(f"{self.kernel.name}: {'.'.join(opcode)}: two threads write one place")

    def access(self, opcode, operand, size, mask, store=False):
        """Checks an access of `size` bytes; returns the threads' places and what reads or writes bytes there."""
        at, what = self.address(operand)[mask], f"{self.kernel.name}: {'.'.join(opcode)}"
        threads = np.nonzero(mask)[0]
        if "local" in opcode:

            def memory(at, n, raw=None):
                places = (threads[:, None], at[:, None] + np.arange(n))
                if raw is None:
                    return self.local[places].copy()
                self.local[places] = raw

            return at, memory
        if "shared" in opcode:
            if (at < 0).any() or (at + size > len(self.shared)).any():
                raise Error(f"{what}: outside of shared memory")
            if (at % size).any():
                raise Error(f"{what}: an address is not a multiple of {size}")
            self.check_races(what, at, size, threads, store)
            content = self.shared
        else:
            at = at - Memory.BASE
            self.memory.check(at, size, what)
            content = self.memory.bytes

        def memory(at, n, raw=None):
            places = at[:, None] + np.arange(n)
            if raw is None:
                return content[places].copy()
            content[places] = raw

        return at, memory

    def check_races(self, what, at, size, threads, store):
        places = at[:, None] + np.arange(size)
        by = np.broadcast_to(threads[:, None], places.shape)
        race = (self.written[places] == self.barriers) & (self.writer[places] != by)
        if store:
            race |= (self.read[places] == self.barriers) & (self.reader[places] != by)
        if race.any():
            raise Error(f"{what}: a race in shared memory")
        if store:
            self.written[places], self.writer[places] = self.barriers, by
            return
        others = (self.read[places] == self.barriers) & (self.reader[places] != by)
        self.reader[places], self.read[places] = np.where(others, -2, by), self.barriers
        several, n = np.unique(at, return_counts=True)
        self.reader[several[n > 1][:, None] + np.arange(size)] = -2

    def do_atom(self, _, o, mask):
        # atom.inc: wraps to 0 after the limit.
        at, limit = self.address(o[1]) - Memory.BASE, self.value(o[2], "u32")
        self.memory.check(at[mask], 4, "atom")
        before = np.zeros(self.n, np.uint32)
        for thread in np.nonzero(mask)[0]:
            word = self.memory.bytes[at[thread] : at[thread] + 4].view(np.uint32)
            before[thread] = word[0]
            word[0] = 0 if word[0] >= limit[thread] else word[0] + 1
        self.put(o[0], before, mask)

    def do_membar(self, *_):
        pass

    do_fence = do_membar

    # Instructions that are more than an operation on their operands.

    def do_mov(self, opcode, o, mask):
        if o[1][0] == "{":
            low, high = (self.value(x, "u16").astype(np.uint32) for x in names(o[1]))
            self.put(o[0], low | high << np.uint32(16), mask)
        elif o[0][0] == "{":
            word = self.value(o[1], "u32")
            for i, name in enumerate(names(o[0])):
                self.put(name, (word >> np.uint32(16 * i) & np.uint32(0xFFFF)).astype(np.uint16), mask)
        else:
            self.put(o[0], self.value(o[1], opcode[-1]), mask)

    do_cvta = do_mov

    def do_mul(self, opcode, o, mask):
        kind = opcode[-1]
        a, b = self.value(o[1], kind), self.value(o[2], kind)
        if "wide" in opcode:
            wide = {"u32": np.uint64, "s32": np.int64, "u16": np.uint32, "s16": np.int32}[kind]
            a, b = a.astype(wide), b.astype(wide)
        self.put(o[0], a * b, mask)

    def do_mad(self, opcode, o, mask):
        kind = opcode[-1]
        a, b = self.value(o[1], kind), self.value(o[2], kind)
        if "wide" in opcode:
            wide = {"u32": "u64", "s32": "s64"}[kind]
            self.put(o[0], a.astype(TYPES[wide]) * b.astype(TYPES[wide]) + self.value(o[3], wide), mask)
        else:
            self.put(o[0], a * b + self.value(o[3], kind), mask)

    def do_fma(self, opcode, o, mask):
        # Rounded twice, once in double precision: the difference is far below every tolerance.
        a, b, c = (self.value(x, opcode[-1]).astype(float) for x in o[1:])
        exact = a * b + c
        nearest = exact.astype(TYPES[opcode[-1]])
        if "rm" in opcode:
            down = np.nextafter(nearest, nearest.dtype.type(-np.inf))
            nearest = np.where(nearest.astype(float) > exact, down, nearest)
        self.put(o[0], nearest, mask)

    def do_div(self, opcode, o, mask):
        a, b = self.value(o[1], opcode[-1]), self.value(o[2], opcode[-1])
        self.put(o[0], a / b if opcode[-1][0] == "f" else a // np.where(b == 0, 1, b), mask)

    def do_rem(self, opcode, o, mask):
        a, b = self.value(o[1], opcode[-1]), self.value(o[2], opcode[-1])
        self.put(o[0], np.fmod(a, np.where(b == 0, 1, b)), mask)

    def do_shl(self, opcode, o, mask):
        x, by = self.value(o[1], opcode[-1]), self.value(o[2], "u32")
        bits = 8 * x.dtype.itemsize
        self.put(o[0], np.where(by < bits, x << (by % bits).astype(x.dtype), 0).astype(x.dtype), mask)

    def do_shr(self, opcode, o, mask):
        x, by = self.value(o[1], opcode[-1]), self.value(o[2], "u32")
        bits = 8 * x.dtype.itemsize
        shifted = x >> np.minimum(by, bits - 1).astype(x.dtype)
        self.put(o[0], shifted if x.dtype.kind == "i" else np.where(by < bits, shifted, 0).astype(x.dtype), mask)

    def do_setp(self, opcode, o, mask):
        kind, relation = opcode[-1], opcode[1]
        a, b = self.value(o[1], kind), self.value(o[2], kind)
        compare = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal}
        compare |= {"gt": np.greater, "ge": np.greater_equal}
        result = compare[relation[:2]](a, b)
        if kind[0] == "f":
            nan = np.isnan(a) | np.isnan(b)
            result = result | nan if relation[2:] == "u" else result & ~nan
        self.put(o[0], result, mask)

    def do_selp(self, opcode, o, mask):
        self.put(o[0], np.where(self.register(o[3]), self.value(o[1], opcode[-1]), self.value(o[2], opcode[-1])), mask)

    def do_bfi(self, _, o, mask):
        a, b, at, n = self.value(o[1], "u32"), self.value(o[2], "u32"), int(o[3]), int(o[4])
        field = np.uint32(((1 << n) - 1) << at)
        self.put(o[0], (b & ~field) | (a << np.uint32(at) & field), mask)

    def do_bfe(self, opcode, o, mask):
        x, at, n = self.value(o[1], opcode[-1]), int(o[2]), int(o[3])
        top = 32 - at - n
        dtype = x.dtype.type
        self.put(o[0], (x << dtype(top)) >> dtype(top + at), mask)

    def do_prmt(self, _, o, mask):
        both = self.value(o[1], "u32").astype(np.uint64) | self.value(o[2], "u32").astype(np.uint64) << np.uint64(32)
        selector, result = self.value(o[3], "u32"), np.zeros(self.n, np.uint32)
        if (selector & 0x8888).any():
            raise Error("prmt: signs are not simulated")
        for i in range(4):
            byte = (selector >> np.uint32(4 * i) & np.uint32(7)).astype(np.uint64)
            result |= (both >> byte * np.uint64(8) & np.uint64(255)).astype(np.uint32) << np.uint32(8 * i)
        self.put(o[0], result, mask)

    def do_cvt(self, opcode, o, mask):
        to, source = opcode[-2:]
        if "bf16x2" in opcode:
            high, low = (bf16_bits(self.value(x, "f32")) for x in o[1:])
            self.put(o[0], high << np.uint32(16) | low, mask)
        elif source == "f16":
            self.put(o[0], self.value(o[1], "u16").view(np.float16).astype(np.float32), mask)
        elif to == "f16":
            self.put(o[0], self.value(o[1], "f32").astype(np.float16).view(np.uint16), mask)
        elif "sat" in opcode:
            self.put(o[0], np.clip(np.nan_to_num(self.value(o[1], source)), 0, 1).astype(np.float32), mask)
        else:
            self.put(o[0], self.value(o[1], source).astype(TYPES[to]), mask)

    def do_shfl(self, opcode, o, mask):
        if opcode[2] != "bfly":
            raise Error(f"unknown instruction {'.'.join(opcode)}")
        x, other = self.value(o[1], "u32"), np.arange(self.n) ^ self.value(o[2], "u32").astype(int)
        target, _, flag = o[0].partition("|")
        self.put(target, x[other], mask)
        if flag:
            self.put(flag, np.ones(self.n, bool), mask)

    def do_mma(self, opcode, o, mask):
        # m16n8k16 of bfloat16, as the PTX manual spreads it over a warp.
        if opcode[3] != "m16n8k16" or "bf16" not in opcode:
            raise Error(f"unknown instruction {'.'.join(opcode)}")
        d, a_names, b_names, c_names = map(names, o)
        warps, lane = self.n // WARP, np.arange(WARP)
        g, t = lane // 4, lane % 4

        def pair(name):
            word = self.value(name, "u32")
            halves = [(word << np.uint32(16)).view(np.float32), (word & np.uint32(0xFFFF0000)).view(np.float32)]
            return np.stack(halves, 1).reshape(warps, WARP, 2).astype(float)

        a, b = np.zeros((warps, 16, 16)), np.zeros((warps, 16, 8))
        for i, name in enumerate(a_names):
            for half in range(2):
                a[:, g + 8 * (i % 2), 2 * t + half + 8 * (i // 2)] = pair(name)[:, :, half]
        for i, name in enumerate(b_names):
            for half in range(2):
                b[:, 2 * t + half + 8 * i, g] = pair(name)[:, :, half]
        product = (a @ b).astype(np.float32)
        sums = [self.value(name, "f32").reshape(warps, WARP).copy() for name in c_names]
        for i, name in enumerate(d):
            self.put(name, (sums[i] + product[:, g + 8 * (i // 2), 2 * t + i % 2]).ravel(), mask)

    def do_dp4a(self, opcode, o, mask):
        # Each operand's bytes by its own type.
        a, b = (
            self.value(x, "u32").view(np.uint8).reshape(self.n, 4).view(np.int8 if kind == "s32" else np.uint8)
            for x, kind in zip(o[1:3], opcode[-2:])
        )
        dot = (a.astype(np.int64) * b.astype(np.int64)).sum(1) + self.value(o[3], "s32")
        self.put(o[0], dot.astype(np.int32), mask)


def either(boolean, bitwise):
    return lambda a, b: (boolean if a.dtype == np.bool_ else bitwise)(a, b)


ARITHMETIC = {
    "add": np.add,
    "sub": np.subtract,
    "min": np.fmin,
    "max": np.fmax,
    "and": either(np.logical_and, np.bitwise_and),
    "or": either(np.logical_or, np.bitwise_or),
    "xor": either(np.logical_xor, np.bitwise_xor),
    "not": lambda x: ~x,
    "neg": lambda x: -x,
    "abs": np.abs,
    "ex2": np.exp2,
    "lg2": np.log2,
    "rcp": lambda x: 1 / x,
    "sqrt": np.sqrt,
}


def launch(text, name, memory, args, grid, n_threads=256, order=None):
    """Runs the blocks of a launch, in the order given or by their numbers; returns their warp-instructions."""
    kernel = Kernel(text, name)
    grid = (*grid, 1, 1)[:3]
    blocks = [(x, y, z) for z in range(grid[2]) for y in range(grid[1]) for x in range(grid[0])]
    issued = []
    for block in blocks if order is None else [blocks[i] for i in order]:
        running = Block(kernel, memory, args, block, grid, n_threads)
        running.run()
        issued.append(running.issued)
    return issued

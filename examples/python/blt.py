"""libblt from Python through its C interface; no compiled extension, standard library only.

    with blt.Model("path/to/checkpoint") as model, blt.Session(model, seed=7) as session:
        session.feed(b"Once upon a time")
        for byte in session.stream(200):
            sys.stdout.buffer.write(byte)

The library is found in BLT_LIBRARY, else by the system's rules (libblt.so.0). ctypes releases the
interpreter lock while the engine works, so Python threads with a session each run at once, also on
one model. The rules are those of blt.h.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_int, c_size_t, c_uint32
from ctypes import c_uint64, c_void_p
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

ABI_VERSION = 0

_STATUS_OK = 0
_END = -1

# Options by name: (number, kind). See blt_option in blt.h.
_OPTIONS = {
    "threads": (1, "int"),
    "isa": (2, "text"),
    "config": (3, "text"),
    "entropy_model": (4, "text"),
    "preload": (5, "int"),
    "copy": (6, "int"),
    "patching": (7, "text"),
    "profile": (8, "text"),
    "tokenizer": (9, "text"),
    "load": (10, "text"),
    "no_bos": (20, "int"),
    "threshold": (21, "real"),
    "threshold_add": (22, "real"),
    "monotonicity": (23, "int"),
    "max_patch_length": (24, "int"),
    "patch_size": (25, "int"),
    "entropies": (26, "int"),
    "entropy_reset": (27, "int"),
    "max_bytes": (28, "int"),
    "max_patches": (29, "int"),
    "slide_keep": (30, "int"),
    "kv": (31, "text"),
    "temperature": (40, "real"),
    "top_k": (41, "int"),
    "top_p": (42, "real"),
    "min_p": (43, "real"),
    "repeat_penalty": (44, "real"),
    "repeat_window": (45, "int"),
    "seed": (46, "int"),
    "ignore_eos": (47, "int"),
    "stop": (48, "text"),
    "draft": (49, "int"),
}

_FINISH = {1: "max_bytes", 2: "eos", 3: "stop", 4: "callback"}

_Progress = ctypes.CFUNCTYPE(c_int, c_void_p, c_uint64, c_uint64)
_Write = ctypes.CFUNCTYPE(c_int, c_void_p, POINTER(ctypes.c_uint8), c_size_t)


class Error(Exception):
    """A failed call; `status` is its name, such as "BLT_ERROR_IO"."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


def _open_library() -> ctypes.CDLL:
    lib = ctypes.CDLL(os.environ.get("BLT_LIBRARY") or "libblt.so.0")
    p, n = c_void_p, c_size_t
    out, count = POINTER(c_void_p), POINTER(c_size_t)
    # Name, return type (c_int: a blt_status), argument types.
    functions: list[tuple[Any, ...]] = [
        ("blt_version", c_char_p),
        ("blt_abi_version", c_uint32),
        ("blt_status_name", c_char_p, c_int),
        ("blt_last_error", c_char_p),
        ("blt_options_new", c_int, out),
        ("blt_options_free", None, p),
        ("blt_options_set_int", c_int, p, c_int, c_uint64),
        ("blt_options_set_real", c_int, p, c_int, c_double),
        ("blt_options_set_text", c_int, p, c_int, c_char_p, n),
        ("blt_model_open", c_int, c_char_p, p, _Progress, p, out),
        ("blt_model_open_memory", c_int, p, n, p, _Progress, p, out),
        ("blt_model_info", c_int, p, c_int, POINTER(c_uint64)),
        ("blt_model_free", None, p),
        ("blt_session_new", c_int, p, p, out),
        ("blt_session_clone", c_int, p, out),
        ("blt_session_reset", c_int, p),
        ("blt_session_free", None, p),
        ("blt_session_set_sampling", c_int, p, p),
        ("blt_session_feed", c_int, p, c_char_p, n),
        ("blt_session_next_byte", c_int, p, POINTER(c_int)),
        ("blt_session_generate", c_int, p, n, _Write, p, POINTER(c_int)),
        ("blt_session_logits", c_int, p, p, n, count),
        ("blt_session_entropies", c_int, p, n, p, n, count),
        ("blt_session_patch_starts", c_int, p, n, p, n, count),
        ("blt_session_score", c_int, p, c_char_p, n, POINTER(c_double)),
        ("blt_session_rewind", c_int, p, n),
        ("blt_session_info", c_int, p, c_int, POINTER(c_uint64)),
        ("blt_session_cancel", c_int, p),
        ("blt_session_save", c_int, p, c_char_p),
        ("blt_session_save_memory", c_int, p, p, n, count),
        ("blt_session_load", c_int, p, p, c_char_p, out),
        ("blt_session_load_memory", c_int, p, p, c_char_p, n, out),
    ]
    for name, result, *arguments in functions:
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    if lib.blt_abi_version() != ABI_VERSION:
        raise ImportError(f"expected libblt with ABI {ABI_VERSION}, found {lib.blt_abi_version()}")
    return lib


_lib = _open_library()


def version() -> str:
    """The release of the library."""
    return str(_lib.blt_version().decode())


def _check(status: int) -> None:
    if status != _STATUS_OK:
        message = _lib.blt_last_error().decode(errors="replace")
        raise Error(_lib.blt_status_name(status).decode(), message)


class _Handle:
    """Owns a handle of the library and frees it once."""

    _free: Any = None

    def __init__(self, pointer: c_void_p) -> None:
        self._pointer = pointer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees it. It cannot be used afterwards."""
        pointer: c_void_p | None = getattr(self, "_pointer", None)
        self._pointer = c_void_p()
        if pointer:
            type(self)._free(pointer)

    __del__ = close

    @property
    def _as_parameter_(self) -> c_void_p:
        if not self._pointer:
            raise ValueError(f"this {type(self).__name__.lower()} is closed")
        return self._pointer


class _Options(_Handle):
    _free = _lib.blt_options_free

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(c_void_p())
        _check(_lib.blt_options_new(byref(self._pointer)))
        for name, value in settings.items():
            if name not in _OPTIONS:
                raise TypeError(f"expected one of {', '.join(_OPTIONS)}, found {name!r}")
            number, kind = _OPTIONS[name]
            if kind == "int":
                if not 0 <= int(value) < 1 << 64:
                    raise ValueError(f"{name}: expected 0 to 2**64 - 1, found {value}")
                _check(_lib.blt_options_set_int(self, number, int(value)))
            elif kind == "real":
                _check(_lib.blt_options_set_real(self, number, float(value)))
            else:
                for text in value if isinstance(value, (list, tuple)) else [value]:
                    text = text if isinstance(text, bytes) else os.fsencode(text)
                    _check(_lib.blt_options_set_text(self, number, text, len(text)))


class Model(_Handle):
    """A model: a file or folder in any known layout, mapped and shared between sessions.

    Options: threads, isa, config, entropy_model, preload, patching, profile, tokenizer. `progress(done, total)`
    is told how many bytes of weights have been read; False ends the opening.
    """

    _free = _lib.blt_model_free
    _KEYS = {
        "parameters": 1,
        "weight_bytes": 2,
        "max_bytes": 3,
        "max_patches": 4,
        "has_entropy_model": 5,
        "threads": 6,
        "fingerprint": 7,
    }

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        progress: Callable[[int, int], bool | None] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(c_void_p())
        failures: list[BaseException] = []

        def tell(_user: Any, done: int, total: int) -> int:
            try:
                return int(progress is not None and progress(done, total) is False)
            except BaseException as failure:  # raised below, in Python's own frames
                failures.append(failure)
                return 1

        with _Options(options) as settings:
            status = _lib.blt_model_open(
                os.fsencode(path), settings, _Progress(tell), None, byref(self._pointer)
            )
        if failures:
            raise failures[0]
        _check(status)

    def info(self, key: str) -> int:
        """parameters, weight_bytes, max_bytes, max_patches, has_entropy_model, threads, or
        fingerprint."""
        value = c_uint64()
        _check(_lib.blt_model_info(self, self._KEYS[key], byref(value)))
        return value.value


class Session(_Handle):
    """One conversation, used by one thread at a time. Only cancel() may be called from others.

    Options: those of patching, of the context, and of choosing bytes (see blt_option).
    """

    _free = _lib.blt_session_free
    _KEYS = {"length": 1, "max_bytes": 2, "slides": 3, "cache_bytes": 4}

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(c_void_p())
        with _Options(options) as settings:
            _check(_lib.blt_session_new(model, settings, byref(self._pointer)))

    @classmethod
    def _adopt(cls, pointer: c_void_p) -> Session:
        session = cls.__new__(cls)
        _Handle.__init__(session, pointer)
        return session

    @classmethod
    def load(cls, model: Model, state: bytes | str | os.PathLike[str], **options: Any) -> Session:
        """Loads a session that save() wrote: the bytes, or the path of a file."""
        pointer = c_void_p()
        with _Options(options) as settings:
            if isinstance(state, bytes):
                status = _lib.blt_session_load_memory(
                    model, settings, state, len(state), byref(pointer)
                )
            else:
                status = _lib.blt_session_load(
                    model, settings, os.fsencode(state), byref(pointer)
                )
        _check(status)
        return cls._adopt(pointer)

    def save(self, path: str | os.PathLike[str] | None = None) -> bytes | None:
        """Saves the session to a file, or returns it as bytes if there is no path."""
        if path is not None:
            _check(_lib.blt_session_save(self, os.fsencode(path)))
            return None
        n = c_size_t()
        _check(_lib.blt_session_save_memory(self, None, 0, byref(n)))
        state = ctypes.create_string_buffer(n.value)
        _check(_lib.blt_session_save_memory(self, state, n, byref(n)))
        return state.raw

    def fork(self) -> Session:
        """A second session that has read the same bytes and continues on its own."""
        pointer = c_void_p()
        _check(_lib.blt_session_clone(self, byref(pointer)))
        return self._adopt(pointer)

    def feed(self, data: bytes) -> None:
        """Reads bytes."""
        _check(_lib.blt_session_feed(self, data, len(data)))

    def next_byte(self) -> bytes | None:
        """The next byte, already read; None at the end of the text."""
        byte = c_int()
        _check(_lib.blt_session_next_byte(self, byref(byte)))
        return None if byte.value == _END else bytes([byte.value])

    def stream(self, max_bytes: int) -> Iterator[bytes]:
        """At most max_bytes bytes, each chosen when it is needed. Stop texts are ignored."""
        for _ in range(max_bytes):
            byte = self.next_byte()
            if byte is None:
                return
            yield byte

    def generate(
        self, max_bytes: int, write: Callable[[bytes], bool | None] | None = None
    ) -> tuple[bytes, str]:
        """At most max_bytes bytes, and why there are no more: "max_bytes", "eos", "stop" or
        "callback". `write` is handed them as they come; if it returns False they end."""
        text = bytearray()
        failures: list[BaseException] = []

        def take(_user: Any, data: Any, n: int) -> int:
            try:
                piece = ctypes.string_at(data, n)
                text.extend(piece)
                return int(write is not None and write(piece) is False)
            except BaseException as failure:  # raised below, in Python's own frames
                failures.append(failure)
                return 1

        reason = c_int()
        status = _lib.blt_session_generate(self, max_bytes, _Write(take), None, byref(reason))
        if failures:
            raise failures[0]
        _check(status)
        return bytes(text), _FINISH[reason.value]

    def score(self, data: bytes) -> float:
        """Reads bytes; the sum of -log2 of their probabilities. Bits per byte: / len(data)."""
        bits = c_double()
        _check(_lib.blt_session_score(self, data, len(data), byref(bits)))
        return bits.value

    def _copy(self, function: Any, typecode: str, *first: int) -> array[Any]:
        n = c_size_t()
        _check(function(self, *first, None, 0, byref(n)))
        values = array(typecode, bytes(array(typecode).itemsize * n.value))
        if n.value:
            _check(function(self, *first, values.buffer_info()[0], n, byref(n)))
        return values

    def logits(self) -> array[Any]:
        """260 numbers: index 2 is the end of the text, byte b has index b + 4. A Bolmo model has 520."""
        return self._copy(_lib.blt_session_logits, "f")

    def entropies(self, first: int = 0) -> array[Any]:
        """The entropy in nats of the id after each position, from position `first` on."""
        return self._copy(_lib.blt_session_entropies, "f", first)

    def patch_starts(self, first: int = 0) -> array[Any]:
        """Positions at which patches start. Position 0 is the begin-of-sequence id's."""
        typecode = "Q" if ctypes.sizeof(c_size_t) == 8 else "I"
        return self._copy(_lib.blt_session_patch_starts, typecode, first)

    def info(self, key: str) -> int:
        """length, max_bytes, slides or cache_bytes."""
        value = c_uint64()
        _check(_lib.blt_session_info(self, self._KEYS[key], byref(value)))
        return value.value

    def __len__(self) -> int:
        return self.info("length")

    def rewind(self, n_positions: int) -> None:
        """Goes back to the first n positions."""
        _check(_lib.blt_session_rewind(self, n_positions))

    def reset(self) -> None:
        """Forgets everything read."""
        _check(_lib.blt_session_reset(self))

    def set_sampling(self, **options: Any) -> None:
        """Changes how bytes are chosen. Options that are left out return to their defaults."""
        with _Options(options) as settings:
            _check(_lib.blt_session_set_sampling(self, settings))

    def cancel(self) -> None:
        """From any thread: the running call, or the next one, fails with BLT_ERROR_CANCELLED."""
        _check(_lib.blt_session_cancel(self))

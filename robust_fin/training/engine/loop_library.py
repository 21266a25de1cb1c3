"""The shared library that runs a loop of steps: its C++ source, scratch memory, cache and calls."""

import ctypes
import getpass
import os
import platform
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from robust_fin.errors import RobustFinError
from robust_fin.training.engine.trace import LoopInputs

LINE = 64  # bytes of a cache line; a vector register never straddles two
TYPICAL_SECONDS = 12.0  # for tracing and building a small net
_SECONDS = "seconds.txt"  # in the cache folder


class NoCompilerError(RobustFinError):
    """No C++ compiler is installed."""

    def __init__(self, command: str) -> None:
        """Name the command."""
        super().__init__(
            f"engine=compiled needs a C++ compiler, but the command {command!r} does not exist. "
            "Install a compiler, set the environment variable CXX to its command, or use "
            "engine=plain"
        )


class LoopFailedError(RuntimeError):
    """The library stopped in the middle of a call; the carry is not to be trusted."""


# ---------------------------------------------------------------------------------------- the call


class LoopLibrary:
    """A shared library that runs a step many times in one call.

    Threads may call it at the same time with different carries: ctypes releases the GIL, and each
    thread has its own scratch memory.

    Args:
        path: the library.
        inputs: examples of one step's inputs; calls must match their shapes and dtypes.
        outputs: examples of one step's outputs.
        cached: whether the library was on disk before.
    """

    def __init__(
        self, path: Path, inputs: LoopInputs, outputs: tuple[Tensor, ...], *, cached: bool
    ) -> None:
        """Load the library."""
        library = ctypes.CDLL(str(path))
        library.arena_bytes.restype = ctypes.c_int64
        self._call = library.run_loop
        self._call.restype = ctypes.c_int64
        self._call.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4]
        self._arena_bytes = int(library.arena_bytes())
        self._examples, self._outputs, self.cached = inputs, outputs, cached
        self._local = threading.local()

    def run(self, inputs: LoopInputs, *, rows: Int[Tensor, "steps batch"]) -> tuple[Tensor, ...]:
        """Run one step per row of `rows`.

        Args:
            inputs: like the examples, except that moving tensors have one row per step and
                gathered tensors are whole data sets. All contiguous; the carry is updated.
            rows: int64 row numbers of each step's batch, contiguous.

        Returns:
            Each output with a leading axis of steps.

        Raises:
            ValueError: a tensor does not match its example.
            IndexError: a row number is outside the data.
        """
        steps = len(rows)
        self._check(inputs)
        _check_rows(inputs, rows, batch=len(self._examples.gathered[0]))
        outputs = [torch.empty(steps, *x.shape, dtype=x.dtype) for x in self._outputs]
        tensors = [*inputs.flat(), *outputs]
        pointers = (ctypes.c_void_p * len(tensors))(*[x.data_ptr() for x in tensors])
        strides = (ctypes.c_int64 * len(tensors))(
            *[x.stride(0) * x.element_size() if x.dim() else 0 for x in tensors]
        )
        code = self._call(steps, pointers, strides, rows.data_ptr(), self._arena())
        if code:
            raise LoopFailedError(f"the compiled loop failed with code {code}")
        return tuple(outputs)

    def _arena(self) -> int:
        """Return the aligned address of this thread's scratch memory."""
        if not hasattr(self._local, "arena"):
            self._local.arena = torch.zeros(self._arena_bytes + LINE, dtype=torch.uint8)
        start: int = self._local.arena.data_ptr()
        return -(-start // LINE) * LINE

    def _check(self, inputs: LoopInputs) -> None:
        for name, given, wanted in zip(LoopInputs._fields, inputs, self._examples, strict=True):
            if len(given) != len(wanted):
                raise ValueError(f"got {len(given)} {name} tensors, compiled for {len(wanted)}")
            skip = {"moving": 0, "gathered": 1}.get(name)
            for tensor, example in zip(given, wanted, strict=True):
                shape = tensor.shape if skip is None else tensor.shape[1:]
                same = shape == example.shape[skip or 0 :] and tensor.dtype == example.dtype
                if not (same and tensor.is_contiguous()):
                    raise ValueError(
                        f"got a {name} tensor of shape {tuple(tensor.shape)} and {tensor.dtype}, "
                        f"compiled for {tuple(example.shape)} and {example.dtype} per step, "
                        "contiguous"
                    )


def _check_rows(inputs: LoopInputs, rows: Tensor, *, batch: int) -> None:
    """Raise unless the moving tensors have a row per step and all row numbers are in the data."""
    if rows.dtype != torch.int64 or not rows.is_contiguous() or rows.shape[1:] != (batch,):
        raise ValueError(
            f"got row numbers of shape {tuple(rows.shape)} and {rows.dtype}, compiled for "
            f"(steps, {batch}) and torch.int64, contiguous"
        )
    lengths = [len(x) for x in inputs.moving]
    if any(length != len(rows) for length in lengths):
        raise ValueError(f"the moving tensors have {lengths} rows for {len(rows)} steps")
    size = min(len(x) for x in inputs.gathered)
    if rows.numel():
        low, high = (int(x) for x in rows.aminmax())
        if low < 0 or high >= size:
            raise IndexError(f"row numbers {low} to {high} are outside the {size} rows of data")


# --------------------------------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """Return the folder of the libraries, in Inductor's cache folder.

    Inductor's own function is not called because importing it takes 2 s.
    """
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default)) / "step_loops"


def expected_build_seconds() -> float:
    """Return the duration of the last build on this machine, or a typical one."""
    try:
        return float((cache_folder() / _SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TYPICAL_SECONDS


def record_build_seconds(seconds: float) -> None:
    """Store the duration of a build for `expected_build_seconds`."""
    write_to_cache(cache_folder() / _SECONDS, f"{seconds:.1f}\n".encode())


def write_to_cache(path: Path, content: bytes) -> None:
    """Write a file atomically, under a unique name first: several processes may build the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(path)


def compiler_command() -> str:
    """Return the command of the C++ compiler: CXX, else Inductor's default."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


def processor_text() -> str:
    """Return the processor's model and features, on which -march=native depends."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.platform() + torch.backends.cpu.get_cpu_capability()
    first = path.read_text().split("\n\n")[0].splitlines()
    return "".join(line for line in first if line.startswith(("model name", "flags", "Features")))


# ----------------------------------------------------------------------------------- the C++ source

TEMPLATE = """{includes}
#include <cstring>
#include <exception>
#define CHECK(call) do {{ if ((call) != 0) return 1; }} while (0)
{kernels}
extern "C" int64_t arena_bytes() {{ return {arena_bytes}; }}
extern "C" int64_t run_loop(
    int64_t steps, void** inputs, const int64_t* strides, const int64_t* rows, char* arena
) {{
  try {{
    {declare}
    {setup}
    for (int64_t step = 0; step < steps; ++step) {{
      {gather}
      {body}
      {advance}
    }}
    {release}
  }} catch (const std::exception&) {{
    return 2;
  }}
  return 0;
}}
"""


class Arena:
    """A first-fit allocator for one block of memory, with reference counts."""

    def __init__(self) -> None:
        """Start empty."""
        self.total = 0
        self._free: list[tuple[int, int]] = []  # (start, bytes), by start
        self._size: dict[int, int] = {}
        self._references: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Allocate at least `size` bytes with one reference, and return their start.

        >>> arena = Arena()
        >>> first, second = arena.take(100), arena.take(8)
        >>> arena.drop(first)
        >>> first, second, arena.take(64), arena.total
        (0, 128, 0, 192)
        """
        size = max(LINE, -(-size // LINE) * LINE)
        start = self._fit(size)
        self._size[start], self._references[start] = size, 1
        return start

    def _fit(self, size: int) -> int:
        for position, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[position : position + 1] = [(start + size, room - size)] * (room > size)
                return start
        self.total += size
        return self.total - size

    def hold(self, start: int) -> None:
        """Add a reference."""
        self._references[start] += 1

    def drop(self, start: int) -> None:
        """Remove a reference; removing the last one frees the memory."""
        self._references[start] -= 1
        if self._references[start]:
            return
        del self._references[start]
        merged: list[tuple[int, int]] = []
        for at, room in sorted([*self._free, (start, self._size.pop(start))]):
            if merged and sum(merged[-1]) == at:
                merged[-1] = (merged[-1][0], merged[-1][1] + room)
            else:
                merged.append((at, room))
        self._free = merged


@dataclass(frozen=True, slots=True)
class View:
    """A strided view of an argument (`storage` is its C++ name) or of memory in the arena."""

    storage: str | int
    offset: int  # bytes
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def pointer(self, kind: str) -> str:
        """Return the C++ expression of its address, as a `kind` such as `const float*`."""
        if isinstance(self.storage, str):
            return f"({kind})({self.storage} + {self.offset})"
        return f"({kind})(arena + {self.storage + self.offset})"


class LoopSource:
    """The C++ source of a loop, collected statement by statement.

    Args:
        inputs: examples of one step's inputs.
        outputs: examples of one step's outputs.

    Attributes:
        arguments: views of the inputs and outputs; gathered inputs are batches in the arena.
        includes: lines at the top.
        kernels: C++ functions.
        setup: statements before the loop.
        body: statements of one step.
        release: statements after the loop.
    """

    def __init__(self, inputs: LoopInputs, outputs: tuple[Tensor, ...]) -> None:
        """Allocate the batches."""
        self._tensors = [*inputs.flat(), *outputs]
        carry, moving, gathered, _ = (len(field) for field in inputs)
        first = carry + moving
        self._moving = [*range(carry, first), *range(len(inputs.flat()), len(self._tensors))]
        self.arena = Arena()
        self._batches = {
            place: self.arena.take(self._tensors[place].nbytes)
            for place in range(first, first + gathered)
        }
        self.arguments = [
            View(f"in{k}", 0, tuple(x.shape), tuple(x.stride()), str(x.dtype)[len("torch.") :])
            for k, x in enumerate(self._tensors)
        ]
        self.includes: list[str] = []
        self.kernels: list[str] = []
        self.setup: list[str] = []
        self.body: list[str] = []
        self.release: list[str] = []

    def is_moving(self, view: View) -> bool:
        """Return True if the address of a view changes from step to step."""
        return view.storage in [f"in{place}" for place in self._moving]

    def text(self) -> str:
        """Return the source of the library."""
        advance = [f"in{place} += strides[{place}];" for place in self._moving]
        advance += [f"rows += {len(self._tensors[place])};" for place in list(self._batches)[:1]]
        return TEMPLATE.format(
            includes="\n".join(self.includes),
            kernels="\n".join(self.kernels),
            arena_bytes=self.arena.total,
            declare="\n    ".join(self._declarations()),
            setup="\n    ".join(self.setup),
            gather="\n      ".join(map(self._gather, self._batches)),
            body="\n      ".join(self.body),
            advance="\n      ".join(advance),
            release="\n    ".join(self.release),
        )

    def _declarations(self) -> list[str]:
        lines = []
        for place in range(len(self._tensors)):
            source = f"(char*)inputs[{place}]"
            if place in self._batches:
                lines.append(f"const char* data{place} = {source};")
                source = f"arena + {self._batches[place]}"
            lines.append(f"char* in{place} = {source};")
        return lines

    def _gather(self, place: int) -> str:
        """Return C++ that copies the rows of a step's batch; the caller checks the row numbers."""
        batch = self._tensors[place]
        size = batch[0].numel() * batch.element_size()
        return (
            f"for (int64_t row = 0; row < {batch.shape[0]}; ++row) "
            f"std::memcpy(in{place} + row * {size}, data{place} + rows[row] * {size}, {size});"
        )

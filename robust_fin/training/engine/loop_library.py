"""The loop as a shared library: built once, kept on disk, called without Python in between."""

import ctypes
import getpass
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from jaxtyping import Int
from torch import Tensor

from robust_fin.errors import RobustFinError
from robust_fin.training.engine import loop_source
from robust_fin.training.engine import loop_source as loop_arena
from robust_fin.training.engine.trace import LoopInputs, TracedStep, UnsupportedStepError

FLAGS = ("-fwrapv", "-w")  # the dropout's int32 products wrap
OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "cpp.dynamic_threads": False,
    "cpp_wrapper": False,
    "force_disable_caches": True,  # of the wrapper; the library has its own
    "realize_reads_threshold": 1,  # what is read twice is stored, not computed twice
}
LINE = 64  # bytes the arena is aligned to
TYPICAL_SECONDS = 12.0  # of tracing and building a small net, where none was timed yet
_SECONDS = "seconds.txt"  # in the cache


class NoCompilerError(RobustFinError):
    """There is no C++ compiler to build the loop with."""

    def __init__(self, command: str) -> None:
        """Name the command that was looked for."""
        super().__init__(
            f"engine=compiled needs a C++ compiler, and there is no {command!r}. Install one, set "
            "the environment variable CXX to it, or use engine=plain"
        )


class LoopFailedError(RuntimeError):
    """The library stopped in the middle of a call; the carry is not to be trusted."""


class LoopLibrary:
    """Runs the traced step many times in one call.

    Safe to call from several threads on different carries: ctypes lets go of the interpreter's
    lock, and each thread has its own scratch memory.

    Args:
        step: as traced; its examples say what a call must look like.

    Attributes:
        cached: whether it was on disk already.

    Raises:
        NoCompilerError: it is not on disk, and nothing can build it.
        UnsupportedStepError: an operator without a generated kernel.
    """

    def __init__(self, step: TracedStep) -> None:
        """Find or build the library, and load it."""
        path = cache_folder() / f"{_key(step)}.so"
        self.cached = path.exists()
        if not self.cached:
            _build(step, path)
        library = ctypes.CDLL(str(path))
        library.arena_bytes.restype = ctypes.c_int64
        self._call = library.run_loop
        self._call.restype = ctypes.c_int64
        self._call.argtypes = [ctypes.c_int64, *[ctypes.c_void_p] * 4]
        self._arena_bytes = int(library.arena_bytes())
        self._examples, self._outputs = step.inputs, step.outputs
        self._local = threading.local()

    def run(self, inputs: LoopInputs, *, rows: Int[Tensor, "steps batch"]) -> tuple[Tensor, ...]:
        """Run one step for each row of `rows`.

        Args:
            inputs: as in the examples, except that moving ones have one row a step and gathered
                ones are whole data sets. All contiguous; the carry is written to.
            rows: numbers of the rows of each step's batch, int64, contiguous.

        Returns:
            Each output, one row a step.

        Raises:
            ValueError: a tensor that does not look like its example.
            IndexError: a row number outside the data.
        """
        steps = len(rows)
        self._check(inputs, rows)
        outputs = [torch.empty(steps, *one.shape, dtype=one.dtype) for one in self._outputs]
        tensors = [*inputs.flat(), *outputs]
        pointers = (ctypes.c_void_p * len(tensors))(*[one.data_ptr() for one in tensors])
        strides = (ctypes.c_int64 * len(tensors))(
            *[one.stride(0) * one.element_size() if one.dim() else 0 for one in tensors]
        )
        failed = self._call(steps, pointers, strides, rows.data_ptr(), self._arena())
        if failed:
            raise LoopFailedError(f"the compiled loop failed with code {failed}")
        return tuple(outputs)

    def _arena(self) -> int:
        """Address of this thread's scratch memory."""
        if not hasattr(self._local, "arena"):
            self._local.arena = torch.zeros(self._arena_bytes + LINE, dtype=torch.uint8)
        start: int = self._local.arena.data_ptr()
        return -(-start // LINE) * LINE

    def _check(self, inputs: LoopInputs, rows: Tensor) -> None:
        for name, given, wanted in zip(LoopInputs._fields, inputs, self._examples, strict=True):
            if len(given) != len(wanted):
                raise ValueError(f"{len(given)} {name} tensors, compiled for {len(wanted)}")
            skip = {"moving": 0, "gathered": 1}.get(name)
            for one, example in zip(given, wanted, strict=True):
                shape = one.shape if skip is None else one.shape[1:]
                same = shape == example.shape[skip or 0 :] and one.dtype == example.dtype
                if not (same and one.is_contiguous()):
                    raise ValueError(
                        f"{name} tensor of shape {tuple(one.shape)} and {one.dtype}, compiled for "
                        f"{tuple(example.shape)} and {example.dtype} a step, contiguous"
                    )
        _check_steps(inputs, rows, batch=len(self._examples.gathered[0]))


def _check_steps(inputs: LoopInputs, rows: Tensor, *, batch: int) -> None:
    """As many moving rows as steps, and row numbers that are in the data."""
    if rows.dtype != torch.int64 or not rows.is_contiguous() or rows.shape[1:] != (batch,):
        raise ValueError(
            f"row numbers of shape {tuple(rows.shape)} and {rows.dtype}, compiled for "
            f"(steps, {batch}) and torch.int64, contiguous"
        )
    if any(len(one) != len(rows) for one in inputs.moving):
        raise ValueError(f"{[len(one) for one in inputs.moving]} moving rows, {len(rows)} steps")
    length = min(len(one) for one in inputs.gathered)
    if rows.numel():
        low, high = (int(one) for one in rows.aminmax())
        if low < 0 or high >= length:
            raise IndexError(f"row numbers {low} to {high}, and there are {length} rows of data")


# ------------------------------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """Where libraries lie: in Inductor's cache folder, found without importing it (2 s)."""
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default)) / "step_loops"


def usual_seconds() -> float:
    """How long the last build on this machine took; a typical one where there was none."""
    try:
        return float((cache_folder() / _SECONDS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return TYPICAL_SECONDS


def note_seconds(seconds: float) -> None:
    """Keep how long a build took, for who waits for the next one."""
    _write_atomically(cache_folder() / _SECONDS, f"{seconds:.1f}\n".encode())


def _key(step: TracedStep) -> str:
    """Changes with anything that the built library depends on."""
    parts = [
        torch.__version__,
        _machine(),
        compiler(),
        json.dumps([OPTIONS, FLAGS], sort_keys=True),
        *(Path(str(one)).read_text() for one in (__file__, loop_source.__file__)),
        Path(loop_arena.__file__).read_text(),
        step.text(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _machine() -> str:
    """What -march=native depends on."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.platform() + torch.backends.cpu.get_cpu_capability()
    first = path.read_text().split("\n\n")[0].splitlines()
    return "".join(line for line in first if line.startswith(("model name", "flags", "Features")))


def compiler() -> str:
    """The C++ compiler's command, by Inductor's rule."""
    return os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")


# ------------------------------------------------------------------------------------- the build


def _build(step: TracedStep, path: Path) -> None:
    """Write the library and, for a reader, its source to `path` with its two endings."""
    if shutil.which(compiler()) is None:
        raise NoCompilerError(compiler())
    from torch._inductor.exc import CppCompileError

    try:
        # takes the processor at its word: Inductor's own trial of its instructions takes 8 s
        source, built = _compile(step, isa_is_fine=True)
    except CppCompileError:
        source, built = _compile(step, isa_is_fine=None)
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_atomically(path.with_suffix(".cpp"), source.encode())
    _write_atomically(path, built.read_bytes())


def _compile(step: TracedStep, *, isa_is_fine: bool | None) -> tuple[str, Path]:
    """The loop's C++ text, and the library that Inductor's own builder made of it."""
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    machine = {"cpp.vec_isa_ok": isa_is_fine, "cpp.cxx": (None, compiler())}
    with config.patch({**OPTIONS, **machine}):
        source = loop_source.loop_source(wrapper_source(step), step)
        return source, Path(CppCodeCache.load(source, extra_flags=FLAGS)._name)


class _Captured(BaseException):
    """Carries the wrapper's text out of Inductor, past every `except Exception` on the way."""


def wrapper_source(step: TracedStep) -> str:
    """The Python wrapper that Inductor writes for the step's graph."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering

    def stop(lowering: GraphLowering) -> None:
        raise _Captured(lowering.codegen()[0].value)

    with torch.no_grad(), mock.patch.object(GraphLowering, "compile_to_module", stop):
        try:
            compile_fx(step.graph, step.arguments)
        except _Captured as captured:
            return str(captured.args[0])
    raise UnsupportedStepError("Inductor wrote no wrapper for it")


def _write_atomically(path: Path, content: bytes) -> None:
    """So that no other process ever loads half a library."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o755)
    Path(file.name).replace(path)

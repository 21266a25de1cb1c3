"""Everything that depends on internals of PyTorch: tracing, Inductor's wrapper text, its C++ build.

`compile_step` is the only entrance. Any release of PyTorch may change what is used here; the errors
that this causes become `EngineDriftError`, and training continues with the plain engine. Private
modules of torch are imported in this module only, and inside its functions.
"""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from robust_fin.errors import RobustFinError
from robust_fin.training.engine import loop_library
from robust_fin.training.engine.loop_library import (
    LoopLibrary,
    LoopSource,
    NoCompilerError,
    View,
    cache_folder,
    compiler_command,
    processor_text,
    write_to_cache,
)
from robust_fin.training.engine.trace import (
    EngineDriftError,
    LoopInputs,
    StepBody,
    TracedStep,
    UnsupportedStepError,
    check_operators,
    decompositions,
    write_in_place,
)

# what a renamed function, a missing attribute, a changed signature or changed text raises
DRIFT_ERRORS = (
    AttributeError,
    ImportError,
    LookupError,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
)
FLAGS = ("-fwrapv", "-w")  # the int32 products of hashed dropout wrap
OPTIONS: dict[str, Any] = {
    "cpp.threads": 1,
    "cpp.dynamic_threads": False,
    "cpp_wrapper": False,
    "force_disable_caches": True,  # of the wrapper; the library has its own cache
    "realize_reads_threshold": 1,  # a value that is read twice is stored, not computed twice
}
EXTERN = ("mm", "addmm", "bmm")  # library calls with a stable C interface
IGNORED = ("args.clear", "assert_size_stride", "assert_alignment", "return")
PREFIX = "#include <torch/csrc/inductor/cpp_prefix.h>"
SHIM = """#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>"""


def compile_step(body: StepBody, inputs: LoopInputs, *, matmul: str) -> LoopLibrary:
    """Compile a step into a library that loops over it, or load the library from the cache.

    Args:
        body: the step: inputs -> the carry after it, and its outputs.
        inputs: examples of one step; not changed.
        matmul: `rows` writes matrix products as multiply and sum, which fuse with the operations
            around them; `extern` calls the library, which is faster for large ones.

    Raises:
        UnsupportedStepError: control flow that depends on values, a random operator, a tensor made
            from numbers inside the step, or an operator without a generated kernel.
        EngineDriftError: this PyTorch is not like the releases that the engine was written for.
        NoCompilerError: the library is not cached, and there is no C++ compiler.
    """
    try:
        with torch.no_grad():
            _, examples = body(inputs.nested(tuple(x.clone() for x in inputs.flat())))
    except RuntimeError as error:
        raise _untraceable(error) from error
    outputs = tuple(map(torch.zeros_like, examples))
    with torch_drift():
        step = trace_step(body, inputs, outputs, matmul=matmul)
        path = cache_folder() / f"{cache_key(step)}.so"
        cached = path.exists()
        if not cached:
            build_library(step, path)
    return LoopLibrary(path, inputs, outputs, cached=cached)


@contextmanager
def torch_drift() -> Iterator[None]:
    """Turn every error that a changed PyTorch can cause into EngineDriftError."""
    try:
        yield
    except RobustFinError:
        raise
    except DRIFT_ERRORS as error:
        raise EngineDriftError(_first_line(error)) from error
    except OSError as error:
        if error.errno is not None:  # the system's, such as a full disk; the loader sets none
            raise
        raise EngineDriftError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]


def _untraceable(error: RuntimeError) -> UnsupportedStepError:
    return UnsupportedStepError(f"it cannot be traced ({_first_line(error)})")


# ------------------------------------------------------------------------------------- the tracing


def trace_step(
    body: StepBody, inputs: LoopInputs, outputs: tuple[Tensor, ...], *, matmul: str
) -> TracedStep:
    """Trace a step into a graph that updates the carry and fills the outputs in place.

    Args:
        body: see `compile_step`.
        inputs: see `compile_step`.
        outputs: examples of the step's outputs.
        matmul: see `compile_step`.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    flat = inputs.flat()
    # the tracer tells inputs apart by their memory
    assert len({x.untyped_storage().data_ptr() for x in flat}) == len(flat)

    def step(*arguments: Tensor) -> tuple[Tensor, ...]:
        carry, results = body(inputs.nested(arguments[: len(flat)]))
        return (*carry, *results)

    try:
        make = make_fx(step, decomposition_table=decompositions(matmul), tracing_mode="fake")
        graph = make(*flat, *outputs)
    except RuntimeError as error:
        raise _untraceable(error) from error
    check_operators(graph)
    write_in_place(graph, carried=len(inputs.carry), first_output=len(flat))
    return TracedStep(graph, inputs, outputs)


# --------------------------------------------------------------------------------------- the build


def cache_key(step: TracedStep) -> str:
    """Return a hash of everything that the library depends on."""
    parts = [
        torch.__version__,
        processor_text(),
        compiler_command(),
        json.dumps([OPTIONS, FLAGS], sort_keys=True),
        *(Path(str(file)).read_text() for file in (__file__, loop_library.__file__)),
        step.text(),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def build_library(step: TracedStep, path: Path) -> None:
    """Write the library to `path` and its source, for a reader, beside it."""
    if shutil.which(compiler_command()) is None:
        raise NoCompilerError(compiler_command())
    from torch._inductor.exc import CppCompileError

    try:
        # trust the processor's own list of instructions: Inductor's trial of them takes 8 s
        source, library = compile_source(step, isa_ok=True)
    except CppCompileError:
        try:
            source, library = compile_source(step, isa_ok=None)
        except CppCompileError as error:
            raise EngineDriftError(_first_line(error)) from error
    write_to_cache(path.with_suffix(".cpp"), source.encode())
    write_to_cache(path, library.read_bytes())


def compile_source(step: TracedStep, *, isa_ok: bool | None) -> tuple[str, Path]:
    """Return the loop's C++ source and the library that Inductor's builder makes of it."""
    from torch._inductor import config
    from torch._inductor.codecache import CppCodeCache

    machine = {"cpp.vec_isa_ok": isa_ok, "cpp.cxx": (None, compiler_command())}
    with config.patch({**OPTIONS, **machine}):
        source = WrapperReader(step).read(wrapper_text(step))
        return source, Path(CppCodeCache.load(source, extra_flags=FLAGS)._name)


class _Captured(BaseException):
    """Carries the wrapper's text out of Inductor, past every `except Exception` on the way."""


def wrapper_text(step: TracedStep) -> str:
    """Return the Python wrapper that Inductor writes for the step's graph."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.exc import InductorError
    from torch._inductor.graph import GraphLowering

    def capture(lowering: GraphLowering) -> None:
        raise _Captured(lowering.codegen()[0].value)

    with torch.no_grad(), mock.patch.object(GraphLowering, "compile_to_module", capture):
        try:
            compile_fx(step.graph, step.arguments)
        except _Captured as captured:
            return str(captured.args[0])
        except InductorError as error:
            is_drift = isinstance(error.inner_exception, DRIFT_ERRORS)
            kind: type[UnsupportedStepError] = (
                EngineDriftError if is_drift else UnsupportedStepError
            )
            raise kind(f"Inductor fails ({_first_line(error.inner_exception)})") from error
    raise EngineDriftError("Inductor wrote no wrapper")


# ------------------------------------------------------------------------------- the wrapper's text


class WrapperReader:
    """Reads the wrapper statement by statement and collects the C++ of each.

    Args:
        step: as traced.
    """

    def __init__(self, step: TracedStep) -> None:
        """Start with no statement read."""
        self._source = LoopSource(step.inputs, step.outputs)
        self._source.includes.append(PREFIX)
        self._views: dict[str, View] = {}
        self._kernels: dict[str, tuple[str, list[str]]] = {}  # C++ name, types of the arguments
        self._handles: dict[View, str] = {}

    def read(self, wrapper: str) -> str:
        """Return the C++ source of a library whose `run_loop` runs many steps."""
        tree = ast.parse(wrapper)
        for node in tree.body:
            self._define_kernel(node)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        for statement in next(node for node in functions if node.name == "call").body:
            self._statement(statement)
        return self._source.text()

    def _define_kernel(self, node: ast.stmt) -> None:
        """Read `name = async_compile.cpp_pybinding(types, code)` at the top of the wrapper."""
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            return
        if getattr(node.value.func, "attr", "") != "cpp_pybinding":
            return
        types, code = (ast.literal_eval(argument) for argument in node.value.args[:2])
        name = f"kernel_{len(self._kernels)}"
        self._kernels[ast.unparse(node.targets[0])] = (name, types)
        code = code.replace(PREFIX, "").replace('extern "C"', "static")
        self._source.kernels.append(code.replace("kernel(", f"{name}("))

    def _statement(self, node: ast.stmt) -> None:
        text = ast.unparse(node)
        if text.startswith(IGNORED):
            return
        if isinstance(node, ast.Assign) and text.endswith("= args"):
            names = [name.strip() for name in ast.unparse(node.targets[0]).strip("()").split(",")]
            self._views.update(zip(filter(None, names), self._source.arguments, strict=True))
        elif isinstance(node, ast.Assign):
            self._assign(ast.unparse(node.targets[0]), node.value)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                storage = self._views.pop(ast.unparse(target)).storage
                if isinstance(storage, int):
                    self._source.arena.drop(storage)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._call(node.value)
        else:
            raise EngineDriftError(f"Inductor wrote the statement {text[:200]}")

    def _assign(self, name: str, value: ast.expr) -> None:
        """Read `buffer = empty_strided_cpu(size, stride, dtype)`, or a second name for a view."""
        if isinstance(value, ast.Call) and ast.unparse(value.func).startswith("empty_strided"):
            self._views[name] = self._allocate(value)
            return
        view = self._views[name] = self._view(value)
        if isinstance(view.storage, int):
            self._source.arena.hold(view.storage)

    def _allocate(self, call: ast.Call) -> View:
        size, stride = (ast.literal_eval(argument) for argument in call.args[:2])
        dtype = ast.unparse(call.args[2]).removeprefix("torch.")
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        entries = 1 if 0 in size else 1 + last
        start = self._source.arena.take(entries * getattr(torch, dtype).itemsize)
        return View(start, 0, size, stride, dtype)

    def _view(self, node: ast.expr) -> View:
        """Read a name, or `reinterpret_tensor(name, size, stride, offset)`."""
        if isinstance(node, ast.Name):
            return self._views[node.id]
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "reinterpret_tensor":
            base = self._view(node.args[0])
            size, stride, offset = (ast.literal_eval(argument) for argument in node.args[1:4])
            offset *= getattr(torch, base.dtype).itemsize
            return View(base.storage, offset, size, stride, base.dtype)
        raise _no_kernel(node)

    def _call(self, call: ast.Call) -> None:
        name = ast.unparse(call.func)
        if name in self._kernels:
            kernel, types = self._kernels[name]
            views = [self._view(argument) for argument in call.args]
            pointers = [view.pointer(kind) for view, kind in zip(views, types, strict=True)]
            self._source.body.append(f"{kernel}({', '.join(pointers)});")
        elif name.removeprefix("extern_kernels.") in EXTERN:
            self._extern(call, name.removeprefix("extern_kernels."))
        else:
            raise _no_kernel(call)

    def _extern(self, call: ast.Call, name: str) -> None:
        """Call `extern_kernels.mm(a, b, out=c)` through PyTorch's C interface."""
        words = {str(keyword.arg): keyword.value for keyword in call.keywords}
        handles = [self._handle(self._view(node)) for node in (words.pop("out"), *call.args)]
        if name == "addmm":
            unit = ast.Constant(1)
            handles += [ast.unparse(words.pop(word, unit)) for word in ("beta", "alpha")]
        if words:
            raise EngineDriftError(f"Inductor wrote {ast.unparse(call)[:200]}")
        self._source.body.append(f"CHECK(aoti_torch_cpu_{name}_out({', '.join(handles)}));")

    def _handle(self, view: View) -> str:
        """Return the name of a tensor handle, made once before the loop."""
        if view in self._handles:
            return self._handles[view]
        if self._source.is_moving(view):
            raise UnsupportedStepError("a library call reads a value that changes every step")
        if not self._handles:
            self._source.includes.append(SHIM)
        name = self._handles[view] = f"handle_{len(self._handles)}"
        size, stride = (
            ", ".join(map(str, numbers or (0,))) for numbers in (view.size, view.stride)
        )
        self._source.setup += [
            f"const int64_t size_{name}[] = {{{size}}}, stride_{name}[] = {{{stride}}};",
            f"AtenTensorHandle {name};",
            f"CHECK(aoti_torch_create_tensor_from_blob({view.pointer('void*')}, {len(view.size)}, "
            f"size_{name}, stride_{name}, 0, aoti_torch_dtype_{view.dtype}(), 0, 0, &{name}));",
        ]
        self._source.release.append(f"aoti_torch_delete_tensor_object({name});")
        return name


def _no_kernel(node: ast.expr) -> UnsupportedStepError:
    """Return the error for an operator that Inductor calls from Python, or for unknown text."""
    text = ast.unparse(node)[:200]
    if text.startswith(("torch.ops.", "aten.", "extern_kernels.")):
        return UnsupportedStepError(f"an operator has no generated kernel ({text})")
    return EngineDriftError(f"Inductor wrote {text}")

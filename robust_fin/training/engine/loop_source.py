"""Scratch memory of a compiled loop, laid out before it runs."""

import ast
from dataclasses import dataclass

from torch import Tensor

from robust_fin.training.engine.trace import TracedStep, UnsupportedStepError

SLOT = 64  # bytes; a vector register never straddles two lines of the cache


class Arena:
    """First-fit places in one block of memory, each reused once nothing refers to it."""

    def __init__(self) -> None:
        """Start empty."""
        self.total = 0
        self._free: list[tuple[int, int]] = []  # (start, bytes), by start
        self._size: dict[int, int] = {}
        self._references: dict[int, int] = {}

    def take(self, size: int) -> int:
        """Start of a place of at least `size` bytes, with one reference.

        >>> arena = Arena()
        >>> first, second = arena.take(100), arena.take(8)
        >>> arena.drop(first)
        >>> first, second, arena.take(64), arena.total
        (0, 128, 0, 192)
        """
        size = max(SLOT, -(-size // SLOT) * SLOT)
        start = self._fit(size)
        self._size[start], self._references[start] = size, 1
        return start

    def _fit(self, size: int) -> int:
        for place, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[place : place + 1] = [(start + size, room - size)] * (room > size)
                return start
        self.total += size
        return self.total - size

    def hold(self, start: int) -> None:
        """One more reference."""
        self._references[start] += 1

    def drop(self, start: int) -> None:
        """One reference less; the last one frees the place."""
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


BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
EXTERN = ("mm", "addmm", "bmm")  # library calls with a stable C interface
IGNORED = ("args.clear", "assert_size_stride", "assert_alignment", "return")
PREFIX = "#include <torch/csrc/inductor/cpp_prefix.h>"
SHIM = """#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>"""
LOOP = """{includes}
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


@dataclass(frozen=True, slots=True)
class View:
    """A strided view of an input (`storage` is its C++ name) or of a place in the arena."""

    storage: str | int
    offset: int  # bytes
    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    def pointer(self, kind: str) -> str:
        """C++ expression of its address, as a `kind` such as `const float*`."""
        if isinstance(self.storage, str):
            return f"({kind})({self.storage} + {self.offset})"
        return f"({kind})(arena + {self.storage + self.offset})"


def loop_source(wrapper: str, step: TracedStep) -> str:
    """C++ text of a shared library whose `run_loop` runs many steps.

    Args:
        wrapper: the Python text that Inductor wrote for the step's graph.
        step: as traced.

    Raises:
        UnsupportedStepError: an operator without a generated kernel.
    """
    return LoopWriter(step).write(wrapper)


class LoopWriter:
    """Reads the wrapper statement by statement and keeps the C++ of each."""

    def __init__(self, step: TracedStep) -> None:
        """Start with nothing read."""
        self._step = step
        self._arena = Arena()
        self._views: dict[str, View] = {}
        self._kernels: dict[str, tuple[str, list[str]]] = {}  # C++ name, types of the arguments
        self._handles: dict[View, str] = {}
        self._batches: dict[int, int] = {}  # place of a gathered input -> start in the arena
        self._kernel_text: list[str] = []
        self._setup: list[str] = []
        self._body: list[str] = []

    def write(self, wrapper: str) -> str:
        """Read the wrapper, and return the library's text."""
        tree = ast.parse(wrapper)
        for node in tree.body:
            self._define_kernel(node)
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
        for statement in next(one for one in functions if one.name == "call").body:
            self._statement(statement)
        return self._text()

    def _define_kernel(self, node: ast.stmt) -> None:
        """`name = async_compile.cpp_pybinding(types, code)`, at the top of the wrapper."""
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            return
        if getattr(node.value.func, "attr", "") != "cpp_pybinding":
            return
        types, code = (ast.literal_eval(one) for one in node.value.args[:2])
        name = f"kernel_{len(self._kernels)}"
        self._kernels[_target(node)] = (name, types)
        code = code.replace(PREFIX, "").replace('extern "C"', "static")
        self._kernel_text.append(code.replace("kernel(", f"{name}("))

    def _statement(self, node: ast.stmt) -> None:
        text = ast.unparse(node)
        if text.startswith(IGNORED):
            return
        if isinstance(node, ast.Assign) and text.endswith("= args"):
            self._inputs(node)
        elif isinstance(node, ast.Assign):
            self._assign(node)
        elif isinstance(node, ast.Delete):
            self._delete(node)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            self._call(node.value)
        else:
            raise UnsupportedStepError(f"Inductor wrote the statement {text[:200]}")

    def _inputs(self, node: ast.Assign) -> None:
        """`a, b, c = args`."""
        (names,) = node.targets
        assert isinstance(names, ast.Tuple)
        for place in self._spans()[1]:
            one = self._step.arguments[place]
            self._batches[place] = self._arena.take(one.numel() * one.element_size())
        for place, (name, one) in enumerate(zip(names.elts, self._step.arguments, strict=True)):
            dtype = str(one.dtype).removeprefix("torch.")
            view = View(f"in{place}", 0, tuple(one.shape), tuple(one.stride()), dtype)
            self._views[ast.unparse(name)] = view

    def _assign(self, node: ast.Assign) -> None:
        """`buffer = empty_strided_cpu(size, stride, dtype)`, or a second name for one."""
        name, value = _target(node), node.value
        if isinstance(value, ast.Call) and _function(value).startswith("empty_strided"):
            self._views[name] = self._allocate(value)
            return
        view = self._views[name] = self._view(value)
        if isinstance(view.storage, int):
            self._arena.hold(view.storage)

    def _allocate(self, call: ast.Call) -> View:
        size, stride = (ast.literal_eval(one) for one in call.args[:2])
        dtype = ast.unparse(call.args[2]).removeprefix("torch.")
        last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        entries = 1 if 0 in size else 1 + last
        return View(self._arena.take(entries * BYTES[dtype]), 0, size, stride, dtype)

    def _view(self, node: ast.expr) -> View:
        """A name, or `reinterpret_tensor(name, size, stride, offset)`."""
        if isinstance(node, ast.Name):
            return self._views[node.id]
        if isinstance(node, ast.Call) and _function(node) == "reinterpret_tensor":
            base = self._view(node.args[0])
            size, stride, offset = (ast.literal_eval(one) for one in node.args[1:4])
            return View(base.storage, offset * BYTES[base.dtype], size, stride, base.dtype)
        raise _no_kernel(node)

    def _delete(self, node: ast.Delete) -> None:
        for target in node.targets:
            storage = self._views.pop(ast.unparse(target)).storage
            if isinstance(storage, int):
                self._arena.drop(storage)

    def _call(self, call: ast.Call) -> None:
        name = _function(call)
        if name in self._kernels:
            kernel, types = self._kernels[name]
            views = [self._view(one) for one in call.args]
            pointers = [view.pointer(kind) for view, kind in zip(views, types, strict=True)]
            self._body.append(f"{kernel}({', '.join(pointers)});")
        elif name.removeprefix("extern_kernels.") in EXTERN:
            self._extern(call, name.removeprefix("extern_kernels."))
        else:
            raise _no_kernel(call)

    def _extern(self, call: ast.Call, name: str) -> None:
        """`extern_kernels.mm(a, b, out=c)`, called through PyTorch's C interface."""
        words = {str(one.arg): one.value for one in call.keywords}
        handles = [self._handle(self._view(one)) for one in (words.pop("out"), *call.args)]
        if name == "addmm":
            one = ast.Constant(1)
            handles += [ast.unparse(words.pop(word, one)) for word in ("beta", "alpha")]
        if words:
            raise _no_kernel(call)
        self._body.append(f"CHECK(aoti_torch_cpu_{name}_out({', '.join(handles)}));")

    def _handle(self, view: View) -> str:
        """Name of a tensor handle, made once before the loop; its address must not move."""
        if view in self._handles:
            return self._handles[view]
        if view.storage in self._moving():
            raise UnsupportedStepError("a library call reads a value that changes every step")
        name = self._handles[view] = f"handle_{len(self._handles)}"
        size, stride = (", ".join(map(str, one or (0,))) for one in (view.size, view.stride))
        self._setup += [
            f"const int64_t size_{name}[] = {{{size}}}, stride_{name}[] = {{{stride}}};",
            f"AtenTensorHandle {name};",
            f"CHECK(aoti_torch_create_tensor_from_blob({view.pointer('void*')}, {len(view.size)}, "
            f"size_{name}, stride_{name}, 0, aoti_torch_dtype_{view.dtype}(), 0, 0, &{name}));",
        ]
        return name

    def _spans(self) -> tuple[range, range, range]:
        """Places of the moving inputs, of the gathered ones and of the outputs."""
        carry, moving, gathered, _ = (len(field) for field in self._step.inputs)
        end = len(self._step.arguments)
        return (
            range(carry, carry + moving),
            range(carry + moving, carry + moving + gathered),
            range(end - len(self._step.outputs), end),
        )

    def _moving(self) -> list[str]:
        moving, _, outputs = self._spans()
        return [f"in{place}" for place in (*moving, *outputs)]

    def _text(self) -> str:
        arguments = self._step.arguments
        declare = []
        for place in range(len(arguments)):
            source = f"(char*)inputs[{place}]"
            if place in self._batches:
                declare.append(f"const char* data{place} = {source};")
                source = f"arena + {self._batches[place]}"
            declare.append(f"char* in{place} = {source};")
        gather = [_gather_rows(place, arguments[place]) for place in self._batches]
        advance = [f"{name} += strides[{name.removeprefix('in')}];" for name in self._moving()]
        advance += [f"rows += {len(arguments[place])};" for place in list(self._batches)[:1]]
        release = [f"aoti_torch_delete_tensor_object({one});" for one in self._handles.values()]
        return LOOP.format(
            includes=f"{PREFIX}\n{SHIM}" if self._handles else PREFIX,
            kernels="\n".join(self._kernel_text),
            arena_bytes=self._arena.total,
            declare="\n    ".join(declare),
            setup="\n    ".join(self._setup),
            gather="\n      ".join(gather),
            body="\n      ".join(self._body),
            advance="\n      ".join(advance),
            release="\n    ".join(release),
        )


def _gather_rows(place: int, batch: Tensor) -> str:
    """C++ that copies the rows of a step's batch together; the caller has checked the numbers."""
    size = batch[0].numel() * batch.element_size()
    return (
        f"for (int64_t row = 0; row < {batch.shape[0]}; ++row) "
        f"std::memcpy(in{place} + row * {size}, data{place} + rows[row] * {size}, {size});"
    )


def _no_kernel(node: ast.expr) -> UnsupportedStepError:
    """Inductor left an operator to Python, which the loop has left."""
    return UnsupportedStepError(f"an operator has no generated kernel ({ast.unparse(node)[:200]})")


def _target(node: ast.Assign) -> str:
    """Name that an assignment binds."""
    return ast.unparse(node.targets[0])


def _function(call: ast.Call) -> str:
    """Dotted name of what is called."""
    return ast.unparse(call.func)

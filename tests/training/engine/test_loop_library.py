"""The library of a step: build, cache and call."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_fin.training.engine import inductor, loop_library
from robust_fin.training.engine.inductor import compile_step
from robust_fin.training.engine.loop_library import LoopLibrary, NoCompilerError
from robust_fin.training.engine.trace import LoopInputs, TracedStep

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


def step(inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Add the mean of the batch, times a rate, to the carry, and return the carry's sum."""
    (total,), (rate,), (batch,), (offset,) = inputs
    after = total + rate * batch.mean(0) + offset
    return (after,), (after.sum(),)


def compiled() -> LoopLibrary:
    examples = torch.zeros(3), torch.ones(()), torch.ones(2, 3), torch.zeros(3)
    return compile_step(step, LoopInputs(*((x,) for x in examples)), matmul="rows")


@pytest.fixture(scope="module")
def library() -> LoopLibrary:
    return compiled()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "step_loops"


def test_library_is_built_once_and_computes_the_step(cache: Path) -> None:
    built = compiled()
    assert not built.cached
    assert compiled().cached
    assert sorted(one.suffix for one in cache.iterdir()) == [".cpp", ".so"]
    data = torch.arange(12.0).view(4, 3)
    rows, rate = torch.tensor([[0, 1], [3, 3], [2, 0]]), torch.tensor([1.0, 10.0, 100.0])
    total = torch.zeros(3)
    (sums,) = built.run(LoopInputs((total,), (rate,), (data,), (torch.ones(3),)), rows=rows)
    after = torch.stack([r * data[one].mean(0) + 1 for r, one in zip(rate, rows, strict=True)])
    torch.testing.assert_close(total, after.sum(0))
    torch.testing.assert_close(sums, after.sum(1).cumsum(0))


def test_call_without_steps_changes_nothing(library: LoopLibrary) -> None:
    total = torch.ones(3)
    inputs = LoopInputs((total,), (torch.ones(0),), (torch.ones(4, 3),), (torch.ones(3),))
    (sums,) = library.run(inputs, rows=torch.ones(0, 2, dtype=torch.int64))
    assert sums.shape == (0,)
    assert total.tolist() == [1, 1, 1]


def test_moving_tensors_need_a_row_per_step(library: LoopLibrary) -> None:
    inputs = LoopInputs((torch.ones(3),), (torch.ones(4),), (torch.ones(4, 3),), (torch.ones(3),))
    with pytest.raises(ValueError, match=r"moving tensors have \[4\] rows for 3 steps"):
        library.run(inputs, rows=torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.usefixtures("cache")
def test_missing_compiler_raises_no_compiler_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(
        NoCompilerError, match=r"the command '/nowhere/g\+\+' does not.*use engine=plain"
    ):
        compiled()


def test_cached_library_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setattr(inductor, "cache_key", lambda step: "key")  # noqa: ARG005
    cache.mkdir(parents=True)
    (cache / "key.so").write_bytes(b"not a library")
    with pytest.raises(OSError, match=r"file too short|invalid ELF header|not a mach-o"):
        compiled()


def test_cache_files_are_written_atomically(tmp_path: Path) -> None:
    loop_library.write_to_cache(tmp_path / "a.so", b"old")
    loop_library.write_to_cache(tmp_path / "a.so", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.so"]
    assert (tmp_path / "a.so").read_bytes() == b"new"


@pytest.mark.usefixtures("cache")
def test_compile_error_is_retried_with_inductors_own_check_of_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor.exc import CppCompileError

    compile_source, asked = inductor.compile_source, []

    def picky(step: TracedStep, *, isa_ok: bool | None) -> tuple[str, Path]:
        asked.append(isa_ok)
        if isa_ok:
            raise CppCompileError(["g++"], "unknown instruction")
        return compile_source(step, isa_ok=True)  # Inductor's own check takes 8 s

    monkeypatch.setattr(inductor, "compile_source", picky)
    assert not compiled().cached
    assert asked == [True, None]


def test_failure_code_of_the_library_raises(
    library: LoopLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_call", lambda *_: ctypes.c_int64(2).value)
    inputs = LoopInputs((torch.ones(3),), (torch.ones(1),), (torch.ones(4, 3),), (torch.ones(3),))
    with pytest.raises(loop_library.LoopFailedError, match="failed with code 2"):
        library.run(inputs, rows=torch.ones(1, 2, dtype=torch.int64))


def test_expected_build_seconds_are_those_of_the_last_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    loop_library.cache_folder().mkdir()
    assert loop_library.expected_build_seconds() == loop_library.TYPICAL_SECONDS
    loop_library.record_build_seconds(23.04)
    assert loop_library.expected_build_seconds() == 23.0

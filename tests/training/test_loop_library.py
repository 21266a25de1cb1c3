"""Built once, kept on disk under a key of its content; a missing compiler is its own error."""

import ctypes
from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_fin.training.engine import loop_library
from robust_fin.training.engine.loop_library import LoopLibrary, NoCompilerError
from robust_fin.training.engine.trace import LoopInputs, TracedStep, trace_step

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


def step() -> TracedStep:
    """Adds the mean of the batch, times a rate, to the carry, and puts out the carry's sum."""

    def body(inputs: LoopInputs) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        (total,), (rate,), (batch,), (offset,) = inputs
        after = total + rate * batch.mean(0) + offset
        return (after,), (after.sum(),)

    examples = torch.zeros(3), torch.ones(()), torch.ones(2, 3), torch.zeros(3)
    return trace_step(body, LoopInputs(*((one,) for one in examples)), matmul="rows")


@pytest.fixture(scope="module")
def library() -> LoopLibrary:
    """From the cache of the machine where it is there."""
    return LoopLibrary(step())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return tmp_path / "step_loops"


def test_a_library_is_built_once_and_does_what_the_step_says(cache: Path) -> None:
    built = LoopLibrary(step())
    assert not built.cached
    assert LoopLibrary(step()).cached
    assert sorted(one.suffix for one in cache.iterdir()) == [".cpp", ".so"]
    data = torch.arange(12.0).view(4, 3)
    rows, rate = torch.tensor([[0, 1], [3, 3], [2, 0]]), torch.tensor([1.0, 10.0, 100.0])
    total = torch.zeros(3)
    (sums,) = built.run(LoopInputs((total,), (rate,), (data,), (torch.ones(3),)), rows=rows)
    after = torch.stack([r * data[one].mean(0) + 1 for r, one in zip(rate, rows, strict=True)])
    torch.testing.assert_close(total, after.sum(0))
    torch.testing.assert_close(sums, after.sum(1).cumsum(0))


def test_no_steps_do_nothing(library: LoopLibrary) -> None:
    total = torch.ones(3)
    inputs = LoopInputs((total,), (torch.ones(0),), (torch.ones(4, 3),), (torch.ones(3),))
    (sums,) = library.run(inputs, rows=torch.ones(0, 2, dtype=torch.int64))
    assert sums.shape == (0,)
    assert total.tolist() == [1, 1, 1]


def test_moving_rows_must_be_as_many_as_steps(library: LoopLibrary) -> None:
    inputs = LoopInputs((torch.ones(3),), (torch.ones(4),), (torch.ones(4, 3),), (torch.ones(3),))
    with pytest.raises(ValueError, match=r"\[4\] moving rows, 3 steps"):
        library.run(inputs, rows=torch.ones(3, 2, dtype=torch.int64))


@pytest.mark.usefixtures("cache")
def test_no_compiler_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(NoCompilerError, match=r"there is no '/nowhere/g\+\+'.*use engine=plain"):
        LoopLibrary(step())


def test_a_cached_library_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nowhere/g++")
    cache.mkdir(parents=True)
    (cache / f"{loop_library._key(step())}.so").write_bytes(b"not a library")
    with pytest.raises(OSError, match=r"file too short|invalid ELF header|not a mach-o"):
        LoopLibrary(step())


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    loop_library._write_atomically(tmp_path / "a.so", b"old")
    loop_library._write_atomically(tmp_path / "a.so", b"new")
    assert [one.name for one in tmp_path.iterdir()] == ["a.so"]
    assert (tmp_path / "a.so").read_bytes() == b"new"


@pytest.mark.usefixtures("cache")
def test_a_processor_that_refuses_an_instruction_set_gets_inductors_own_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor.exc import CppCompileError

    compile_it, asked = loop_library._compile, []

    def picky(step: TracedStep, *, isa_is_fine: bool | None) -> tuple[str, Path]:
        asked.append(isa_is_fine)
        if isa_is_fine:
            raise CppCompileError(["g++"], "unknown instruction")
        return compile_it(step, isa_is_fine=True)  # its own trial takes 8 s

    monkeypatch.setattr(loop_library, "_compile", picky)
    assert not LoopLibrary(step()).cached
    assert asked == [True, None]


def test_a_failure_inside_the_library_is_an_error(
    library: LoopLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "_call", lambda *_: ctypes.c_int64(2).value)
    inputs = LoopInputs((torch.ones(3),), (torch.ones(1),), (torch.ones(4, 3),), (torch.ones(3),))
    with pytest.raises(loop_library.LoopFailedError, match="failed with code 2"):
        library.run(inputs, rows=torch.ones(1, 2, dtype=torch.int64))


def test_how_long_a_build_takes_is_told_by_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    loop_library.cache_folder().mkdir()
    assert loop_library.usual_seconds() == loop_library.TYPICAL_SECONDS
    loop_library.note_seconds(23.04)
    assert loop_library.usual_seconds() == 23.0

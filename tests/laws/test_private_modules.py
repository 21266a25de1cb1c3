"""Internals of torch are used in engine/inductor.py only, Lightning's in lightning_loop.py only."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.loggers.logger import Logger

import robust_fin

ROOT = Path(robust_fin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TORCH_HOME = ROOT / "training/engine/inductor.py"
LIGHTNING_HOME = ROOT / "training/lightning_loop.py"
# undocumented modules whose names have no underscore
UNDOCUMENTED = ("torch.fx.experimental", "lightning.pytorch.loops")
LIGHTNING = ("lightning", "pytorch_lightning", "lightning_fabric")
# attributes of a Trainer that hold its loops, whose counters are undocumented
LOOPS = re.compile(r"\b(fit_loop|epoch_loop|batch_progress|optim_progress)\b")
BASES: tuple[type, ...] = (L.LightningModule, L.LightningDataModule, L.Callback, L.Trainer, Logger)


def is_private(module: str) -> bool:
    """Return True for `torch._inductor`, `torch.utils._pytree` and other internals."""
    return any(part.startswith("_") for part in module.split(".")[1:]) or any(
        module == name or module.startswith(f"{name}.") for name in UNDOCUMENTED
    )


def imported(tree: ast.Module) -> Iterator[str]:
    """Yield every imported module, and every imported name as `module.name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def torch_internals(path: Path) -> list[str]:
    """List the private modules of torch that a file imports or uses as attributes."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for name in imported(tree) if name.startswith("torch.") and is_private(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            name = ast.unparse(node)
            if name.startswith("torch.") and inspect.ismodule(getattr(torch, name[6:], None)):
                names.add(name)
    return sorted(names)


def private_attributes_of_lightning() -> set[str]:
    """Return the private attributes that Lightning's own classes use."""
    classes = {getattr(module, name) for module in (callbacks, loggers) for name in module.__all__}
    classes |= set(BASES)
    text = "".join(
        inspect.getsource(base)
        for cls in classes
        for base in cls.__mro__
        if base.__module__.startswith(LIGHTNING)
    )
    return {
        name for name in re.findall(r"\b(?:self|trainer)\.(_[a-z]\w*)", text) if "__" not in name
    }


LIGHTNING_PRIVATE = private_attributes_of_lightning()


def is_lightning_class(node: ast.ClassDef) -> bool:
    names = {name for base in BASES for name in [base.__name__]} | set(callbacks.__all__)
    names |= set(loggers.__all__) | {"TrackedCheckpoint"}
    return any(ast.unparse(base).split(".")[-1] in names for base in node.bases)


def lightning_internals(path: Path) -> list[str]:
    """List the private modules and attributes of Lightning that a file uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {name for name in imported(tree) if name.startswith(LIGHTNING) and is_private(name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            owner = ast.unparse(node.value)
            if re.search(r"\b(trainer|_connector|logger)$", owner) and node.attr[1] != "_":
                names.add(f"{owner}.{node.attr}")
        if isinstance(node, ast.ClassDef) and is_lightning_class(node):
            names |= own_uses(node)
        if isinstance(node, ast.Attribute) and LOOPS.search(ast.unparse(node)):
            names.add(ast.unparse(node))
    return sorted(names)


def own_uses(node: ast.ClassDef) -> set[str]:
    """Return the private attributes of Lightning that a subclass uses or defines."""
    used = {
        f"{node.name}.{part.attr}"
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and ast.unparse(part.value) in ("self", "super()")
        and part.attr in LIGHTNING_PRIVATE
    }
    defined = {
        f"{node.name}.{part.name}"
        for part in node.body
        if isinstance(part, ast.FunctionDef) and part.name in LIGHTNING_PRIVATE
    }
    return used | defined


def test_internals_of_torch_are_used_in_one_module() -> None:
    uses = {str(path.relative_to(ROOT)): torch_internals(path) for path in FILES}
    home = uses.pop(str(TORCH_HOME.relative_to(ROOT)))
    assert {path: names for path, names in uses.items() if names} == {}
    assert "torch._inductor.compile_fx.compile_fx" in home


def test_internals_of_lightning_are_used_in_one_module() -> None:
    uses = {str(path.relative_to(ROOT)): lightning_internals(path) for path in FILES}
    home = uses.pop(str(LIGHTNING_HOME.relative_to(ROOT)))
    assert {path: names for path, names in uses.items() if names} == {}
    assert "lightning.pytorch.loops.loop._Loop" in home
    assert "TrackedCheckpoint._last_global_step_saved" in home


@pytest.mark.parametrize(
    ("text", "internal"),
    [
        ("import torch._inductor.config", "torch._inductor.config"),
        ("from torch._inductor import config", "torch._inductor.config"),
        ("def f():\n    from torch.utils._pytree import tree_map", "torch.utils._pytree.tree_map"),
        ("from torch.fx.experimental.proxy_tensor import make_fx", "torch.fx.experimental.proxy"),
        ("import torch\nx = torch._ops.OpOverload", "torch._ops"),
    ],
)
def test_private_module_of_torch_is_detected(tmp_path: Path, text: str, internal: str) -> None:
    (tmp_path / "module.py").write_text(text)
    assert torch_internals(tmp_path / "module.py")[0].startswith(internal)


@pytest.mark.parametrize(
    ("text", "internal"),
    [
        ("from lightning.pytorch.loops.fit_loop import _FitLoop", "lightning.pytorch.loops.fit"),
        ("x = trainer._logger_connector", "trainer._logger_connector"),
        ("x = trainer.fit_loop.epoch_loop.batch_progress", "trainer.fit_loop"),
        (
            "class Best(ModelCheckpoint):\n    def f(self): self._last_global_step_saved = 0",
            "Best._last_global_step_saved",
        ),
        (
            "class Best(ModelCheckpoint):\n    def _save_checkpoint(self): pass",
            "Best._save_checkpoint",
        ),
    ],
)
def test_internal_of_lightning_is_detected(tmp_path: Path, text: str, internal: str) -> None:
    (tmp_path / "module.py").write_text(text)
    assert lightning_internals(tmp_path / "module.py")[0].startswith(internal)

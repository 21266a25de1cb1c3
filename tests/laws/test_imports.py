"""Packages import only packages of lower layers, and modules and functions are short."""

import ast
from functools import cache
from pathlib import Path

import robust_fin
from tests.for_every import for_every

ROOT = Path(robust_fin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# from top to bottom; packages in the same layer never import each other
LAYERS = (
    {"train", "predict", "evaluate", "backtest", "serve", "promote", "export", "inspect"}
    | {"leakcheck", "select", "replay", "doctor", "__main__"},
    {"sweeps"},
    {"cli"},
    {"runs"},
    {"ledger", "ranking"},
    {"training", "evaluation", "trading", "serving", "leaks"},
    {"bundle"},
    {"data", "models"},
    {"features"},
    {"market"},
    {"runtime", "metrics"},
    {"errors"},
)
LAYER = {
    package: len(LAYERS) - position
    for position, packages in enumerate(LAYERS)
    for package in packages
}
MAX_LINES, MAX_BODY = 400, 60


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files_of(*parts: str) -> list[Path]:
    """List the files of a package; raise if there are none, so that no loop is empty."""
    files = sorted(ROOT.joinpath(*parts).rglob("*.py"))
    assert files, f"no file in {'/'.join(parts)}"
    return files


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported_modules(tree: ast.Module) -> list[str]:
    """List every imported module as `package.module`, including imports inside functions."""
    modules = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            members = [f"{node.module}.{alias.name}" for alias in node.names]
            modules += members if node.module == "robust_fin" else [node.module or ""]
    return modules


def imported_packages(path: Path) -> list[str]:
    """List the packages of robust_fin that a file imports."""
    modules = imported_modules(tree_of(path))
    return [name.split(".")[1] for name in modules if name.split(".")[0] == "robust_fin"]


@for_every("path", FILES, ids=name_of)
def test_imports_only_go_down(path: Path) -> None:
    package = package_of(path)
    if package == "__init__":
        assert imported_packages(path) == []
        return
    assert package in LAYER, f"{package} is not in LAYERS"
    upward = [
        other
        for other in imported_packages(path)
        if other != package and LAYER[other] >= LAYER[package]
    ]
    assert upward == []


def test_models_import_nothing_else_of_robust_fin() -> None:
    for path in files_of("models"):
        assert set(imported_packages(path)) <= {"models"}, path.name


def test_training_and_evaluation_do_not_import_models() -> None:
    for package in ("training", "evaluation"):
        for path in files_of(package):
            assert "models" not in imported_packages(path), path.name
    for path in files_of("evaluation"):
        assert not {"bundle", "data"} & set(imported_packages(path)), path.name
        names = imported_modules(tree_of(path))
        from_torch = {name for name in names if name.split(".")[0] in ("torch", "lightning")}
        writes_events = path.parent.name == "tensorboard"
        assert from_torch <= ({"torch.utils.tensorboard"} if writes_events else set()), path.name


def test_report_does_not_import_tensorboard() -> None:
    for path in files_of("evaluation", "report"):
        names = imported_modules(tree_of(path))
        assert not [name for name in names if "tensorboard" in name], path.name


def test_market_and_features_do_not_import_torch() -> None:
    for package in ("market", "features"):
        for path in files_of(package):
            names = imported_modules(tree_of(path))
            assert not [n for n in names if n.split(".")[0] in ("torch", "lightning")], path.name


def test_only_commands_cli_runs_sweeps_and_bundle_use_dictconfig() -> None:
    commands = {path.stem for path in ROOT.glob("*.py")}
    for path in FILES:
        if package_of(path) in commands | {"cli", "runs", "sweeps", "bundle"}:
            continue
        text = path.read_text(encoding="utf-8")
        assert "omegaconf" not in text.lower(), name_of(path)
        assert "DictConfig" not in text, name_of(path)


@for_every("path", FILES, ids=name_of)
def test_imports_are_absolute(path: Path) -> None:
    tree = tree_of(path)
    relative = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level]
    assert relative == []


@for_every("path", FILES, ids=name_of)
def test_modules_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of the body without the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


@for_every("path", FILES, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    tree = tree_of(path)
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: body_lines(f) for f in functions if body_lines(f) > MAX_BODY}
    assert long == {}

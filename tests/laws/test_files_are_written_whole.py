"""Every file that the package writes has a temporary name until it is complete."""

import ast
from collections.abc import Iterator
from pathlib import Path

import robust_fin

ROOT = Path(robust_fin.__file__).parent
METHODS = {"write_text", "write_bytes", "to_parquet", "to_csv", "to_json", "to_pickle", "tofile"}
FUNCTIONS = {
    *("save_file", "savefig", "ParquetWriter", "copyfile", "copy2"),
    *("np.save", "np.savez", "torch.save", "OmegaConf.save"),
}
# function -> why it does not use a temporary name from `replacing`
EXCEPTIONS = {
    "evaluation/report/plots.py::render_plot": "into memory",
    "evaluation/tensorboard/summaries.py::write_events": "makes its own temporary name",
    "runtime/launcher.py::_start_rank": "the log of a running process",
    "runtime/files.py::claim_cache_folder": "creates a mark that must not exist",
    "sweeps/optuna_search.py::repair_journal": "cuts an unfinished line under a lock",
    "sweeps/sweep.py::write_table": "into memory",
    "training/recovery/checkpoint_files.py::checkpoint_bytes": "into memory",
    "data/cache.py::_write_header": "in a folder that is renamed when it is complete",
}


def temporary_names(function: ast.AST) -> set[str]:
    """Return the names that `with replacing(...) as name` binds in a function."""
    return {
        item.optional_vars.id
        for node in ast.walk(function)
        if isinstance(node, ast.With)
        for item in node.items
        if isinstance(item.context_expr, ast.Call)
        and ast.unparse(item.context_expr.func) == "replacing"
        and isinstance(item.optional_vars, ast.Name)
    }


def is_writing(call: ast.Call) -> bool:
    dotted = ast.unparse(call.func)
    name = dotted.rpartition(".")[2]
    if name in ("open", "fdopen"):
        modes = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
        texts = [x.value for x in modes if isinstance(x, ast.Constant) and isinstance(x.value, str)]
        # a mode that is a variable counts as writing; appending to a log is allowed
        return any(set(text) <= set("rwxabt+") and set(text) & set("wx+") for text in texts) or (
            name == "open" and any(isinstance(x, ast.Name) and x.id == "mode" for x in modes)
        )
    return name in METHODS or name in FUNCTIONS or dotted in FUNCTIONS


def writers(text: str) -> Iterator[str]:
    """Yield the functions of a module that write a file without `replacing`."""
    for function in ast.walk(ast.parse(text)):
        if not isinstance(function, ast.FunctionDef):
            continue
        allowed = temporary_names(function)
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and is_writing(call):
                names = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
                if not names & allowed:
                    yield function.name


def test_no_other_function_writes_a_file() -> None:
    functions = {
        f"{path.relative_to(ROOT)}::{name}"
        for path in ROOT.rglob("*.py")
        for name in writers(path.read_text(encoding="utf-8"))
    }
    assert functions == set(EXCEPTIONS)


def test_each_way_of_writing_is_detected() -> None:
    for line in (
        "path.write_text('x')",
        "table.to_parquet(out)",
        "path.open('wb')",
        "open(path, mode='w')",
        "np.save(path, x)",
        "path.open(mode)",
    ):
        assert list(writers(f"def f(path, table, out, x, mode):\n    {line}\n")) == ["f"], line
    replaced = (
        "def f(path, table):\n    with replacing(path) as part:\n        table.to_csv(part)\n"
    )
    assert list(writers(replaced)) == []
    assert list(writers("def f(path):\n    path.open('rb')\n    path.open('ab')\n")) == []

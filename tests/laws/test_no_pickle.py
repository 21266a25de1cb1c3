"""Nothing that is read from disk is unpickled with its code."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import robust_fin
from tests.every import for_every

ROOT = Path(robust_fin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADING = {"load", "loads", "Unpickler", "open", "read_pickle"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Every call with a dotted name, and its keyword arguments that are constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {
                one.arg: one.value.value
                for one in node.keywords
                if one.arg is not None and isinstance(one.value, ast.Constant)
            }
            yield ast.unparse(node.func), keywords


def faults(path: Path) -> list[str]:
    found = []
    for name, keywords in calls(path):
        module, _, function = name.rpartition(".")
        if name == "torch.load" and keywords.get("weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", False) is not False:
            found.append("np.load with allow_pickle")
        if module in UNPICKLING and function in LOADING:
            found.append(name)
        if name in ("torch.jit.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"):
            found.append(name)
        if function == "fit" and module == "trainer" and keywords.get("weights_only") is not True:
            found.append("trainer.fit without weights_only=True")
    return found


@for_every("path", FILES, ids=name_of)
def test_no_file_is_unpickled(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load with allow_pickle"),
        ("pickle.loads(content)", "pickle.loads"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("trainer.fit(module, data)", "trainer.fit without weights_only=True"),
    ],
)
def test_the_law_would_notice(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "one.py").write_text(line)
    assert faults(tmp_path / "one.py") == [fault]

"""No file is read in a way that could run code stored in it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import robust_fin
from tests.for_every import for_every

ROOT = Path(robust_fin.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LOADING = {"load", "loads", "Unpickler", "open", "read_pickle"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def calls(path: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield every call of a dotted name with its constant keyword arguments."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            keywords = {
                one.arg: one.value.value
                for one in node.keywords
                if one.arg is not None and isinstance(one.value, ast.Constant)
            }
            yield ast.unparse(node.func), keywords


def unpickling_calls(path: Path) -> list[str]:
    detected = []
    for name, keywords in calls(path):
        module, _, function = name.rpartition(".")
        if name == "torch.load" and keywords.get("weights_only") is not True:
            detected.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle", False) is not False:
            detected.append("np.load with allow_pickle")
        if module in UNPICKLING and function in LOADING:
            detected.append(name)
        if name in ("torch.jit.load", "pd.read_pickle", "yaml.load", "yaml.unsafe_load"):
            detected.append(name)
        if function == "fit" and module == "trainer" and keywords.get("weights_only") is not True:
            detected.append("trainer.fit without weights_only=True")
    return detected


@for_every("path", FILES, ids=name_of)
def test_no_file_is_unpickled(path: Path) -> None:
    assert unpickling_calls(path) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("np.load(path, allow_pickle=True)", "np.load with allow_pickle"),
        ("pickle.loads(content)", "pickle.loads"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("trainer.fit(module, data)", "trainer.fit without weights_only=True"),
    ],
)
def test_unpickling_call_is_detected(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "one.py").write_text(line)
    assert unpickling_calls(tmp_path / "one.py") == [expected]

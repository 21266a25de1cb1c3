"""The notebooks are short, stored without output, and run without a network."""

import os
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.notebooks import NOTEBOOKS, cells_of

OFFLINE = '''
import socket

pytestmark = pytest.mark.docs

connect = socket.socket.connect


def at_home(self, address):
    """Refuse every address but this machine's."""
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"the notebooks run without a network, and this one asks for {address}")
    return connect(self, address)


socket.socket.connect = at_home
'''


def named(path: Path) -> str:
    return path.stem


def test_the_four_notebooks_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_bars_and_features",
        "02_train_and_verdict",
        "03_populations_and_folds",
        "04_your_own_feature_and_net",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_is_short_and_stored_without_output(path: Path) -> None:
    cells = cells_of(path)
    assert len(cells) < 15
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_uses_the_public_names_on_synthetic_bars(path: Path) -> None:
    text = "".join("".join(cell["source"]) for cell in cells_of(path))
    assert "from robust_fin import" in text
    assert 'load_bars(None, "source.synthetic.rows=' in text
    assert "source.path" not in text


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=named)
def test_it_runs_and_draws(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
    client = pytest.importorskip("nbclient")
    (tmp_path / "sitecustomize.py").write_text(OFFLINE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # Inductor imports parts of torch that torch calls deprecated
    inductor = "ignore::DeprecationWarning:torch.jit._script"
    monkeypatch.setenv("PYTHONWARNINGS", f"default,{inductor}")
    kept = nbformat.read(path, as_version=4)
    runner = client.NotebookClient(
        kept, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    runner.execute()
    outputs = [one for cell in kept.cells for one in cell.get("outputs", [])]
    assert [one for one in outputs if one.get("name") == "stderr"] == []
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 2
    assert {one.name for one in path.parent.iterdir()} == {one.name for one in NOTEBOOKS}

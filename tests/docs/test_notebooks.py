"""Tests of the notebooks: they are short, stored without output, and run offline."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.notebooks import NOTEBOOKS, cells_of
from tests.docs.offline import SITECUSTOMIZE
from tests.for_every import for_every

pytestmark = pytest.mark.docs
CONNECT = """
import socket
for connect in (
    lambda: socket.create_connection(("192.0.2.1", 80), timeout=5),
    lambda: socket.socket().connect_ex(("192.0.2.1", 80)),
    lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"", ("192.0.2.1", 80)),
    lambda: socket.getaddrinfo("example.org", 80),
    lambda: __import__("urllib.request").request.urlopen("http://example.org", timeout=5),
):
    try:
        connect()
    except OSError as error:
        print(error)
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
    print("local connection works")
"""


def name_of(path: Path) -> str:
    return path.stem


def test_four_notebooks_exist() -> None:
    assert [path.stem for path in NOTEBOOKS] == [
        "01_bars_and_features",
        "02_train_and_verdict",
        "03_populations_and_folds",
        "04_your_own_feature_and_net",
    ]


@for_every("path", NOTEBOOKS, ids=name_of)
def test_notebooks_are_short_and_stored_without_output(path: Path) -> None:
    cells = cells_of(path)
    assert len(cells) < 15
    assert cells[0]["cell_type"] == "markdown"
    for cell in cells:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@for_every("path", NOTEBOOKS, ids=name_of)
def test_notebooks_use_the_public_api_on_synthetic_bars(path: Path) -> None:
    text = "".join("".join(cell["source"]) for cell in cells_of(path))
    assert "from robust_fin import" in text
    assert 'load_bars(None, "source.synthetic.rows=' in text
    assert "source.path" not in text


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the processes of a test without network."""
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))


@pytest.mark.usefixtures("offline")
def test_offline_process_cannot_connect_to_other_hosts(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CONNECT]
    done = subprocess.run(words, cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.stderr == ""
    *errors, last = done.stdout.splitlines()
    assert len(errors) == 5
    assert all("this process runs without a network, and asks for" in line for line in errors)
    assert last == "local connection works"


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_notebook_runs_and_plots_offline(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
    client = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # Inductor imports parts of torch that torch calls deprecated
    inductor = "ignore::DeprecationWarning:torch.jit._script"
    monkeypatch.setenv("PYTHONWARNINGS", f"default,{inductor}")
    notebook = nbformat.read(path, as_version=4)
    runner = client.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    runner.execute()
    outputs = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    assert [one for one in outputs if one.get("name") == "stderr"] == []
    assert sum("image/png" in one.get("data", {}) for one in outputs) >= 2
    assert {one.name for one in path.parent.iterdir()} == {one.name for one in NOTEBOOKS}

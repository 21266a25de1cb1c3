"""The wheel contains conf/ and trains outside the source tree."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.small_runs import read_metrics

pytestmark = pytest.mark.processes


def test_wheel_trains_outside_the_source_tree(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    shipped = {name.removeprefix("robust_fin/") for name in names if "/conf/" in name}
    assert shipped == {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]

    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "robust-fin = robust_fin.__main__:main" in (unpacked / entry).read_text()

    where = tmp_path / "elsewhere"
    where.mkdir()
    words = ["+experiment=smoke", "hydra.run.dir=run", "trainer.enable_progress_bar=false"]
    script = (
        "import sys; from robust_fin.__main__ import main; sys.exit(main())"  # the script's own
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, "train", *words],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert read_metrics(where / "run")["nonfinite_steps"] == 0

"""Laws of all executors of conf/executor."""

import sys
from pathlib import Path

import pytest

from robust_fin import train
from robust_fin.cli.composition import group_choices
from robust_fin.sweeps.executors import Executor
from tests.bars import config, instantiate

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="SLURM and Ray are tested on Linux"),
]


@pytest.mark.parametrize("name", group_choices("executor"))
def test_every_executor_implements_the_protocol(name: str) -> None:
    assert isinstance(instantiate(config(f"executor={name}").executor), Executor)


@pytest.mark.parametrize(
    ("name", "package", "title", "extra"),
    [("submitit", "submitit", "submitit", "slurm"), ("ray", "ray", "Ray", "ray")],
)
def test_missing_package_names_the_extra(
    name: str,
    package: str,
    title: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    overrides = [f"hydra.sweep.dir={tmp_path}", f"executor={name}", "seed=1,2"]
    assert train.main(["+experiment=smoke", *overrides, "-m"]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"error: executor={name} needs {title} (")
    assert f'pip install -c constraints.txt -e ".[{extra}]"' in message

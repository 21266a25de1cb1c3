import json
import subprocess
import sys

import pytest

import robust_fin
from tests.every import for_every

HEAVY = ("torch", "lightning", "pandas", "numpy", "scipy", "hydra", "pyarrow")


def modules_after(code: str) -> set[str]:
    """Names of the packages a fresh interpreter holds after running `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_pulls_in_nothing_heavy() -> None:
    held = modules_after("import robust_fin")
    assert "robust_fin" in held
    assert held.isdisjoint(HEAVY)


def test_bars_and_features_pull_in_no_torch() -> None:
    held = modules_after("from robust_fin import BarSource, synthetic_market, feature, Lookback")
    assert "pandas" in held
    assert held.isdisjoint({"torch", "lightning", "hydra"})
    held = modules_after("from robust_fin import load_bars, make_features")
    assert held.isdisjoint({"torch", "lightning"})


@for_every("name", robust_fin.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(robust_fin, name).__module__.startswith("robust_fin.")


def test_a_name_that_is_not_there_is_said_with_those_that_are() -> None:
    with pytest.raises(AttributeError, match=r"robust_fin has no Net; it has load_bars, "):
        _ = robust_fin.Net

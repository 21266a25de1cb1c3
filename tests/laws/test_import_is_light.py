import json
import subprocess
import sys

import pytest

import robust_fin
from tests.for_every import for_every

HEAVY = ("torch", "lightning", "pandas", "numpy", "scipy", "hydra", "pyarrow")


def modules_after(code: str) -> set[str]:
    """List the packages that a new interpreter has imported after running `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


def test_importing_the_package_imports_nothing_heavy() -> None:
    modules = modules_after("import robust_fin")
    assert "robust_fin" in modules
    assert modules.isdisjoint(HEAVY)


def test_bars_and_features_do_not_import_torch() -> None:
    modules = modules_after("from robust_fin import BarSource, synthetic_market, feature, Lookback")
    assert "pandas" in modules
    assert modules.isdisjoint({"torch", "lightning", "hydra"})
    modules = modules_after("from robust_fin import load_bars, make_features")
    assert modules.isdisjoint({"torch", "lightning"})


@for_every("name", robust_fin.__all__)
def test_every_public_name_is_defined_in_the_package(name: str) -> None:
    assert getattr(robust_fin, name).__module__.startswith("robust_fin.")


def test_unknown_name_raises_with_the_public_names() -> None:
    with pytest.raises(AttributeError, match=r"robust_fin has no Net; it has load_bars, "):
        _ = robust_fin.Net

import importlib.util

import numpy as np
import pytest

from robust_fin.errors import ConfigError
from robust_fin.training.baselines import GradientBoosting

SETTINGS = {
    "trees": 50, "learning_rate": 0.1, "leaves": 8, "min_rows": 20,
    "column_share": 1.0, "penalty": 1.0, "threads": 1, "seed": 0,
}  # fmt: skip


def test_trees_find_what_no_line_can() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2))
    y = np.sign(x[:, 0] * x[:, 1]) + 0.1 * rng.normal(size=4000)
    found = GradientBoosting(**SETTINGS).fit(x[:3000], y[:3000])(x[3000:])
    assert np.corrcoef(found, y[3000:])[0, 1] > 0.9
    again = GradientBoosting(**SETTINGS).fit(x[:3000], y[:3000])(x[3000:])
    assert found.tolist() == again.tolist()


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'robust-fin\[boost\]'"):
        GradientBoosting(**SETTINGS)

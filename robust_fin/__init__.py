"""Robust training on fat-tailed market data, and an honest verdict.

Public names are imported on first use, so that `import robust_fin` is fast and imports no torch.
"""

import importlib
from typing import Any

_PUBLIC = {
    "load_bars": "robust_fin.cli.bars",
    "make_features": "robust_fin.cli.bars",
    "fit": "robust_fin.cli.fit",
    "predict": "robust_fin.predict",
    "evaluate": "robust_fin.evaluate",
    "Run": "robust_fin.runs.run",
    "BarSource": "robust_fin.market.sources",
    "synthetic_market": "robust_fin.market.synthetic",
    "compute_features": "robust_fin.features.registry",
    "feature": "robust_fin.features.registry",
    "Lookback": "robust_fin.features.registry",
    "load_bundle": "robust_fin.bundle.folder",
    "rank_ic": "robust_fin.metrics",
    "significance": "robust_fin.evaluation.significance",
    "verdict": "robust_fin.evaluation.verdict",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"robust_fin has no {name}; it has {', '.join(_PUBLIC)}")
    module = importlib.import_module(_PUBLIC[name])
    # the module of a command is callable as its function: importing it binds the same name
    return module if _PUBLIC[name] == f"robust_fin.{name}" else getattr(module, name)

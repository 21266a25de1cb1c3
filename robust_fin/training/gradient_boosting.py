"""Gradient-boosted trees: what a net on tabular features has to be held against."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from robust_fin.errors import ConfigError

Forecast = Callable[[np.ndarray], np.ndarray]


def require_lightgbm(*, wanted_by: str, instead: str) -> None:
    """Ask for the library before anything is computed.

    Args:
        wanted_by: the setting that needs it.
        instead: one that does without.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    if importlib.util.find_spec("lightgbm") is None:
        raise ConfigError(
            f"{wanted_by} needs LightGBM, which is not installed: "
            f"pip install 'robust-fin[boost]', or write {instead}"
        )


@dataclass(frozen=True, slots=True)
class GradientBoosting:
    """LightGBM with squared error, on features as they are.

    Attributes:
        trees: boosting rounds.
        learning_rate: of a tree.
        leaves: of a tree, at most.
        min_rows: of a leaf, at least.
        column_share: of the features that each tree sees.
        penalty: on squared leaf values.
        threads: of LightGBM.
        seed: of the choice of features.
    """

    trees: int
    learning_rate: float
    leaves: int
    min_rows: int
    column_share: float
    penalty: float
    threads: int
    seed: int

    def __post_init__(self) -> None:
        """Ask for the library before anything is computed.

        Raises:
            ConfigError: LightGBM is not installed.
        """
        require_lightgbm(wanted_by="baselines=full", instead="baselines=default")

    def fit(self, x: Float[np.ndarray, "rows features"], y: Float[np.ndarray, " rows"]) -> Forecast:
        """Trees grown on the training rows, as what makes forecasts of others.

        Args:
            x: features of the training rows.
            y: their targets.
        """
        import lightgbm  # an extra, and slow to load

        train = lightgbm.Dataset(x, y, free_raw_data=True)
        grown = lightgbm.train(self._settings(), train, num_boost_round=self.trees)
        return lambda rows: np.asarray(
            grown.predict(rows, num_threads=self.threads), dtype=np.float64
        )

    def _settings(self) -> dict[str, float | str | bool]:
        return {
            "objective": "regression",
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_rows,
            "feature_fraction": self.column_share,
            "lambda_l2": self.penalty,
            "num_threads": self.threads,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }

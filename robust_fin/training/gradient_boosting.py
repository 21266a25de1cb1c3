"""Gradient-boosted trees: what a net on tabular features has to be held against."""

import importlib.util
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from robust_fin.errors import ConfigError


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
        if importlib.util.find_spec("lightgbm") is None:
            raise ConfigError(
                "baselines=full needs LightGBM: pip install 'robust-fin[boost]', or write "
                "baselines=default"
            )

    def fit_forecast(
        self,
        x: Float[np.ndarray, "rows features"],
        y: Float[np.ndarray, " rows"],
        x_test: Float[np.ndarray, "tests features"],
    ) -> Float[np.ndarray, " tests"]:
        """Forecasts of the test rows by trees grown on the training rows.

        Args:
            x: features of the training rows.
            y: their targets.
            x_test: features of the test rows.
        """
        import lightgbm  # an extra, and slow to load

        train = lightgbm.Dataset(x, y, free_raw_data=True)
        grown = lightgbm.train(self._settings(), train, num_boost_round=self.trees)
        return np.asarray(grown.predict(x_test, num_threads=self.threads), dtype=np.float64)

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

import math

import numpy as np
import pytest

from robust_fin.errors import ConfigError
from robust_fin.evaluation.breakdowns import Instrument
from robust_fin.evaluation.significance import judge
from tests.evaluation.tables import predictions, with_models

ES = Instrument(root="ES", tick=0.25, half_spread_ticks=0.5)


def test_the_edge_is_the_mean_outcome_of_the_outer_deciles() -> None:
    table = predictions(strength=0.3)
    found = judge(with_models(table, {}), instrument=ES).edge
    ordered = table.sort_values("score")["outcome"].to_numpy()
    low, high = 1e4 * ordered[:960].mean(), 1e4 * ordered[-960:].mean()
    assert found.top_bp.estimate == pytest.approx(high, rel=1e-6)
    assert found.bottom_bp.estimate == pytest.approx(low, rel=1e-6)
    assert found.trade_bp.estimate == pytest.approx((high - low) / 2, rel=1e-6)
    assert found.trades == 1920
    # at 5,000 points a basis point is half a point, two ticks
    assert found.trade_ticks.estimate == pytest.approx(2 * found.trade_bp.estimate, rel=1e-9)
    assert found.break_even_ticks == pytest.approx(found.trade_bp.estimate, rel=1e-9)
    assert found.half_spread_bp == pytest.approx(0.25)


@pytest.mark.parametrize("why", ["other contracts", "no price", "no instrument"])
def test_ticks_are_not_guessed(why: str) -> None:
    table = with_models(predictions(strength=0.3), {})
    if why == "other contracts":
        table["contract"] = "CLH24"
    if why == "no price":
        table = table.drop(columns="close")
    found = judge(table, instrument=None if why == "no instrument" else ES).edge
    assert np.isnan(
        [found.trade_ticks.estimate, found.half_spread_ticks, found.half_spread_bp]
    ).all()
    assert math.isfinite(found.trade_bp.estimate)


def test_no_edge_breaks_even_at_nothing() -> None:
    table = predictions(strength=0.3)
    table["score"] = -table["score"]
    found = judge(with_models(table, {}), instrument=ES).edge
    assert found.trade_ticks.high < 0
    assert found.break_even_ticks == 0.0


@pytest.mark.parametrize("tick", [0.0, -1.0, math.nan])
def test_a_tick_that_is_none_is_refused(tick: float) -> None:
    with pytest.raises(ConfigError, match=rf"instrument.tick={tick} must be a price above 0"):
        Instrument(root="ES", tick=tick, half_spread_ticks=0.5)


def test_a_negative_spread_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"half_spread_ticks=-0\.5 must be at least 0"):
        Instrument(root="ES", tick=0.25, half_spread_ticks=-0.5)

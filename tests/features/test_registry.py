import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.features.registry import (
    BARS,
    FEATURES,
    SESSION,
    TRADING_DATES,
    FeatureSet,
    Lookback,
    compute_features,
    feature,
    get_feature,
)
from tests.bars import close_bars

STUDY = ["close_change_pct", "typical_price", "price_range", "price_mom_3bar", "price_mom_5bar"]
BAR = "ESH24 2024-03-11T08:30 100\nESH24 2024-03-11T08:31 101"


def test_the_registry_contains_the_documented_features() -> None:
    named = {"vwap", "price_mom_3d", "price_mom_5d", "vix"}
    assert named | set(STUDY) <= set(FEATURES)


def test_units_and_lookbacks_are_formatted() -> None:
    stated = {name: (str(FEATURES[name].lookback), FEATURES[name].unit) for name in FEATURES}
    assert stated["close_change_pct"] == ("1 bars", "fraction")
    assert stated["price_mom_5d"] == ("5 trading dates", "fraction")
    assert stated["vwap"] == ("since the session's start", "fraction of close")
    assert stated["typical_price"] == ("0 bars", "index points")
    assert {f.lookback.unit for f in FEATURES.values()} == {BARS, TRADING_DATES, SESSION}


def test_columns_are_float64_in_the_requested_order() -> None:
    values = compute_features(close_bars(BAR), ["price_range", "close_change_pct"])
    assert values.columns.tolist() == ["price_range", "close_change_pct"]
    assert set(values.dtypes) == {np.dtype("float64")}
    assert values["close_change_pct"].tolist()[1] == pytest.approx(0.01)


def test_an_unknown_feature_raises_with_the_registered_names() -> None:
    with pytest.raises(ConfigError, match=r"there is no feature momentum; .*price_mom_3d, .*vwap"):
        get_feature("momentum")


def test_registering_a_name_twice_raises() -> None:
    def vwap(bars: pd.DataFrame) -> pd.Series:
        return bars["close"]

    before = FEATURES["vwap"]
    with pytest.raises(ConfigError, match="the feature vwap is already registered"):
        feature(lookback=Lookback(0, BARS), unit="index points")(vwap)
    assert FEATURES["vwap"] is before


def test_a_missing_column_raises_with_a_suggestion() -> None:
    words = r"feature vix needs the column vix, which the bars lack; .*source.vix_path=FILE"
    with pytest.raises(SchemaError, match=words):
        compute_features(close_bars(BAR), ["vix"])


@pytest.mark.parametrize("names", [[], ["vwap", "vwap"]])
def test_an_empty_or_repeated_feature_set_raises(names: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"features\.names=\[.*\] must name each feature once"):
        FeatureSet.of(names)


def test_a_feature_set_has_units() -> None:
    chosen = FeatureSet.of(["vwap", "typical_price"])
    assert chosen.names == ("vwap", "typical_price")
    assert chosen.units == {"vwap": "fraction of close", "typical_price": "index points"}


def test_a_user_module_registers_features(tmp_path, monkeypatch) -> None:
    (tmp_path / "house_features.py").write_text(
        "from robust_fin.features.registry import BARS, Lookback, feature\n"
        "@feature(lookback=Lookback(0, BARS), unit='fraction')\n"
        "def close_place(bars):\n"
        "    return (bars['close'] - bars['low']) / bars['close']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        chosen = FeatureSet.of(["close_place", "vwap"], modules=["house_features"])
        assert compute_features(close_bars(BAR), chosen.names)["close_place"].tolist() == [0, 0]
    finally:
        FEATURES.pop("close_place", None)


def test_a_missing_module_raises() -> None:
    with pytest.raises(
        ConfigError, match=r"features\.modules lists nowhere_to_be_found.*PYTHONPATH"
    ):
        FeatureSet.of(["vwap"], modules=["nowhere_to_be_found"])

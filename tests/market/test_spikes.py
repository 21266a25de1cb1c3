from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from robust_fin.data.cache import cache_key, fingerprint
from robust_fin.errors import ConfigError
from robust_fin.market.schema import PRICES, check_bars
from robust_fin.market.sources import Bars
from robust_fin.market.streams import BarStream
from robust_fin.market.synthetic import SPIKED_BARS, Spikes, synthetic_market
from tests.bars import config, instantiate

TENFOLD = Spikes(share=0.01, factor=10.0, seed=0)
ROWS = 12_000


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "es.parquet"
    synthetic_market(ROWS, seed=3, start="2022-03-02").bars.to_parquet(path, index=False)
    return path


def bars_of(path: Path, *words: str) -> Bars:
    return instantiate(config(f"source.path={path}", *words).source).load()


@pytest.fixture(scope="module")
def plain(parquet: Path) -> pd.DataFrame:
    return bars_of(parquet).table


def test_spikes_multiply_all_prices_and_change_nothing_else(plain: pd.DataFrame) -> None:
    spiked, count = TENFOLD.apply(plain)
    hit = TENFOLD.mask(plain)
    assert count == hit.sum()
    for name in PRICES:
        factor = spiked[name].to_numpy() / plain[name].to_numpy()
        np.testing.assert_allclose(factor, np.where(hit, 10.0, 1.0), rtol=1e-15)
    rest = [name for name in plain if name not in PRICES]
    pd.testing.assert_frame_equal(spiked[rest], plain[rest])
    check_bars(spiked, origin="spiked bars")


def test_spikes_hit_the_expected_share_of_bars(plain: pd.DataFrame) -> None:
    hit = TENFOLD.mask(plain)
    assert abs(int(hit.sum()) - 120) < 4 * np.sqrt(120 * 0.99)
    quarters = hit.reshape(4, -1).sum(axis=1)
    assert quarters.min() > 10
    assert not (TENFOLD.mask(plain) & Spikes(0.01, 10.0, 1).mask(plain)).sum() > 10
    assert Spikes(0.0, 10.0, 0).apply(plain)[1] == 0


def test_spikes_do_not_depend_on_the_rows_read(plain: pd.DataFrame) -> None:
    hit = TENFOLD.mask(plain)
    part = plain.iloc[5_000:].copy()
    part["contract"] = part["contract"].cat.remove_unused_categories()
    assert np.array_equal(TENFOLD.mask(part), hit[5_000:])


def test_spikes_differ_between_contracts_at_the_same_time() -> None:
    times = pd.date_range("2024-03-04", periods=20_000, freq="1min", tz="UTC").as_unit("ns")
    tables = [
        pd.DataFrame({"time": times, "contract": pd.Categorical([code] * 20_000)})
        for code in ("ESH24", "ESM24")
    ]
    first, second = (TENFOLD.mask(one) for one in tables)
    assert 100 < first.sum() < 300
    assert (first & second).sum() < 12  # 2 by chance


def test_spikes_are_equal_in_blocks(parquet: Path, plain: pd.DataFrame, tmp_path: Path) -> None:
    words = ("stress=spiked", "source.spikes.share=0.01", "source.fraction=0.9")
    whole = bars_of(parquet, *words)
    expected, count = TENFOLD.apply(plain.iloc[:10_800])
    assert np.array_equal(whole.table["close"], expected["close"])
    assert whole.reports[SPIKED_BARS] == count > 50
    assert whole.origin == "es.parquet, 1 % of bars spiked 10-fold"
    assert bars_of(parquet, "source.fraction=0.9").fingerprint() != whole.fingerprint()
    keys = [fingerprint(instantiate(config(*some).source)) for some in (words, words[:1], ())]
    assert (
        len({cache_key({"source": one}) for one in keys}) == 3
    )  # none is taken for another's cache
    settings = config(f"source.path={parquet}", *words, "source.block_rows=1700").source
    stream = BarStream(instantiate(settings), scratch=tmp_path)
    blocks = pd.concat(list(stream), ignore_index=True)
    assert np.array_equal(blocks["close"], whole.table["close"])
    assert stream.summary() == whole.summary()
    assert stream.reports() == whole.reports


def test_no_spikes_by_default(parquet: Path) -> None:
    assert config().source.spikes is None
    usual = bars_of(parquet)
    assert SPIKED_BARS not in usual.reports
    assert usual.origin == "es.parquet"
    assert usual.table["close"].max() < 10_000


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"share": 1.0}, r"share=1.0 must be in \[0, 1\)"),
        ({"share": -0.1}, r"share=-0.1 must be in \[0, 1\)"),
        ({"factor": 0.0}, "factor=0.0 must be finite and > 0"),
        ({"factor": float("inf")}, "factor=inf must be finite and > 0"),
        ({"seed": -1}, "seed=-1 must be an integer >= 0"),
    ],
)
def test_invalid_spike_settings_raise(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^source.spikes.{words}"):
        Spikes(**({"share": 0.001, "factor": 10.0, "seed": 0} | settings))

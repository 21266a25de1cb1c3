"""The command inspect: its table, its exit codes, and the option that it names."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from robust_fin import inspect

MakeBars = Callable[..., pd.DataFrame]


def test_inspect_names_the_option_and_ends_well_with_it(
    make_bars: MakeBars, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "es.parquet"
    make_bars(rows=400, every="5min").to_parquet(path)
    assert inspect.main([f"source.path={path}"]) == 1
    out, err = capsys.readouterr()
    assert "Inspection of es.parquet" in out
    assert "source.bar=5min" in out
    assert "bar length: 5min; configured: 1min. Write source.bar=5min" in err
    assert inspect.main([f"source.path={path}", "source.bar=5min"]) == 0
    assert "A training would start: 400 bars of 1 contract" in capsys.readouterr().out


def test_several_products_are_refused_until_one_is_picked(
    make_bars: MakeBars, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "both.parquet"
    both = [make_bars(rows=100), make_bars(rows=100, contract="NQH24", seed=1)]
    pd.concat(both, ignore_index=True).to_parquet(path)
    assert inspect.main([f"source.path={path}"]) == 1
    assert "Write source.product=ES" in capsys.readouterr().err
    assert inspect.main([f"source.path={path}", "source.product=NQ"]) == 0
    out = capsys.readouterr().out
    assert "100: other products than source.product" in out

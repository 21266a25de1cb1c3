"""Bars that were given as a table, in the file that a source reads them from."""

from pathlib import Path

import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.schema import REQUIRED

_OPTIONAL = ("session", "vix")


def write_bars(bars: pd.DataFrame, path: Path, *, length: str) -> None:
    """Write what the source reads of a bar table, and nothing that it finds out by itself.

    Args:
        bars: with time, open, high, low, close and volume; contract, session and vix if there.
        path: a .parquet file.
        length: of a bar, as source.bar has it.

    Raises:
        SchemaError: the bars are of another length.
    """
    kept = [name for name in (*REQUIRED, *_OPTIONAL) if name in bars]
    table = bars[kept].reset_index(drop=True)
    if "time" in table and pd.api.types.is_datetime64_any_dtype(table["time"]):
        _check_length(table, pd.Timedelta(length))
    table.to_parquet(path, index=False)


def _check_length(table: pd.DataFrame, length: pd.Timedelta) -> None:
    """The least step between two bars of a contract says how long they are; gaps are longer."""
    times = table.groupby("contract", observed=True)["time"] if "contract" in table else None
    steps = table["time"].diff() if times is None else times.diff()
    steps = steps[steps > pd.Timedelta(0)]
    if steps.empty or steps.min() == length:
        return
    seconds = steps.min().total_seconds()
    raise SchemaError(
        f"no two bars are less than {seconds:g} s apart, and source.bar is "
        f"{length.total_seconds():g} s; write source.bar={seconds:g}s"
        if steps.min() > length
        else f"bars lie {seconds:g} s apart, and source.bar is {length.total_seconds():g} s; "
        f"write source.bar={seconds:g}s"
    )

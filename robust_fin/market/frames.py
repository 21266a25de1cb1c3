"""Write a DataFrame of bars to Parquet, so that it is read and checked as a file is."""

import logging
from collections.abc import Hashable, Mapping
from pathlib import Path

import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.columns import NO_COLUMNS, header_roles, match_headers
from robust_fin.runtime.atomic_files import replacing

log = logging.getLogger(__name__)

ORIGIN = "the DataFrame"
_DERIVED = ("trading_date", "trading_day")


def write_bars(
    bars: pd.DataFrame, path: Path, *, length: str, columns: Mapping[str, str] = NO_COLUMNS
) -> None:
    """Write the columns that a source reads or may be asked for, under their own names.

    Args:
        bars: table with the columns of a bar file; the time, and the contract, may be its index.
        path: a .parquet file.
        length: length of a bar, as in source.bar.
        columns: source.columns.

    Raises:
        SchemaError: a column is missing, or the bars have another length.
        ConfigError: `columns` names a column that the table lacks.
    """
    table = _flat(bars)
    headers = match_headers(list(table.columns), origin=ORIGIN, columns=columns)
    others = [name for name in table if name not in headers.values()]
    numeric = [name for name in others if pd.api.types.is_numeric_dtype(table[name])]
    lost = [name for name in others if name not in (*numeric, *_DERIVED)]
    if lost:
        log.info("%s: the columns %s are not read", ORIGIN, ", ".join(map(str, lost)))
    table = table[[*headers.values(), *(name for name in numeric if name not in _DERIVED)]]
    time = table[headers["time"]]
    if "date" not in headers and pd.api.types.is_datetime64_any_dtype(time):
        contract = table[headers["contract"]] if "contract" in headers else None
        _check_length(time, contract, pd.Timedelta(length))
    with replacing(path) as part:
        table.to_parquet(part, index=False)


def _flat(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the table with its index as columns and one level of column names."""
    table = bars
    if isinstance(table.columns, pd.MultiIndex):
        constant: list[Hashable] = [
            n for n, level in enumerate(table.columns.levels) if len(level) == 1
        ]
        if len(constant) < table.columns.nlevels - 1:
            raise SchemaError(
                f"{ORIGIN} has columns of several levels, such as {table.columns[0]}; pass the "
                "columns of one market, such as bars.xs('ES=F', axis=1, level=1)"
            )
        table = table.droplevel(constant[-(table.columns.nlevels - 1) :], axis=1)
    if isinstance(table.index, pd.DatetimeIndex):
        known = header_roles([str(name) for name in (*table.columns, table.index.name)])
        name = table.index.name if "time" in known and table.index.name is not None else "time"
        table = table.set_axis(table.index.rename(name), axis=0)
    if isinstance(table.index, pd.DatetimeIndex | pd.MultiIndex) or table.index.name is not None:
        kept = [name for name in table.index.names if name not in table.columns]
        table = table.reset_index(level=kept) if kept else table
    return table.rename(columns=str).reset_index(drop=True)


def _check_length(time: pd.Series, contract: pd.Series | None, length: pd.Timedelta) -> None:
    """Raise unless the smallest step between two bars of a contract is their length."""
    steps = time.diff() if contract is None else time.groupby(contract, observed=True).diff()
    steps = steps[steps > pd.Timedelta(0)]
    if steps.empty or steps.min() == length:
        return
    if steps.mode().iloc[0] == length:
        offset = (time - time.dt.normalize()) % length
        odd = time[offset != offset.mode().iloc[0]]
        raise SchemaError(
            f"{ORIGIN}: {len(odd)} of {len(time)} stamps are off the grid of {length} bars: "
            f"{', '.join(f'row {row} at {stamp}' for row, stamp in odd.head(3).items())}. "
            "Correct or remove these rows"
        )
    seconds = steps.min().total_seconds()
    raise SchemaError(
        f"the smallest step between two bars is {seconds:g} s, but source.bar is "
        f"{length.total_seconds():g} s; set source.bar={seconds:g}s"
    )

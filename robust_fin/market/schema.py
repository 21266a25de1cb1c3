"""Rules that every bar table must satisfy, its fingerprint, and writing it to Parquet."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Shaped

from robust_fin.errors import SchemaError

PRICES = ("open", "high", "low", "close")
REQUIRED = ("time", *PRICES, "volume", "contract")
_OPTIONAL = ("session", "vix")
_MAX_CELL = 80  # characters of a cell shown in a message
_CHUNK = 1 << 20  # rows hashed at once


def check_bars(bars: pd.DataFrame, *, origin: str) -> None:
    """Check a bar table against all rules.

    Args:
        bars: table with the columns `REQUIRED`, rows in the order of the file.
        origin: file name, for the message.

    Raises:
        SchemaError: names the broken rule, the first bad row with its content, and their number.
    """
    missing = [name for name in REQUIRED if name not in bars.columns]
    if missing:
        raise SchemaError(f"{origin} has no column {', '.join(missing)}; a bar table needs them")
    if bars.empty:
        raise SchemaError(f"{origin} has a header but no rows; a bar table needs at least one")
    for rule, broken in _rules(bars):
        if broken.any():
            raise SchemaError(_message(bars, rule, broken, origin))


def bar_starts(bars: pd.DataFrame) -> Shaped[np.ndarray, " rows"]:
    """Return the start of each bar in UTC as naive datetime64[ns]; numpy has no time zones."""
    return bars["time"].dt.tz_localize(None).to_numpy(dtype="datetime64[ns]")


def _rules(bars: pd.DataFrame) -> Iterator[tuple[str, Bool[np.ndarray, " rows"]]]:
    yield "time must be present", bars["time"].isna().to_numpy()
    yield "contract must be present", bars["contract"].isna().to_numpy()
    for name in PRICES:
        price = bars[name].to_numpy()
        yield f"{name} must be a finite number above 0", ~(np.isfinite(price) & (price > 0))
    volume = bars["volume"].to_numpy()
    yield "volume must be a finite number of at least 0", ~(np.isfinite(volume) & (volume >= 0))
    high, low = bars["high"].to_numpy(), bars["low"].to_numpy()
    yield "high must not be below low", high < low
    for name in ("open", "close"):
        price = bars[name].to_numpy()
        yield f"{name} must lie between low and high", (price < low) | (price > high)
    if "vix" in bars.columns:
        vix = bars["vix"].to_numpy()
        yield "vix must be above 0 and finite, or missing", (vix <= 0) | np.isinf(vix)
    yield from _time_rules(bars)


def _time_rules(bars: pd.DataFrame) -> Iterator[tuple[str, Bool[np.ndarray, " rows"]]]:
    step = bars.groupby("contract", sort=False, observed=True)["time"].diff().to_numpy()
    yield "a contract must not have the same time twice", step == np.timedelta64(0)
    yield "times must increase within a contract", step < np.timedelta64(0)


def excerpt(value: object) -> str:
    """Format a cell as one short printable line for a message."""
    text = str(value)[:_MAX_CELL]
    return text if text.isprintable() else repr(text)[1:-1]


def _message(bars: pd.DataFrame, rule: str, broken: Bool[np.ndarray, " rows"], origin: str) -> str:
    row = int(np.argmax(broken))
    content = ", ".join(f"{name}={excerpt(value)}" for name, value in bars.iloc[row].items())
    return (
        f"{origin}: {rule}. First at row {row} (0 is the first after the header): {content}. "
        f"{int(broken.sum())} of {len(bars)} rows break this rule; fix or remove them in the file"
    )


@dataclass(frozen=True, slots=True)
class BarSummary:
    """Origin, size, time span and fingerprint of a bar table.

    Attributes:
        origin: file name, or "synthetic bars".
        rows_in: number of rows in the file, before `source.fraction`.
        first_bar: start of the first bar.
        last_bar: start of the last bar.
        sha256: result of `fingerprint`.
    """

    origin: str
    rows_in: int
    first_bar: pd.Timestamp
    last_bar: pd.Timestamp
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Convert to a dict for JSON."""
        bars = {"first_bar": str(self.first_bar), "last_bar": str(self.last_bar)}
        return {"origin": self.origin, "rows_in": self.rows_in, **bars, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BarSummary":
        """Convert back from the result of `as_dict`."""
        bars = {name: pd.Timestamp(content[name]) for name in ("first_bar", "last_bar")}
        return cls(**{**content, **bars})


def hashed_columns(table: pd.DataFrame) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """Return the columns that `fingerprint` hashes before the contracts, in its order."""
    names = (*PRICES, "volume", *(["vix"] if "vix" in table else []))
    columns = {name: table[name].to_numpy() for name in names}
    return {"time": bar_starts(table).view(np.int64)} | columns


def fingerprint(table: pd.DataFrame) -> str:
    """Return the SHA-256 of times, prices, volume, VIX and contracts, column by column."""
    digest = hashlib.sha256()
    for name, values in hashed_columns(table).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    contract = table["contract"].cat
    digest.update(",".join(map(str, contract.categories)).encode())
    digest.update(np.ascontiguousarray(contract.codes.to_numpy()).data)
    return digest.hexdigest()


class ColumnSpool:
    """Fingerprint of bars that arrive in blocks.

    The fingerprint hashes column by column, so the columns are kept in files until the last block.

    Args:
        folder: an empty folder for the files; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dtypes: dict[str, np.dtype] = {}

    def append(self, table: pd.DataFrame) -> None:
        """Add a block; its contract categories are the same in every block."""
        codes = table["contract"].cat.codes.to_numpy().astype(np.int32)
        for name, values in (hashed_columns(table) | {"contract": codes}).items():
            self._dtypes[name] = values.dtype
            with (self._folder / f"{name}.column").open("ab") as file:
                file.write(np.ascontiguousarray(values).data)

    def fingerprint(self, contracts: Sequence[str], *, used: Int[np.ndarray, " used"]) -> str:
        """Return the `fingerprint` of the concatenated table with unused categories removed.

        Args:
            contracts: contract categories of the blocks.
            used: codes that occur in the blocks, increasing.
        """
        codes = np.zeros(len(contracts), dtype=np.int64)
        codes[used] = np.arange(used.size)
        smallest = pd.Categorical.from_codes(codes[used], pd.Index([contracts[c] for c in used]))
        digest = hashlib.sha256()
        for name in [name for name in self._dtypes if name != "contract"]:
            digest.update(name.encode())
            for chunk in self._chunks(name):
                digest.update(chunk.data)
        digest.update(",".join(contracts[code] for code in used).encode())
        for chunk in self._chunks("contract"):
            digest.update(codes[chunk].astype(smallest.codes.dtype).data)
        return digest.hexdigest()

    def _chunks(self, name: str) -> Iterator[Shaped[np.ndarray, " chunk"]]:
        with (self._folder / f"{name}.column").open("rb") as file:
            while (chunk := np.fromfile(file, dtype=self._dtypes[name], count=_CHUNK)).size:
                yield chunk


def write_bars(bars: pd.DataFrame, path: Path, *, length: str) -> None:
    """Write the columns that a source reads; derived columns are left out.

    Args:
        bars: table with time, open, high, low, close and volume; contract, session and vix are
            optional.
        path: a .parquet file.
        length: length of a bar, as in source.bar.

    Raises:
        SchemaError: the bars have another length.
    """
    kept = [name for name in (*REQUIRED, *_OPTIONAL) if name in bars]
    table = bars[kept].reset_index(drop=True)
    if "time" in table and pd.api.types.is_datetime64_any_dtype(table["time"]):
        _check_length(table, pd.Timedelta(length))
    table.to_parquet(path, index=False)


def _check_length(table: pd.DataFrame, length: pd.Timedelta) -> None:
    # the smallest step between two bars of a contract is their length; gaps are longer
    times = table.groupby("contract", observed=True)["time"] if "contract" in table else None
    steps = table["time"].diff() if times is None else times.diff()
    steps = steps[steps > pd.Timedelta(0)]
    if steps.empty or steps.min() == length:
        return
    seconds = steps.min().total_seconds()
    raise SchemaError(
        f"the smallest step between two bars is {seconds:g} s, but source.bar is "
        f"{length.total_seconds():g} s; set source.bar={seconds:g}s"
    )

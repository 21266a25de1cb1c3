"""The contract of a bar table, checked once at the border; and the fingerprint of a table."""

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
_SHOWN = 80  # characters of a cell


def check_bars(bars: pd.DataFrame, *, origin: str) -> None:
    """Raise on the first rule that `bars` breaks.

    Args:
        bars: a table with the columns above, rows in the order of the file.
        origin: the name of the file, for the message.

    Raises:
        SchemaError: names the rule, the first offending row with its content, and how many offend.
    """
    missing = [name for name in REQUIRED if name not in bars.columns]
    if missing:
        raise SchemaError(f"{origin} has no column {', '.join(missing)}; a bar table needs them")
    if bars.empty:
        raise SchemaError(f"{origin} has a header but no rows; a bar table needs at least one")
    for rule, broken in _rules(bars):
        if broken.any():
            raise SchemaError(_message(bars, rule, broken, origin))


def stamps(bars: pd.DataFrame) -> np.ndarray:
    """Start of each bar as datetime64[ns] in UTC, without the zone that numpy cannot hold."""
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


def shown(value: object) -> str:
    """A cell of a file as a message can hold it: one short line."""
    text = str(value)[:_SHOWN]
    return text if text.isprintable() else repr(text)[1:-1]


def _message(bars: pd.DataFrame, rule: str, broken: Bool[np.ndarray, " rows"], origin: str) -> str:
    row = int(np.argmax(broken))
    content = ", ".join(f"{name}={shown(value)}" for name, value in bars.iloc[row].items())
    return (
        f"{origin}: {rule}. First at row {row} (0 is the first after the header): {content}. "
        f"{int(broken.sum())} of {len(bars)} rows break this rule; mend or remove them in the file"
    )


_PIECE = 1 << 20  # rows hashed at once


@dataclass(frozen=True, slots=True)
class BarFacts:
    """What is left to say of bars when the table itself is not at hand.

    Attributes:
        origin: file name, or synthetic with its settings.
        rows_in: rows the file holds, before `source.fraction`.
        first_bar: start of the first bar.
        last_bar: start of the last bar.
        sha256: what `fingerprint` says of the table.
    """

    origin: str
    rows_in: int
    first_bar: pd.Timestamp
    last_bar: pd.Timestamp
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        bars = {"first_bar": str(self.first_bar), "last_bar": str(self.last_bar)}
        return {"origin": self.origin, "rows_in": self.rows_in, **bars, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "BarFacts":
        """The facts that `content` came from."""
        bars = {name: pd.Timestamp(content[name]) for name in ("first_bar", "last_bar")}
        return cls(**{**content, **bars})


def hashed_columns(table: pd.DataFrame) -> dict[str, Shaped[np.ndarray, " rows"]]:
    """The columns a fingerprint is over, in its order; the contracts follow them."""
    names = (*PRICES, "volume", *(["vix"] if "vix" in table else []))
    return {"time": stamps(table).view(np.int64)} | {name: table[name].to_numpy() for name in names}


def fingerprint(table: pd.DataFrame) -> str:
    """SHA-256 over times, prices, volume, VIX and contracts, column by column."""
    digest = hashlib.sha256()
    for name, values in hashed_columns(table).items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values).data)
    contract = table["contract"].cat
    digest.update(",".join(map(str, contract.categories)).encode())
    digest.update(np.ascontiguousarray(contract.codes.to_numpy()).data)
    return digest.hexdigest()


class ColumnSpool:
    """The fingerprint of bars that come in blocks.

    It goes column by column, so the columns wait in files until the last block is there.

    Args:
        folder: an empty folder for the files, which the caller removes.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet."""
        self._folder = folder
        self._dtypes: dict[str, np.dtype] = {}

    def append(self, table: pd.DataFrame) -> None:
        """Add a block; its contracts have the same categories as those of the blocks before."""
        codes = table["contract"].cat.codes.to_numpy().astype(np.int32)
        for name, values in (hashed_columns(table) | {"contract": codes}).items():
            self._dtypes[name] = values.dtype
            with (self._folder / f"{name}.column").open("ab") as file:
                file.write(np.ascontiguousarray(values).data)

    def fingerprint(self, contracts: Sequence[str], *, used: Int[np.ndarray, " used"]) -> str:
        """What `fingerprint` says of the whole table, whose categories are those in use.

        Args:
            contracts: the categories of the blocks.
            used: codes that occur in them, increasing.
        """
        codes = np.zeros(len(contracts), dtype=np.int64)
        codes[used] = np.arange(used.size)
        least = pd.Categorical.from_codes(codes[used], pd.Index([contracts[c] for c in used])).codes
        digest = hashlib.sha256()
        for name in [name for name in self._dtypes if name != "contract"]:
            digest.update(name.encode())
            for piece in self._pieces(name):
                digest.update(piece.data)
        digest.update(",".join(contracts[code] for code in used).encode())
        for piece in self._pieces("contract"):
            digest.update(codes[piece].astype(least.dtype).data)
        return digest.hexdigest()

    def _pieces(self, name: str) -> Iterator[Shaped[np.ndarray, " piece"]]:
        with (self._folder / f"{name}.column").open("rb") as file:
            while (piece := np.fromfile(file, dtype=self._dtypes[name], count=_PIECE)).size:
                yield piece


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

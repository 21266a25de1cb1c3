"""Validated bars of a file that is not held in memory: a block at a time, in the order of time."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.contracts import expiry_order
from robust_fin.market.facts import BarFacts, ColumnSpool
from robust_fin.market.labelling import Noticed, reports
from robust_fin.market.schema import check_bars, stamps
from robust_fin.market.sources import BarSource, block_origin, ordered


class BarStream:
    """The bars that `BarSource.load` holds at once, as labelled tables that follow each other.

    Concatenated they are the table of `Bars`, but for contracts that `source.fraction` cuts off,
    which stay among the categories. The file is read twice: stamps and contracts first, because
    only its end tells the order of the contracts. A stamp is never cut: bars of one time are in one
    block. The facts are there when the last block has been taken.

    Args:
        source: with `block_rows`.
        scratch: an empty folder for what the fingerprint needs; the caller removes it.
    """

    def __init__(self, source: BarSource, *, scratch: Path) -> None:
        """Read stamps and contracts.

        Raises:
            SourceError: the file cannot be read as bars.
            SchemaError: a stamp or a contract code cannot be what it says, or the contracts are of
                more than one product.
        """
        self.source = source
        self.contracts, self.rows_in = _scan(source)
        self._left = max(1, int(self.rows_in * source.fraction))
        self.dropped: dict[str, int] = {}
        if self._left < self.rows_in:
            self.dropped["beyond source.fraction"] = self.rows_in - self._left
        self._spool = ColumnSpool(scratch)
        self._noticed: list[Noticed] = []
        self._spiked: Counter[str] = Counter()
        self._span: list[pd.Timestamp] = []
        self._used = np.zeros(len(self.contracts), dtype=bool)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Blocks of about `block_rows` rows.

        Raises:
            SchemaError: a row breaks the contract of a bar table, or the file is not in the order
                of time.
        """
        labeller = self.source.labeller()
        for number, table in enumerate(self._ordered()):
            if not self._left:
                continue  # what source.fraction leaves out is checked all the same
            if number == 0:
                self.source.say_what_vix(table)
            table, spiked = self.source.spiked(table.iloc[: self._left])
            self._spiked.update(spiked)
            table, noticed = labeller.label(table)
            self._left -= len(table)
            self._noticed.append(noticed)
            self._spool.append(table)
            self._used[table["contract"].cat.codes.unique()] = True
            self._span = [*self._span[:1], table["time"].iloc[0], table["time"].iloc[-1]]
            yield table

    @property
    def used(self) -> np.ndarray:
        """Codes of the contracts that the blocks hold, increasing."""
        return np.flatnonzero(self._used)

    def facts(self) -> BarFacts:
        """What `Bars.facts` says of the whole."""
        sha256 = self._spool.fingerprint(self.contracts, used=self.used)
        return BarFacts(self.source.name, self.rows_in, self._span[0], self._span[-1], sha256)

    def reports(self) -> dict[str, float]:
        """What was noticed and not changed, by name."""
        return reports(self._noticed) | dict(self._spiked)

    def _ordered(self) -> Iterator[pd.DataFrame]:
        """Checked blocks, each in order, cut where the time changes."""
        border = TimeBorder(self.source.origin)
        held: pd.DataFrame | None = None
        for raw in self.source.raw_blocks():
            check_bars(raw, origin=block_origin(self.source.origin, border.rows))
            border.check(raw)
            table = raw if held is None else _joined(held, raw)
            last = np.searchsorted(stamps(table), stamps(table)[-1])
            held = table.iloc[last:]
            if last:
                yield ordered(table.iloc[:last].reset_index(drop=True), self.contracts)
        assert held is not None, "a scan of no rows raises"
        yield ordered(held.reset_index(drop=True), self.contracts)


class TimeBorder:
    """The rules of time from block to block, which a check of one block cannot see."""

    def __init__(self, origin: str) -> None:
        """Nothing was seen yet."""
        self.origin, self.rows = origin, 0
        self._last: dict[str, pd.Timestamp] = {}

    def check(self, block: pd.DataFrame) -> None:
        """Hold a block, in the order of the file, against those before it.

        Raises:
            SchemaError: a contract goes on at or before the time where it stopped, or a bar starts
                before one above it.
        """
        spans = block.groupby("contract", observed=True)["time"].agg(["first", "last"])
        for code, start in spans["first"].items():
            self._contract_goes_on(str(code), start)
        newest = max(self._last.values(), default=block["time"].iloc[0])
        time = np.append(newest.tz_localize(None).to_datetime64(), stamps(block))
        early = np.flatnonzero(np.diff(time) < np.timedelta64(0))
        if early.size:
            row = int(early[0])
            raise SchemaError(
                f"{self.origin}: source.block_rows reads a file in the order of time, however row "
                f"{self.rows + row} starts at {block['time'].iloc[row]}, before a bar above it. "
                "Sort the file by time once, or set source.block_rows=null"
            )
        self._last |= {str(code): last for code, last in spans["last"].items()}
        self.rows += len(block)

    def _contract_goes_on(self, code: str, start: pd.Timestamp) -> None:
        if code not in self._last or start > self._last[code]:
            return
        same = start == self._last[code]
        raise SchemaError(
            f"{self.origin}: {'a contract must not have the same time twice' if same else ''}"
            f"{'' if same else 'times must increase within a contract'}. {code} has a bar of "
            f"{start} at or after row {self.rows}, and one of {self._last[code]} above it; mend or "
            "remove them in the file"
        )


def _scan(source: BarSource) -> tuple[list[str], int]:
    """Contracts in the order of expiry, and rows of the file."""
    first: dict[str, pd.Timestamp] = {}
    rows = 0
    for block in source.raw_blocks("time", "contract"):
        rows += len(block)
        _take_earlier(first, block.groupby("contract", observed=True)["time"].min())
    if not rows:
        raise SchemaError(
            f"{source.origin} has a header but no rows; nothing can be learnt from it"
        )
    return expiry_order(first), rows


def _take_earlier(first: dict[str, pd.Timestamp], starts: pd.Series) -> None:
    for code, start in starts.items():
        if not pd.isna(start):
            first[str(code)] = min(start, first.get(str(code), start))


def _joined(held: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """The rows held back and those that follow; their categories may differ."""
    names = [name for name in ("contract", "session") if name in raw]
    numbers = pd.concat([held.drop(columns=names), raw.drop(columns=names)], ignore_index=True)
    united = {
        name: pd.api.types.union_categoricals([held[name], raw[name]], sort_categories=True)
        for name in names
    }
    return numbers.assign(**united)

"""Read bars block by block, with the same result as `BarSource.load`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int

from robust_fin.errors import SchemaError
from robust_fin.market.labelling import LabelCounts, label_reports, sort_by_expiry
from robust_fin.market.schema import BarSummary, ColumnSpool, bar_starts, check_bars
from robust_fin.market.sources import BarSource, block_origin, sort_bars


class BarStream:
    """Labelled blocks of bars that concatenate to the table of `BarSource.load`.

    The only difference is that contracts cut off by `source.fraction` stay among the categories.
    The file is read twice: the first pass collects times and contracts, because the order of the
    contracts is known only at the end of the file. Bars with the same time are in the same block.
    `summary` and `reports` are complete after the last block.

    Args:
        source: source with `block_rows` set.
        scratch: an empty folder for temporary files; the caller removes it.
    """

    def __init__(self, source: BarSource, *, scratch: Path) -> None:
        """Read times and contracts.

        Raises:
            SourceError: the file cannot be read.
            SchemaError: a timestamp or contract code is invalid, or the contracts belong to more
                than one product.
        """
        self.source = source
        self.contracts, self.rows_in = _scan(source)
        self._remaining = max(1, int(self.rows_in * source.fraction))
        self.dropped: dict[str, int] = {}
        if self._remaining < self.rows_in:
            self.dropped["beyond source.fraction"] = self.rows_in - self._remaining
        self._spool = ColumnSpool(scratch)
        self._label_counts: list[LabelCounts] = []
        self._spiked: Counter[str] = Counter()
        self._span: list[pd.Timestamp] = []
        self._is_used = np.zeros(len(self.contracts), dtype=bool)

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Yield blocks of about `block_rows` rows.

        Raises:
            SchemaError: a row breaks a rule of the bar table, or the file is not sorted by time.
        """
        labeller = self.source.labeller()
        for number, table in enumerate(self._sorted_blocks()):
            if not self._remaining:
                continue  # rows beyond source.fraction are checked too
            if number == 0:
                self.source.log_vix_override(table)
            table, spiked = self.source.add_spikes(table.iloc[: self._remaining])
            self._spiked.update(spiked)
            table, counts = labeller.label(table)
            self._remaining -= len(table)
            self._label_counts.append(counts)
            self._spool.append(table)
            self._is_used[table["contract"].cat.codes.unique()] = True
            self._span = [*self._span[:1], table["time"].iloc[0], table["time"].iloc[-1]]
            yield table

    @property
    def used(self) -> Int[np.ndarray, " used"]:
        """Codes of the contracts that the blocks contain, increasing."""
        return np.flatnonzero(self._is_used)

    def summary(self) -> BarSummary:
        """Return what `Bars.summary` returns for the concatenated blocks."""
        sha256 = self._spool.fingerprint(self.contracts, used=self.used)
        return BarSummary(self.source.name, self.rows_in, self._span[0], self._span[-1], sha256)

    def reports(self) -> dict[str, float]:
        """Return the oddities that were counted and left unchanged, by name."""
        return label_reports(self._label_counts) | dict(self._spiked)

    def _sorted_blocks(self) -> Iterator[pd.DataFrame]:
        """Yield checked blocks, each sorted, cut where the time changes."""
        check = BlockOrderCheck(self.source.origin)
        held: pd.DataFrame | None = None
        for raw in self.source.raw_blocks():
            check_bars(raw, origin=block_origin(self.source.origin, check.rows))
            check.add(raw)
            table = raw if held is None else _concat(held, raw)
            last = np.searchsorted(bar_starts(table), bar_starts(table)[-1])
            held = table.iloc[last:]
            if last:
                yield sort_bars(table.iloc[:last].reset_index(drop=True), self.contracts)
        assert held is not None, "_scan raises for a file without rows"
        yield sort_bars(held.reset_index(drop=True), self.contracts)


class BlockOrderCheck:
    """Check of time order across blocks, which a check of a single block cannot make."""

    def __init__(self, origin: str) -> None:
        """Start with no blocks."""
        self.origin, self.rows = origin, 0
        self._last: dict[str, pd.Timestamp] = {}

    def add(self, block: pd.DataFrame) -> None:
        """Check the next block of the file against the blocks before it.

        Raises:
            SchemaError: a contract's bars go back in time or repeat a time, or a bar starts before
                an earlier row of the file.
        """
        spans = block.groupby("contract", observed=True)["time"].agg(["first", "last"])
        for code, start in spans["first"].items():
            self._check_contract(str(code), start)
        newest = max(self._last.values(), default=block["time"].iloc[0])
        time = np.append(newest.tz_localize(None).to_datetime64(), bar_starts(block))
        early = np.flatnonzero(np.diff(time) < np.timedelta64(0))
        if early.size:
            row = int(early[0])
            raise SchemaError(
                f"{self.origin}: source.block_rows needs a file sorted by time, but row "
                f"{self.rows + row} starts at {block['time'].iloc[row]}, before an earlier row. "
                "Sort the file by time, or set source.block_rows=null"
            )
        self._last |= {str(code): last for code, last in spans["last"].items()}
        self.rows += len(block)

    def _check_contract(self, code: str, start: pd.Timestamp) -> None:
        last = self._last.get(code)
        if last is None or start > last:
            return
        repeated = "a contract must not have the same time twice"
        rule = repeated if start == last else "times must increase within a contract"
        raise SchemaError(
            f"{self.origin}: {rule}. {code} has a bar at {start} at or after row {self.rows}, and "
            f"an earlier row at {last}; fix or remove these rows in the file"
        )


def _scan(source: BarSource) -> tuple[list[str], int]:
    """Return the contracts sorted by expiry, and the number of rows of the file."""
    first: dict[str, pd.Timestamp] = {}
    rows = 0
    for block in source.raw_blocks("time", "contract"):
        rows += len(block)
        starts = block.groupby("contract", observed=True)["time"].min().dropna()
        for code, start in starts.items():
            first[str(code)] = min(start, first.get(str(code), start))
    if not rows:
        raise SchemaError(
            f"{source.origin} has a header but no rows; a bar file needs at least one"
        )
    return sort_by_expiry(first), rows


def _concat(held: pd.DataFrame, raw: pd.DataFrame) -> pd.DataFrame:
    """Concatenate two blocks whose categories may differ."""
    names = [name for name in ("contract", "session") if name in raw]
    numbers = pd.concat([held.drop(columns=names), raw.drop(columns=names)], ignore_index=True)
    united = {
        name: pd.api.types.union_categoricals([held[name], raw[name]], sort_categories=True)
        for name in names
    }
    return numbers.assign(**united)

"""Read bars block by block, with the same result as `BarSource.load`."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from robust_fin.errors import SchemaError
from robust_fin.market.labelling import LabelCounts, label_reports
from robust_fin.market.schema import LABELS, BarSummary, bar_starts, fingerprint
from robust_fin.market.sources import BarSource, no_rows


class BarStream:
    """Labelled blocks of bars that concatenate to the table of `BarSource.load`.

    The file is read once, in blocks, and its columns are kept in files; the checks of
    `BarSource.load` run on them before the first block is labelled. `summary` and `reports` are
    complete after the last block.

    Args:
        source: source with `block_rows` set.
        scratch: an empty folder for temporary files; the caller removes it.

    Attributes:
        source: the source.
        bars: the sorted bars without labels, and what was found about them.
    """

    def __init__(self, source: BarSource, *, scratch: Path) -> None:
        """Read and check the bars.

        Raises:
            SourceError: the file cannot be read.
            SchemaError: a row breaks a rule of the bar table, or the bars contradict the settings.
        """
        assert source.block_rows is not None, "block_rows is None"
        self.source, self._labeller = source, source.labeller()
        self._rows = source.block_rows
        spool = ColumnSpool(scratch / "read")
        for block, found in source.raw_blocks():
            spool.append(block)
            layout = found
        if not spool.rows:
            raise SchemaError(no_rows(source.origin))
        self.bars = source.prepare(spool.table(), layout, self._labeller)
        self.bars.findings.check(source.origin)
        self._labelled = ColumnSpool(scratch / "labelled")
        self._label_counts: list[LabelCounts] = []
        self._spiked: Counter[str] = Counter()

    @property
    def contracts(self) -> list[str]:
        """Codes of the contracts, sorted by expiry."""
        return [str(code) for code in self.bars.table["contract"].cat.categories]

    def __iter__(self) -> Iterator[pd.DataFrame]:
        """Yield blocks of about `block_rows` rows; bars with the same time are in one block."""
        table = self.bars.table
        self.source.log_vix_override(table)
        start = bar_starts(table)
        first = 0
        while first < len(table):
            last = min(first + self._rows, len(table)) - 1
            end = int(np.searchsorted(start, start[last], side="right"))
            yield self._label(table.iloc[first:end].reset_index(drop=True))
            first = end

    def _label(self, block: pd.DataFrame) -> pd.DataFrame:
        block, spiked = self.source.add_spikes(block)
        block, counts = self._labeller.label(block)
        self._spiked.update(spiked)
        self._label_counts.append(counts)
        self._labelled.append(block.drop(columns=list(LABELS)))
        return block

    def summary(self) -> BarSummary:
        """Return what `Bars.summary` returns for the concatenated blocks."""
        table = self._labelled.table()
        contract = table["contract"].cat.set_categories(self.contracts)
        return self.bars.summary(fingerprint(table.assign(contract=contract)))

    def reports(self) -> dict[str, float]:
        """Return the oddities that were counted and left unchanged, by name."""
        return label_reports(self._label_counts) | dict(self._spiked)


class ColumnSpool:
    """Table that arrives in blocks and is kept in one file per column.

    Args:
        folder: a new folder for the files; the caller removes it.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.rows = 0
        self._folder = folder
        self._dtypes: dict[str, np.dtype] = {}
        self._codes: dict[str, dict[str, int]] = {}  # by column of names: name -> code

    def append(self, block: pd.DataFrame) -> None:
        """Add a block; all have the same columns: time, columns of names and of numbers."""
        for name in map(str, block):
            values = self._values(name, block[name])
            self._dtypes[name] = values.dtype
            with self._file(name).open("ab") as file:
                file.write(np.ascontiguousarray(values).data)
        self.rows += len(block)

    def table(self) -> pd.DataFrame:
        """Return the table, whose columns of numbers are read from the files when needed."""
        return pd.DataFrame({name: self._column(name) for name in self._dtypes}, copy=False)

    def _values(self, name: str, column: pd.Series) -> Shaped[np.ndarray, " rows"]:
        if isinstance(column.dtype, pd.CategoricalDtype):
            codes = self._codes.setdefault(name, {})
            names = column.cat.categories
            known = [codes.setdefault(str(each), len(codes)) for each in names]
            return np.array([*known, -1], dtype=np.int32)[column.cat.codes.to_numpy()]
        if name == "time":
            return bar_starts(column.to_frame()).view(np.int64)
        return column.to_numpy()

    def _column(self, name: str) -> pd.Series | pd.Categorical | Shaped[np.ndarray, " rows"]:
        values = np.asarray(np.memmap(self._file(name), dtype=self._dtypes[name], mode="r"))
        if name in self._codes:
            names = list(self._codes[name])
            order = np.argsort(names) if names else np.zeros(0, dtype=np.int64)
            codes = np.append(np.argsort(order), -1)[values]
            return pd.Categorical.from_codes(codes, pd.Index(sorted(names), dtype="str"))
        if name == "time":
            return pd.Series(pd.DatetimeIndex(values.view("M8[ns]"), tz="UTC"))
        return values

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.column"

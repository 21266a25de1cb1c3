"""Inputs of a net: single rows, or chunks of consecutive bars, from one table of features.

Training, scoring, leak checks and feature ranking all read through `Inputs`, so that a net gets the
same numbers everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from robust_fin.data.examples import Examples
from robust_fin.data.transforms import FeatureTransform
from robust_fin.errors import ConfigError

Index = Integer[np.ndarray, " _index"]


@dataclass(frozen=True, slots=True)
class ChunkIndex:
    """Row numbers of chunks: `context` bars without loss, then `length` bars.

    A chunk holds consecutive rows of one contract. It is padded where the contract has no bar, and
    after the last row that has a loss.

    Attributes:
        rows: row numbers in the table of `Inputs`; -1 for padding.
        has_loss: whether each of the last `length` bars has a loss.
    """

    rows: Int[np.ndarray, "chunks time"]
    has_loss: Bool[np.ndarray, "chunks length"]

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.rows)

    @property
    def context(self) -> int:
        """Bars without loss at the start of each chunk."""
        return self.rows.shape[1] - self.has_loss.shape[1]

    @property
    def exists(self) -> Bool[np.ndarray, "chunks time"]:
        """Mask of the bars that are not padding."""
        return self.rows >= 0

    @property
    def loss_rows(self) -> Int[np.ndarray, " _loss_rows"]:
        """Row numbers of the bars with a loss, in the order of `scores[has_loss]`."""
        return self.rows[:, self.context :][self.has_loss]

    def take(self, chunks: Index | slice) -> "ChunkIndex":
        """Return some of the chunks, for example those of a batch."""
        return ChunkIndex(self.rows[chunks], self.has_loss[chunks])


@dataclass(frozen=True, slots=True)
class Inputs:
    """Features as a net reads them, looked up by row number.

    The transform works row by row, so it is applied to the rows that are asked for and no second
    table is held. `tensor` makes that table once, for a loop that reads each row many times.

    Attributes:
        table: (rows, features), in time order; rows of several contracts may alternate.
        contract: code of each row's contract.
        transform: fitted transform to apply to the rows; None returns them as they are.
        columns: numbers of the columns to read, in order; None reads all.
    """

    table: Float[np.ndarray, "rows features"]
    contract: Integer[np.ndarray, " rows"]
    transform: FeatureTransform | None = None
    columns: tuple[int, ...] | None = None

    @classmethod
    def from_examples(
        cls,
        examples: Examples,
        *,
        transform: FeatureTransform | None = None,
        columns: Sequence[int] | None = None,
    ) -> "Inputs":
        """Look up the rows of `examples`; nothing is copied."""
        chosen = None if columns is None else tuple(columns)
        return cls(examples.features, examples.contract.codes, transform, chosen)

    def with_transform(self, transform: FeatureTransform) -> "Inputs":
        """Return the same rows and columns through a fitted transform."""
        return replace(self, transform=transform)

    def tensor(self, device: torch.device | str = "cpu") -> Float[Tensor, "rows features"]:
        """Return all rows as one float32 tensor; `gather_chunks` cuts chunks from it."""
        return torch.from_numpy(self.rows(slice(None))).to(device, torch.float32)

    def rows(self, index: Index | slice) -> Float[np.ndarray, "_index features"]:
        """Return rows for a net without memory.

        Args:
            index: row numbers, in any order.

        Returns:
            (n, features), float32 if a transform was applied.
        """
        values = self.table[index] if self.columns is None else self.table[index][:, self.columns]
        return values if self.transform is None else self.transform.transform(values)

    def chunk_index(
        self, index: Index, *, context: int, length: int, offset: int = 0
    ) -> ChunkIndex:
        """Cut chunks in which every row of `index` has a loss exactly once.

        The chunks of a contract start at its first row of `index`, and then every `length` bars.
        Its other rows between them are read but have no loss; its rows after the last row of
        `index` are never read. Contracts follow in the order of their codes.

        Args:
            index: numbers of the rows with a loss, for example a span, in any order.
            context: bars without loss before each chunk, as many as the net looks back.
            length: bars with a loss per chunk.
            offset: bars by which the chunks start earlier, below `length`; drawn anew each epoch,
                it moves the boundaries.

        Raises:
            ConfigError: `context` is negative, `length` is not positive, or `offset` is outside
                [0, length).
        """
        if context < 0 or length < 1 or not 0 <= offset < length:
            raise ConfigError(
                f"chunks of context={context}, length={length}, offset={offset} bars cannot be "
                "cut; required: context >= 0, length >= 1 and 0 <= offset < length"
            )
        has_loss = np.zeros(len(self.contract), dtype=bool)
        has_loss[index] = True
        parts = [np.empty((0, context + length), dtype=np.int64)]
        for rows in self._contract_rows():
            positions = np.flatnonzero(has_loss[rows])
            if positions.size:
                used = rows[: positions[-1] + 1]
                starts = np.arange(positions[0] - offset, used.size, length)
                parts.append(_chunk_rows(used, starts, context, length))
        chunks = np.concatenate(parts)
        ends = chunks[:, context:]
        wanted = (ends >= 0) & has_loss[ends]
        return ChunkIndex(chunks, wanted).take(np.flatnonzero(wanted.any(axis=1)))

    def chunks(self, index: ChunkIndex) -> Float[np.ndarray, "chunks time features"]:
        """Return chunks for a net with memory; padding is 0.

        Args:
            index: from `chunk_index`, or some of its chunks.

        Returns:
            (chunks, context + length, features); `index.exists` masks the padding.
        """
        distinct, place = np.unique(np.maximum(index.rows, 0), return_inverse=True)
        chunks = self.rows(distinct)[place.reshape(index.rows.shape)]  # each row transformed once
        chunks[~index.exists] = 0
        return chunks

    def _contract_rows(self) -> list[Int[np.ndarray, " _contract"]]:
        order = np.argsort(self.contract, kind="stable")
        changes = np.flatnonzero(np.diff(self.contract[order])) + 1
        return np.split(order, changes)


def _chunk_rows(
    rows: Int[np.ndarray, " _contract"],
    starts: Int[np.ndarray, " chunks"],
    context: int,
    length: int,
) -> Int[np.ndarray, "chunks time"]:
    """Return the row numbers of one contract's chunks; -1 outside of its rows."""
    positions = starts[:, None] + np.arange(-context, length)
    exists = (positions >= 0) & (positions < rows.size)
    return np.where(exists, rows[np.clip(positions, 0, rows.size - 1)], -1)


def gather_chunks(
    table: Float[Tensor, "rows features"], index: ChunkIndex
) -> Float[Tensor, "chunks time features"]:
    """Return what `Inputs.chunks` returns, from the rows of `Inputs.tensor` on their device."""
    rows = torch.from_numpy(index.rows).to(table.device)
    return table[rows.clamp(min=0)].masked_fill_((rows < 0).unsqueeze(-1), 0)

"""What a run says of the bars it read: their origin, span and fingerprint."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from robust_fin.market.schema import PRICES, stamps

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

"""Whatever a vendor delivers is read as it is meant, or ends in one message.

Every kind of damage is thrown many times. The reader's answer is held against a parse by hand, and
the two ways in, the whole file and blocks of rows, against each other.
"""

import faulthandler
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from robust_fin.errors import RobustFinError, SchemaError, SourceError
from robust_fin.market.sources import BarSource
from robust_fin.market.streams import BarStream
from tests.for_every import for_every
from tests.market import damage_files, damage_parquet  # noqa: F401 (they register their kinds)
from tests.market.by_hand import Bar, Reading, RefusedError
from tests.market.damage import ACCEPTED, BY_HAND, IF_READ, KINDS, REFUSED, UNKNOWN, Kind, Thrown
from tests.market.test_sources import source

FEW, MANY = 2, 30
SPARE = 20  # examples that may be of a file thrown before
HANGS = 60  # seconds after which the process is ended with a traceback


def test_number_of_damage_kinds() -> None:
    fates = Counter(kind.fate for kind in KINDS.values())
    assert fates == {REFUSED: 50, ACCEPTED: 35, BY_HAND: 10, IF_READ: 10, UNKNOWN: 1}
    assert len(KINDS) == 106
    assert len(KINDS) * MANY == 3_180  # different files, each read in two ways


def throw(name: str, examples: int) -> int:
    """Throw a kind of damage, and say how many different files of it were thrown."""
    thrown: set[tuple[str, bytes, Reading]] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate],  # a failure is not made smaller, which takes minutes
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def once(data: st.DataObject) -> None:
        one = KINDS[name].make(data.draw)
        block_rows = data.draw(st.integers(1, 10) if examples > FEW else st.integers(4, 10))
        thrown.add((one.name, one.content, one.reading))
        hold(one, KINDS[name], block_rows)

    once()
    return len(thrown)


@for_every("name", list(KINDS))
def test_damaged_files_are_read_correctly_or_raise(name: str) -> None:
    assert throw(name, FEW) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_many_damaged_files_are_read_correctly_or_raise(name: str) -> None:
    assert throw(name, MANY + SPARE) >= MANY


def hold(one: Thrown, kind: Kind, block_rows: int) -> None:
    """Compare what is read with what is meant, and the ways in with each other.

    Where a file has several faults, the two ways may meet another of them first.
    """
    with tempfile.TemporaryDirectory() as folder, ends_if_it_hangs():
        path = Path(folder) / one.name
        path.write_bytes(one.content)
        whole = read(path, one.reading, None, kind)
        blocks = read(path, one.reading, block_rows, kind)
        assert path.read_bytes() == one.content
    truth = None
    with suppress(RefusedError):
        truth, _ = one.truth()
    assert kind.fate not in (ACCEPTED, REFUSED) or (truth is None) == (kind.fate == REFUSED)
    if isinstance(whole, RobustFinError):
        assert truth is None or kind.fate == IF_READ, whole
        assert isinstance(blocks, RobustFinError), whole
        return
    assert whole == truth or kind.fate == UNKNOWN
    assert blocks == whole


def read(path: Path, reading: Reading, block_rows: int | None, kind: Kind) -> list[Bar] | Any:
    """The bars, or the one error that a user can understand."""
    words = {"calendar": "24/7", "block_rows": block_rows, "accept": ("scale",)}
    words |= reading._asdict()
    try:
        return bars_of(source(path, **words))
    except RobustFinError as error:
        said = error
    assert type(said) is SchemaError or (kind.unreadable and type(said) is SourceError), said
    assert str(said).replace("\n", " ").isprintable()
    assert 20 < len(str(said)) < 2_000
    return said


def bars_of(way: BarSource) -> list[Bar]:
    if way.block_rows is None:
        table = way.load().table
    else:
        with tempfile.TemporaryDirectory() as scratch:
            table = pd.concat(list(BarStream(way, scratch=Path(scratch))), ignore_index=True)
    vix = table["vix"] if "vix" in table else pd.Series(float("nan"), table.index)
    columns = [table["time"].dt.as_unit("ns").astype("int64")]
    columns += [table[name] for name in ("open", "high", "low", "close", "volume")]
    columns += [vix.astype("object").where(vix.notna(), None), table["contract"].astype("str")]
    return [Bar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@contextmanager
def ends_if_it_hangs() -> Iterator[None]:
    faulthandler.dump_traceback_later(HANGS, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

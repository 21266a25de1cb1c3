"""Damaged bar files are read correctly or raise one clear error.

Many files are drawn of every kind of damage. Each is read at once and in blocks; the two results
must agree with each other, and with the reference reader of `tests.market.by_hand`.
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
from tests.market import damage_files, damage_parquet  # noqa: F401 (they add their kinds to KINDS)
from tests.market.by_hand import Bar, ReadSettings, RefusedError
from tests.market.damage import (
    ACCEPTED,
    BY_HAND,
    IF_READ,
    KINDS,
    REFUSED,
    UNKNOWN,
    DamagedFile,
    DamageKind,
)
from tests.market.test_sources import source

FEW, MANY = 2, 30
SPARE = 20  # further examples, because a file may be drawn twice
TIMEOUT = 60  # seconds after which the process is ended with a traceback


def test_number_of_damage_kinds() -> None:
    expectations = Counter(kind.expectation for kind in KINDS.values())
    assert expectations == {REFUSED: 50, ACCEPTED: 35, BY_HAND: 10, IF_READ: 10, UNKNOWN: 1}
    assert len(KINDS) == 106
    assert len(KINDS) * MANY == 3_180  # distinct files, each read at once and in blocks


def check_kind(name: str, examples: int) -> int:
    """Check drawn files of a kind of damage; return the number of distinct files.

    Hypothesis seeds the examples with the source of `once`: a change of its text, except for
    comments, draws other files.
    """
    thrown: set[tuple[str, bytes, ReadSettings]] = set()

    @settings(
        max_examples=examples,
        derandomize=True,
        phases=[Phase.generate],  # shrinking a failure would take minutes
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
    assert check_kind(name, FEW) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_many_damaged_files_are_read_correctly_or_raise(name: str) -> None:
    assert check_kind(name, MANY + SPARE) >= MANY


def hold(damaged: DamagedFile, kind: DamageKind, block_rows: int) -> None:
    """Compare the bars read at once with the reference reader and with those read in blocks.

    If both raise, their messages may differ: a file may have several faults.
    """
    with tempfile.TemporaryDirectory() as folder, end_process_after(TIMEOUT):
        path = Path(folder) / damaged.name
        path.write_bytes(damaged.content)
        whole = read_or_error(path, damaged.reading, None, kind)
        blocks = read_or_error(path, damaged.reading, block_rows, kind)
        assert path.read_bytes() == damaged.content
    expected = None
    with suppress(RefusedError):
        expected, _ = damaged.expected()
    if kind.expectation in (ACCEPTED, REFUSED):
        assert (expected is None) == (kind.expectation == REFUSED)
    if isinstance(whole, RobustFinError):
        assert expected is None or kind.expectation == IF_READ, whole
        assert isinstance(blocks, RobustFinError), whole
        return
    assert whole == expected or kind.expectation == UNKNOWN
    assert blocks == whole


def read_or_error(
    path: Path, reading: ReadSettings, block_rows: int | None, kind: DamageKind
) -> list[Bar] | Any:
    """Return the bars, or the error, which must be a readable SchemaError or SourceError."""
    words = {"calendar": "24/7", "block_rows": block_rows, "accept": ("scale",)}
    words |= reading._asdict()
    try:
        return bars_of(source(path, **words))
    except RobustFinError as error:
        raised = error
    assert type(raised) is SchemaError or (kind.unreadable and type(raised) is SourceError), raised
    assert str(raised).replace("\n", " ").isprintable()
    assert 20 < len(str(raised)) < 2_000
    return raised


def bars_of(bar_source: BarSource) -> list[Bar]:
    if bar_source.block_rows is None:
        table = bar_source.load().table
    else:
        with tempfile.TemporaryDirectory() as scratch:
            table = pd.concat(list(BarStream(bar_source, scratch=Path(scratch))), ignore_index=True)
    vix = table["vix"] if "vix" in table else pd.Series(float("nan"), table.index)
    columns = [table["time"].dt.as_unit("ns").astype("int64")]
    columns += [table[name] for name in ("open", "high", "low", "close", "volume")]
    columns += [vix.astype("object").where(vix.notna(), None), table["contract"].astype("str")]
    return [Bar(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@contextmanager
def end_process_after(seconds: float) -> Iterator[None]:
    """End the process with a traceback if the block takes longer."""
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()

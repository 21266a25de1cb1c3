import struct
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from robust_fin.errors import SchemaError, SourceError
from robust_fin.market.streams import BarStream
from tests.market.test_sources import PRICES, load, source, text_file

MakeBars = Callable[..., pd.DataFrame]
HEADER = "time,open,high,low,close,volume"


def blocks(path: Path, folder: Path, rows: int = 3, **settings: Any) -> pd.DataFrame:
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    stream = BarStream(source(path, block_rows=rows, **settings), scratch=scratch)
    return pd.concat(list(stream), ignore_index=True)


def in_both_ways(path: Path, folder: Path, kind: type[SourceError]) -> list[str]:
    """What the two ways in say of a file that they refuse."""
    said = []
    for way in (lambda: load(path), lambda: blocks(path, folder)):
        with pytest.raises(kind) as caught:
            way()
        assert type(caught.value) is kind
        said.append(str(caught.value))
    return said


@pytest.fixture
def columns(make_bars: MakeBars) -> dict[str, pa.Array]:
    made = make_bars()
    return {name: pa.array(made[name]) for name in made}


def written(folder: Path, columns: dict[str, pa.Array], **options: Any) -> Path:
    pyarrow.parquet.write_table(pa.table(columns), folder / "es.parquet", **options)
    return folder / "es.parquet"


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("contract", [["ESH24"]], "list<element: string>"),
        ("contract", [{"code": "ESH24"}], "struct<code: string>"),
        ("contract", [b"ESH24"], "binary"),
        ("session", [["RTH"]], "list<element: string>"),
        ("close", [[5000.0]], "list<element: double>"),
        ("time", [b"2024-03-04"], "binary"),
    ],
)
def test_a_column_of_a_type_that_cannot_be_it_is_named(
    columns: dict[str, pa.Array], tmp_path: Path, name: str, values: list[Any], kind: str
) -> None:
    path = written(tmp_path, columns | {name: pa.array(values * 8)})
    for said in in_both_ways(path, tmp_path, SchemaError):
        assert f"the column '{name}' has the type {kind}, which is not supported for {name}" in said


def test_the_name_of_a_zone_does_not_matter(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    """Parquet keeps instants; a zone that this machine does not know changes none of them."""
    odd = columns["time"].cast(pa.int64()).cast(pa.timestamp("ns", "Mars/Base"))
    path = written(tmp_path, columns | {"time": odd})
    for table in (load(path).table, blocks(path, tmp_path)):
        assert table["time"].tolist() == columns["time"].to_pylist()


@pytest.mark.parametrize("name", ["time", "close", "contract", "session"])
def test_text_that_is_no_unicode_is_named(
    columns: dict[str, pa.Array], tmp_path: Path, name: str
) -> None:
    raw = pa.array([b"\xff\xfe"] * 8)
    text = pa.Array.from_buffers(pa.string(), 8, raw.buffers())
    path = written(tmp_path, columns | {name: text})
    for said in in_both_ways(path, tmp_path, SourceError):
        assert f"{path} cannot be read as .parquet: " in said
        assert "Invalid UTF8" in said


def test_what_pandas_noted_in_a_file_does_not_matter(
    columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    table = pa.table(columns).replace_schema_metadata({"pandas": "{'no JSON'"})
    pyarrow.parquet.write_table(table, tmp_path / "es.parquet")
    assert len(load(tmp_path / "es.parquet").table) == 8
    assert len(blocks(tmp_path / "es.parquet", tmp_path)) == 8


@pytest.mark.parametrize(
    ("year", "fine"), [(1700, True), (2024, True), (1699, False), (9999, False)]
)
def test_stamps_of_96_bits_do_not_wrap_around(
    columns: dict[str, pa.Array], tmp_path: Path, year: int, fine: bool
) -> None:
    """In nanoseconds of 64 bits the year 9999 would be 1816."""
    near = pa.array(pd.date_range("2024-03-04 15:00", periods=8, freq="1min"))
    path = written(
        tmp_path,
        columns | {"time": near},
        use_deprecated_int96_timestamps=True,
        use_dictionary=False,
        compression="none",
    )
    nanos = [(15 * 60 + row) * 60 * 10**9 for row in range(8)]
    days = (datetime(year, 3, 4, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days + 2_440_588
    there = b"".join(struct.pack("<qi", nano, 2_460_374) for nano in nanos)
    moved = b"".join(struct.pack("<qi", nano, days) for nano in nanos)
    content = path.read_bytes()
    assert content.count(there) == 1
    path.write_bytes(content.replace(there, moved))
    if year == 2024:
        assert load(path, timezone="UTC").table["time"].dt.year.tolist() == [2024] * 8
        return
    words = "calendar '24/7' covers " if fine else f"has the time {year}-03-04 15:00:00"
    with pytest.raises(SchemaError, match=words):
        load(path, timezone="UTC", calendar="24/7")


def test_a_changed_value_under_a_checksum_is_noticed(
    columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    close = columns["close"][3].as_py()
    old, new = struct.pack("<d", close), struct.pack("<d", close + 1e-9)
    for checked in (True, False):
        path = written(
            tmp_path,
            {**columns, **{name: columns["close"] for name in PRICES}},
            write_page_checksum=checked,
            use_dictionary=False,
            compression="none",
            write_statistics=False,
        )
        content = path.read_bytes()
        assert content.count(old) >= 4
        path.write_bytes(content.replace(old, new))
        if not checked:
            assert load(path).table["close"][3] == close + 1e-9
            continue
        for said in in_both_ways(path, tmp_path, SourceError):
            assert "checksum" in said.lower()


def test_whole_numbers_beside_a_date_are_not_guessed(
    columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    pair = {"date": pa.array([20240304] * 8), "time": pa.array(range(930, 938))}
    path = written(tmp_path, columns | pair)
    for said in in_both_ways(path, tmp_path, SchemaError):
        assert (
            "the time column beside the date has the type int64, which keeps no leading zeros"
            in said
        )


@pytest.mark.parametrize("missing", ["", "none", " NULL ", "n/a", "nan", "#N/A"])
def test_a_missing_vix_is_missing_in_both_ways(tmp_path: Path, missing: str) -> None:
    lines = [f"2024-03-04 15:0{n}Z,5,6,4,5,1,{'15.5' if n != 4 else missing}" for n in range(8)]
    path = text_file(tmp_path / "es.csv", f"{HEADER},vix", *lines)
    for table in (load(path).table, blocks(path, tmp_path)):
        assert table["vix"].isna().tolist() == [n == 4 for n in range(8)]


@pytest.mark.parametrize("word", ["halted", "5,000.25", "5_000"])
def test_a_word_for_a_number_is_named_with_its_row_in_both_ways(tmp_path: Path, word: str) -> None:
    lines = [f'2024-03-04 15:0{n}Z,5,6,4,"{5 if n != 4 else word}",1' for n in range(8)]
    whole, part = in_both_ways(
        text_file(tmp_path / "es.csv", HEADER, *lines), tmp_path, SchemaError
    )
    assert (
        f"close must be a number. First at row 4 (0 is the first after the header): close='{word}'"
        in whole
    )
    assert (
        "es.csv, counting rows from row 3 of the file: close must be a number. First at row 1"
        in part
    )


def test_stamps_of_other_forms_may_follow_in_both_ways(tmp_path: Path) -> None:
    """What the first block looks like settles nothing."""
    stamps = ["2024-03-04 15:00:00", "2024-03-04T15:01", "2024/3/4 15:02", "20240304 1503"]
    stamps += ["2024-03-04 15:04:00.5", "2024-03-04 15:05"]
    path = text_file(tmp_path / "es.csv", HEADER, *(f"{stamp},5,6,4,5,1" for stamp in stamps))
    for table in (load(path, timezone="UTC").table, blocks(path, tmp_path, timezone="UTC")):
        assert table["time"].dt.minute.tolist() == [0, 1, 2, 3, 4, 5]
        assert table["time"].dt.microsecond.tolist() == [0, 0, 0, 0, 500_000, 0]


def test_a_message_is_one_line_of_bounded_length(tmp_path: Path) -> None:
    row = "\0\x1b\x07" * 50_000
    path = text_file(tmp_path / "es.csv", HEADER, f"2024-03-04 15:00Z,5,6,4,{row},1")
    ragged = text_file(tmp_path / "ragged.csv", HEADER, row)
    for said in (
        *in_both_ways(path, tmp_path, SchemaError),
        *in_both_ways(ragged, tmp_path, SourceError),
    ):
        assert said.isprintable()
        assert len(said) < 1_000

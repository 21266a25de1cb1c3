import struct
import tempfile
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
from robust_fin.market.table_files import csv_batches, csv_headers, csv_table
from tests.market.test_sources import PRICES, load, source, text_file

TEXT = {"a": pa.string(), "b": pa.string()}


def csv_file(folder: Path, content: bytes) -> Path:
    path = folder / "es.csv"
    path.write_bytes(content)
    return path


def read_rows(path: Path, columns: dict[str, pa.DataType] = TEXT) -> list[dict[str, object]]:
    """The rows, the same in one table and in batches."""
    table = csv_table(path, None, columns)
    batches = list(csv_batches(path, None, columns))
    assert pa.Table.from_batches(batches, table.schema).to_pylist() == table.to_pylist()
    return table.to_pylist()


def test_csv_types_are_not_inferred(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"a,b\n01,2024-03-04\nnan,true\n,NULL\n")
    assert [tuple(row.values()) for row in read_rows(path)] == [
        ("01", "2024-03-04"),
        ("nan", "true"),
        ("", "NULL"),
    ]


def test_an_empty_cell_is_a_missing_number(tmp_path: Path) -> None:
    path = csv_file(tmp_path, b"a,b\n1,x\n,y\n 2.5\t,z\n")
    found = read_rows(path, {"a": pa.float64(), "b": pa.string()})
    assert [row["a"] for row in found] == [1.0, None, 2.5]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_byte_order_mark_and_empty_lines_are_ignored(
    tmp_path: Path, end: bytes, mark: bytes
) -> None:
    lines = [b"", b"a,b", b"", b"1,2", b"", b"", b'"3","4"', b""]
    path = csv_file(tmp_path, mark + end.join(lines[1:]))
    assert csv_headers(path, None) == ["a", "b"]
    assert [tuple(row.values()) for row in read_rows(path)] == [("1", "2"), ("3", "4")]
    assert read_rows(csv_file(tmp_path, end.join(lines))) == read_rows(path)


@pytest.mark.parametrize("content", [b"a,b", b"a,b\n", b"a,b\r\n\r\n"])
def test_a_header_alone_is_a_table_without_rows(tmp_path: Path, content: bytes) -> None:
    path = csv_file(tmp_path, content)
    assert csv_headers(path, None) == ["a", "b"]
    assert csv_table(path, None, TEXT).num_rows == 0


@pytest.mark.parametrize(
    ("content", "count", "line"),
    [
        (b'a,b,c\n1,2,"x\n3,4,y\n5,6,z\n', "3 lines after its header but 1 rows", 2),
        (b'a,b,c\n1,2,x\n3,4,"y\n5,6,z"\n', "3 lines after its header but 2 rows", 3),
        (b'a,b,c\n1,2,"x\r\ny"\n', "2 lines after its header but 1 rows", 2),
    ],
)
def test_a_quoted_value_over_several_lines_raises(
    tmp_path: Path, content: bytes, count: str, line: int
) -> None:
    path = csv_file(tmp_path, content)
    for read in (csv_table, lambda *words: list(csv_batches(*words))):
        with pytest.raises(SchemaError) as caught:
            read(path, None, TEXT)
        assert f"es.csv has {count}" in str(caught.value)
        assert f"first in line {line}: " in str(caught.value)


def test_lines_are_counted_across_read_chunks(tmp_path: Path) -> None:
    """Longer than one read, with line ends of two bytes at all places, and quoted values."""
    content = b"a,b\r\n" + b"".join(b'"%d",%s\r\n' % (n, b"x" * (n % 7)) for n in range(700_000))
    assert len(content) > 9 << 20
    path = csv_file(tmp_path, content)
    assert csv_table(path, None, TEXT).num_rows == 700_000
    assert sum(batch.num_rows for batch in csv_batches(path, None, TEXT)) == 700_000


MakeBars = Callable[..., pd.DataFrame]
HEADER = "time,open,high,low,close,volume"


def stream(path: Path, folder: Path, rows: int = 3, **settings: Any) -> BarStream:
    folder.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder))
    return BarStream(source(path, block_rows=rows, **settings), scratch=scratch)


def load_blocks(path: Path, folder: Path, rows: int = 3, **settings: Any) -> pd.DataFrame:
    return pd.concat(list(stream(path, folder, rows, **settings)), ignore_index=True)


def errors_of_both_readers(path: Path, folder: Path, kind: type[SourceError]) -> list[str]:
    """What the two ways in say of a file that they refuse."""
    said = []
    for way in (lambda: load(path), lambda: load_blocks(path, folder)):
        with pytest.raises(kind) as caught:
            way()
        assert type(caught.value) is kind
        said.append(str(caught.value))
    return said


@pytest.fixture
def columns(make_bars: MakeBars) -> dict[str, pa.Array]:
    made = make_bars()
    return {name: pa.array(made[name]) for name in made}


def write_parquet(folder: Path, columns: dict[str, pa.Array], **options: Any) -> Path:
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
def test_an_unsupported_column_type_raises(
    columns: dict[str, pa.Array], tmp_path: Path, name: str, values: list[Any], kind: str
) -> None:
    path = write_parquet(tmp_path, columns | {name: pa.array(values * 8)})
    for said in errors_of_both_readers(path, tmp_path, SchemaError):
        assert f"the column '{name}' has the type {kind}, which is not supported for {name}" in said


def test_unknown_zone_names_in_parquet_are_accepted(
    columns: dict[str, pa.Array], tmp_path: Path
) -> None:
    """Parquet keeps instants; a zone that this machine does not know changes none of them."""
    odd = columns["time"].cast(pa.int64()).cast(pa.timestamp("ns", "Mars/Base"))
    path = write_parquet(tmp_path, columns | {"time": odd})
    for table in (load(path).table, load_blocks(path, tmp_path)):
        assert table["time"].tolist() == columns["time"].to_pylist()


@pytest.mark.parametrize("name", ["time", "close", "contract", "session"])
def test_invalid_utf8_raises(columns: dict[str, pa.Array], tmp_path: Path, name: str) -> None:
    raw = pa.array([b"\xff\xfe"] * 8)
    text = pa.Array.from_buffers(pa.string(), 8, raw.buffers())
    path = write_parquet(tmp_path, columns | {name: text})
    for said in errors_of_both_readers(path, tmp_path, SourceError):
        assert f"{path} cannot be read as .parquet: " in said
        assert "Invalid UTF8" in said


def test_pandas_metadata_is_ignored(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    table = pa.table(columns).replace_schema_metadata({"pandas": "{'no JSON'"})
    pyarrow.parquet.write_table(table, tmp_path / "es.parquet")
    assert len(load(tmp_path / "es.parquet").table) == 8
    assert len(load_blocks(tmp_path / "es.parquet", tmp_path)) == 8


@pytest.mark.parametrize(
    ("year", "fine"), [(1700, True), (2024, True), (1699, False), (9999, False)]
)
def test_96_bit_timestamps_do_not_overflow(
    columns: dict[str, pa.Array], tmp_path: Path, year: int, fine: bool
) -> None:
    """In nanoseconds of 64 bits the year 9999 would be 1816."""
    near = pa.array(pd.date_range("2024-03-04 15:00", periods=8, freq="1min"))
    path = write_parquet(
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


def test_a_checksum_mismatch_raises(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    close = columns["close"][3].as_py()
    old, new = struct.pack("<d", close), struct.pack("<d", close + 1e-9)
    for checked in (True, False):
        path = write_parquet(
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
        for said in errors_of_both_readers(path, tmp_path, SourceError):
            assert "checksum" in said.lower()


def test_integer_time_beside_a_date_raises(columns: dict[str, pa.Array], tmp_path: Path) -> None:
    pair = {"date": pa.array([20240304] * 8), "time": pa.array(range(930, 938))}
    path = write_parquet(tmp_path, columns | pair)
    for said in errors_of_both_readers(path, tmp_path, SchemaError):
        assert (
            "the time column beside the date has the type int64, which keeps no leading zeros"
            in said
        )


@pytest.mark.parametrize("missing", ["", "none", " NULL ", "n/a", "nan", "#N/A"])
def test_missing_vix_is_nan_in_both_readers(tmp_path: Path, missing: str) -> None:
    lines = [f"2024-03-04 15:0{n}Z,5,6,4,5,1,{'15.5' if n != 4 else missing}" for n in range(8)]
    path = text_file(tmp_path / "es.csv", f"{HEADER},vix", *lines)
    for table in (load(path).table, load_blocks(path, tmp_path)):
        assert table["vix"].isna().tolist() == [n == 4 for n in range(8)]


@pytest.mark.parametrize("word", ["halted", "5,00.25", "5_000"])
def test_non_numeric_cells_raise_with_their_row_in_both_readers(tmp_path: Path, word: str) -> None:
    lines = [f'2024-03-04 15:0{n}Z,5,6,4,"{5 if n != 4 else word}",1' for n in range(8)]
    whole, part = errors_of_both_readers(
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


def test_mixed_timestamp_formats_are_parsed_in_both_readers(tmp_path: Path) -> None:
    """What the first block looks like settles nothing."""
    stamps = ["2024-03-04 15:00:00", "2024-03-04T15:01", "2024/3/4 15:02", "20240304 1503"]
    stamps += ["2024-03-04 15:04:00.5", "2024-03-04 15:05"]
    path = text_file(tmp_path / "es.csv", HEADER, *(f"{stamp},5,6,4,5,1" for stamp in stamps))
    for table in (load(path, timezone="UTC").table, load_blocks(path, tmp_path, timezone="UTC")):
        assert table["time"].dt.minute.tolist() == [0, 1, 2, 3, 4, 5]
        assert table["time"].dt.microsecond.tolist() == [0, 0, 0, 0, 500_000, 0]


def test_error_messages_are_single_short_lines(tmp_path: Path) -> None:
    row = "\0\x1b\x07" * 50_000
    path = text_file(tmp_path / "es.csv", HEADER, f"2024-03-04 15:00Z,5,6,4,{row},1")
    ragged = text_file(tmp_path / "ragged.csv", HEADER, row)
    for said in (
        *errors_of_both_readers(path, tmp_path, SchemaError),
        *errors_of_both_readers(ragged, tmp_path, SourceError),
    ):
        assert said.isprintable()
        assert len(said) < 1_000

from pathlib import Path

import pyarrow as pa
import pytest

from robust_fin.errors import SchemaError
from robust_fin.market.files import csv_batches, csv_headers, csv_table

TEXT = {"a": pa.string(), "b": pa.string()}


def file(folder: Path, content: bytes) -> Path:
    path = folder / "es.csv"
    path.write_bytes(content)
    return path


def rows(path: Path, columns: dict[str, pa.DataType] = TEXT) -> list[dict[str, object]]:
    """The rows, the same in one table and in batches."""
    table = csv_table(path, None, columns)
    batches = list(csv_batches(path, None, columns))
    assert pa.Table.from_batches(batches, table.schema).to_pylist() == table.to_pylist()
    return table.to_pylist()


def test_nothing_is_inferred_from_what_a_value_looks_like(tmp_path: Path) -> None:
    path = file(tmp_path, b"a,b\n01,2024-03-04\nnan,true\n,NULL\n")
    assert [tuple(row.values()) for row in rows(path)] == [
        ("01", "2024-03-04"),
        ("nan", "true"),
        ("", "NULL"),
    ]


def test_an_empty_cell_is_a_missing_number(tmp_path: Path) -> None:
    path = file(tmp_path, b"a,b\n1,x\n,y\n 2.5\t,z\n")
    found = rows(path, {"a": pa.float64(), "b": pa.string()})
    assert [row["a"] for row in found] == [1.0, None, 2.5]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_marks_and_empty_lines_change_nothing(
    tmp_path: Path, end: bytes, mark: bytes
) -> None:
    lines = [b"", b"a,b", b"", b"1,2", b"", b"", b'"3","4"', b""]
    path = file(tmp_path, mark + end.join(lines[1:]))
    assert csv_headers(path, None) == ["a", "b"]
    assert [tuple(row.values()) for row in rows(path)] == [("1", "2"), ("3", "4")]
    assert rows(file(tmp_path, end.join(lines))) == rows(path)


@pytest.mark.parametrize("content", [b"a,b", b"a,b\n", b"a,b\r\n\r\n"])
def test_a_header_alone_is_a_table_without_rows(tmp_path: Path, content: bytes) -> None:
    path = file(tmp_path, content)
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
def test_rows_do_not_vanish_into_a_quoted_value_of_a_column_that_is_not_read(
    tmp_path: Path, content: bytes, count: str, line: int
) -> None:
    path = file(tmp_path, content)
    for read in (csv_table, lambda *words: list(csv_batches(*words))):
        with pytest.raises(SchemaError) as caught:
            read(path, None, TEXT)
        assert f"es.csv has {count}" in str(caught.value)
        assert f"first in line {line}: " in str(caught.value)


def test_lines_are_counted_over_every_border_between_reads(tmp_path: Path) -> None:
    """Longer than one read, with line ends of two bytes at all places, and quoted values."""
    content = b"a,b\r\n" + b"".join(b'"%d",%s\r\n' % (n, b"x" * (n % 7)) for n in range(700_000))
    assert len(content) > 9 << 20
    path = file(tmp_path, content)
    assert csv_table(path, None, TEXT).num_rows == 700_000
    assert sum(batch.num_rows for batch in csv_batches(path, None, TEXT)) == 700_000

"""Form of a CSV, from its first bytes: encoding, delimiter, header, lines above it, number marks.

Only what is certain is taken as found. A number that can be read in two ways raises an error that
names the setting to type.
"""

import codecs
import csv
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from robust_fin.errors import ConfigError, SchemaError
from robust_fin.market.columns import header_roles
from robust_fin.market.parsing import MISSING_NUMBERS
from robust_fin.market.schema import PRICES, excerpt

HEAD_ROWS = 10_000  # rows from which the form of stamps and numbers is taken
DECIMALS = ("point", "comma", "32nds")
KLINES = (
    *("open_time", "open", "high", "low", "close", "volume", "close_time", "quote_volume"),
    *("count", "taker_buy_volume", "taker_buy_quote_volume", "ignore"),
)
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_MAX_ABOVE = 30  # lines above the header
_MAX_LEVELS = 3  # lines of a header
_MIN_CELLS = 5
_LINES = 60  # lines that are looked at
_NUMERIC = re.compile(r"^[+-]?[\d.,' ]*\d(?:[eE][+-]?\d+)?$")
_PROSE = r"^\W+\w|[A-Za-z]{2,}\s+[A-Za-z]{2,}"


@dataclass(frozen=True, slots=True)
class CsvForm:
    """Form of a CSV.

    Attributes:
        encoding: name of a Python codec.
        delimiter: character between the cells.
        names: column names; "1", "2" and so on without a header.
        skipped_lines: lines above the header or the first row, empty ones included.
        header_lines: lines of the header; 0 if there is none.
        first_row: number of the line with the first row; lines before it are not rows. -1 if no
            line looks like a header or a row.
        lines_above: lines before the first row that are not empty.
        constants: values that the header states for all rows, by column name.
    """

    encoding: str = "utf-8"
    delimiter: str = ","
    names: tuple[str, ...] = ()
    skipped_lines: int = 0
    header_lines: int = 1
    first_row: int = 0
    lines_above: int = 1
    constants: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """True for UTF-8 with commas and one header line at the top of the file."""
        usual = (self.encoding in ("utf-8", "utf-8-sig"), self.delimiter == ",")
        return all(usual) and (self.skipped_lines, self.header_lines) == (0, 1)

    def is_footer(self, text: str) -> bool:
        """Return whether a line with too few cells is prose, such as a source note."""
        line = text.strip().strip('"')
        prose = re.search(_PROSE, line) is not None and not line[:1].isdigit()
        return prose and self.delimiter not in line


def sniff_csv(sample: bytes, *, columns: Mapping[str, str]) -> CsvForm:
    """Infer the form of a CSV; of bytes that are not text a plain form.

    Args:
        sample: the first bytes of the file.
        columns: source.columns, whose columns count as known names.
    """
    encoding = _encoding(sample)
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return CsvForm()
    raw = re.split(r"\r\n|\r|\n", text)[: _LINES * 2]
    lines = [number for number, line in enumerate(raw) if line.strip()][:_LINES]
    if not lines:
        return CsvForm(encoding)
    delimiter = _delimiter([raw[number] for number in lines])
    cells = {number: _split(raw[number], delimiter) for number in lines}
    wanted = [str(column) for column in columns.values()]
    header = next((n for n in lines[:_MAX_ABOVE] if _is_header(cells[n], wanted)), None)
    if header is None:
        return _without_known_header(cells, encoding, delimiter)
    return _with_header(cells, lines, header, encoding, delimiter)


def _encoding(sample: bytes) -> str:
    for mark, name in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return name
    even, odd = sample[:2000:2].count(0), sample[1:2000:2].count(0)
    half = len(sample[:2000]) // 2
    if half and max(even, odd) > 0.7 * half and min(even, odd) < 0.1 * half:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8"


def _delimiter(lines: Sequence[str]) -> str:
    """Choose tab, semicolon or bar if a typical line has enough of them, else the comma."""
    for mark in "\t;|":
        counts = sorted(line.count(mark) for line in lines)
        if counts[len(counts) // 2] >= _MIN_CELLS - 1:
            return mark
    return ","


def _split(line: str, delimiter: str) -> tuple[str, ...]:
    try:
        return tuple(next(csv.reader([line], delimiter=delimiter)))
    except (csv.Error, StopIteration):
        return (line,)


def _is_header(cells: Sequence[str], wanted: Collection[str]) -> bool:
    roles = header_roles(cells)
    return len(roles & set(PRICES)) >= 3 or (bool(wanted) and set(wanted) <= set(cells))


def _is_row(cells: Sequence[str]) -> bool:
    numbers = sum(_NUMERIC.match(cell.strip()) is not None for cell in cells)
    return len(cells) >= _MIN_CELLS and numbers >= 4 and any(map(str.isdigit, cells[0]))


def _without_known_header(
    cells: Mapping[int, tuple[str, ...]], encoding: str, delimiter: str
) -> CsvForm:
    """Return the form of a file without a header, if its lines are rows."""
    first = next((n for n, line in cells.items() if _is_row(line)), None)
    above = list(cells)[: list(cells).index(first)] if first is not None else []
    if first is None or any(len(cells[n]) >= _MIN_CELLS for n in above):
        return CsvForm(encoding, delimiter, next(iter(cells.values())), first_row=-1)
    rows = [cells[n] for n in cells if n >= first]
    return CsvForm(encoding, delimiter, _names(rows), first, 0, first, len(above))


def _names(rows: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Name the columns of rows without a header by their order, if it is certain, else 1, 2, ..."""
    width = len(rows[0])
    numbered = tuple(str(place) for place in range(1, width + 1))
    pair = re.match(r"^\d{1,2}:?\d{2}", rows[0][1].strip()) and _NUMERIC.match(rows[0][1]) is None
    stamp = ("date", "time") if pair else ("time",)
    if width == len(KLINES) and rows[0][0].isdigit():
        names: tuple[str, ...] = KLINES
    else:
        names = (*stamp, *PRICES, "volume")
    if width != len(names) or not all(_in_order(row, names.index("open")) for row in rows):
        return numbered
    return names


def _in_order(row: Sequence[str], first: int) -> bool:
    """Return whether the second of four prices is the highest and the third the lowest."""
    try:
        opened, high, low, close = (float(_plain(cell)) for cell in row[first : first + 4])
    except ValueError:
        return len(row) <= first + 4  # a footer
    return low <= min(opened, close) and max(opened, close) <= high


def _plain(cell: str) -> str:
    return cell.strip().replace(",", ".")


def _with_header(
    cells: Mapping[int, tuple[str, ...]],
    lines: Sequence[int],
    header: int,
    encoding: str,
    delimiter: str,
) -> CsvForm:
    names, constants = list(cells[header]), {}
    place, last = lines.index(header), header
    for number in lines[place + 1 : place + _MAX_LEVELS]:
        level = cells[number]
        rest = {cell.strip() for cell in level[1:]}
        if len(level) != len(names) or _has_digit_start(level[0]) or len(rest) > 1:
            break
        if rest == {""} and "time" not in header_roles(level[:1]):
            break
        last = number
        if rest == {""} or "time" in header_roles(level[:1]):
            names[0] = level[0]
        elif level[0].strip().lower() in ("ticker", "tickers", "symbol"):
            constants = {"contract": rest.pop()}
    levels = lines.index(last) - place + 1
    above = lines.index(last) + 1
    return CsvForm(encoding, delimiter, tuple(names), header, levels, last + 1, above, constants)


def _has_digit_start(cell: str) -> bool:
    return cell.strip()[:1].isdigit()


class NumberForm(NamedTuple):
    """Form of numbers written as text.

    Attributes:
        decimal: decimal mark.
        thousands: mark between groups of three digits; "" if there is none.
        is_32nds: prices are written in points and 32nds of a point, such as 109'165.
        is_fixed_point: prices are integers in units of 1e-9.
    """

    decimal: str = "."
    thousands: str = ""
    is_32nds: bool = False
    is_fixed_point: bool = False

    @property
    def price_scale(self) -> str:
        """Price scale as `Layout` names it."""
        if self.is_32nds:
            return "32nds"
        return "1e-9" if self.is_fixed_point else "1"


_FORMS = (
    *(NumberForm(), NumberForm(","), NumberForm(".", ","), NumberForm(",", ".")),
    *(NumberForm(decimal, mark) for mark in ("'", " ", "\xa0", "\u202f") for decimal in ".,"),
)
_32NDS = r"^\s*\d{1,3}['-](?:[0-2]\d|3[01])(?:[0257+]|\.\d+)?\s*$"
_GROUPED_BY_APOSTROPHE = r"^\s*\d{1,3}(?:'\d{3})+\s*$"


def number_regex(form: NumberForm) -> str:
    """Return the regex of a number in a form; surrounding white space is allowed."""
    decimal, mark = re.escape(form.decimal), re.escape(form.thousands)
    grouped = rf"\d{{1,3}}(?:{mark}\d{{3}})+|" if form.thousands else ""
    fraction = rf"(?:{decimal}\d*)?"
    return rf"^\s*[+-]?(?:(?:{grouped}\d+){fraction}|{decimal}\d+)(?:[eE][+-]?\d+)?\s*$"


def number_form(heads: Mapping[str, pa.Array], *, decimal: str | None, origin: str) -> NumberForm:
    """Infer the form of the numbers in text columns.

    Args:
        heads: first cells of the number columns, by schema name, as text.
        decimal: source.decimal.
        origin: file name, for the message.

    Raises:
        SchemaError: the numbers can be read with a decimal comma and with a thousands mark.
        ConfigError: `decimal` is not one of `DECIMALS`.
    """
    if decimal is not None and decimal not in DECIMALS:
        raise ConfigError(f"source.decimal={decimal} must be null, {', '.join(DECIMALS)}")
    cells = {name: _known_cells(head) for name, head in heads.items()}
    cells = {name: column for name, column in cells.items() if len(column)}
    prices = [cells[name] for name in PRICES if name in cells]
    if decimal == "32nds" or (decimal is None and _are_32nds(prices, origin)):
        return NumberForm(is_32nds=True)
    fitting = [form for form in _FORMS if all(_fits(column, form) for column in cells.values())]
    if decimal is not None:
        mark = "." if decimal == "point" else ","
        other = NumberForm(mark, "," if mark == "." else ".")
        fitting = [form for form in fitting if form.decimal == mark and form.thousands] or [other]
    if NumberForm() in fitting or not fitting:
        return NumberForm()
    if len({form.decimal for form in fitting}) > 1:
        raise SchemaError(_ambiguous(cells, origin))
    return fitting[0]


def _known_cells(head: pa.Array) -> pa.Array:
    text = pc.utf8_trim_whitespace(head)
    missing = pc.is_in(pc.utf8_lower(text), pa.array(MISSING_NUMBERS, text.type))
    return text.filter(pc.invert(pc.fill_null(missing, pa.scalar(value=True))))


def _fits(column: pa.Array, form: NumberForm) -> bool:
    """Return whether all cells have the form, and none leaves out the marks that others have."""
    if not _all_match(column, number_regex(form)):
        return False
    if not form.thousands:
        return True
    grouped = pc.any(pc.match_substring(column, form.thousands)).as_py()
    return not (grouped and pc.any(pc.match_substring_regex(column, r"^[+-]?\d{4,}")).as_py())


def _all_match(column: pa.Array, pattern: str) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, pattern)).as_py())


def _are_32nds(prices: Sequence[pa.Array], origin: str) -> bool:
    if not prices or not all(_all_match(column, _32NDS) for column in prices):
        return False
    if all(_all_match(column, _GROUPED_BY_APOSTROPHE) for column in prices):
        first = prices[0][0].as_py()
        raise SchemaError(
            f"{origin}: the prices (first: {first}) may be points and 32nds or have a thousands "
            "mark; set source.decimal=32nds or source.decimal=point"
        )
    return True


def _ambiguous(cells: Mapping[str, pa.Array], origin: str) -> str:
    name, column = next(
        (name, column)
        for name, column in cells.items()
        if not _all_match(column, number_regex(NumberForm()))
    )
    odd = column.filter(pc.invert(pc.match_substring_regex(column, number_regex(NumberForm()))))
    return (
        f"{origin}: {name}='{excerpt(odd[0].as_py())}' may have a decimal comma or a thousands "
        "mark; set source.decimal=comma or source.decimal=point"
    )


def plain_numbers(text: pa.ChunkedArray | pa.Array, form: NumberForm) -> pa.ChunkedArray | pa.Array:
    """Rewrite numbers of a form with a decimal point and no marks; other cells stay as they are.

    Args:
        text: cells of a column.
        form: form of the numbers; with `is_32nds` the column is a price.
    """
    if form.is_32nds:
        return _from_32nds(text)
    if form == NumberForm() or (form.decimal == "." and not form.thousands):
        return text
    plain = pc.replace_substring(text, form.thousands, "") if form.thousands else text
    if form.decimal != ".":
        plain = pc.replace_substring(plain, form.decimal, ".")
    return pc.if_else(pc.match_substring_regex(text, number_regex(form)), plain, text)


def _from_32nds(text: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Convert points and 32nds: a last digit of 2, 5 or 7 is a quarter, half or three quarters."""
    parts = pc.extract_regex(
        text, r"^\s*(?P<points>\d+)['-](?P<ticks>\d\d)(?P<part>[0257+]|\.\d+)?\s*$"
    )
    points, ticks, part = (pc.struct_field(parts, name) for name in ("points", "ticks", "part"))
    eighths = {"": 0.0, "0": 0.0, "2": 0.25, "5": 0.5, "+": 0.5, "7": 0.75}
    known = pc.index_in(part, pa.array(list(eighths), part.type))
    share = pc.take(pa.array(list(eighths.values())), known)
    decimals = pc.cast(pc.if_else(pc.starts_with(part, "."), part, "0"), pa.float64())
    whole = pc.add(pc.cast(ticks, pa.float64()), pc.coalesce(share, decimals))
    value = pc.add(pc.cast(points, pa.float64()), pc.divide(whole, 32.0))
    return pc.coalesce(pc.cast(value, pa.large_string()), pc.cast(text, pa.large_string()))

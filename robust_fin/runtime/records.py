"""Readers of the files of a run. Each is bounded, checks types, and names file and field."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import yaml  # type: ignore[import-untyped]

from robust_fin.errors import BundleError, RobustFinError

_MAX_BYTES = 256 << 20  # of a JSON file; the largest of a run is members.json
_MAX_YAML_BYTES, _MAX_DEPTH = 1 << 20, 40
_MAX_CELLS = 4 << 30  # of a table: rows times columns
Kind = type | tuple[type, ...]
NUMBER = (int, float)
OPTIONAL_TEXT = (str, type(None))


def read_json(
    path: Path,
    fields: Mapping[str, Kind] | None = None,
    *,
    error: type[RobustFinError] = BundleError,
) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        fields: types of the fields that it must have.
        error: raised for a damaged file.

    Raises:
        FileNotFoundError: there is no such file.
        RobustFinError: the file is cut, too large, nested too deeply or lacks a field.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        content = json.loads(path.read_bytes())
    except (NotADirectoryError, IsADirectoryError) as problem:
        raise FileNotFoundError(problem.errno, problem.strerror, str(path)) from problem
    except (ValueError, RecursionError) as problem:
        reason = "it is nested too deeply" if isinstance(problem, RecursionError) else problem
        raise error(f"{path} is damaged: {reason}") from problem
    if not isinstance(content, dict):
        raise error(f"{path} is damaged: it holds no JSON object")
    check_fields(content, fields or {}, origin=str(path), error=error)
    return content


def check_fields(
    content: Mapping[str, Any],
    fields: Mapping[str, Kind],
    *,
    origin: str,
    error: type[RobustFinError] = BundleError,
) -> None:
    """Check the types of fields that an object must have; true and false are no numbers.

    Raises:
        RobustFinError: a field is missing or of another type.
    """
    for name, kind in fields.items():
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if name not in content:
            raise error(f"{origin} is damaged: {name} is missing")
        value = content[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            names = " or ".join("null" if one is type(None) else one.__name__ for one in kinds)
            raise error(
                f"{origin} is damaged: {name} is of type {type(value).__name__}, not {names}"
            )


def read_metrics_file(path: Path) -> dict[str, float | int | str | None]:
    """Read metrics.json: name -> number, text or null.

    Raises:
        FileNotFoundError: there is no such file.
        BundleError: the file is damaged.
    """
    metrics = read_json(path)
    for name, value in metrics.items():
        if not isinstance(value, int | float | str | None) or _is_nan(value):
            raise BundleError(f"{path} is damaged: {name} is neither a number nor null")
    return metrics


def read_rows_file(path: Path) -> dict[str, Any]:
    """Read rows.json: one row ledger, or one per fold; empty if there is no file.

    Raises:
        BundleError: the file is damaged.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    for name, ledger in ({"": content} if "rows_in" in content else content).items():
        origin = f"{path}, {name}" if name else str(path)
        if not isinstance(ledger, dict):
            raise BundleError(f"{origin} is damaged: it holds no row ledger")
        check_fields(ledger, _ROW_LEDGER, origin=origin)
        for part in ("dropped", "spans"):
            check_fields(ledger[part], dict.fromkeys(ledger[part], int), origin=f"{origin}, {part}")
        kinds = dict.fromkeys(ledger["reports"], (*NUMBER, type(None)))
        check_fields(ledger["reports"], kinds, origin=f"{origin}, reports")
    return content


_ROW_LEDGER: Mapping[str, Kind] = {"rows_in": int, "dropped": dict, "spans": dict, "reports": dict}


def read_members_file(path: Path) -> list[dict[str, Any]]:
    """Read members.json: settings and metrics of each member; empty if there is no file.

    Raises:
        BundleError: the file is damaged.
    """
    members = read_json(path, {"members": list})["members"] if path.is_file() else []
    for number, member in enumerate(members):
        origin = f"{path}, member {number},"
        if not isinstance(member, dict):
            raise BundleError(f"{origin} is damaged: it holds no metrics")
        scores = [name for name in member if name.startswith(("test/", "val/"))]
        check_fields(member, dict.fromkeys(scores, (*NUMBER, type(None))), origin=origin)
    return list(members)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def read_words(path: Path) -> list[str]:
    """Read a YAML list of words, such as .hydra/overrides.yaml; empty if it cannot be read."""
    try:
        words = yaml.safe_load(plain_yaml(path.read_bytes())) if path.is_file() else []
    except (yaml.YAMLError, OSError):
        return []
    return [str(word) for word in words] if isinstance(words, list) else []


def read_settings(path: Path) -> dict[str, Any]:
    """Read a YAML mapping, such as the config of a run; empty if there is no file.

    Raises:
        BundleError: the file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        settings = yaml.safe_load(plain_yaml(path.read_bytes()))
    except yaml.YAMLError as problem:
        raise BundleError(f"{path} is damaged, it cannot be read as YAML: {problem}") from problem
    if not isinstance(settings, dict):
        raise BundleError(f"{path} is damaged: it holds no settings")
    return settings


def plain_yaml(content: bytes | str) -> str:
    """Return the text of plain YAML: no aliases, which multiply a small file, and no deep nesting.

    Raises:
        YAMLError: it is not plain, or not UTF-8.
    """
    if len(content) > _MAX_YAML_BYTES:
        raise yaml.YAMLError(f"it has more than {_MAX_YAML_BYTES:,} bytes")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
    except UnicodeDecodeError as problem:
        raise yaml.YAMLError(str(problem)) from problem
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1} has an alias")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {_MAX_DEPTH} levels deep")
    return text


def read_table(
    path: Path,
    columns: Mapping[str, str],
    *,
    finite: Sequence[str] = (),
    only: bool = False,
    filters: list[tuple[str, str, Any]] | None = None,
) -> pd.DataFrame:
    """Read a Parquet table of a run.

    Args:
        path: the file.
        columns: column -> kinds of its numpy type, such as "f" or "iu"; "" allows any.
        finite: columns without NaN and infinity.
        only: read these columns only.
        filters: as of `pandas.read_parquet`.

    Raises:
        BundleError: the file is missing or damaged, or lacks a column.
    """
    try:
        size = pyarrow.parquet.read_metadata(path)
        if size.num_rows * max(1, size.num_columns) > _MAX_CELLS:
            raise ValueError(f"{size.num_rows:,} rows are too many for the table of a run")
        table = pd.read_parquet(path, columns=list(columns) if only else None, filters=filters)
    except FileNotFoundError as problem:
        raise BundleError(f"{path} is missing: the run has not finished") from problem
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as problem:
        raise BundleError(f"{path} is damaged: {problem}") from problem
    for name, kinds in columns.items():
        if name not in table:
            raise BundleError(f"{path} is damaged: it has no column {name}")
        kind = getattr(table[name].dtype, "kind", "O")
        if kinds and kind not in kinds:
            raise BundleError(f"{path} is damaged: column {name} is of type {table[name].dtype}")
    for name in finite:
        bad = np.flatnonzero(~np.isfinite(table[name].to_numpy(np.float64)))
        if bad.size:
            raise BundleError(
                f"{path} is damaged: {name} is not finite in {bad.size:,} rows, first in row "
                f"{bad[0]}"
            )
    return table

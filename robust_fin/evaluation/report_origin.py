"""What a report says of where a run came from: rows, data, versions, config."""

from collections.abc import Mapping
from typing import Any

from robust_fin.evaluation.cells import number
from robust_fin.evaluation.markup import PlainTable
from robust_fin.evaluation.section import Section


def rows_section(ledger: Mapping[str, Any]) -> Section:
    """Where every input row went.

    Args:
        ledger: as rows.json has it; of several folds, one a fold.
    """
    folds = {"rows": ledger} if "rows_in" in ledger else ledger
    if not folds:
        return Section("rows", "Row ledger", ("The run has no rows.json.",))
    reasons = list(dict.fromkeys(key for one in folds.values() for key in one["dropped"]))
    spans = list(dict.fromkeys(key for one in folds.values() for key in one["spans"]))
    body = [["came in", *(f"{one['rows_in']:,}" for one in folds.values())]]
    body += [
        [f"dropped: {reason}", *(f"{one['dropped'].get(reason, 0):,}" for one in folds.values())]
        for reason in reasons
    ]
    body += [
        [f"kept in {span}", *(f"{one['spans'].get(span, 0):,}" for one in folds.values())]
        for span in spans
    ]
    columns = ("", *(name.replace("_", " ") for name in folds))
    found = PlainTable(
        "Every row that came in is in a span, or dropped for one reason", columns, body
    )
    first = next(iter(folds.values()))
    noticed = [[name, number(value)] for name, value in first["reports"].items()]
    seen = PlainTable("Noticed, and left as it was", ("", "value"), noticed)
    return Section("rows", "Row ledger", (), (found, seen) if noticed else (found,))


def origin_section(provenance: Mapping[str, Any], *, config: str) -> Section:
    """Data, versions, commit, and the whole config.

    Args:
        provenance: as bundle/provenance.json has it.
        config: text of bundle/config.yaml.
    """
    rows = origin_rows(provenance)
    table = PlainTable("What was read, with which code", ("", "value"), rows, numbers=False)
    folded = {"The whole config": config} if config else {}
    return Section("origin", "Provenance and config", (), (table,), folded=folded)


def origin_rows(provenance: Mapping[str, Any]) -> list[list[str]]:
    """What was read and with which code, and its value, as words."""
    rows = []
    for name, value in provenance.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[f"{name} {key}".strip().replace("_", " "), _said(one)] for key, one in inner]
    return rows


def _said(value: Any) -> str:
    return "not known" if value is None else str(value)

"""Futures contracts: the order of their expiries, read from their codes."""

import re
from collections.abc import Mapping

import pandas as pd

from robust_fin.errors import SchemaError
from robust_fin.market.schema import shown

_CODE = re.compile(r"^(?P<root>[A-Z0-9]{1,4}?)(?P<month>[FGHJKMNQUVXZ])(?P<year>\d{1,4})$")
_MONTHS = "FGHJKMNQUVXZ"


def expiry(code: str, *, first_year: int) -> tuple[int, int] | None:
    """Year and month in which a contract expires, or None where the code does not tell.

    Args:
        code: such as ESZ24, ESZ4 or ESZ2024.
        first_year: year of the contract's first bar; it settles one- and two-digit years, which
            mean the first such year not before it.
    """
    match = _CODE.match(code.strip().upper())
    if match is None:
        return None
    digits, month = match["year"], _MONTHS.index(match["month"]) + 1
    if len(digits) == 3:
        return None
    cycle = 10 ** len(digits)
    year = int(digits) if len(digits) == 4 else first_year + (int(digits) - first_year) % cycle
    return year, month


def in_expiry_order(contract: pd.Series, time: pd.Series) -> list[str]:
    """Contract codes from the earliest expiry to the latest; by first bar where a code is unknown.

    Args:
        contract: code of each bar, categorical.
        time: start of each bar.

    Raises:
        SchemaError: the codes are of more than one product, or one of them cannot be told.
    """
    first = time.groupby(contract, observed=True).min()
    return expiry_order({str(code): start for code, start in first.items()})


def expiry_order(first: Mapping[str, pd.Timestamp]) -> list[str]:
    """Contract codes from the earliest expiry to the latest; by first bar where a code is unknown.

    Args:
        first: start of the first bar of each contract.

    Raises:
        SchemaError: the codes are of more than one product, or one of them cannot be told.
    """
    _one_line_each(list(first))
    _one_product(list(first))
    keys = {code: expiry(code, first_year=start.year) for code, start in first.items()}
    _told_apart(keys)
    if any(key is None for key in keys.values()):
        return sorted(first, key=lambda code: (first[code], code))
    return sorted(keys, key=lambda code: (keys[code], first[code], code))


def _one_line_each(codes: list[str]) -> None:
    bad = [code for code in codes if not code.isprintable()]
    if bad:
        raise SchemaError(
            f"the contract '{shown(bad[0])}' holds a line break or another mark that cannot be "
            f"printed; {len(bad)} of {len(codes)} contracts. Write plain codes such as ESZ24"
        )


def _told_apart(keys: Mapping[str, tuple[int, int] | None]) -> None:
    """One contract written two ways would be two, each with a part of the bars."""
    seen: dict[object, str] = {}
    for code, key in keys.items():
        plain = code.strip().upper()
        match = _CODE.match(plain)
        expiring = None if match is None or key is None else (match["root"], *key)
        for meaning in (plain, expiring):
            other = seen.setdefault(meaning, code)
            if meaning is not None and other != code:
                one, two = (f"'{shown(name)}'" for name in sorted((other, code)))
                raise SchemaError(
                    f"the contracts {one} and {two} are one contract written two ways; write its "
                    "code alike in every row"
                )


def _one_product(codes: list[str]) -> None:
    """A contract takes history from the one before it, which must be of the same product."""
    matches = [_CODE.match(code.strip().upper()) for code in codes]
    roots = sorted({match["root"] for match in matches if match is not None})
    if len(roots) > 1 and all(matches):
        raise SchemaError(
            f"the contracts are of {len(roots)} products, {', '.join(roots)}; a file holds one. "
            "Split it and train on each"
        )

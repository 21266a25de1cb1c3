"""Products of a bar table: what each contract code names, and which codes belong together.

| code | kind | product |
|---|---|---|
| ESH4, ESH24, ESH2024, ES 03-24, ESH24-CME | future | ES |
| ES1!, CME_MINI:ES1!, ES=F, @ES#C, ES.c.0 | continuous | ES |
| ESH4-ESM4, CLZ4:CLF5, ES H4-M4 | spread | ES |
| EURUSD, EUR/USD, EURUSD=X, BTC-USDT | pair | EURUSD, BTCUSDT |
| AAPL, BRK.B | ticker | AAPL, BRK.B |
| 7, front, ONE | unknown | none |
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from robust_fin.market.intake.forms import SPREADS

MONTHS = "FGHJKMNQUVXZ"
FUTURE, CONTINUOUS, SPREAD = "future", "continuous", "spread"
PAIR, TICKER, UNKNOWN = "pair", "ticker", "unknown"
_ROOT, _NAME = r"(?P<root>[A-Z0-9]{1,4}?)", r"(?P<root>[A-Z0-9]{1,4})"
_EXPIRY = rf"(?P<month>[{MONTHS}])(?P<year>\d{{1,2}}|\d{{4}})"
_OUTRIGHT = rf"[A-Z0-9]{{1,4}}?[{MONTHS}](?:\d{{1,2}}|\d{{4}})"
_EXCHANGE = r"(?:[-_. ](?:FUT[-_. ]?)?(?:CME|CBOT|NYMEX|COMEX|GLOBEX|EUREX|ICE|CFE))?"
_SPREAD_SIGN = "[-:/ ]{1,3}"
_FORMS = (
    (SPREAD, rf"^{_ROOT}{_EXPIRY}(?:{_SPREAD_SIGN}{_OUTRIGHT})+$"),
    (SPREAD, rf"^{_NAME}(?::[A-Z]{{2}})? (?:[{MONTHS}]\d{{1,2}}[-:])+[{MONTHS}]\d{{1,2}}$"),
    (FUTURE, rf"^{_ROOT}{_EXPIRY}{_EXCHANGE}$"),
    (FUTURE, rf"^{_NAME} (?P<number>0[1-9]|1[0-2])-(?P<year>\d{{2}})$"),
    (CONTINUOUS, rf"^(?:[A-Z_]+:)?{_ROOT}\d!$"),
    (CONTINUOUS, rf"^{_NAME}=F$"),
    (CONTINUOUS, rf"^@{_ROOT}(?:#[A-Z]?|)$"),
    (CONTINUOUS, rf"^{_NAME}\.[CVN]\.\d$"),
    (PAIR, r"^(?:[A-Z_]+:)?(?P<root>[A-Z]{2,5}[-/_][A-Z]{3,4})$"),
)
_CURRENCIES = (
    "USD|EUR|GBP|JPY|CHF|AUD|NZD|CAD|SEK|NOK|DKK|PLN|CZK|HUF|TRY|ZAR|MXN|SGD|HKD|CNH|XAU|XAG"
)
_JOINED_PAIR = re.compile(
    rf"^(?P<root>(?:{_CURRENCIES})(?:{_CURRENCIES})|[A-Z]{{2,5}}(?:USDT|USDC|BUSD))(?:=X)?$"
)
_COIN_PAIR = re.compile(r"^(?P<root>(?:BTC|ETH|XRP|SOL|LTC|BNB|ADA|DOGE)(?:USD|EUR|BTC))$")
_TICKER = re.compile(r"^(?P<root>[A-Z]{2,5}(?:[.-][A-Z]{1,2})?|[A-Z])$")
_NO_TICKERS = frozenset({"ONE", "FRONT", "NEXT", "BACK", "NONE", "CONT"})
_PATTERNS = tuple((kind, re.compile(pattern)) for kind, pattern in _FORMS)


class Code(NamedTuple):
    """Meaning of a contract code.

    Attributes:
        kind: future, continuous, spread, pair, ticker or unknown.
        product: root, pair without separator, or ticker; empty if unknown.
    """

    kind: str
    product: str


def parse_code(code: str) -> Code:
    """Return what a contract code names; only a ticker must be written in capitals."""
    plain = code.strip()
    text = plain.upper()
    for kind, pattern in _PATTERNS:
        if (match := pattern.match(text)) is not None:
            return Code(kind, re.sub(r"[-/_]", "", match["root"]))
    for pattern in (_JOINED_PAIR, _COIN_PAIR):
        if (match := pattern.match(text)) is not None:
            return Code(PAIR, match["root"])
    if plain not in _NO_TICKERS and (match := _TICKER.match(plain)) is not None:
        return Code(TICKER, match["root"])
    return Code(UNKNOWN, "")


class Expiry(NamedTuple):
    """Parts of a futures code.

    Attributes:
        root: of the product, such as ES.
        month: 1 to 12.
        year: digits of the year: one, two or four.
    """

    root: str
    month: int
    year: str


def parse_expiry(code: str) -> Expiry | None:
    """Return root, month and year of a futures code; None for any other code."""
    text = code.strip().upper()
    for kind, pattern in _PATTERNS:
        if (match := pattern.match(text)) is None:
            continue
        if kind != FUTURE:
            return None
        parts = match.groupdict()
        month = parts.get("number") or MONTHS.index(parts["month"]) + 1
        return Expiry(parts["root"], int(month), parts["year"])
    return None


def products(codes: Iterable[str]) -> dict[str, list[str]]:
    """Return the codes of each product, sorted; unknown codes and spreads are left out."""
    found: dict[str, list[str]] = {}
    for code in codes:
        kind, product = parse_code(code)
        if kind not in (SPREAD, UNKNOWN):
            found.setdefault(product, []).append(code)
    return {product: sorted(found[product]) for product in sorted(found)}


def sole_product(codes: Sequence[str]) -> str | None:
    """Return the product of all codes; None if there are several, or an unknown code."""
    kinds = {parse_code(code).product for code in codes}
    return kinds.pop() if len(kinds) == 1 and kinds != {""} else None


def left_out(codes: Sequence[str], *, product: str | None) -> Mapping[str, str]:
    """Return the codes whose rows are left out, with the reason.

    Calendar spreads beside outright contracts are always left out: their prices are differences.

    Args:
        codes: contract codes of the table.
        product: product to keep; None keeps all.
    """
    parsed = {code: parse_code(code) for code in codes}
    outrights = any(kind != SPREAD for kind, _ in parsed.values())
    reasons = {}
    for code, (kind, name) in parsed.items():
        if kind == SPREAD and outrights:
            reasons[code] = SPREADS
        elif product is not None and name != product.strip().upper():
            reasons[code] = "other products than source.product"
    return reasons

"""Contract codes: what they name, and which belong together."""

import pytest

from robust_fin.market.intake.products import left_out, parse_code, parse_expiry, products


@pytest.mark.parametrize(
    ("code", "kind", "product"),
    [
        ("ESH4", "future", "ES"),
        ("ESH24", "future", "ES"),
        ("ESH2024", "future", "ES"),
        ("ES 03-24", "future", "ES"),
        ("ESH24-CME", "future", "ES"),
        ("6EH4", "future", "6E"),
        ("M2KH24", "future", "M2K"),
        ("ES1!", "continuous", "ES"),
        ("CME_MINI:ES1!", "continuous", "ES"),
        ("ES=F", "continuous", "ES"),
        ("@ES#C", "continuous", "ES"),
        ("ES.c.0", "continuous", "ES"),
        ("ESH4-ESM4", "spread", "ES"),
        ("CLZ4:CLF5", "spread", "CL"),
        ("ES:BF H4-M4-U4", "spread", "ES"),
        ("EURUSD", "pair", "EURUSD"),
        ("EUR/USD", "pair", "EURUSD"),
        ("EURUSD=X", "pair", "EURUSD"),
        ("BTC-USDT", "pair", "BTCUSDT"),
        ("AAPL", "ticker", "AAPL"),
        ("BRK.B", "ticker", "BRK.B"),
        ("7", "unknown", ""),
        ("front", "unknown", ""),
        ("ONE", "unknown", ""),
        ("ESH124", "unknown", ""),
    ],
)
def test_code_has_its_kind_and_product(code: str, kind: str, product: str) -> None:
    assert parse_code(code) == (kind, product)


def test_expiry_is_read_from_every_futures_form() -> None:
    assert parse_expiry("esz4 ") == ("ES", 12, "4")
    assert parse_expiry("ES 03-24") == ("ES", 3, "24")
    assert parse_expiry("ESH2024") == ("ES", 3, "2024")
    assert parse_expiry("ESH4-ESM4") is None
    assert parse_expiry("AAPL") is None


def test_an_unknown_code_does_not_hide_a_second_product() -> None:
    assert products(["ESH4", "NQH4", "mine", "ESM4-ESU4"]) == {"ES": ["ESH4"], "NQ": ["NQH4"]}


def test_spreads_are_left_out_beside_outrights_only() -> None:
    spread = "ESH4-ESM4"
    assert left_out(["ESH4", spread], product=None) == {spread: "bars of calendar spreads"}
    assert left_out([spread], product=None) == {}


def test_choice_of_a_product_leaves_the_others_out() -> None:
    other = "other products than source.product"
    assert left_out(["ESH4", "NQH4", "mine"], product="es") == {"NQH4": other, "mine": other}

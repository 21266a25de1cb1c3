import pandas as pd
import pytest

from robust_fin.errors import SchemaError
from robust_fin.market.labelling import contract_expiry, contracts_by_expiry


@pytest.mark.parametrize(
    ("code", "first_year", "expected"),
    [
        ("ESH22", 2021, (2022, 3)),
        ("ESZ24", 2024, (2024, 12)),
        ("ESZ2024", 2024, (2024, 12)),
        ("ESZ4", 2024, (2024, 12)),
        ("ESZ4", 2023, (2024, 12)),
        ("ESZ4", 2014, (2014, 12)),
        ("ESH0", 2019, (2020, 3)),  # the decade turns
        ("ESH0", 2020, (2020, 3)),
        ("ESU9", 2019, (2019, 9)),
        ("ESU9", 2020, (2029, 9)),
        ("ESH00", 1999, (2000, 3)),  # the century turns
        ("ESZ99", 1999, (1999, 12)),
        ("esm23", 2023, (2023, 6)),
        (" ESM23 ", 2023, (2023, 6)),
        ("6EZ4", 2024, (2024, 12)),
        ("CLF25", 2024, (2025, 1)),
        ("GCQ25", 2025, (2025, 8)),
        ("ESZ024", 2024, None),
        ("ESA24", 2024, None),
        ("ONE", 2024, None),
        ("ES", 2024, None),
        ("SPY", 2024, None),
        ("20240315", 2024, None),
        ("", 2024, None),
    ],
)
def test_expiry_of_a_code(code: str, first_year: int, expected: tuple[int, int] | None) -> None:
    assert contract_expiry(code, first_year=first_year) == expected


def order(first_bars: dict[str, str]) -> list[str]:
    contract = pd.Series(list(first_bars), dtype="str").astype("category")
    time = pd.Series(pd.DatetimeIndex(list(first_bars.values()), tz="UTC"))
    return contracts_by_expiry(contract, time)


def test_contracts_come_in_the_order_of_expiry_not_of_the_alphabet() -> None:
    first = {
        "ESZ22": "2022-09-01",
        "ESH23": "2022-12-01",
        "ESM22": "2022-03-01",
        "ESU22": "2022-06",
    }
    assert order(first) == ["ESM22", "ESU22", "ESZ22", "ESH23"]


def test_expiry_decides_even_where_a_later_contract_has_the_earlier_first_bar() -> None:
    assert order({"ESU24": "2024-01-02", "ESM24": "2024-02-01"}) == ["ESM24", "ESU24"]


def test_one_digit_years_wrap_at_the_decade() -> None:
    first = {"ESH0": "2019-12-13", "ESZ9": "2019-09-13", "ESM0": "2020-03-13"}
    assert order(first) == ["ESZ9", "ESH0", "ESM0"]


def test_years_of_one_two_and_four_digits_agree() -> None:
    first = {"ESZ2024": "2024-09-01", "ESH4": "2023-12-01", "ESM24": "2024-03-01"}
    assert order(first) == ["ESH4", "ESM24", "ESZ2024"]


def test_unknown_codes_come_by_their_first_bar() -> None:
    assert order({"front": "2024-05-01", "back": "2024-06-01", "abel": "2024-04-01"}) == [
        "abel",
        "front",
        "back",
    ]


def test_one_unknown_code_among_known_ones_puts_all_by_their_first_bar() -> None:
    first = {"ESU24": "2024-01-02", "ESM24": "2024-02-01", "mine": "2024-01-15"}
    assert order(first) == ["ESU24", "mine", "ESM24"]


def test_the_first_bar_counts_wherever_it_stands() -> None:
    contract = pd.Series(["b", "a", "a", "b"], dtype="str").astype("category")
    time = pd.Series(pd.DatetimeIndex(["2024-01-05", "2024-01-03", "2024-01-04", "2024-01-01"]))
    assert contracts_by_expiry(contract, time) == ["b", "a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("ESH24", "ESH24 "), ("ESH24", "esh24"), ("ESH24", "ESH4"), (" Front", "front")],
)
def test_one_contract_is_not_written_two_ways(one: str, other: str) -> None:
    with pytest.raises(
        SchemaError, match=f"'{one}' and '{other}' are two spellings of the same contract"
    ):
        order({one: "2024-01-02", other: "2024-01-03", "ESM24": "2024-02-01"})


def test_the_same_month_of_two_products_is_two_contracts() -> None:
    first = {"ESH24": "2024-01-03", "NQH24": "2024-01-02", "mine": "2024-01-04"}
    assert order(first) == ["NQH24", "ESH24", "mine"]


def test_a_code_is_one_line() -> None:
    with pytest.raises(
        SchemaError, match=r"the contract 'ESH24\\nESM24' contains a line break.*1 of 2"
    ):
        order({"ESH24\nESM24": "2024-01-02", "ESM24": "2024-02-01"})

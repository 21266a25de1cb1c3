"""Forms of timestamps that are taken as found, and those that are refused as ambiguous."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from robust_fin.errors import SchemaError
from robust_fin.market.intake.stamps import StampForm, stamp_form
from robust_fin.market.parsing import to_utc
from tests.for_every import for_every

CHICAGO = "America/Chicago"
# the first stamp is 2024-03-03 23:00 UTC, 17:00 in Chicago and 18:00 in New York
FORMS: dict[str, tuple[list[Any], dict[str, Any], str, str | None]] = {
    "seconds": ([1709506800], {}, "epoch s", None),
    "seconds as text": (["1709506800"], {}, "epoch s", None),
    "milliseconds with a fraction": (["1709506800000.0"], {}, "epoch ms", None),
    "microseconds": ([1709506800000000], {}, "epoch us", None),
    "nanoseconds": ([1709506800000000000], {}, "epoch ns", None),
    "ISO 8601": (["2024-03-03T23:00:00Z"], {}, "ISO 8601", None),
    "ISO 8601 in a zone": (["2024-03-03 17:00"], {"timezone": CHICAGO}, "ISO 8601", None),
    "dots": (["2024.03.03 17:00"], {"timezone": CHICAGO}, "%Y.%m.%d %H:%M", None),
    "12-hour clock": (
        ["03/03/2024 05:00 PM", "03/13/2024 05:00 PM"],
        {"timezone": CHICAGO},
        "%m/%d/%Y %I:%M %p",
        None,
    ),
    "day first": (
        ["03/03/2024 17:00:00", "13/03/2024 17:00:00"],
        {"timezone": CHICAGO},
        "%d/%m/%Y %H:%M:%S",
        None,
    ),
    "month as a word": (["03-Mar-2024 17:00"], {"timezone": CHICAGO}, "%d-%b-%Y %H:%M", None),
    "digits": (["20240303 170000"], {"timezone": CHICAGO}, "ISO 8601", None),
    "EST": (["2024-03-03 18:00 EST"], {}, "ISO 8601", None),
    "CST in a zone": (["2024-03-03 17:00 CST"], {"timezone": CHICAGO}, "ISO 8601", None),
    "name of a zone": (["20240303 17:00:00 US/Central"], {}, "ISO 8601", "US/Central"),
    "GMT with an offset": (["2024-03-03 18:00 GMT-0500"], {}, "ISO 8601", None),
    "UTC in the header": (["2024-03-03 23:00"], {"header": "Gmt time"}, "ISO 8601", "UTC"),
}


def form_of(stamps: list[Any], **settings: Any) -> StampForm:
    words = {"time_format": None, "timezone": None, "header": "time", "origin": "es.csv"}
    return stamp_form(pd.Series(stamps), **(words | settings))


@for_every("name", list(FORMS))
def test_form_is_inferred_and_gives_the_instant(name: str) -> None:
    stamps, settings, form_name, zone = FORMS[name]
    form = form_of(stamps, **settings)
    assert (form.name, form.zone) == (form_name, zone)
    utc = to_utc(
        form.apply(pd.Series(stamps)),
        timezone=form.zone or settings.get("timezone"),
        time_format=form.pattern,
        origin="es.csv",
    )
    assert str(utc[0]) == "2024-03-03 23:00:00+00:00"


@for_every(
    "stamps, message",
    [
        (["03/04/2024 15:01"], "the first 1 timestamps do not tell day from month"),
        (["2024-03-03 17:00 CST"], "may mean America/Chicago or Asia/Shanghai"),
        (["2024-03-03 17:00 XYZ"], "end in XYZ, which are not abbreviations of one known"),
        (["2024-03-03 17:00 EST", "2024-03-03 17:00 CET"], "end in CET, EST, which are not"),
    ],
)
def test_ambiguous_stamps_are_refused(stamps: list[str], message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        form_of(stamps)


def test_numbers_that_fit_no_unit_keep_no_unit() -> None:
    for numbers in ([20240303], [1709506800.5], [1709506800, 1709506800000], [np.nan]):
        assert form_of(numbers).unit is None


def test_a_number_of_another_unit_is_left_for_the_message() -> None:
    form = form_of([1709506800])
    mixed = pd.Series([1709506800, 1709506800000])
    assert form.apply(mixed).equals(mixed)

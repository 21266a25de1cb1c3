"""One test for a law that must hold in every case of a list, such as every file or feature.

`@for_every("path", FILES)` stands where `@pytest.mark.parametrize("path", FILES)` would, and makes
one test of it instead of one a case: hundreds of tests that each take a millisecond cost seconds in
pytest itself. Every case is tried, and all that fail are reported together, each under its name.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Law = Callable[..., None]


def for_every(
    names: str, cases: Iterable[Any], *, ids: Callable[[Any], str] | None = None
) -> Callable[[Law], Law]:
    """Call the decorated test once for every case.

    Args:
        names: the arguments that a case fills in, separated by commas; all others are fixtures,
            which the cases share.
        cases: values of the argument, or a tuple of values where there are several.
        ids: name of a case in the report; by default its values.

    Raises:
        BaseExceptionGroup: one or more cases failed; it names them and holds their errors.
    """
    keys = [name.strip() for name in names.split(",")]
    tried = list(cases)
    named = ids or (lambda case: " ".join(map(str, case)) if len(keys) > 1 else str(case))

    def decorate(law: Law) -> Law:
        @functools.wraps(law)
        def every(**fixtures: Any) -> None:
            assert tried, "there is no case to try"
            failed: dict[str, BaseException] = {}
            for case in tried:
                values = case if len(keys) > 1 else (case,)
                try:
                    law(**dict(zip(keys, values, strict=True)), **fixtures)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised below
                    error.add_note(f"in the case {named(case)}")
                    failed[named(case)] = error
            if failed:
                told = f"{len(failed)} of {len(tried)} cases fail: {', '.join(failed)}"
                raise BaseExceptionGroup(told, list(failed.values()))

        signature = inspect.signature(law)
        fixtures = [one for one in signature.parameters.values() if one.name not in keys]
        every.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return every

    return decorate

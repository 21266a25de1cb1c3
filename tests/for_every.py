"""A decorator that checks all cases of a list in one test.

`@for_every("path", FILES)` replaces `@pytest.mark.parametrize("path", FILES)` with a single test:
hundreds of tests of a millisecond each cost seconds in pytest itself. Every case runs, and all
failures are reported together by name.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest

Test = Callable[..., None]


def for_every(
    names: str, cases: Iterable[Any], *, ids: Callable[[Any], str] | None = None
) -> Callable[[Test], Test]:
    """Call the decorated test with every case.

    Args:
        names: arguments that take the values of a case, separated by commas; all other arguments
            are fixtures, shared by the cases.
        cases: value of the argument, or a tuple of values for several arguments.
        ids: name of a case in the report; by default its values.

    Raises:
        BaseExceptionGroup: one or more cases failed; contains their errors.
    """
    keys = [name.strip() for name in names.split(",")]
    all_cases = list(cases)
    name_of = ids or (lambda case: " ".join(map(str, case)) if len(keys) > 1 else str(case))

    def decorate(test: Test) -> Test:
        @functools.wraps(test)
        def run_every_case(**fixtures: Any) -> None:
            assert all_cases, "there are no cases"
            failed: dict[str, BaseException] = {}
            for case in all_cases:
                values = case if len(keys) > 1 else (case,)
                try:
                    test(**dict(zip(keys, values, strict=True)), **fixtures)
                except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - raised as a group below
                    error.add_note(f"in the case {name_of(case)}")
                    failed[name_of(case)] = error
            if failed:
                message = f"{len(failed)} of {len(all_cases)} cases fail: {', '.join(failed)}"
                raise BaseExceptionGroup(message, list(failed.values()))

        signature = inspect.signature(test)
        fixtures = [p for p in signature.parameters.values() if p.name not in keys]
        run_every_case.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        return run_every_case

    return decorate

"""Where the examples in docstrings write: a folder of their own, not the checkout."""

import pytest


@pytest.fixture(autouse=True)
def _folder_of_the_examples(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path_factory.mktemp("examples"))
        monkeypatch.delenv("ROBUST_FIN_LEDGER", raising=False)

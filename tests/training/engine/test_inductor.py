"""Errors that a changed PyTorch causes become EngineDriftError; other errors keep their type."""

import errno
from pathlib import Path

import pytest
import torch

from robust_fin.errors import ConfigError
from robust_fin.training.engine.inductor import torch_drift
from robust_fin.training.engine.trace import EngineDriftError
from tests.training.engine.drift import DRIFTS, Drift
from tests.training.engine.test_loop_library import compiled

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@pytest.mark.parametrize("drift", DRIFTS, ids=lambda drift: drift.__name__)
def test_change_of_torch_raises_drift_error_that_names_the_version(
    drift: Drift, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    drift(monkeypatch)
    with pytest.raises(EngineDriftError, match="does not work with torch") as raised:
        compiled()
    assert f"torch {torch.__version__}: " in str(raised.value)
    assert str(raised.value).endswith(". Use engine=plain")


@pytest.mark.parametrize(
    ("raised", "kept"),
    [
        (KeyError("call"), False),
        (StopIteration(), False),
        (ImportError("no module"), False),
        (OSError("undefined symbol: aoti_torch_dtype_float32"), False),
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (ConfigError("a setting"), True),
        (RuntimeError("a bug"), True),
    ],
    ids=repr,
)
def test_boundary_converts_only_errors_of_a_changed_torch(raised: Exception, kept: bool) -> None:
    with pytest.raises(type(raised) if kept else EngineDriftError) as caught, torch_drift():
        raise raised
    assert (caught.value is raised) == kept

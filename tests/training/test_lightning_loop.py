"""The compiled engine in the Trainer matches the plain engine, counted in the same steps."""

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin.data.datamodule import BarDataModule
from robust_fin.errors import ConfigError, NonFiniteError, RobustFinError
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.training.fitting import Fit, FitPlan, fit
from tests.bars import config as composed
from tests.training.engine.drift import SAMPLE, Drift

STEPS = 35  # of an epoch


def settings(engine: str, *words: str) -> DictConfig:
    return composed(
        "+experiment=smoke", f"engine={engine}", "schedule=warmup_constant", "schedule.warmup=20",
        "trainer.enable_progress_bar=false", "trainer.log_every_n_steps=1", "split.refit=false",
        *words,
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> BarDataModule:
    return load_first_fold(settings("plain"))


def train(folder: Path, data: BarDataModule, engine: str, *words: str, resume: bool = False) -> Fit:
    hide_known_warnings()
    data.calls = None
    plan = FitPlan(folder, stage="", max_steps=None, resume=resume)
    return fit(fit_settings(settings(engine, *words)), data, plan)


def last_weights(folder: Path) -> torch.Tensor:
    kept = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([v.double().flatten() for k, v in kept.items() if k.startswith("net.")])


def assert_close(one: Path, other: Path) -> None:
    a, b = last_weights(one), last_weights(other)
    assert (a - b).norm() / b.norm() < 1e-5


def curve(folder: Path, tag: str) -> dict[int, float]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


@pytest.mark.parametrize(
    ("words", "steps", "validated"),
    [
        ((), 70, [34, 69]),
        (("engine.steps_per_call=16",), 70, [34, 69]),
        (("engine.steps_per_call=16", "trainer.max_steps=41"), 41, [34, 40]),
        (("engine.steps_per_call=16", "trainer.limit_train_batches=20"), 40, [19, 39]),
        (("engine.steps_per_call=16", "trainer.limit_train_batches=0.5"), 34, [16, 33]),
        (("engine.steps_per_call=4", "trainer.val_check_interval=10"), 70, None),
        (("engine.steps_per_call=4", "trainer.val_check_interval=0.5"), 70, None),
    ],
)
def test_compiled_engine_matches_plain_engine_in_numbers_and_steps(
    tmp_path: Path,
    data: BarDataModule,
    words: tuple[str, ...],
    steps: int,
    validated: list[int] | None,
) -> None:
    plain_words = [word for word in words if not word.startswith("engine.")]
    plain = train(tmp_path / "plain", data, "plain", *plain_words)
    compiled = train(tmp_path / "compiled", data, "compiled", *words)
    assert compiled.summary.steps == plain.summary.steps == steps
    assert compiled.summary.chosen_step == plain.summary.chosen_step
    assert_close(tmp_path / "compiled", tmp_path / "plain")
    for tag in ("train/objective", "train/gradient_norm", "lr", "val/skill"):
        ours, theirs = (curve(tmp_path / name, tag) for name in ("compiled", "plain"))
        assert list(ours) == list(theirs), tag
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-4, atol=1e-6)
    if validated is not None and "max_steps" not in str(words):
        assert list(curve(tmp_path / "compiled", "val/skill")) == validated


@pytest.mark.parametrize("first", ["plain", "compiled"])
@pytest.mark.parametrize("stop", ["trainer.max_epochs=1", "trainer.max_steps=41"])
def test_each_engine_resumes_the_others_run(
    tmp_path: Path, data: BarDataModule, first: str, stop: str
) -> None:
    second = "compiled" if first == "plain" else "plain"
    train(tmp_path / "whole", data, "plain")
    train(tmp_path / "split", data, first, stop)
    done = train(tmp_path / "split", data, second, resume=True)
    assert done.summary.steps == 70
    assert_close(tmp_path / "split", tmp_path / "whole")


@pytest.mark.parametrize("stop", ["trainer.max_epochs=1", "trainer.max_steps=41"])
def test_compiled_run_resumes_bit_for_bit(tmp_path: Path, data: BarDataModule, stop: str) -> None:
    words = ("engine.steps_per_call=8", "model.dropout=0.1")
    train(tmp_path / "whole", data, "compiled", *words)
    train(tmp_path / "split", data, "compiled", *words, stop)
    train(tmp_path / "split", data, "compiled", *words, resume=True)
    assert torch.equal(last_weights(tmp_path / "whole"), last_weights(tmp_path / "split"))


def test_error_names_the_first_nonfinite_step(tmp_path: Path) -> None:
    class Poisoned(BarDataModule):
        def x(self, span: str) -> torch.Tensor:
            x = super().x(span).clone()
            x[100, 0] = torch.nan if span == "train" else x[100, 0]
            return x

    data = load_first_fold(settings("plain"))
    data.__class__ = Poisoned
    steps = [data.order().begin()[1]]
    order = data.order()
    order.set_epoch(1)
    steps.append(order.begin()[1])
    (places,) = (torch.cat(steps) == 100).any(dim=1).nonzero(as_tuple=True)
    with pytest.raises(NonFiniteError, match=rf"at step {int(places[0])}, before the weights"):
        train(tmp_path, data, "compiled")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trainer.accumulate_grad_batches=2",), "trainer.accumulate_grad_batches=2 is not for"),
        (("trainer.precision=bf16-mixed",), "trainer.precision=bf16-mixed is not for"),
        (("trainer.gradient_clip_algorithm=value",), "gradient_clip_algorithm=value is not for"),
        (("trainer.val_check_interval=36",), "longer than an epoch of 35 steps"),
        (("engine.steps_per_call=0",), "engine.steps_per_call=0 must be above 0"),
        (("engine.name=fast",), "engine.name=fast must be plain or compiled"),
        (("engine.matmul=fast",), "matmul='fast' must be one of"),
    ],
)
def test_unsupported_settings_raise(
    tmp_path: Path, data: BarDataModule, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, data, "compiled", *words)


def test_other_optimizer_raises(tmp_path: Path, data: BarDataModule) -> None:
    chosen = settings("compiled")
    with open_dict(chosen):
        chosen.optimizer = OmegaConf.create(
            {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
        )
    plan = FitPlan(tmp_path, stage="", max_steps=None, resume=False)
    data.calls = None
    with pytest.raises(RobustFinError, match="SGD"):
        fit(fit_settings(chosen), data, plan)


def test_missing_compiler_falls_back_to_the_plain_engine_with_a_warning(
    tmp_path: Path,
    data: BarDataModule,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    done = train(tmp_path / "run", data, "compiled", "trainer.max_epochs=1")
    assert done.summary.steps == STEPS
    assert "the plain engine trains" in caplog.text


@pytest.mark.parametrize("drift", SAMPLE, ids=lambda drift: drift.__name__)
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_changed_torch_falls_back_to_the_plain_engine_with_one_warning(
    tmp_path: Path,
    data: BarDataModule,
    drift: Drift,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(tmp_path / "plain", data, "plain", "trainer.max_epochs=1")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    drift(monkeypatch)
    done = train(tmp_path / "compiled", data, "compiled", "trainer.max_epochs=1")
    assert done.summary.steps == STEPS
    assert torch.equal(last_weights(tmp_path / "compiled"), last_weights(tmp_path / "plain"))
    warnings = [r.getMessage() for r in caplog.records if "does not work with" in r.getMessage()]
    assert len(warnings) == 1
    assert f"torch {torch.__version__}: " in warnings[0]
    assert warnings[0].endswith("the plain engine trains, slower and with the same numbers")

"""python -m robust_fin.train +experiment=NAME [source.path=FILE] [group=choice] [key=value] [-m].

python -m robust_fin.train resume=RUN_FOLDER [trainer.max_epochs=N]
"""

import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from robust_fin.bundle import (
    Forecast,
    finish_bundle,
    mean_forecast,
    predictions_table,
    read_config,
    start_bundle,
)
from robust_fin.command import guarded, run_job
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.errors import ConfigError
from robust_fin.evaluation.console import result_table, run_table, show, target_table
from robust_fin.evaluation.significance import significance, verdict
from robust_fin.evaluation.spans import model_metrics, null_for_nan
from robust_fin.metrics import span_metrics
from robust_fin.settings import check_ranges, register_schema, typed
from robust_fin.training.baselines import BASELINES
from robust_fin.training.fitting import Fit, FitPlan, fit
from robust_fin.training.module import parameter_count

log = logging.getLogger(__name__)

METRICS, PREDICTIONS, ROWS = "metrics.json", "predictions.parquet", "rows.json"


def train(config: DictConfig, run: Path, *, resume: bool = False) -> dict[str, Any]:
    """The whole job: bars to metrics.json in the run folder.

    Args:
        config: composed by Hydra, or read from the bundle of the run that is resumed.
        run: the run folder.
        resume: go on from the checkpoints in `run`.

    Returns:
        What metrics.json holds.
    """
    if not resume:
        (run / METRICS).unlink(missing_ok=True)
    check_ranges(config)
    torch.set_num_threads(config.threads)
    data = load_data(config)
    (run / METRICS).unlink(missing_ok=True)  # its presence would say that the run is finished
    start_bundle(run, config, bars=data.market.bars)
    show(target_table(data.outcome("train"), data.target("train")))
    chosen = fit(config, data, FitPlan(run, stage="", max_steps=None, resume=resume))
    val = val_metrics(chosen, data)
    final, final_data, fits = chosen, data, [chosen]
    if config.split.refit:
        final_data = data.for_refit()
        same_choice = resume and chosen.summary.steps_per_second == 0
        plan = refit_plan(run, chosen, data, final_data, resume=same_choice)
        final = fit(config, final_data, plan)
        fits.append(final)
    return finish(config, run, final=final, data=final_data, chosen=data, fits=fits, val=val)


def load_data(config: DictConfig) -> BarDataModule:
    """Bars, features, labels and the fold."""
    features = instantiate(config.features)
    source, target, cache = (instantiate(config[key]) for key in ("source", "target", "cache"))
    market = Market.read(source, features=features, target=target, cache=cache)
    return BarDataModule(
        market,
        features=features,
        transform=instantiate(config.transform),
        split=instantiate(config.split),
        batch_size=config.batch_size,
        score_batch_size=config.score_batch_size,
        seed=config.seed,
        cache=cache,
    )


def refit_plan(
    run: Path, chosen: Fit, data: BarDataModule, whole: BarDataModule, *, resume: bool
) -> FitPlan:
    """As many epochs on train + val as the chosen weights had on train.

    A refit goes on from its own checkpoint only where the choice before it is as it was then.
    """
    epochs = chosen.summary.chosen_step / data.steps_an_epoch(1)
    steps = max(1, round(epochs * whole.steps_an_epoch(1)))
    return FitPlan(run, stage="refit", max_steps=steps, resume=resume)


def val_metrics(chosen: Fit, data: BarDataModule) -> dict[str, float]:
    """Figures of the val span by the chosen weights; NaN where there is no val span."""
    target = data.fitted.target
    trivial = {"train_median": target.median, "train_mean": target.mean}
    if not data.has_val():
        one = np.zeros(1)
        return dict.fromkeys(span_metrics(one, one, one, **trivial), float("nan"))
    score = mean_forecast(chosen.nets.scores(data.x("val"))).score
    return span_metrics(score, data.target("val"), data.outcome("val"), **trivial)


def test_predictions(final: Fit, data: BarDataModule) -> pd.DataFrame:
    """The predictions table of the test span: the net and every baseline, on the same rows."""
    examples, rows, target = data.market.examples, data.fitted.span("test"), data.fitted.target
    found = {"net": mean_forecast(final.nets.scores(data.x("test")))}
    for name, baseline in BASELINES.items():
        found[name] = Forecast.single(baseline(examples, rows, target))
    return predictions_table(examples, rows, found, target=target)


def finish(
    config: DictConfig,
    run: Path,
    *,
    final: Fit,
    data: BarDataModule,
    chosen: BarDataModule,
    fits: Sequence[Fit],
    val: dict[str, float],
) -> dict[str, Any]:
    """Score test once, write the run folder, metrics.json last, and say the verdict."""
    finish_bundle(
        run,
        nets=final.nets,
        transform=data.fitted.transform,
        target=data.fitted.target,
        names=data.features,
    )
    predictions = test_predictions(final, data)
    predictions.to_parquet(run / PREDICTIONS, index=False)
    ledger = chosen.ledger()
    write_json(run / ROWS, ledger.as_dict())
    target = data.fitted.target
    found = model_metrics(predictions, train_median=target.median, train_mean=target.mean)
    net_rows = predictions[predictions["model"] == "net"]
    tested = significance(net_rows, trivial=target.median)
    metrics = {
        "parameters": parameter_count(final.nets.net),
        "rows": ledger.rows_in,
        **{f"{name}_rows": count for name, count in ledger.spans.items()},
        "fit_rows": int(data.fitted.fold.train.size),
        **run_figures(fits),
        "seed": config.seed,
        **{f"val/{name}": value for name, value in val.items()},
        **{f"test/{name}": value for name, value in found.pop("net").items()},
        **interval_figures("test/skill", tested.skill),
        **interval_figures("test/rank_ic", tested.rank_ic),
    }
    for name, figures in found.items():
        metrics |= {f"baseline/{name}/{key}": value for key, value in figures.items()}
    metrics = null_for_nan(metrics)
    write_json(run / METRICS, metrics)
    show(result_table(metrics, title=f"{config.name} on {data.market.bars.origin}"))
    show(run_table(metrics), f"run folder   {run}", f"TensorBoard  tensorboard --logdir {run}")
    show(verdict(tested))
    return metrics


def run_figures(fits: Sequence[Fit]) -> dict[str, float]:
    """Steps and seconds of all fits of the run; a non-finite step would have ended it."""
    steps = sum(one.summary.steps for one in fits)
    seconds = sum(one.summary.seconds for one in fits)
    done = sum(one.summary.seconds * one.summary.steps_per_second for one in fits)
    return {
        "steps": steps,
        "steps_per_second": done / seconds,
        "fit_seconds": seconds,
        "nonfinite_steps": 0,
        "train/objective": fits[-1].summary.objective,
    }


def interval_figures(name: str, interval: Any) -> dict[str, float]:
    """The ends of a 95 % interval."""
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write at once or not at all."""
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def resume_run(words: Sequence[str]) -> None:
    """Go on with an interrupted run in its own folder.

    Raises:
        ConfigError: something else than trainer.max_* is overridden.
        BundleError: the folder is not one of a run.
    """
    values = dict(word.partition("=")[::2] for word in words)
    folder = Path(values.pop("resume")).expanduser()
    config = read_config(folder)
    for key in values:
        if key not in {f"trainer.{name}" for name in config.trainer if name.startswith("max_")}:
            raise ConfigError(
                f"{key}={values[key]} cannot be changed on resume; only trainer.max_epochs, "
                "trainer.max_steps and trainer.max_time can. Start another run for other settings"
            )
    given = OmegaConf.from_dotlist([f"{key}={value}" for key, value in values.items()])
    merged = OmegaConf.merge(typed(config), given)
    assert isinstance(merged, DictConfig)
    quiet()
    train(merged, folder, resume=True)


def quiet() -> None:
    """Lightning's hardware report is in the bundle; its warnings stay."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for expected in (
        r".*isinstance\(treespec, LeafSpec\)",  # Lightning 2.6 on torch 2.13
        "Checkpoint directory .* exists and is not empty",  # a resumed run
        "The number of training batches .* is smaller than the logging interval",  # of calls
        "Total length of `ScoreBatches` across ranks is zero",  # no val span was asked for
    ):
        warnings.filterwarnings("ignore", message=expected)


def job(config: DictConfig) -> None:
    """What Hydra calls, once a job of a sweep."""
    quiet()
    train(config, Path(HydraConfig.get().runtime.output_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    register_schema()
    if any(word.startswith("resume=") for word in words):
        return guarded(lambda: resume_run(words))
    return run_job(job, config_name="train", argv=words)


if __name__ == "__main__":
    sys.exit(main())

"""Plot the loss curves of the plain and the compiled engine over each other.

python benchmarks/engine_curves.py [--steps 2000] [--out docs/engine_curves.svg]

Both engines train the net of top5 from the same seed on the same synthetic bars, without dropout
(its masks differ between the engines). The script prints the largest distance of the two curves. It
needs matplotlib.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin.cli.composition import conf_folder
from robust_fin.runs.schema import register_schema
from robust_fin.runs.training import fit_settings, hide_known_warnings, load_first_fold
from robust_fin.runtime.terminal import show
from robust_fin.training.fitting import FitPlan, fit


def curve(engine: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and the objective at each step."""
    words = [
        "+experiment=top5", f"engine={engine}", f"trainer.max_steps={steps}",
        "trainer.max_epochs=-1", "trainer.log_every_n_steps=10", "source.synthetic.rows=60000",
        "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose("train", overrides=words)
    with tempfile.TemporaryDirectory() as folder:
        plan = FitPlan(Path(folder), stage="", max_steps=None, resume=False)
        fit(fit_settings(config), load_first_fold(config), plan)
        (events,) = {path.parent for path in Path(folder).rglob("events.out.*")}
        read = EventAccumulator(str(events), size_guidance={"scalars": 0})
        read.Reload()
        tag = next(one for one in read.Tags()["scalars"] if one.startswith("train/objective"))
        points = read.Scalars(tag)
    return np.array([p.step for p in points]), np.array([p.value for p in points])


def main() -> None:
    """Train twice, plot the curves, and print their largest distance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("docs/engine_curves.svg"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    hide_known_warnings()
    register_schema()
    curves = {name: curve(name, given.steps) for name in ("plain", "compiled")}
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (name, (steps, loss)), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot(steps, loss, style, label=name, linewidth=2.4 if style == "-" else 1.2)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("objective of the step's batch")
    axes.legend()
    figure.savefig(given.out)
    (plain_steps, plain), (steps, compiled) = curves.values()
    shared = np.isin(plain_steps, steps)
    apart = np.abs(plain[shared] - compiled[np.isin(steps, plain_steps)]).max()
    show(f"{shared.sum()} points in common, {apart:.2e} apart at most; {given.out}")


if __name__ == "__main__":
    main()

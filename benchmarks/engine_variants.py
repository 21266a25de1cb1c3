"""Measure the speed of several ways to compile the training step, in one run.

python benchmarks/engine_variants.py [--batch 16] [--quick] [--json FILE] [--markdown FILE]

The step is the engine's own (`robust_fin.training.engine.steps.TrainingStep`), of the study's net:
forward, backward, clipping and AdamW on flat parameters. Steps per second are measured without
Lightning. The ratio is relative to `one call a step`: torch.compile called from Python for each
step. `members` trains several members in one loop and counts member-steps.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch._inductor import config as inductor

from robust_fin.models.mlp import ResidualMLP
from robust_fin.runtime.terminal import show
from robust_fin.training.engine.step_state import (
    ParameterLayout,
    StepState,
    step_keys,
    step_scalars,
)
from robust_fin.training.engine.steps import StepLoop, StepSettings, TrainingStep
from robust_fin.training.engine.trace import LoopInputs
from robust_fin.training.losses import huber
from robust_fin.training.population.members import MemberStates
from robust_fin.training.population.steps import BlockLoop, MemberWork

ROWS, STEPS, BETAS = 100_000, 2048, (0.9, 0.999)
Timed = tuple[float, float]  # compile seconds, steps per second


def net(seed: int = 0) -> ResidualMLP:
    """Build the study's net in training mode."""
    torch.manual_seed(seed)
    return ResidualMLP(
        5,
        hidden=[16, 8],
        residual=False,
        input_norm=True,
        layer_norm=True,
        dropout=0.1,
        head_start=None,
    ).train()


def settings(matmul: str = "auto") -> StepSettings:
    """Return the study's settings of a step."""
    return StepSettings(1.0, BETAS, 1e-8, matmul)


def one_step() -> TrainingStep:
    """Build the step that every variant compiles."""
    model = net()
    loss = partial(huber, delta=0.1)
    return TrainingStep(
        model, ParameterLayout(model), torch.sigmoid, loss, settings(), False, False
    )


def loop(batch: int, matmul: str = "auto") -> StepLoop:
    """Build the loop of the engine."""
    return StepLoop(
        net(),
        link=torch.sigmoid,
        loss=partial(huber, delta=0.1),
        batch_size=batch,
        features=5,
        settings=settings(matmul),
    )


class Job:
    """Rows, learning rates and dropout masks, the same for every variant."""

    def __init__(self, batch: int, seconds: float) -> None:
        """Draw the inputs."""
        torch.manual_seed(1)
        self.x, self.target = torch.randn(ROWS, 5), torch.rand(ROWS)
        self.rows = torch.randint(ROWS, (STEPS, batch))
        self.lr = torch.full((STEPS,), 1e-4, dtype=torch.float64)
        scalars = step_scalars(self.lr, first_step=0, weight_decay=1e-4, betas=BETAS)
        self.moving = (scalars.float(), step_keys(0, first_step=0, steps=STEPS))
        self.batch, self._seconds = batch, seconds

    def timed(self, run: Callable[[], object], *, steps: int) -> Timed:
        """Return the compile seconds (first call minus a later one) and the steps per second."""
        began = time.perf_counter()
        run()
        first = time.perf_counter() - began
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < self._seconds:
            run()
            done += 1
        each = (time.perf_counter() - began) / done
        return max(0.0, first - each), steps / each


def called(job: Job, *, unroll: int, **options: Any) -> Timed:
    """Measure torch.compile of `unroll` steps, called from Python."""
    step, fast = one_step(), dict(options)

    def several(carry: tuple[Tensor, ...], x: Tensor, target: Tensor, *moving: Tensor) -> Any:
        outputs = []
        for at in range(unroll):
            now = LoopInputs(carry, tuple(m[at] for m in moving), (x[at], target[at]), ())
            carry, output = step(now)
            outputs.append(output)
        return carry, outputs

    compiled = torch.compile(several, fullgraph=True, options=fast or None)
    steps = 64 * unroll

    def run() -> None:
        carry = StepState(step.net).vectors
        with torch.no_grad():
            for first in range(0, steps, unroll):
                part = slice(first, first + unroll)
                rows = job.rows[part]
                moving = (one[part] for one in job.moving)
                carry, _ = compiled(carry, job.x[rows], job.target[rows], *moving)

    return job.timed(run, steps=steps)


def looped(job: Job, matmul: str) -> Timed:
    """Measure the engine's C++ loop."""
    engine, state = loop(job.batch, matmul), StepState(net())
    words = {"x": job.x, "target": job.target, "rows": job.rows, "lr": job.lr}
    run = partial(engine.run, state, **words, weight_decay=1e-4, seed=0)
    _, rate = job.timed(run, steps=STEPS)
    return engine.compile_seconds, rate


def in_blocks(job: Job, members: int) -> Timed:
    """Measure several members in one loop."""
    single = loop(job.batch)
    began = time.perf_counter()
    block = BlockLoop(single, members=members)
    seconds = time.perf_counter() - began
    states = MemberStates([net(seed) for seed in range(members)])
    work = MemberWork(job.x, job.target, job.rows, job.lr, 1e-4, 0, None, None)
    rows = [states.state(k) for k in range(members)]
    _, rate = job.timed(lambda: block.run(rows, [work] * members), steps=STEPS * members)
    return seconds, rate


def measure(batch: int, quick: bool) -> list[dict[str, Any]]:
    """Measure all variants, one row each."""
    torch.set_num_threads(1)
    job = Job(batch, 0.5 if quick else 3.0)
    simple = {"cpp.threads": 1, "cpp.dynamic_threads": False}
    variants: dict[str, Callable[[], Timed]] = {
        "one call a step": partial(called, job, unroll=1, **simple),
        "one call a step, cpp_wrapper": partial(called, job, unroll=1, cpp_wrapper=True, **simple),
        "8 steps unrolled in a call": partial(called, job, unroll=8, **simple),
        "loop in C++, products by the library": partial(looped, job, "extern"),
        "loop in C++, products fused (the engine)": partial(looped, job, "rows"),
        "members: 8 in one loop": partial(in_blocks, job, 8),
        "members: 32 in one loop": partial(in_blocks, job, 32),
    }
    if quick:
        variants.pop("8 steps unrolled in a call")
    found = []
    for name, run in variants.items():
        with inductor.patch(force_disable_caches=True):
            seconds, rate = run()
        torch.compiler.reset()
        found.append({"variant": name, "batch": batch, "compile_seconds": seconds, "rate": rate})
    return [{**row, "ratio": row["rate"] / found[0]["rate"]} for row in found]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Format the table of the documentation."""
    lines = ["| variant | batch | compiling, s | steps/s | ratio |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['variant']} | {row['batch']} | {row['compile_seconds']:.1f} | {row['rate']:,.0f} "
        f"| {row['ratio']:.1f} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print the table, and write the files given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[16])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    rows = [row for batch in given.batch for row in measure(batch, given.quick)]
    table = Table(title="ways to run a compiled step, one thread", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="left" if name == "variant" else "right")
    for row in rows:
        table.add_row(*(f"{v:,.1f}" if isinstance(v, float) else str(v) for v in row.values()))
    show(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Where do the seconds of a step go?"""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch.profiler import profile

from robust_fin.data.datamodule import BarDataModule
from robust_fin.debugging.check import plainly
from robust_fin.evaluation.console import show
from robust_fin.training.fitting import FitPlan, fit

FOLDER = "profile"
_SORTED_BY = "self_cpu_time_total"


@dataclass(frozen=True, slots=True)
class Profile:
    """Trains some steps with Lightning's own loop, under two profilers.

    profile/hooks.txt has Lightning's hooks, profile/operations.txt torch's operations, and
    profile/trace.json every one of them in time, for chrome://tracing or Perfetto.

    Attributes:
        max_steps: optimizer steps.
        lines: of the table to print.
    """

    max_steps: int
    lines: int

    def look(self, config: DictConfig, data: BarDataModule, folder: Path) -> None:
        """Train, write the tables and the trace, and print the first lines."""
        place = folder / FOLDER
        place.mkdir(exist_ok=True)
        watched = plainly(config)
        hooks = {
            "_target_": "lightning.pytorch.profilers.SimpleProfiler",
            "dirpath": str(place),
            "filename": "hooks",
        }
        OmegaConf.update(watched, "trainer.profiler", hooks, force_add=True)
        plan = FitPlan(folder, stage="", max_steps=self.max_steps, resume=False)
        with profile() as seen:
            done = fit(watched, data, plan)
        (place / "fit-hooks.txt").replace(place / "hooks.txt")
        operations = seen.key_averages()
        whole = operations.table(sort_by=_SORTED_BY, row_limit=-1)
        (place / "operations.txt").write_text(whole, encoding="utf-8")
        seen.export_chrome_trace(str(place / "trace.json"))
        show(operations.table(sort_by=_SORTED_BY, row_limit=self.lines, max_name_column_width=40))
        show(
            f"{done.summary.steps:,} steps, {done.summary.steps_per_second:,.0f} a second under "
            f"profilers: {place / 'operations.txt'}, hooks.txt, trace.json"
        )

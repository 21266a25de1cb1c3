"""python benchmarks/readme_table.py RUN_FOLDER ... writes the result tables.

The README gets a short table: skill and rank IC with intervals, and the comparison with ridge and
LightGBM in a word. docs/results.md gets all figures. Each row is read from a finished run folder:
its config, metrics.json and provenance.json. Nothing in the tables is typed by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

from robust_fin.bundle.config import read_config
from robust_fin.runs.run import Run

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: written by benchmarks/readme_table.py -->", "<!-- end of results -->"
SHORT_HEADER = (
    "| experiment | data | skill, % | rank IC | against ridge | against LightGBM |\n"
    "|---|---|---|---|---|---|"
)
FULL_HEADER = (
    "| experiment | data | test rows | skill over the constant | rank IC "
    "| net minus ridge: skill, rank IC | net minus LightGBM: skill, rank IC | fit | commit |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def percent(metrics: dict[str, Any], name: str, *, unit: str = " %") -> str:
    """Format a share, in percent, with its 95 % interval."""
    value, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.3f}{unit} [{low:+.3f}, {high:+.3f}]"


def plain(metrics: dict[str, Any], name: str, *, sign: str = "") -> str:
    """Format a number with its 95 % interval."""
    value, low, high = (metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def difference(metrics: dict[str, Any], baseline: str) -> str:
    """Format the paired difference to a baseline; empty when the run did not train it."""
    if metrics.get(f"against/{baseline}/skill") is None:
        return ""
    skill, ic = f"against/{baseline}/skill", f"against/{baseline}/rank_ic"
    return f"{percent(metrics, skill)}, {plain(metrics, ic, sign='+')}"


def comparison(metrics: dict[str, Any], baseline: str) -> str:
    """Say in a word how the skill compares: the whole interval must lie on one side of 0."""
    name = f"against/{baseline}/skill"
    if metrics.get(name) is None:
        return "not trained"
    if metrics[f"{name}_low"] > 0:
        return "better"
    return "worse" if metrics[f"{name}_high"] < 0 else "no clear difference"


def folds_text(config: Any, metrics: dict[str, Any]) -> str:
    """Describe the split of a run with several folds."""
    if metrics["folds"] == 1:
        return ""
    unit = f" by {config.split.by}" if "by" in config.split else ""
    return f", {config.split['_target_'].split('.')[-1]}{unit}, {metrics['folds']} folds"


def rows(run: Path) -> tuple[str, str, str]:
    """Return the short row, the full row and the commit of a finished run."""
    metrics, config = Run.open(run).metrics, read_config(run)
    about = json.loads((run / "bundle" / "provenance.json").read_text(encoding="utf-8"))
    data = about["data"]
    if config.source.path is None:
        synthetic = config.source.synthetic
        data = f"synthetic, {synthetic.rows:,} rows, planted rank IC {synthetic.signal:g}"
    first = [f"`{config.name}`{folds_text(config, metrics)}", data]
    ic = plain(metrics, "test/rank_ic")
    short = [
        *(*first, percent(metrics, "test/skill", unit=""), ic),
        *(comparison(metrics, "ridge"), comparison(metrics, "lightgbm")),
    ]
    full = [
        *(*first, f"{metrics['test_rows']:,}", percent(metrics, "test/skill"), ic),
        *(difference(metrics, "ridge"), difference(metrics, "lightgbm")),
        *(f"{metrics['fit_seconds']:.0f} s", f"`{about['commit']}`"),
    ]
    return line(short), line(full), about["commit"]


def line(cells: list[str]) -> str:
    """Join the cells of a table row."""
    return f"| {' | '.join(cells)} |"


def replace(document: Path, table: str) -> None:
    """Put a table between the two markers of a document."""
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def main(runs: list[Path], *, root: Path = ROOT) -> None:
    """Write both tables."""
    short, full, commits = zip(*(rows(run) for run in runs), strict=True)
    by_commit = f"Commit {', '.join(f'`{one}`' for one in dict.fromkeys(commits))}."
    replace(root / "README.md", "\n".join([SHORT_HEADER, *short, "", by_commit]))
    replace(root / "docs" / "results.md", "\n".join([FULL_HEADER, *full]))


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])

"""python benchmarks/readme_table.py RUN_FOLDER ... writes the result table of the README.

Each row is read from a finished run folder: its config, metrics.json and provenance.json. Nothing
in the table is typed by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

from robust_fin.bundle.folder import read_config
from robust_fin.evaluate import read_metrics

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- results: written by benchmarks/readme_table.py -->", "<!-- end of results -->"
HEADER = (
    "| experiment | data | test rows | skill over the constant | rank IC "
    "| less ridge: skill, rank IC | less LightGBM: skill, rank IC | fit | commit |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def percent(metrics: dict[str, Any], name: str) -> str:
    """A share with its 95 % interval."""
    value, low, high = (100 * metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.3f} % [{low:+.3f}, {high:+.3f}]"


def plain(metrics: dict[str, Any], name: str, *, sign: str = "") -> str:
    """A number with its 95 % interval."""
    value, low, high = (metrics[f"{name}{end}"] for end in ("", "_low", "_high"))
    return f"{value:{sign}.4f} [{low:{sign}.4f}, {high:{sign}.4f}]"


def less(metrics: dict[str, Any], baseline: str) -> str:
    """The net less a baseline, paired; empty where the run had none."""
    if metrics.get(f"against/{baseline}/skill") is None:
        return ""
    skill, ic = f"against/{baseline}/skill", f"against/{baseline}/rank_ic"
    return f"{percent(metrics, skill)}, {plain(metrics, ic, sign='+')}"


def folds_of(config: Any, metrics: dict[str, Any]) -> str:
    """How the folds were cut, where there are several."""
    if metrics["folds"] == 1:
        return ""
    unit = f" by {config.split.by}" if "by" in config.split else ""
    return f", {config.split['_target_'].split('.')[-1]}{unit}, {metrics['folds']} folds"


def row(run: Path) -> str:
    """One finished run."""
    metrics, config = read_metrics(run), read_config(run)
    about = json.loads((run / "bundle" / "provenance.json").read_text(encoding="utf-8"))
    data = about["data"]
    if config.source.path is None:
        synthetic = config.source.synthetic
        data = f"synthetic, {synthetic.rows:,} rows, planted rank IC {synthetic.signal:g}"
    cells = [
        f"`{config.name}`{folds_of(config, metrics)}",
        data,
        f"{metrics['test_rows']:,}",
        percent(metrics, "test/skill"),
        plain(metrics, "test/rank_ic"),
        less(metrics, "ridge"),
        less(metrics, "lightgbm"),
        f"{metrics['fit_seconds']:.0f} s",
        f"`{about['commit']}`",
    ]
    return "| " + " | ".join(cells) + " |"


def main(runs: list[Path]) -> None:
    """Put the table between its two marks."""
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join([HEADER, *(row(run) for run in runs)])
    README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main([Path(word) for word in sys.argv[1:]])

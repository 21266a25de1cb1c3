"""Write the results of the controls to docs/honesty.md as a table and a figure."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BEGIN = "<!-- controls: written by benchmarks/controls.py -->"
END = "<!-- end of controls -->"
PICTURE = "controls.png"


@dataclass(frozen=True, slots=True)
class Control:
    """Result of one data set.

    Attributes:
        signal: rank IC of the oracle; 0 for noise.
        seed: seed of the market and the net.
        estimate: rank IC on the test span.
        low: lower end of its 95 % interval.
        high: upper end.
        fresh: rank IC of the same net on fresh rows; NaN if not computed.
        skill: skill over the constant on the test span.
        skill_low: lower end of its 95 % interval.
        skill_high: upper end.
        claimed: whether the verdict claims skill.
    """

    signal: float
    seed: int
    estimate: float
    low: float
    high: float
    fresh: float
    skill: float
    skill_low: float
    skill_high: float
    claimed: bool

    @property
    def held(self) -> bool:
        """True if the interval contains the rank IC on fresh rows."""
        return self.low <= self.fresh <= self.high


def document(
    path: Path, planted: Sequence[Control], noise: Sequence[Control], *, rows: int, fresh: int
) -> None:
    """Write table and figure between the markers of a document.

    Raises:
        SystemExit: the document has no markers.
    """
    text = path.read_text(encoding="utf-8")
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not (found and closed):
        raise SystemExit(f"{path} has no lines {BEGIN} and {END}")
    draw(planted, noise, path.parent / PICTURE)
    table = markdown(planted, noise, rows=rows, fresh=fresh)
    path.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


def markdown(planted: Sequence[Control], noise: Sequence[Control], *, rows: int, fresh: int) -> str:
    """Format the counts, the date and the commit as a table."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent,
    ).stdout.strip()  # fmt: skip
    held, claimed = sum(one.held for one in planted), sum(one.claimed for one in noise)
    below = sum(one.high < one.fresh for one in planted)
    return "\n".join(
        [
            f"{rows:,} rows per set, {fresh:,} fresh rows; "
            f"{datetime.now(UTC).date()}; commit `{commit}`",
            "",
            "| control | sets | result | expected |",
            "|---|---|---|---|",
            f"| planted: the interval holds the rank IC on fresh rows | {len(planted)} | {held} "
            "| 90 to 99 of 100 |",
            f"| planted: the interval lies below it / above it | {len(planted)} "
            f"| {below} / {len(planted) - held - below} | |",
            f"| planted: skill is claimed | {len(planted)} | {sum(c.claimed for c in planted)} | |",
            f"| noise: skill is claimed | {len(noise)} | {claimed} | at most 8 of 100 |",
            "",
            f"![intervals of every set, sorted, with the rank IC on fresh rows]({PICTURE})",
        ]
    )


def draw(planted: Sequence[Control], noise: Sequence[Control], path: Path) -> None:
    """Draw the intervals as lines sorted by estimate; those that miss are thick and red."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    ordered = sorted(planted, key=lambda one: one.estimate)
    lines(left, [(one.low, one.high, one.held) for one in ordered])
    places = range(len(ordered))
    left.plot(places, [one.estimate for one in ordered], ".", color="#1f3a5f", label="test span")
    left.plot(places, [one.fresh for one in ordered], "_", color="black", label="fresh rows")
    left.set(title="planted: rank IC, 95 % intervals", xlabel="set, sorted", ylabel="rank IC")
    left.legend(loc="upper left")
    ordered = sorted(noise, key=lambda one: one.skill)
    percent = [(100 * one.skill_low, 100 * one.skill_high, not one.claimed) for one in ordered]
    lines(right, percent)
    right.plot(range(len(ordered)), [100 * one.skill for one in ordered], ".", color="#1f3a5f")
    right.axhline(0, color="black", linewidth=0.8)
    right.set(title="noise: skill over the constant", xlabel="set, sorted", ylabel="skill, %")
    figure.savefig(path, dpi=110)


def lines(axes: Any, intervals: Sequence[tuple[float, float, bool]]) -> None:
    """Draw one vertical line per interval."""
    for place, (low, high, well) in enumerate(intervals):
        color, width = ("#7aa6d6", 1.4) if well else ("#c0392b", 2.6)
        axes.vlines(place, low, high, color=color, linewidth=width)


if __name__ == "__main__":
    raise SystemExit("run benchmarks/controls.py --document FILE")

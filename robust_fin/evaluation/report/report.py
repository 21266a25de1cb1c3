"""The report of a run: report.html, one self-contained file with the verdict at the top."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml  # type: ignore[import-untyped]
from jaxtyping import Float

from robust_fin.evaluation.breakdowns import backtest_paths
from robust_fin.evaluation.report.page import Plot, RenderedPlot, Section, render_page
from robust_fin.evaluation.report.plots import Curves, draw_members, has_matplotlib, render_plot
from robust_fin.evaluation.report.sections import (
    calibration_section,
    edge_section,
    group_sections,
    models_section,
    path_section,
    paths_section,
    training_section,
)
from robust_fin.evaluation.significance import NET, Judgement, rows_by_model
from robust_fin.evaluation.tables import PlainTable, metric_label
from robust_fin.evaluation.verdict import format_number, format_percent, headline, verdict
from robust_fin.runtime.files import write_atomic
from robust_fin.runtime.records import (
    read_json,
    read_members_file,
    read_rows_file,
    read_settings,
)

REPORT = "report.html"
_MEMBER_LABELS = {"skill": "skill on test, %", "rank_ic": "rank IC on test"}
_MEMBER_SCALES = {"skill": 100.0, "rank_ic": 1.0}
KEPT = "kept"  # debug.labels of a run that is not a control
NO_MATPLOTLIB = (
    "The plots are missing because matplotlib is not installed: pip install 'robust-fin[report]'. "
    "All their numbers are in the tables."
)
NO_PLOTS = (
    "The plots were switched off by report.pictures=false; python -m robust_fin.evaluate draws "
    "them. All their numbers are in the tables."
)


@dataclass(frozen=True, slots=True)
class RunFiles:
    """Files of a run folder next to the predictions; empty where the file does not exist.

    Attributes:
        name: of the folder.
        config: settings of bundle/config.yaml.
        provenance: of bars and code.
        rows: the row ledger.
        members: settings and metrics of each member.
    """

    name: str
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: Mapping[str, Any]
    members: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, run: Path) -> "RunFiles":
        """Read the files of a run folder."""
        return cls(
            run.name,
            read_settings(run / "bundle" / "config.yaml"),
            _read_json(run / "bundle" / "provenance.json"),
            read_rows_file(run / "rows.json"),
            read_members_file(run / "members.json"),
        )


def write_report(
    run: Path,
    predictions: pd.DataFrame,
    judgement: Judgement,
    *,
    metrics: Mapping[str, Any],
    curves: Curves,
    pictures: bool,
    notes: Sequence[str] = (),
) -> dict[str, RenderedPlot]:
    """Write report.html into the run folder, atomically.

    Args:
        run: the run folder.
        predictions: its predictions table.
        judgement: of that table.
        metrics: contents of metrics.json.
        curves: logged during training.
        pictures: draw plots, if matplotlib is installed.
        notes: paragraphs below the verdict.

    Returns:
        The plots of the report by name; empty if none were drawn.
    """
    files = RunFiles.read(run)
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    sections = _sections(files, models, judgement, metrics, curves)
    paths = paths_section(backtest_paths(predictions))
    sections[1:1] = [] if paths is None else [paths]
    draw = pictures and has_matplotlib()
    plots = [plot for section in sections for plot in section.plots] if draw else []
    rendered = {plot.name: render_plot(plot) for plot in plots}
    missing = NO_PLOTS if has_matplotlib() else NO_MATPLOTLIB
    page = render_page(
        **_header(files, models[NET], judgement, notes),
        sections=sections,
        rendered=rendered,
        warnings=[] if rendered else [missing],
    )
    write_atomic(run / REPORT, page.encode())
    return rendered


def _header(
    files: RunFiles, net: pd.DataFrame, judgement: Judgement, notes: Sequence[str]
) -> dict[str, Any]:
    """Return the values of the page's header: headline, verdict and what was tested."""
    settings = files.config
    labels = settings.get("debug", {}).get("labels", KEPT)
    if labels != KEPT:
        notes = [f"This is a control: the net was trained on {labels} labels.", *notes]
    first, last = (str(time.date()) for time in (net["time"].min(), net["time"].max()))
    folds, contracts = net["fold"].nunique(), ", ".join(map(str, net["contract"].unique()))
    count = judgement.net.short_dates
    short = f", and {count} short date{'' if count == 1 else 's'}," if count else ""
    return {
        "name": settings.get("name", "run"),
        "folder": files.name,
        "headline": headline(judgement),
        "is_success": is_success(judgement),
        "verdict": verdict(judgement),
        "facts": f"{len(net):,} test rows in {folds} fold{'s' * (folds > 1)}, on "
        f"{judgement.net.dates:,} trading dates{short} from {first} to {last}, contracts "
        f"{contracts}.",
        "notes": notes,
    }


def is_success(judgement: Judgement) -> bool:
    """Return True if skill is claimed and a trade is shown to earn more than a round trip costs.

    Only then the page is marked in green; with unknown costs it is not.
    """
    edge = judgement.edge
    return headline(judgement) == "Skill" and edge.trade_ticks.is_above(edge.round_trip_ticks)


def _sections(
    files: RunFiles,
    models: Mapping[str, pd.DataFrame],
    judgement: Judgement,
    metrics: Mapping[str, Any],
    curves: Curves,
) -> list[Section]:
    config = yaml.safe_dump(dict(files.config), sort_keys=False) if files.config else ""
    trainer = files.config.get("trainer", {})
    by_value = trainer.get("gradient_clip_algorithm") == "value"
    clip = None if by_value else trainer.get("gradient_clip_val")
    members = members_section(files.members, metrics)
    calendar = files.config.get("source", {}).get("calendar", "CME_Equity")
    return [
        models_section(judgement, metrics),
        *group_sections(models, judgement, calendar=calendar),
        calibration_section(judgement.calibration),
        path_section(models),
        *([] if members is None else [members]),
        edge_section(judgement.edge),
        training_section(curves, metrics, clip=clip),
        rows_section(files.rows),
        provenance_section(files.provenance, config=config),
    ]


def rows_section(ledger: Mapping[str, Any]) -> Section:
    """Show how many input rows were used and why the others were dropped.

    Args:
        ledger: contents of rows.json; with several folds, one ledger per fold.
    """
    folds = {"rows": ledger} if "rows_in" in ledger else ledger
    if not folds:
        return Section("rows", "Row ledger", ("The run has no rows.json.",))
    ledgers = list(folds.values())
    body = [["input rows", *(f"{fold['rows_in']:,}" for fold in ledgers)]]
    for key, label in (("dropped", "dropped"), ("spans", "kept in")):
        for name in dict.fromkeys(name for fold in ledgers for name in fold[key]):
            counts = (f"{fold[key].get(name, 0):,}" for fold in ledgers)
            shown = name.replace("_", " ")
            body.append([f"{label}: {shown}" if key == "dropped" else f"{label} {shown}", *counts])
    columns = ("", *(name.replace("_", " ") for name in folds))
    caption = "Every input row is in exactly one span or was dropped for exactly one reason"
    tables = [PlainTable(caption, columns, body)]
    checks = [
        [name.replace("_", " "), format_number(value)]
        for name, value in ledgers[0]["reports"].items()
    ]
    if checks:
        tables.append(PlainTable("Reported but not changed", ("", "value"), checks))
    return Section("rows", "Row ledger", (), tuple(tables))


def provenance_section(provenance: Mapping[str, Any], *, config: str) -> Section:
    """Show data, versions and commit, and the full config.

    Args:
        provenance: contents of bundle/provenance.json.
        config: settings of bundle/config.yaml.
    """
    rows = provenance_rows(provenance)
    table = PlainTable("Data and code", ("", "value"), rows, numbers=False)
    folded = {"Full config": config} if config else {}
    return Section("origin", "Provenance and config", (), (table,), folded=folded)


def provenance_rows(provenance: Mapping[str, Any]) -> list[list[str]]:
    """Flatten provenance into rows of a name and a value."""
    rows = []
    for name, value in provenance.items():
        entries = value.items() if isinstance(value, Mapping) else [("", value)]
        for key, entry in entries:
            label = f"{name} {key}".strip().replace("_", " ")
            rows.append([label, "unknown" if entry is None else str(entry)])
    return rows


def members_section(
    members: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> Section | None:
    """Show how much the members of a population differ; None for a single net.

    Args:
        members: entries of members.json.
        metrics: contents of metrics.json.
    """
    spread = {name: member_values(members, f"test/{name}") for name in _MEMBER_LABELS}
    if len(members) < 2 or not all(values.size > 1 for values in spread.values()):
        return None
    frozen = sum(member.get("frozen_at") is not None for member in members)
    skills, ics = spread["skill"], spread["rank_ic"]
    description = (
        f"{len(members)} members, {frozen} frozen. Skill on test: "
        f"{format_percent(float(skills.min()))} to {format_percent(float(skills.max()))}, mean "
        f"forecast {format_percent(metrics['test/skill'])}. Rank IC on test: {ics.min():.4f} to "
        f"{ics.max():.4f}, mean forecast {format_number(metrics['test/rank_ic'])}."
    )
    labels, scales = _MEMBER_LABELS, _MEMBER_SCALES
    draw = partial(
        draw_members,
        spread={labels[name]: scales[name] * values for name, values in spread.items()},
        mean={
            labels[name]: scales[name] * float(metrics[f"test/{name}"] or 0.0) for name in spread
        },
    )
    plot = Plot(
        "members",
        "Spread of the members",
        "Bars count members; each tick below them is one member. The dashed line is the mean "
        "forecast of all members.",
        description,
        spread_table(members),
        draw,
    )
    return Section("members", "Members", (description,), plots=(plot,))


def spread_table(members: Sequence[Mapping[str, Any]]) -> PlainTable:
    """Tabulate the distribution of the members' metrics, span by span."""
    rows = []
    for span, name in ((span, name) for span in ("val", "test") for name in _MEMBER_LABELS):
        values = member_values(members, f"{span}/{name}")
        if values.size < 2:
            continue
        low, median, high = np.percentile(values, [2.5, 50, 97.5])
        ends = (values.min(), low, median, high, values.max())
        format_cell = format_percent if name == "skill" else format_number
        cells = (values.mean(), values.std(ddof=1), *ends)
        rows.append(
            [f"{metric_label(name)}, {span}", *(format_cell(float(cell)) for cell in cells)]
        )
    columns = ("", "mean", "std", "min", "2.5 %", "median", "97.5 %", "max")
    return PlainTable("Metrics of the individual members", columns, rows)


def member_values(members: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, " members"]:
    """Return a metric of every member that has it."""
    known = [member[name] for member in members if member.get(name) is not None]
    return np.array(known, dtype=np.float64)


def _read_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}

"""report.html: one file that needs no network, with the verdict on top."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
import yaml  # type: ignore[import-untyped]

from robust_fin.evaluation.report.page import (
    PlainTable,
    RenderedPlot,
    Section,
    has_matplotlib,
    page_html,
    render_paragraphs,
    render_plot,
)
from robust_fin.evaluation.report.sections import (
    calibration_section,
    edge_section,
    group_sections,
    members_section,
    models_section,
    path_section,
    training_section,
)
from robust_fin.evaluation.significance import NET, Judgement, rows_by_model
from robust_fin.evaluation.tensorboard.dashboard import FOLDER, shown_of, write_dashboard
from robust_fin.evaluation.tensorboard.event_files import Stages, read_curves
from robust_fin.evaluation.verdict import format_number, has_skill, verdict


def rows_section(ledger: Mapping[str, Any]) -> Section:
    """Where every input row went.

    Args:
        ledger: as rows.json has it; of several folds, one a fold.
    """
    folds = {"rows": ledger} if "rows_in" in ledger else ledger
    if not folds:
        return Section("rows", "Row ledger", ("The run has no rows.json.",))
    reasons = list(dict.fromkeys(key for one in folds.values() for key in one["dropped"]))
    spans = list(dict.fromkeys(key for one in folds.values() for key in one["spans"]))
    body = [["came in", *(f"{one['rows_in']:,}" for one in folds.values())]]
    body += [
        [f"dropped: {reason}", *(f"{one['dropped'].get(reason, 0):,}" for one in folds.values())]
        for reason in reasons
    ]
    body += [
        [f"kept in {span}", *(f"{one['spans'].get(span, 0):,}" for one in folds.values())]
        for span in spans
    ]
    columns = ("", *(name.replace("_", " ") for name in folds))
    found = PlainTable(
        "Every row that came in is in a span, or dropped for one reason", columns, body
    )
    first = next(iter(folds.values()))
    noticed = [[name, format_number(value)] for name, value in first["reports"].items()]
    seen = PlainTable("Noticed, and left as it was", ("", "value"), noticed)
    return Section("rows", "Row ledger", (), (found, seen) if noticed else (found,))


def origin_section(provenance: Mapping[str, Any], *, config: str) -> Section:
    """Data, versions, commit, and the whole config.

    Args:
        provenance: as bundle/provenance.json has it.
        config: text of bundle/config.yaml.
    """
    rows = origin_rows(provenance)
    table = PlainTable("What was read, with which code", ("", "value"), rows, numbers=False)
    folded = {"The whole config": config} if config else {}
    return Section("origin", "Provenance and config", (), (table,), folded=folded)


def origin_rows(provenance: Mapping[str, Any]) -> list[list[str]]:
    """What was read and with which code, and its value, as words."""
    rows = []
    for name, value in provenance.items():
        inner = value.items() if isinstance(value, Mapping) else [("", value)]
        rows += [[f"{name} {key}".strip().replace("_", " "), _said(one)] for key, one in inner]
    return rows


def _said(value: Any) -> str:
    return "not known" if value is None else str(value)


def config_text(config: str) -> str:
    """A config, as a block of YAML."""
    return f"```yaml\n{config}```\n"


def provenance_text(provenance: Mapping[str, Any]) -> str:
    """Data, versions and commit, as a table."""
    rows = (" | ".join(_cell(one) for one in row) for row in origin_rows(provenance))
    return "\n".join(["| what was read, with which code | |", "|---|---|", *rows]) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


REPORT, KEPT = "report.html", "kept"
NO_MATPLOTLIB = "pip install 'robust-fin[report]' draws the pictures; their numbers are all here."
NO_PICTURES = "The pictures were not asked for; python -m robust_fin.evaluate draws them."


@dataclass(frozen=True, slots=True)
class RunFolder:
    """What a run left beside its predictions; empty where it left none.

    Attributes:
        name: of the folder.
        config: text of the config.
        provenance: of bars and code.
        rows: the row ledger.
        members: settings, fate and figures of each.
        curves: by stage and tag.
    """

    name: str
    config: str
    provenance: Mapping[str, Any]
    rows: Mapping[str, Any]
    members: Sequence[Mapping[str, Any]]
    curves: Stages

    @classmethod
    def read(cls, run: Path) -> "RunFolder":
        """What lies in the folder."""
        config = run / "bundle" / "config.yaml"
        return cls(
            run.name,
            config.read_text(encoding="utf-8") if config.is_file() else "",
            _json(run / "bundle" / "provenance.json"),
            _json(run / "rows.json"),
            _json(run / "members.json").get("members", []),
            read_curves(run / FOLDER),
        )

    def settings(self) -> dict[str, Any]:
        """The config as plain values."""
        return yaml.safe_load(self.config) or {}

    def texts(self) -> dict[str, str]:
        """Config and provenance in Markdown."""
        kept = {"config": config_text(self.config)} if self.config else {}
        return kept | ({"provenance": provenance_text(self.provenance)} if self.provenance else {})


def write_report(
    run: Path,
    predictions: pd.DataFrame,
    found: Judgement,
    *,
    metrics: Mapping[str, Any],
    pictures: bool,
    notes: Sequence[str] = (),
) -> Path:
    """Write report.html, whole or not at all, and its pictures into TensorBoard.

    Args:
        run: the run folder.
        predictions: its table.
        found: of that table.
        metrics: as metrics.json has them.
        pictures: drawn where matplotlib is installed.
        notes: paragraphs under the verdict, such as how many trials there were.
    """
    folder = RunFolder.read(run)
    models = rows_by_model(predictions[predictions["outcome"].notna()])
    sections = report_sections(folder, models, found, metrics)
    drawings = drawings_of(sections) if pictures and has_matplotlib() else {}
    page = report_page(folder, models[NET], found, sections, drawings=drawings, notes=notes)
    unfinished = run / f"{REPORT}.part"
    unfinished.write_text(page, encoding="utf-8")
    unfinished.replace(run / REPORT)
    shown = shown_of(
        found,
        models[NET],
        metrics=metrics,
        drawings=drawings,
        curves=folder.curves,
        texts=folder.texts(),
    )
    write_dashboard(run / FOLDER, shown)
    return run / REPORT


def report_sections(
    folder: RunFolder,
    models: Mapping[str, pd.DataFrame],
    found: Judgement,
    metrics: Mapping[str, Any],
) -> list[Section]:
    """Everything below the verdict, in order."""
    trainer = folder.settings().get("trainer", {})
    clip = trainer.get("gradient_clip_val")
    members = members_section(folder.members, metrics)
    return [
        models_section(found, metrics),
        *group_sections(models, found),
        calibration_section(found.calibration),
        path_section(models),
        *([] if members is None else [members]),
        edge_section(found.edge),
        training_section(
            folder.curves,
            metrics,
            clip=None if trainer.get("gradient_clip_algorithm") == "value" else clip,
        ),
        rows_section(folder.rows),
        origin_section(folder.provenance, config=folder.config),
    ]


def drawings_of(sections: Sequence[Section]) -> dict[str, RenderedPlot]:
    """Every picture, by its name."""
    return {picture.name: render_plot(picture) for one in sections for picture in one.pictures}


def report_page(
    folder: RunFolder,
    net: pd.DataFrame,
    found: Judgement,
    sections: Sequence[Section],
    *,
    drawings: Mapping[str, RenderedPlot],
    notes: Sequence[str],
) -> str:
    """The HTML.

    Args:
        folder: of the run.
        net: labelled rows of the net.
        found: of the run.
        sections: below the verdict.
        drawings: by the name of the picture; none without matplotlib.
        notes: paragraphs under the verdict.
    """
    said = "Skill" if has_skill(found.net) else "No skill"
    settings = folder.settings()
    name, labels = str(settings.get("name", "run")), settings.get("debug", {}).get("labels", KEPT)
    if labels != KEPT:
        notes = [f"This is a control: the net was trained on {labels} labels.", *notes]
    first, last = (str(one.date()) for one in (net["time"].min(), net["time"].max()))
    folds, codes = net["fold"].nunique(), ", ".join(map(str, net["contract"].unique()))
    facts = (
        f"{len(net):,} test rows in {folds} fold{'s' * (folds > 1)}, of {found.net.dates:,} "
        f"trading dates, {first} to {last}, contracts {codes}."
    )
    kind = "skill" if has_skill(found.net) else "no-skill"
    header = (
        f'<p class="kind">{escape(name)}, {escape(folder.name)}</p>\n<h1>{said}</h1>\n'
        f'<p class="verdict">{escape(verdict(found))}</p>\n'
        f'<p class="facts">{escape(facts)}</p>\n{render_paragraphs(notes)}'
    )
    missing = [] if drawings else [NO_PICTURES if has_matplotlib() else NO_MATPLOTLIB]
    return page_html(
        title=f"{said}: {name}, {folder.name}",
        header=header,
        kind=kind,
        contents=[(one.name, one.heading) for one in sections],
        main=render_paragraphs(missing) + "".join(one.html(drawings) for one in sections),
        footer="<p>Written by robust_fin; it holds all it shows, and runs no script.</p>\n",
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

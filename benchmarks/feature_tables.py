"""python benchmarks/feature_tables.py [--bars FILE [--vix FILE]] writes docs/features.md.

The table of registered features needs no bars. With bars, `robust_fin.select` ranks the candidates
of rich, study and top5 together; an existing result in FOLDER/select is reused. LightGBM with the
settings of `baselines=full` is trained on the train span and scored on val with each feature set.
All sets use the same rows: those that have every candidate. No test row is scored.
"""

import argparse
import inspect
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin import select
from robust_fin.cli.composition import conf_folder
from robust_fin.data.folds import FoldSet, Market, cut_folds
from robust_fin.data.targets import RankTarget
from robust_fin.evaluation.intervals import Interval
from robust_fin.evaluation.significance import significance
from robust_fin.evaluation.verdict import format_interval, format_percent_interval
from robust_fin.features.registry import FEATURES
from robust_fin.ranking.candidates import FeatureSelector, format_ranks, format_thousandths
from robust_fin.ranking.learners import TrainingSpan
from robust_fin.runs.schema import register_schema

DOCUMENT = Path(__file__).parent.parent / "docs" / "features.md"
SETS = ("study", "top5", "rich", "rich_vix")
PACKAGE = "robust_fin."
TRIED = ("study", "top5", "rich")
CANDIDATE_HEAD = (
    "| group | candidate | in | lost rank IC, 1e-3 | with its group, 95 % interval | places "
    "| information, 1e-3 nats | on the direction |\n|---|---|---|---|---|---|---|---|"
)
SET_HEAD = (
    "| inputs | number | ridge on parts of train: rank IC | skill "
    "| LightGBM on val: rank IC | skill |\n|---|---|---|---|---|---|"
)


def registry_table() -> str:
    """Return a table of all registered features."""
    lines = ["| feature | what it is | lookback | unit |", "|---|---|---|---|"]
    ours = {name: one for name, one in FEATURES.items() if one.fn.__module__.startswith(PACKAGE)}
    for name, one in sorted(ours.items()):
        said = (inspect.getdoc(one.fn) or "").splitlines()[0]
        lines.append(f"| `{name}` | {said} | {one.lookback} | {one.unit} |")
    return "\n".join(lines)


def names_of(choices: Sequence[str]) -> dict[str, list[str]]:
    """Return the names of the features of each set."""
    return {one: list(composed([f"features={one}"]).features.names) for one in choices}


def composed(words: Sequence[str]) -> DictConfig:
    """Compose the config of select."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("select", overrides=["baselines=full", *words])


def answered(folder: Path, words: Sequence[str]) -> dict[str, Any]:
    """Return the result of select; run it unless the folder already has one."""
    path = folder / select.RANKING_FILE
    if not path.is_file() and select.main([*words, f"hydra.run.dir={folder}"]):
        raise SystemExit("select has failed")
    return json.loads(path.read_text(encoding="utf-8"))


def candidate_table(found: Mapping[str, Any], sets: Mapping[str, Sequence[str]]) -> str:
    """Return a table of all candidates, the best group first."""
    (answer,) = found["folds"]
    lines = [CANDIDATE_HEAD]
    for one in answer["candidates"]:
        alone, together = (Interval(**one[key]["rank_ic"]) for key in ("importance", "together"))
        name = f"**`{one['name']}`**" if one["name"] in answer["proposed"] else f"`{one['name']}`"
        cells = [
            str(one["group"]),
            name,
            ", ".join(choice for choice in SETS if one["name"] in sets.get(choice, ())),
            f"{1e3 * alone.estimate:.1f}",
            format_thousandths(together),
            format_ranks(one["places"]["importance"]),
            f"{1e3 * one['information']:.1f}",
            f"{1e3 * one['direction']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def said(found: Mapping[str, Any], vix: Path | None) -> str:
    """Describe the data and the stability of the answer in one paragraph."""
    (answer,) = found["folds"]
    dates, stable = answer["scored"], answer["stability"]
    also = f" with the VIX of {vix.name}" if vix else ""
    return (
        f"{found['data']}{also}, {answer['train_rows']:,} training rows, of which "
        f"{sum(one['rows'] for one in dates):,} are scored in {len(dates)} parts, "
        f"{dates[0]['first_date']} to {dates[-1]['last_date']}; learner {found['learner']}; "
        f"commit `{found['commit']}`. Proposed features are in bold. Mean "
        f"rank correlation of the order between parts: {stable['importance']:.2f} by importance, "
        f"{stable['information']:.2f} by information, {stable['direction']:.2f} by information on "
        f"the direction.\n\n```\n{found['override']}\n```"
    )


def set_table(
    config: DictConfig, found: Mapping[str, Any], sets: Mapping[str, Sequence[str]]
) -> str:
    """Return a table of each feature set with both learners, on the same rows."""
    torch.set_num_threads(config.threads)
    features, target = instantiate(config.features), instantiate(config.target)
    source, cache = instantiate(config.source), instantiate(config.cache)
    market = Market.read(source, features=features, target=target, cache=cache)
    cut = cut_folds(market.examples, instantiate(config.split))
    selector = FeatureSelector(instantiate(config.select), config.seed, config.threads)
    span = TrainingSpan.from_fold(
        market.examples, cut, 0, names=features.names, embargo=config.split.embargo
    )
    proposed = found["folds"][0]["proposed"]
    tried = {name: sets[name] for name in TRIED} | {f"the {len(proposed)} proposed": proposed}
    lines = [SET_HEAD]
    for name, names in tried.items():
        figures = selector.figures(span, names) | boosted(config, span, cut, names)
        cells = [
            format_interval(figures["rank_ic"]),
            format_percent_interval(figures["skill"], signed=False),
            format_interval(figures["val_rank_ic"]),
            format_percent_interval(figures["val_skill"], signed=False),
        ]
        lines.append(f"| {name} | {len(names)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def boosted(
    config: DictConfig, span: TrainingSpan, cut: FoldSet, names: Sequence[str]
) -> dict[str, Interval]:
    """Train LightGBM on train; return its rank IC and skill on val."""
    examples, columns = span.examples, [span.names.index(name) for name in names]
    val = cut.rows[cut.folds[0].val]
    target = RankTarget.fit(examples.outcome[span.rows])
    x = examples.features[:, columns]
    score = instantiate(config.baselines.lightgbm).fit(
        x[span.rows], target.transform(examples.outcome[span.rows])
    )(x[val])
    table = pd.DataFrame(
        {
            "trading_date": examples.trading_date[val],
            "score": score,
            "target": target.transform(examples.outcome[val]),
            "outcome": examples.outcome[val],
        }
    )
    figures = significance(table, trivial=target.median)
    return {"val_rank_ic": figures.rank_ic, "val_skill": figures.skill}


def replaced(text: str, name: str, content: str) -> str:
    """Return the document with new content between the markers of that name."""
    begin = f"<!-- {name}: written by benchmarks/feature_tables.py -->"
    end = f"<!-- end of {name} -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"the document has no lines {begin} and {end}")
    return f"{before}{begin}\n\n{content}\n\n{end}{after}"


def main(bars: Path | None, vix: Path | None, folder: Path, words: Sequence[str]) -> None:
    """Write the tables between their markers."""
    register_schema()
    sets = names_of(SETS if vix else SETS[:-1])
    text = replaced(DOCUMENT.read_text(encoding="utf-8"), "registry", registry_table())
    if bars is not None:
        every = dict.fromkeys(name for names in reversed(sets.values()) for name in names)
        words = [f"source.path={bars}", f"features.names=[{','.join(every)}]", *words]
        words += [f"source.vix_path={vix}"] if vix else []
        found = answered(folder / "select", words)
        answer = f"{said(found, vix)}\n\n{candidate_table(found, sets)}"
        text = replaced(text, "answer", answer)
        text = replaced(text, "sets", set_table(composed(words), found, sets))
    DOCUMENT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bars", type=Path)
    parser.add_argument("--vix", type=Path)
    parser.add_argument("--folder", type=Path, default=Path("outputs/features"))
    parser.add_argument("words", nargs="*", help="further overrides, such as source.fraction=0.1")
    given = parser.parse_args()
    main(given.bars, given.vix, given.folder, given.words)

"""python -m robust_fin.select [+experiment=NAME] [features=rich] [source.path=FILE] [select.k=5].

Ranks the candidate features on training rows alone, and says which few of them to train with.
"""

from robust_fin.cli.help import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("select")  # before torch is imported

import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin.bundle.folder import provenance
from robust_fin.cli.command import run_command
from robust_fin.data.folds import Market, cut_folds
from robust_fin.errors import ConfigError
from robust_fin.evaluation.intervals import Interval
from robust_fin.ranking.candidates import (
    NOTES,
    Ranking,
    RankingPlan,
    collinear_groups,
    interval_text,
    rank_candidates,
    rank_correlations,
    ranking_table,
    supported,
)
from robust_fin.ranking.importance import (
    PartSums,
    ScoredPart,
    beyond_chance,
    carried,
    directions,
    importances,
    part_sums,
    quantile_bins,
    shuffled_dates,
)
from robust_fin.ranking.learners import LEARNERS, Learner, TrainingSpan
from robust_fin.runs.schema import register_schema
from robust_fin.runs.settings import check_ranges
from robust_fin.runtime.atomic_files import write_atomic
from robust_fin.runtime.terminal import RESULT, show

FOUND, WORDS = "select.json", "features.txt"
CORRELATED_ROWS = 200_000  # evenly spaced; enough for the correlation of two columns


@dataclass(frozen=True, slots=True)
class Answer:
    """What the training rows of one fold say.

    Attributes:
        fold: its number.
        rows: training rows.
        judged: those of them that another fold validates or tests.
        scored: of each part: first and last trading date, and rows.
        ranking: of the candidates.
        learner: rank IC and skill of the learner on the scored parts, with all candidates and with
            those proposed. The latter were chosen on the same parts, so theirs flatter.
        proposed: the best few.
    """

    fold: int
    rows: int
    judged: int
    scored: tuple[dict[str, Any], ...]
    ranking: Ranking
    learner: dict[str, dict[str, Interval]]
    proposed: tuple[str, ...]

    def described(self) -> dict[str, Any]:
        """For JSON."""
        figures = self.learner.items()
        return {
            "fold": self.fold,
            "train_rows": self.rows,
            "train_rows_judged_elsewhere": self.judged,
            "scored": list(self.scored),
            "learner": {
                name: {key: asdict(one) for key, one in found.items()} for name, found in figures
            },
            "proposed": list(self.proposed),
            "supported": supported(self.ranking.candidates, self.proposed),
            **self.ranking.described(),
        }


def select(config: DictConfig, run: Path) -> list[Answer]:
    """Rank the candidates on the training rows of every fold, say it, and write select.json.

    Args:
        config: composed by Hydra.
        run: the run folder.
    """
    began, worked = time.perf_counter(), time.process_time()
    check_ranges(config)
    torch.set_num_threads(config.threads)
    trial = trial_of(config)
    features, split = instantiate(config.features), instantiate(config.split)
    source, target, cache = (instantiate(config[key]) for key in ("source", "target", "cache"))
    market = Market.read(source, features=features, target=target, cache=cache)
    cut = cut_folds(market.examples, split)
    answers = []
    for number in range(len(cut.folds)):
        span = TrainingSpan.of(
            market.examples, cut, number, names=features.names, embargo=split.embargo
        )
        answers.append(rank_span(span, trial, fold=number))
    override = features_words(answers[0].proposed, modules=config.features.modules)
    found = {
        **provenance(market.bars),
        "learner": trial.plan.learner,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "override": override,
        "folds": [one.described() for one in answers],
    }
    write_atomic(run / FOUND, (json.dumps(null_for_nan(found), indent=2) + "\n").encode())
    write_atomic(run / WORDS, f"{override}\n".encode())
    for one in answers:
        tell(one, origin=market.bars.origin)
    show(f"run folder  {run}", *last_words(answers[0], folds=len(answers)))
    show(override, level=RESULT)
    return answers


def trial_of(config: DictConfig) -> "SelectionTrial":
    """How the command line wants learners tried.

    Raises:
        ConfigError: a setting is out of its range.
    """
    plan = instantiate(config.select)
    if plan.learner not in LEARNERS:
        raise ConfigError(f"select.learner={plan.learner} must be one of {', '.join(LEARNERS)}")
    return SelectionTrial(plan, LEARNERS[plan.learner], config.seed, config.threads)


@dataclass(frozen=True, slots=True)
class SelectionTrial:
    """How a learner is tried on training rows.

    Attributes:
        plan: which parts, and how they are judged.
        learner: what is fitted.
        seed: of all that is drawn.
        threads: of the learner.
    """

    plan: RankingPlan
    learner: Learner
    seed: int
    threads: int

    def parts(self, span: TrainingSpan, names: Sequence[str]) -> Iterator[ScoredPart]:
        """Each part of a span with a learner of the rows before it, which has these inputs."""
        for one in span.parts(self.plan.parts, first=self.plan.first, names=names):
            forecast = self.learner(one.fit_x, one.fit_target, seed=self.seed, threads=self.threads)
            yield ScoredPart(
                one.x, one.target, one.outcome, one.trading_date, one.trivial, forecast
            )

    def carried_by(self, span: TrainingSpan, names: Sequence[str]) -> dict[str, Interval]:
        """Rank IC and skill of a learner with these inputs, over all parts."""
        parts = self.parts(span, names)
        return self.figures([part_sums(one, [], repeats=1, seed=self.seed) for one in parts])

    def figures(self, sums: Sequence[PartSums]) -> dict[str, Interval]:
        """Rank IC and skill from the sums of all parts."""
        found = carried(sums, draws=self.plan.draws, seed=self.seed)
        return dict(zip(("rank_ic", "skill"), found, strict=True))


def rank_span(span: TrainingSpan, trial: SelectionTrial, *, fold: int) -> Answer:
    """Rank the candidates of one training span.

    Args:
        span: the rows.
        trial: how.
        fold: number of the fold that the rows train.
    """
    plan, names, seed = trial.plan, span.names, trial.seed
    groups = collinear_groups(rank_correlations(span.x(most=CORRELATED_ROWS)), least=plan.collinear)
    alone = [(column,) for column in range(len(names))]
    sets = list(dict.fromkeys([*alone, *groups]))
    sums, found, scored = [], [], []
    for number, part in enumerate(trial.parts(span, names)):
        sums.append(part_sums(part, sets, repeats=plan.repeats, seed=seed + number))
        found.append(part_information(part, plan, seed=seed + number))
        scored.append(described_part(part))
    worth = dict(zip(sets, importances(sums, draws=plan.draws, seed=seed), strict=True))
    information, direction = np.array(found).transpose(2, 0, 1)
    ranking = rank_candidates(
        names,
        groups,
        single=[worth[one] for one in alone],
        together=[worth[one] for one in groups],
        information=information,
        direction=direction,
    )
    proposed = ranking.proposed(plan.k)
    learnt = {"all": trial.figures(sums), "proposed": trial.carried_by(span, proposed)}
    return Answer(
        fold, span.rows.size, span.judged, tuple(scored), ranking, learnt, tuple(proposed)
    )


def part_information(
    part: ScoredPart, plan: RankingPlan, *, seed: int
) -> list[tuple[float, float]]:
    """Of each column: mutual information with the rank target and with its direction, in nats."""
    draw, starts = np.random.default_rng(seed), part.date_starts()
    orders = [shuffled_dates(starts, rows=len(part.x), draw=draw) for _ in range(plan.repeats)]
    targets = quantile_bins(part.target, plan.bins), directions(part.target, median=part.trivial)
    columns = [quantile_bins(x, plan.bins) for x in part.x.T]
    rank, direction = ([beyond_chance(x, y, orders=orders) for x in columns] for y in targets)
    return list(zip(rank, direction, strict=True))


def described_part(part: ScoredPart) -> dict[str, Any]:
    """When it is, and how large."""
    first, last = part.trading_date[[0, -1]].astype("datetime64[D]").astype(str)
    return {"first_date": str(first), "last_date": str(last), "rows": len(part.x)}


def features_words(names: Sequence[str], *, modules: Sequence[str]) -> str:
    """What to add to the command line of a training run."""
    words = [f"features.names=[{','.join(names)}]"]
    return " ".join([*words, *([f"features.modules=[{','.join(modules)}]"] if modules else [])])


def tell(answer: Answer, *, origin: str) -> None:
    """One fold's table, and what the learner carries."""
    title = f"Candidates on the {answer.rows:,} training rows of fold {answer.fold}, {origin}"
    show(ranking_table(answer.ranking, proposed=answer.proposed, title=title))
    for name, figures in answer.learner.items():
        show(
            f"learner with {name}: rank IC "
            f"{interval_text(figures['rank_ic'], scale=1, digits=4)}, skill "
            f"{interval_text(figures['skill'], scale=100, digits=3)} %"
        )
    stability = [f"{value:.2f} by {name}" for name, value in answer.ranking.stability.items()]
    show(
        f"mean rank correlation of the order between {len(answer.scored)} parts: "
        f"{', '.join(stability)}"
    )


def last_words(answer: Answer, *, folds: int) -> list[str]:
    """How the table is read, and how far the proposal may be trusted."""
    known = supported(answer.ranking.candidates, answer.proposed)
    lines = [
        *NOTES,
        f"{len(known)} of the {len(answer.proposed)} proposed have an interval above 0; the "
        "learner's figures with those proposed flatter, for they were chosen on the same rows",
    ]
    if folds > 1:
        lines.append(
            f"of {folds} folds the first one's training rows propose; select.json has the others"
        )
    if answer.judged:
        lines.append(
            f"{answer.judged:,} of the {answer.rows:,} training rows are validated or tested by "
            "another fold, where these features flatter: judge them by split=holdout, or on a "
            "lockbox"
        )
    return lines


def null_for_nan(value: Any) -> Any:
    """What could not be computed is null."""
    if isinstance(value, dict):
        return {name: null_for_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def job(config: DictConfig) -> None:
    """What Hydra calls."""
    select(config, Path(HydraConfig.get().runtime.output_dir))


def main(argv: Sequence[str] | None = None) -> int:
    """The verb; returns the exit code."""
    register_schema()
    return run_command(job, config_name="select", argv=argv)


if __name__ == "__main__":
    sys.exit(main())

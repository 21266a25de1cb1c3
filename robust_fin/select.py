"""python -m robust_fin.select [+experiment=NAME] [features=rich] [source.path=FILE] [select.k=5].

Ranks the candidate features on training rows only, and proposes a few of them to train with.
"""

from robust_fin.cli.command import print_help_if_asked

if __name__ == "__main__":
    print_help_if_asked("select")  # before torch is imported

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from robust_fin.bundle.folder import provenance
from robust_fin.cli.command import run_command
from robust_fin.data.folds import Market, cut_folds
from robust_fin.evaluation.verdict import format_interval, format_percent_interval
from robust_fin.ranking.candidates import NOTES, FeatureSelector, FoldRanking, ranking_table
from robust_fin.ranking.learners import TrainingSpan
from robust_fin.runs.schema import check_settings, register_schema
from robust_fin.runtime.files import lock_folder, null_for_nan, write_atomic, write_json
from robust_fin.runtime.terminal import RESULT, show

RANKING_FILE, OVERRIDE_FILE = "select.json", "features.txt"


def select(config: DictConfig, run: Path) -> list[FoldRanking]:
    """Rank the features on the training rows of every fold; print and write the result.

    Args:
        config: composed by Hydra.
        run: the run folder.
    """
    started, cpu_started = time.perf_counter(), time.process_time()
    check_settings(config)
    torch.set_num_threads(config.threads)
    selector = FeatureSelector(instantiate(config.select), config.seed, config.threads)
    features, split = instantiate(config.features), instantiate(config.split)
    source, target, cache = (instantiate(config[key]) for key in ("source", "target", "cache"))
    market = Market.read(source, features=features, target=target, cache=cache)
    cut, folds = cut_folds(market.examples, split), list[FoldRanking]()
    for number in range(len(cut.folds)):
        span = TrainingSpan.from_fold(
            market.examples, cut, number, names=features.names, embargo=split.embargo
        )
        folds.append(selector.rank(span, fold=number))
    override = features_override(folds[0].proposed, modules=config.features.modules)
    content = {
        **provenance(market.bars),
        "learner": selector.plan.learner,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "override": override,
        "folds": [fold.as_dict() for fold in folds],
    }
    write_json(run / RANKING_FILE, null_for_nan(content))
    write_atomic(run / OVERRIDE_FILE, f"{override}\n".encode())
    for fold in folds:
        show_fold(fold, origin=market.bars.origin)
    show(f"run folder  {run}", *closing_notes(folds[0], folds=len(folds)))
    show(override, level=RESULT)
    return folds


def features_override(names: Sequence[str], *, modules: Sequence[str]) -> str:
    """Return the overrides that train with these features."""
    override = f"features.names=[{','.join(names)}]"
    return f"{override} features.modules=[{','.join(modules)}]" if modules else override


def show_fold(fold: FoldRanking, *, origin: str) -> None:
    """Print the table of a fold and the figures of its learner."""
    title = f"Candidates on the {fold.rows:,} training rows of fold {fold.fold}, {origin}"
    show(ranking_table(fold.ranking, proposed=fold.proposed, title=title))
    for name, figures in fold.learner.items():
        skill = format_percent_interval(figures["skill"], signed=False)
        show(f"learner with {name}: rank IC {format_interval(figures['rank_ic'])}, skill {skill}")
    stability = [f"{value:.2f} by {name}" for name, value in fold.ranking.stability.items()]
    show(
        f"mean rank correlation of the order between {len(fold.scored)} parts: "
        f"{', '.join(stability)}"
    )


def closing_notes(fold: FoldRanking, *, folds: int) -> list[str]:
    """Explain the table and the limits of the proposal.

    Args:
        fold: the first fold, whose proposal is used.
        folds: number of folds.
    """
    notes = [
        *NOTES,
        f"{len(fold.supported)} of the {len(fold.proposed)} proposed have an interval above 0; the "
        "learner's figures with those proposed are too good, because the features were chosen on "
        "the same rows",
    ]
    if folds > 1:
        notes.append(
            f"the proposal is that of the first of {folds} folds; select.json has the others"
        )
    if fold.judged:
        notes.append(
            f"{fold.judged:,} of the {fold.rows:,} training rows are val or test rows of another "
            "fold, where these features will look too good: judge them with split=holdout or on a "
            "lockbox"
        )
    return notes


def job(config: DictConfig) -> None:
    """Run select in Hydra's output folder."""
    run = Path(HydraConfig.get().runtime.output_dir)
    with lock_folder(run):
        select(config, run)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    register_schema()
    return run_command(job, config_name="select", argv=argv)


if __name__ == "__main__":
    sys.exit(main())

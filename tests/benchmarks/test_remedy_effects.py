"""Effects of remedies on jobs made by hand: differences, both intervals and the words."""

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from tests.conftest import ROOT

SEEDS = (0, 1, 2)
GAIN = np.array([0.08, 0.04, 0.02, 0.01])  # of skill, of each remedy


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules beside the script, as a run of it imports them."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import ablation_table
    import remedy_effects
    import stability_jobs

    found = {one.__name__: one for one in (ablation_table, remedy_effects, stability_jobs)}
    yield found
    for name in (*found, "ladder_table", "stability_tables"):
        sys.modules.pop(name, None)


def predictions(folder: Path, *, bias: float) -> None:
    """Sixty dates of two rows: the constant is 0.5, the net is off by `bias` from the targets."""
    target = np.tile([0.45, 0.55], 60)
    shared = {"trading_date": np.repeat(np.arange(60), 2), "target": target}
    net = pd.DataFrame(shared | {"model": "net", "score": target + bias})
    constant = pd.DataFrame(shared | {"model": "constant", "score": 0.5})
    pd.concat([net, constant]).to_parquet(folder / "predictions.parquet", index=False)


def job(folder: Path, key: tuple[bool, ...], script: ModuleType, *, frozen: int = 0) -> Any:
    """Skill of seed s: the gains of its remedies, and a hundredth of s for the first of them."""
    folder.mkdir()
    gain = float(GAIN @ key)
    predictions(folder, bias=0.05 * math.sqrt(1 - gain))  # loss is bias^2 / 2, of the constant's
    config = OmegaConf.create(
        {
            "name": "ablation",
            "target_scale": {"_target_": "x.RankScale" if key[0] else "x.ReturnScale"},
            "loss": {"_target_": "x.huber" if key[1] else "x.squared"},
            "schedule": {"warmup": 500 if key[2] else 0},
            "model": {"layer_norm": key[3], "residual": key[3], "hidden": [8]},
            "population": {"members": len(SEEDS)},
            "source": {"path": "es.parquet", "spikes": None},
            "transform": {"steps": [1]},
        }
    )
    members = [{"seed": s, "test/skill": gain + 0.01 * s * key[0]} for s in SEEDS]
    for one in members[:frozen]:
        del one["test/skill"]
    metrics = {
        "nonfinite_steps": frozen,
        "train/gradient_norm_max": 2.0 if key[1] else 8.0,
        "train/outcome_excess_kurtosis": 150.0,
        "train_rows": 1000,
        "test_rows": 120,
    }
    metrics |= {f"members/test/skill_{part}": gain for part in ("mean", "low", "high")}
    metrics |= {f"test/skill{part}": gain for part in ("", "_low", "_high")}
    (folder / "metrics.json").write_text("{}")
    return script.Job(folder, config, {"commit": "abc"}, metrics, tuple(members), "", frozen)


@pytest.fixture
def jobs(tmp_path: Path, scripts: dict[str, ModuleType]) -> list[Any]:
    keys = list(itertools.product((True, False), repeat=4))
    made = [job(tmp_path / str(n), k, scripts["stability_jobs"]) for n, k in enumerate(keys)]
    assert [scripts["ablation_table"].remedies_of(one) for one in made] == keys
    return made


def test_effect_is_the_mean_paired_difference(
    jobs: list[Any], scripts: dict[str, ModuleType]
) -> None:
    effects, found = scripts["remedy_effects"], {}
    for one in jobs:
        found[scripts["ablation_table"].remedies_of(one)] = one
    terms = effects.losses_by_date(found)
    got = effects.effect(found, 0, terms=terms)
    # by seed 0.08, 0.09, 0.10: mean 0.09, deviation 0.01, Student's 4.303 for two degrees
    assert got.over_seeds == pytest.approx(
        (0.09, 0.09 - 4.302653 * 0.01 / math.sqrt(3), 0.09 + 4.302653 * 0.01 / math.sqrt(3))
    )
    # every date alike: no spread over dates
    assert got.over_dates == pytest.approx((0.08, 0.08, 0.08))
    assert (got.frozen_with, got.frozen_without, got.members) == (0, 0, 24)
    assert got.norm_ratio == pytest.approx(1.0)
    assert got.helps
    assert not got.hurts
    loss = effects.effect(found, 1, terms=terms)
    assert loss.over_dates == pytest.approx((0.04, 0.04, 0.04))
    assert loss.norm_ratio == pytest.approx(0.25)
    ranks = effects.effect(found, 1, terms=terms, given={0: True})
    assert ranks.over_seeds[0] == pytest.approx(0.04)
    assert ranks.members == 12


def test_pairs_with_a_frozen_member_are_excluded(
    tmp_path: Path, scripts: dict[str, ModuleType]
) -> None:
    script, effects = scripts["stability_jobs"], scripts["remedy_effects"]
    on, off = (True, True, True, True), (False, True, True, True)
    found = {
        on: job(tmp_path / "on", on, script),
        off: job(tmp_path / "off", off, script, frozen=1),
    }
    got = effects.effect(found, 0, terms=effects.losses_by_date(found))
    assert got.over_seeds[0] == pytest.approx((0.09 + 0.10) / 2)  # seeds 1 and 2
    assert (got.frozen_with, got.frozen_without) == (0, 1)
    nothing = effects.effect(found, 1, terms={})
    assert nothing.members == 0
    assert math.isnan(nothing.over_seeds[0])


def test_sentences_follow_from_the_numbers(jobs: list[Any], scripts: dict[str, ModuleType]) -> None:
    text = scripts["ablation_table"].ablation(jobs)
    assert "1,000 training rows, excess kurtosis 150; 120 test rows; " in text
    assert "commit `abc`" in text
    full = "| rank | Huber | 500 | LayerNorm, residual | 0 of 3 | 2 | +15.000 % [+15.000, +15.000]"
    assert full in text
    assert "None of the 48 members met a step that was not finite" in text
    assert "- Rank target helps: +9.000 % [+6.516, +11.484] of skill over seeds" in text
    assert "On ranks, Huber loss beats squared error: the skill with Huber loss minus" in text


@pytest.mark.parametrize(
    ("seeds", "dates", "words"),
    [
        ((0.2, 0.1, 0.3), (0.1, 0.05, 0.2), "helps"),
        ((-0.2, -0.3, -0.1), (-0.1, -0.2, -0.05), "hurts"),
        ((0.2, 0.1, 0.3), (0.1, -0.05, 0.2), "helps on these dates, which others might not repeat"),
        ((-0.2, -0.3, -0.1), (0.0, -0.1, 0.1), "hurts on these dates, which others might not"),
        ((0.2, -0.1, 0.3), (0.1, 0.05, 0.2), "makes no difference that these runs can show"),
    ],
)
def test_verdict_needs_both_intervals(
    scripts: dict[str, ModuleType],
    seeds: tuple[float, float, float],
    dates: tuple[float, float, float],
    words: str,
) -> None:
    one = scripts["remedy_effects"].Effect(seeds, dates, 1.0, 0, 0, 5)
    assert scripts["ablation_table"].verdict(one).startswith(words)

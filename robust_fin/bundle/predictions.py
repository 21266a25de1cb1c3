"""Scores of nets and members, and the predictions table that evaluation reads."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from robust_fin.data.examples import Examples
from robust_fin.data.targets import RankTarget
from robust_fin.metrics import Yardstick, huber_terms

SCORE_BLOCK = 4096  # fixed, because the last bit of a score depends on the batch size
MEMBER_BLOCK = 16  # members scored together; fixed for the same reason
Link = Callable[[Tensor], Tensor]
Scores = Float[np.ndarray, "*rows"]
ToRank = Callable[[Scores], Scores]


def score_rows(
    net: nn.Module, link: Link, x: Float[Tensor, "rows features"]
) -> Float[np.ndarray, " rows"]:
    """Score rows in blocks of a fixed size, so that a row's score does not depend on the others.

    Args:
        net: is put in evaluation mode.
        link: raw score -> forecast.
        x: transformed features, float32, on the CPU.
    """
    net = net.eval().cpu()
    return _in_blocks(lambda block: link(net(block)).unsqueeze(0), x, members=1)[0]


@dataclass(frozen=True, slots=True)
class Nets:
    """A net, or the members of a population of one architecture.

    Attributes:
        net: with its weights; for a population only its architecture is used.
        link: raw score -> forecast.
        to_rank: forecast -> rank units, the unit of all metrics and tables.
        stack: state dict of a population with a leading member axis.
    """

    net: nn.Module
    link: Link
    to_rank: ToRank
    stack: Mapping[str, Float[Tensor, "members ..."]] | None = None

    @property
    def members(self) -> int:
        """Number of members."""
        return 1 if self.stack is None else len(next(iter(self.stack.values())))

    def scores(
        self, x: Float[Tensor, "rows features"]
    ) -> Iterator[Float[np.ndarray, "members rows"]]:
        """Yield scores in rank units, a block of members at a time to bound memory.

        Args:
            x: transformed features, float32, on the CPU.
        """
        if self.stack is None:
            yield self.to_rank(score_rows(self.net, self.link, x)[None])
            return
        for first in range(0, self.members, MEMBER_BLOCK):
            yield self.to_rank(self._block_scores(first, x))

    def _block_scores(
        self, first: int, x: Float[Tensor, "rows features"]
    ) -> Float[np.ndarray, "members rows"]:
        assert self.stack is not None
        net = self.net.eval().cpu()
        taken = {
            name: _filled(one[first : first + MEMBER_BLOCK]) for name, one in self.stack.items()
        }
        count = min(MEMBER_BLOCK, self.members - first)

        def one(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
            return self.link(functional_call(net, weights, (rows,)))

        both = vmap(one, in_dims=(0, None))
        return _in_blocks(lambda rows: both(taken, rows), x, members=MEMBER_BLOCK)[:count]


def _filled(part: Float[Tensor, "members ..."]) -> Float[Tensor, "block ..."]:
    """Pad a block of members by repeating the last one."""
    missing = MEMBER_BLOCK - len(part)
    return torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part


def _in_blocks(
    score: Callable[[Tensor], Tensor], x: Float[Tensor, "rows features"], *, members: int
) -> Float[np.ndarray, "members rows"]:
    """Score in blocks of a fixed size; pad the last one."""
    out = torch.empty(members, len(x), dtype=torch.float32)
    with torch.inference_mode():
        for start in range(0, len(x), SCORE_BLOCK):
            rows = x[start : start + SCORE_BLOCK]
            block = torch.zeros(SCORE_BLOCK, x.shape[1])
            block[: len(rows)] = rows
            out[:, start : start + len(rows)] = score(block)[:, : len(rows)]
    return out.numpy()


class Forecast(NamedTuple):
    """Forecasts of one model.

    Attributes:
        score: rank units; for a population the mean over members.
        std: standard deviation over members (ddof=1); NaN for a single member.
    """

    score: Float[np.ndarray, " rows"]
    std: Float[np.ndarray, " rows"]

    @classmethod
    def single(cls, score: Float[np.ndarray, " rows"]) -> "Forecast":
        """Return the forecast of a model without members."""
        return cls(score, np.full(score.size, np.nan))


class MemberMean:
    """Running mean and standard deviation over members, in float64.

    Sums are of differences to the first member, which loses no precision where members agree.
    """

    def __init__(self) -> None:
        self.members = 0

    def add(self, scores: Float[np.ndarray, "members rows"]) -> None:
        """Add a block of members."""
        if not self.members:
            self._first = scores[0].astype(np.float64)
            self._sum, self._squares = np.zeros((2, scores.shape[1]))
        for score in scores:
            apart = score - self._first
            self._sum += apart
            self._squares += apart * apart
        self.members += len(scores)

    def forecast(self) -> Forecast:
        """Return the mean so far; for a single member exactly its scores."""
        if self.members == 1:
            return Forecast.single(self._first)
        mean = self._sum / self.members
        spread = np.maximum(self._squares - self.members * mean * mean, 0.0)
        return Forecast(self._first + mean, np.sqrt(spread / (self.members - 1)))


def mean_forecast(blocks: Iterable[Float[np.ndarray, "members rows"]]) -> Forecast:
    """Return mean and standard deviation over blocks of members."""
    mean = MemberMean()
    for block in blocks:
        mean.add(block)
    return mean.forecast()


def predictions_table(
    examples: Examples,
    rows: np.ndarray,
    forecasts: Mapping[str, Forecast],
    *,
    target: RankTarget,
    fold: int = 0,
) -> pd.DataFrame:
    """Build the predictions table, one row per (time, contract, fold, model).

    Args:
        examples: all examples.
        rows: numbers of the scored rows.
        forecasts: model (net, or name of a baseline) -> forecast in rank units.
        target: fitted rank target.
        fold: number of the fold.

    Returns:
        time, contract, trading_date, close (start price of the outcome), fold, model, score,
        score_std (null for one member), target, outcome (fraction), label_end; target and outcome
        are null where the future is unknown.
    """
    outcome = examples.outcome[rows]
    known = ~np.isnan(outcome)
    ranks = np.full(rows.size, np.nan)
    ranks[known] = target.transform(outcome[known])
    shared = pd.DataFrame(
        {
            "time": pd.DatetimeIndex(examples.time[rows], tz="UTC"),
            "contract": examples.contract[rows],
            "trading_date": examples.trading_date[rows],
            "close": examples.close[rows],
            "fold": np.int32(fold),
        }
    )
    known_later = {"target": ranks, "outcome": outcome, "label_end": examples.label_end[rows]}
    parts = [
        shared.assign(
            model=model,
            score=forecast.score.astype(np.float32),
            score_std=forecast.std.astype(np.float32),
            **known_later,
        )
        for model, forecast in forecasts.items()
    ]
    table = pd.concat(parts, ignore_index=True)
    return table.assign(label_end=pd.DatetimeIndex(table["label_end"], tz="UTC"))


Losses = Float[np.ndarray, " dates"]


class DailyLosses:
    """Losses of a span by trading date.

    Args:
        target: rank target in [0, 1].
        trading_date: trading date of each row, datetime64.
        train_median: trivial forecast, rank units.

    Attributes:
        dates: distinct dates, increasing.
        rows: number of rows per date.
        trivial: mean Huber loss of the trivial forecast on each date, in squared rank units.
    """

    def __init__(
        self, target: Float[np.ndarray, " rows"], trading_date: np.ndarray, *, train_median: float
    ) -> None:
        self._target = target
        self.dates, self._date = np.unique(trading_date, return_inverse=True)
        self.rows = np.bincount(self._date, minlength=self.dates.size)
        self.trivial = self.losses(np.full(target.size, train_median))

    def losses(self, score: Float[np.ndarray, " rows"]) -> Losses:
        """Return the mean Huber loss of a forecast per date.

        Args:
            score: rank units.
        """
        terms = huber_terms(score, self._target)
        return np.bincount(self._date, weights=terms, minlength=self.dates.size) / self.rows

    def table(self, net: Losses, members: Mapping[int, Losses], *, fold: int = 0) -> pd.DataFrame:
        """Build a table with one row per (fold, member, trading_date).

        Args:
            net: losses of the net, or of the mean forecast of a population.
            members: member number -> losses.
            fold: number of the fold.

        Returns:
            fold, member (null for `net`), trading_date, rows, loss, loss_trivial.
        """
        models = 1 + len(members)
        numbers = pd.Series([None, *members], dtype="Int32")
        return pd.DataFrame(
            {
                "fold": np.full(models * self.dates.size, fold, dtype=np.int32),
                "member": numbers.repeat(self.dates.size).array,
                "trading_date": np.tile(self.dates, models),
                "rows": np.tile(self.rows, models),
                "loss": np.concatenate([net, *members.values()]),
                "loss_trivial": np.tile(self.trivial, models),
            }
        )


Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class SpanForecast:
    """Forecasts and metrics of a span, from one pass over the members.

    Attributes:
        forecast: mean and standard deviation over members.
        members: metrics of each member.
        kept: scores of the first members.
        losses: losses of each member per trading date; empty unless requested.
    """

    forecast: Forecast
    members: tuple[Figures, ...]
    kept: Float[np.ndarray, "kept rows"]
    losses: Float[np.ndarray, "members dates"]

    @classmethod
    def score(
        cls,
        nets: Nets,
        x: Float[Tensor, "rows features"],
        yardstick: Yardstick,
        *,
        keep: int,
        daily: DailyLosses | None = None,
    ) -> "SpanForecast":
        """Score a span.

        Args:
            nets: the net or members.
            x: transformed features, float32, on the CPU.
            yardstick: targets and baselines of the span.
            keep: number of members whose scores are kept, in float16.
            daily: computes losses per trading date; None skips them.
        """
        mean, figures, kept = MemberMean(), list[Figures](), list[np.ndarray]()
        losses: list[np.ndarray] = []
        for block in nets.scores(x):
            mean.add(block)
            exact = block.astype(np.float64)
            figures += [yardstick.metrics(score) for score in exact]
            losses += [] if daily is None else [daily.losses(score) for score in exact]
            kept += [score.astype(np.float16) for score in block[: max(0, keep - len(kept))]]
        whole = np.stack(kept) if kept else np.zeros((0, len(x)), np.float16)
        by_date = np.stack(losses) if losses else np.zeros((len(figures), 0))
        return cls(mean.forecast(), tuple(figures), whole, by_date)


def member_spread(members: tuple[Figures, ...]) -> Figures:
    """Return mean, standard deviation and 95 % interval over members of each metric.

    Args:
        members: metrics of each member; with fewer than two the standard deviation is NaN.

    Returns:
        NAME_mean, NAME_std (ddof=1), NAME_low and NAME_high (the 2.5 and 97.5
        percentiles).
    """
    found: Figures = {}
    for name in members[0]:
        values = np.array([one[name] for one in members])
        low, high = np.percentile(values, [2.5, 97.5])
        std = float(values.std(ddof=1)) if values.size > 1 else float("nan")
        found |= {f"{name}_mean": float(values.mean()), f"{name}_std": std}
        found |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    return found

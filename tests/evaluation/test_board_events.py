from pathlib import Path

import numpy as np
import pytest
from tensorboard.compat.proto.tensor_pb2 import TensorProto

from robust_fin.evaluation.tensorboard.event_files import (
    BUCKETS,
    histogram,
    scalars,
    text,
    write_events,
)
from tests.evaluation.boards import Board


def test_the_buckets_hold_every_number_between_their_ends() -> None:
    values = np.random.default_rng(0).normal(size=999)
    found = histogram("spread", values).histo
    assert (found.num, found.min, found.max) == (999, values.min(), values.max())
    assert found.sum == pytest.approx(values.sum())
    assert found.sum_squares == pytest.approx((values**2).sum())
    ends, counts = np.array(found.bucket_limit), np.array(found.bucket)
    assert (ends.size, counts.size) == (BUCKETS + 1, BUCKETS + 1)
    assert counts[0] == 0
    assert counts.sum() == 999
    for place in (1, BUCKETS // 2, BUCKETS - 1):
        inside = (values >= ends[place - 1]) & (values < ends[place])
        assert counts[place] == inside.sum()


def test_one_number_over_and_over_is_a_histogram() -> None:
    found = histogram("same", np.full(7, 0.5)).histo
    assert sum(found.bucket) == found.num == 7


def test_points_are_read_back_where_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.host"
    write_events(path, {-1: [text("words", "**a** | b")], 7: scalars({"one": 0.25, "two": -3.0})})
    board = Board(tmp_path)
    assert (board.curve("one"), board.curve("two")) == ({7: 0.25}, {7: -3.0})
    assert board.text("words") == "**a** | b"
    (event,) = board.events.Tensors("words")
    assert event.step == -1
    assert isinstance(event.tensor_proto, TensorProto)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]

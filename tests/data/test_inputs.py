"""Inputs: rows are the same however they are read; chunks match hand-made lists."""

import numpy as np
import pytest
import torch

from robust_fin.data.inputs import Inputs, gather_chunks
from robust_fin.data.transforms import FeatureTransform, QuantileNormal, RobustScaler
from robust_fin.errors import ConfigError

# two contracts: rows 0-3 and 5 are of contract 0, rows 4 and 6-8 of contract 1
CONTRACT = np.array([0, 0, 0, 0, 1, 0, 1, 1, 1], dtype=np.int8)
ALL = np.arange(CONTRACT.size)


def hand_made_inputs() -> Inputs:
    """Row r holds (r + 1, 10 (r + 1)), so that padding differs from every row."""
    return Inputs((ALL[:, None] + 1) * np.array([1.0, 10.0]), CONTRACT)


def random_inputs(rows: int = 500, contracts: int = 4, seed: int = 0) -> Inputs:
    """Rows whose contracts alternate."""
    draw = np.random.default_rng(seed)
    table = draw.standard_t(3, (rows, 3))
    fit = FeatureTransform.fit(table, names="abc", steps=[RobustScaler.fit, QuantileNormal.fit])
    return Inputs(table, draw.integers(0, contracts, rows), fit)


def test_rows_are_returned_in_the_order_of_the_index() -> None:
    """Without a transform, the rows are those of the table."""
    assert hand_made_inputs().rows(np.array([3, 0, 3])).tolist() == [[4, 40], [1, 10], [4, 40]]


def test_columns_are_selected_before_the_transform() -> None:
    """A transform of two columns is applied to those two."""
    inputs = random_inputs()
    index, columns = np.array([5, 0, 7]), (2, 0)
    fit = FeatureTransform.fit(inputs.table[:, columns], names="ca", steps=[RobustScaler.fit])
    chosen = Inputs(inputs.table, inputs.contract, columns=columns)
    assert np.array_equal(chosen.rows(index), inputs.table[np.ix_(index, columns)])
    expected = fit.transform(inputs.table[np.ix_(index, columns)])
    assert np.array_equal(chosen.with_transform(fit).rows(index), expected)


def test_row_has_the_same_bits_whichever_rows_are_read() -> None:
    """Read alone, with other rows, in a chunk, or from the table transformed at once."""
    inputs = random_inputs()
    whole = inputs.rows(slice(None))
    assert whole.dtype == np.float32
    some = np.array([3, 499, 250, 3])
    assert np.array_equal(inputs.rows(some), whole[some])
    index = inputs.chunk_index(np.arange(100, 400), context=7, length=5)
    chunks = inputs.chunks(index)
    assert np.array_equal(chunks[index.exists], whole[index.rows[index.exists]])
    table = inputs.tensor()
    assert np.array_equal(table[some].numpy(), whole[some])
    assert np.array_equal(gather_chunks(table, index).numpy(), chunks)


def test_chunks_of_one_contract() -> None:
    """Five rows in chunks of two: the last one is padded."""
    index = hand_made_inputs().chunk_index(np.array([0, 1, 2, 3, 5]), context=1, length=2)
    assert index.rows.tolist() == [[-1, 0, 1], [1, 2, 3], [3, 5, -1]]
    assert index.has_loss.tolist() == [[True, True], [True, True], [True, False]]
    assert index.exists.tolist() == [[False, True, True], [True, True, True], [True, True, False]]
    assert index.context == 1


def test_chunk_never_contains_two_contracts() -> None:
    """Chunks restart at each contract, and the context contains rows of that contract only."""
    index = hand_made_inputs().chunk_index(ALL, context=2, length=3)
    assert index.rows.tolist() == [
        [-1, -1, 0, 1, 2],
        [1, 2, 3, 5, -1],
        [-1, -1, 4, 6, 7],
        [6, 7, 8, -1, -1],
    ]
    assert index.loss_rows.tolist() == [0, 1, 2, 3, 5, 4, 6, 7, 8]


def test_context_may_lie_before_the_span_but_has_no_loss() -> None:
    """Rows before a span are read; rows after it are not."""
    index = hand_made_inputs().chunk_index(np.array([2, 3, 7]), context=3, length=2)
    assert index.rows.tolist() == [[-1, 0, 1, 2, 3], [-1, 4, 6, 7, -1]]
    assert index.has_loss.tolist() == [[True, True], [True, False]]
    assert index.loss_rows.tolist() == [2, 3, 7]


def test_offset_moves_the_chunk_boundaries() -> None:
    """Chunks start `offset` bars earlier; rows outside the span have no loss."""
    inputs, span = hand_made_inputs(), np.array([1, 2, 3, 5])
    index = inputs.chunk_index(span, context=1, length=3, offset=2)
    assert index.rows.tolist() == [[-1, -1, 0, 1], [1, 2, 3, 5]]
    assert index.has_loss.tolist() == [[False, False, True], [True, True, True]]
    assert inputs.chunk_index(span, context=1, length=3).rows.tolist() == [
        [0, 1, 2, 3],
        [3, 5, -1, -1],
    ]


def test_gap_in_the_span_has_no_loss_and_no_chunk() -> None:
    """A chunk without a row of the span is omitted; context may lie in the gap."""
    contract = np.zeros(10, dtype=np.int8)
    inputs = Inputs(np.zeros((10, 1)), contract)
    index = inputs.chunk_index(np.array([0, 1, 7, 8]), context=1, length=3)
    assert index.rows.tolist() == [[-1, 0, 1, 2], [5, 6, 7, 8]]
    assert index.has_loss.tolist() == [[True, True, False], [False, True, True]]


def test_chunks_contain_the_rows_and_padding_is_zero() -> None:
    """The values of a hand-made table, as an array and as a tensor."""
    inputs = hand_made_inputs()
    index = inputs.chunk_index(np.array([4, 6]), context=1, length=2)
    expected = [[[0, 0], [5, 50], [7, 70]]]
    assert inputs.chunks(index).tolist() == expected
    tensor = gather_chunks(inputs.tensor(), index)
    assert (tensor.dtype, tensor.tolist()) == (torch.float32, expected)


def test_every_row_of_the_span_has_exactly_one_loss() -> None:
    """For any context, length and offset; the context of a row is the bars before it."""
    inputs = random_inputs()
    span = np.sort(np.random.default_rng(1).permutation(500)[:300])
    for context, length, offset in [(0, 1, 0), (0, 7, 6), (3, 4, 1), (9, 500, 123), (40, 13, 12)]:
        index = inputs.chunk_index(span, context=context, length=length, offset=offset)
        assert np.array_equal(np.sort(index.loss_rows), span)
        assert index.rows.shape == (len(index), context + length)
        for rows in index.rows:
            own = rows[rows >= 0]
            of_contract = np.flatnonzero(inputs.contract == inputs.contract[own[0]])
            first = int(np.searchsorted(of_contract, own[0]))
            assert np.array_equal(own, of_contract[first : first + own.size])
            padding = int(np.argmax(rows >= 0))  # before the first bar of the contract only
            assert padding == 0 or own[0] == of_contract[0]


def test_take_selects_chunks() -> None:
    """Rows and loss masks are selected together."""
    index = hand_made_inputs().chunk_index(ALL, context=2, length=3)
    some = index.take(np.array([3, 0]))
    assert some.rows.tolist() == [[6, 7, 8, -1, -1], [-1, -1, 0, 1, 2]]
    assert some.loss_rows.tolist() == [8, 0, 1, 2]
    assert len(index.take(slice(1, None))) == 3


def test_empty_span_has_no_chunks() -> None:
    """The empty arrays have the shapes of chunks."""
    inputs = hand_made_inputs()
    index = inputs.chunk_index(np.array([], dtype=np.int64), context=2, length=3)
    assert (index.rows.shape, index.has_loss.shape) == ((0, 5), (0, 3))
    assert inputs.chunks(index).shape == (0, 5, 2)
    assert gather_chunks(inputs.tensor(), index).shape == (0, 5, 2)


@pytest.mark.parametrize(("context", "length", "offset"), [(-1, 2, 0), (0, 0, 0), (0, 2, 2)])
def test_invalid_chunk_sizes_raise(context: int, length: int, offset: int) -> None:
    """The error message contains the three sizes."""
    message = f"chunks of context={context}, length={length}, offset={offset} bars cannot be cut"
    with pytest.raises(ConfigError, match=message):
        hand_made_inputs().chunk_index(ALL, context=context, length=length, offset=offset)

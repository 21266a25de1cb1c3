import numpy as np
import pytest
from safetensors.numpy import load, save
from scipy.stats import ecdf, norm

from robust_fin.data.transforms import FeatureTransform, QuantileNormal, RobustScaler, SmoothClip
from robust_fin.errors import ConfigError, TransformError
from tests.bars import config, instantiate

NAMES = ["calm", "wild"]
KINDS = ["robust", "robust_clip", "quantile_normal"]


def random_features(rows: int, *, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return np.stack([draw.normal(5, 2, rows), draw.standard_t(2, rows) * 1e-4], axis=1)


def column(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float64)[:, None]


def test_robust_scaler_uses_median_and_quartiles() -> None:
    # quartiles of the first column are 1 and 3, of the second 10 and 30
    train = np.array([[0.0, 0], [1, 10], [2, 20], [3, 30], [4, 1000]])
    scaler = RobustScaler.fit(train, names=NAMES)
    assert scaler.median.tolist() == [2, 20]
    assert scaler.iqr.tolist() == [2, 20]
    assert scaler.transform(np.array([[5.0, 0], [2, 40]])).tolist() == [[1.5, -1], [0, 1]]


def test_error_names_the_feature_with_zero_interquartile_range() -> None:
    train = np.array([[0.0, 7], [1, 7], [2, 7], [3, 7], [4, 8]])
    message = r"feature wild has an interquartile range of 0 on 5 training rows \(median 7\)"
    with pytest.raises(TransformError, match=message):
        RobustScaler.fit(train, names=NAMES)


def test_smooth_clip_is_the_identity_near_0_and_bounded_by_limit() -> None:
    clip = SmoothClip.fit(column(0, 1), names=["calm"], limit=3)
    got = clip.transform(column(0, 1e-4, 3, -3, 4, 1e9))[:, 0]
    expected = [0, 1e-4, 3 / np.sqrt(2), -3 / np.sqrt(2), 4 / (5 / 3), 3]
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("limit", [0.0, -2.0])
def test_limit_not_above_0_raises(limit: float) -> None:
    with pytest.raises(ConfigError, match=rf"SmoothClip: limit={limit} must be > 0"):
        SmoothClip.fit(column(0, 1), names=["calm"], limit=limit)


def test_identity_leaves_features_unchanged_and_stores_nothing() -> None:
    train = random_features(40_000, seed=2)
    fitted = instantiate(config("transform=identity").transform)(train, names=NAMES)
    assert fitted == FeatureTransform(())
    got = fitted.transform(np.array([[4600.25, 1e-4], [0.0, -9.0]]))
    assert got.dtype == np.float32
    assert got.tolist() == np.array([[4600.25, 1e-4], [0.0, -9.0]], dtype=np.float32).tolist()
    assert np.array_equal(fitted.transform(train), train.astype(np.float32))
    assert fitted.arrays() == {}
    assert FeatureTransform.from_arrays({}) == fitted


def test_quantile_normal_matches_the_normal_quantile_of_the_ecdf() -> None:
    train = random_features(20_000, seed=0)
    levels = norm.cdf(QuantileNormal.fit(train, names=NAMES).transform(train))
    for index in range(2):
        expected = ecdf(train[:, index]).cdf.evaluate(train[:, index])
        inner = np.clip(expected, 0.0005, 0.9995)  # half a level at both ends
        np.testing.assert_allclose(levels[:, index], inner, atol=0.001)


def test_quantile_normal_interpolates_between_five_levels() -> None:
    # 5 levels over 0..8 are 0, 2, 4, 6, 8; values between them are interpolated
    fitted = QuantileNormal.fit(column(*range(9)), names=["calm"], levels=5)
    assert fitted.quantiles[:, 0].tolist() == [0, 2, 4, 6, 8]
    got = norm.cdf(fitted.transform(column(2, 4, 5, 6))[:, 0])
    np.testing.assert_allclose(got, [0.25, 0.5, 0.625, 0.75], rtol=1e-12)


def test_quantile_normal_maps_ties_to_the_middle_of_their_levels() -> None:
    # 0 covers the levels 0.25 to 0.75 of -2 0 0 0 2; the middle is the median
    fitted = QuantileNormal.fit(column(-2, 0, 0, 0, 2), names=["calm"], levels=5)
    assert fitted.transform(column(0)).item() == pytest.approx(0, abs=1e-12)
    skewed = QuantileNormal.fit(column(-2, 0, 0, 0, 0), names=["calm"], levels=5)
    assert norm.cdf(skewed.transform(column(0)).item()) == pytest.approx((0.25 + 1) / 2)


def test_quantile_normal_clips_the_tails_at_half_a_level() -> None:
    fitted = QuantileNormal.fit(random_features(5000, seed=1), names=NAMES)
    far = fitted.transform(np.array([[-1e6, 1e6], [np.inf, -np.inf]]))
    edge = norm.ppf(0.0005)
    np.testing.assert_allclose(far, [[edge, -edge], [-edge, edge]], rtol=1e-12)


def test_error_names_the_constant_feature() -> None:
    train = np.array([[0.0, 7], [1, 7], [2, 7]])
    with pytest.raises(TransformError, match=r"feature wild is 7 on all 3 training rows"):
        QuantileNormal.fit(train, names=NAMES)


@pytest.mark.parametrize("fit", [RobustScaler.fit, QuantileNormal.fit])
def test_nan_stays_nan(fit) -> None:
    fitted = fit(random_features(100, seed=2), names=NAMES)
    assert np.isnan(fitted.transform(np.array([[np.nan, 0.0]])))[0].tolist() == [True, False]


def test_each_step_is_fitted_on_the_output_of_the_previous_steps() -> None:
    train = random_features(500, seed=3)
    both = FeatureTransform.fit(train, names=NAMES, steps=[RobustScaler.fit, QuantileNormal.fit])
    scaler = RobustScaler.fit(train, names=NAMES)
    scaled = scaler.transform(train)
    expected = QuantileNormal.fit(scaled, names=NAMES).transform(scaled)
    assert np.array_equal(both.transform(train), expected.astype(np.float32))
    assert both.transform(train).dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_transform_safetensors_round_trip_is_exact(kind: str) -> None:
    fit = instantiate(config(f"transform={kind}").transform)
    fitted = fit(random_features(3000, seed=4), names=NAMES)
    arrays = {name: np.ascontiguousarray(array) for name, array in fitted.arrays().items()}
    restored = FeatureTransform.from_arrays(load(save(arrays)))
    assert [type(step) for step in restored.steps] == [type(step) for step in fitted.steps]
    fresh = random_features(3000, seed=5)
    assert np.array_equal(restored.transform(fresh), fitted.transform(fresh))


def test_more_than_ten_steps_keep_their_order() -> None:
    steps = [RobustScaler.fit, *[QuantileNormal.fit] * 10, RobustScaler.fit]
    fitted = FeatureTransform.fit(random_features(50, seed=6), names=NAMES, steps=steps)
    restored = FeatureTransform.from_arrays(fitted.arrays())
    kinds = [type(step).__name__ for step in restored.steps]
    assert kinds == ["RobustScaler", *["QuantileNormal"] * 10, "RobustScaler"]


@pytest.mark.parametrize("kind", KINDS)
def test_transform_of_a_row_does_not_depend_on_other_rows(kind: str) -> None:
    fitted = instantiate(config(f"transform={kind}").transform)(
        random_features(1000, seed=7), names=NAMES
    )
    rows = random_features(400, seed=8)
    alone = fitted.transform(rows[:100])
    assert np.array_equal(fitted.transform(np.concatenate([rows[:100], rows * 9]))[:100], alone)

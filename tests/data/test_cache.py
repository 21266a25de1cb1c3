"""Cached arrays equal freshly built ones; stale, damaged or partial entries are never used."""

import json
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from robust_fin.data import cache as cache_module
from robust_fin.data import folds
from robust_fin.data.cache import (
    ArraySink,
    Cache,
    FolderSink,
    MemorySink,
    NotCacheableError,
    cache_key,
    environment_fingerprint,
    fingerprint,
)
from robust_fin.data.datamodule import BarDataModule, Market
from robust_fin.data.splits import Holdout
from robust_fin.data.targets import ForwardReturn
from robust_fin.data.transforms import FeatureTransform, QuantileNormal, RobustScaler, SmoothClip
from robust_fin.errors import ConfigError
from robust_fin.features.registry import BARS, FEATURES, Feature, FeatureSet, Lookback
from robust_fin.market.synthetic import synthetic_market
from tests.bars import config, instantiate

ROWS = 12_000


@pytest.fixture(autouse=True)
def ignore_code_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the cache enabled if a source file is saved while the tests run."""
    monkeypatch.setattr(cache_module, "process_start", lambda: float("inf"))


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bars") / "es.parquet"
    synthetic_market(ROWS, seed=3, start="2022-03-02").bars.to_parquet(path, index=False)
    return path


def load_data(path: Path, cache: Cache | None, *overrides: str) -> BarDataModule:
    settings = config(f"source.path={path}", "source.timezone=UTC", *overrides)
    features, target = instantiate(settings.features), instantiate(settings.target)
    source = instantiate(settings.source)
    if cache is None:
        market = Market.from_bars(source.load(), features=features, target=target)
    else:
        market = Market.read(source, features=features, target=target, cache=cache)
    return BarDataModule(
        market,
        features=features,
        transform=instantiate(settings.transform),
        split=instantiate(settings.split),
        scale=instantiate(settings.target_scale),
        batch_size=64,
        score_batch_size=500,
        seed=3,
        cache=cache,
    )


def entries(cache: Cache) -> set[str]:
    return {path.name for path in Path(str(cache.folder)).iterdir() if path.is_dir()}


def assert_same(a: BarDataModule, b: BarDataModule) -> None:
    assert a.market.bars == b.market.bars
    assert a.row_ledger() == b.row_ledger()
    for span in ("train", "val", "test"):
        assert torch.equal(a.x(span), b.x(span))
        assert np.array_equal(a.target(span), b.target(span))
        assert np.array_equal(a.fitted.span(span), b.fitted.span(span))
    a.setup("fit")
    b.setup("fit")
    assert all(torch.equal(one, other) for one, other in zip(a._train, b._train, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(a._val, b._val, strict=True))
    for first, second in (
        (a.fitted.transform, b.fitted.transform),
        (a.fitted.target, b.fitted.target),
    ):
        left, right = first.arrays(), second.arrays()
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_hole_in_the_bars_is_a_warning_at_every_read(
    parquet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bars = pd.read_parquet(parquet)
    path = tmp_path / "hole.parquet"
    missing = bars["time"].between("2022-03-06", "2022-03-08 23:00")
    bars[~missing].to_parquet(path, index=False)
    cache = Cache(str(tmp_path / "kept"), 1.0)
    for _ in range(2):  # from the file, then from the cache
        caplog.clear()
        load_data(path, cache)
        (line,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert line.startswith("hole.parquet: holes: 2 trading dates after 2022-03-04")
        assert "(return across " in line


@pytest.mark.parametrize("transform", ["quantile_normal"])
def test_cold_and_warm_cache_give_the_result_without_a_cache(
    parquet: Path, tmp_path: Path, transform: str
) -> None:
    cache, override = Cache(str(tmp_path / "kept"), 1.0), f"transform={transform}"
    uncached = load_data(parquet, None, override)
    cold = load_data(parquet, cache, override)
    names = entries(cache)
    assert len(names) == 2  # the examples and the fold
    warm = load_data(parquet, cache, override)
    assert entries(cache) == names
    assert_same(cold, uncached)
    assert_same(warm, uncached)
    assert_same(warm.for_refit(), uncached.for_refit())
    assert len(entries(cache)) == 3


def test_warm_cache_reads_no_bars_and_memory_maps_tensors(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(str(tmp_path), 1.0)
    load_data(parquet, cache)
    monkeypatch.setattr(folds, "read_examples", lambda *_, **__: pytest.fail("bars were read"))
    monkeypatch.setattr(folds, "fit_fold", lambda *_, **__: pytest.fail("a fold was fitted"))
    warm = load_data(parquet, cache)
    x = warm.fitted.prepared["x_train"]
    assert isinstance(x.base, np.memmap)
    assert warm.x("train").data_ptr() == x.ctypes.data
    assert warm.x("train").dtype == torch.float32


def test_blocks_and_one_pass_share_cache_entries(parquet: Path, tmp_path: Path) -> None:
    blocks, whole = Cache(str(tmp_path / "a"), 1.0), Cache(str(tmp_path / "b"), 1.0)
    assert_same(load_data(parquet, blocks, "source.block_rows=900"), load_data(parquet, whole))
    assert entries(blocks) == entries(whole)


DATA_SETTINGS = [
    "source.fraction=0.9",
    "source.stamp=end",
    "source.calendar=24/7",
    "features.names=[close_change_pct,vwap]",
    "features.names=[vwap,close_change_pct,price_range,price_mom_3d,price_mom_5d]",
    "target.horizon=2",
    "target.max_gap=60",
    "transform=robust",
    "split.val_fraction=0.15",
    "split.embargo=3",
]


def test_every_data_setting_changes_the_cache_key(parquet: Path) -> None:
    keys = [keys_of(parquet), *(keys_of(parquet, setting) for setting in DATA_SETTINGS)]
    assert len({fold for _, fold in keys}) == len(keys)
    assert len({examples for examples, _ in keys}) == len(keys) - 3


def keys_of(path: Path, *overrides: str) -> tuple[str, str]:
    settings = config(f"source.path={path}", "source.timezone=UTC", *overrides)
    parts = {name: fingerprint(instantiate(settings[name])) for name in ("source", "features")}
    parts["target"] = fingerprint(instantiate(settings.target))
    rest = {name: fingerprint(instantiate(settings[name])) for name in ("transform", "split")}
    return cache_key(parts), cache_key(parts | rest)


def test_settings_that_do_not_affect_the_data_share_the_key(parquet: Path) -> None:
    overrides = ("batch_size=7", "seed=5", "source.block_rows=10", "source.synthetic.rows=5")
    assert keys_of(parquet, *overrides) == keys_of(parquet)


def test_key_depends_on_the_content_of_the_file(parquet: Path, tmp_path: Path) -> None:
    path = tmp_path / parquet.name
    path.write_bytes(parquet.read_bytes())
    assert keys_of(path) == keys_of(parquet)
    table = pd.read_parquet(parquet)
    table.loc[5, "close"] = table.loc[5, "high"]  # may be equal, but the volume below differs
    table.loc[5, "volume"] += 1
    before = os.stat(path)
    table.to_parquet(path, index=False)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert keys_of(path) != keys_of(parquet)


def test_key_depends_on_the_vix_file_and_the_calendar_overrides(
    parquet: Path, tmp_path: Path
) -> None:
    vix, dates = tmp_path / "vix.csv", tmp_path / "dates.csv"
    overrides = (f"source.vix_path={vix}", f"source.calendar_overrides={dates}")
    keys = []
    for close, day in ((20, 4), (21, 4), (21, 5)):
        vix.write_text(f"date,close\n2022-03-01,{close}\n")
        dates.write_text(f"trading_date,open,close\n2022-07-0{day},,\n")
        keys.append(keys_of(parquet, *overrides))
    assert len(set(keys)) == 3


def test_key_depends_on_the_code_and_the_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("market", "features", "data"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "one.py").write_text("x = 1\n")
    for name in ("metrics.py", "errors.py"):
        (tmp_path / name).write_text("")
    monkeypatch.setattr(cache_module, "PACKAGE", tmp_path)
    keys = [cache_key(environment_fingerprint())]
    (tmp_path / "features" / "one.py").write_text("x = 2\n")
    keys.append(cache_key(environment_fingerprint()))
    monkeypatch.setattr(cache_module, "library_version", lambda _: "0.0")
    keys.append(cache_key(environment_fingerprint()))
    assert len(set(keys)) == 3


def test_code_changed_after_the_process_started_is_not_cached(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache_module, "process_start", lambda: 0.0)
    with pytest.raises(NotCacheableError, match=r"\.py was changed after this process started"):
        environment_fingerprint()
    with caplog.at_level(logging.INFO):
        load_data(parquet, Cache(str(tmp_path), 1.0))
    assert entries(Cache(str(tmp_path), 1.0)) == set()
    assert "not caching prepared arrays" in caplog.text


def test_features_of_other_packages_are_not_cached(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Feature("own", Lookback(0, BARS), "points", lambda bars: bars["close"], chained=False)
    monkeypatch.setitem(FEATURES, "own", own)
    cache = Cache(str(tmp_path), 1.0)
    data = load_data(parquet, cache, "features.names=[own]")
    assert entries(cache) == set()
    assert_same(data, load_data(parquet, None, "features.names=[own]"))


@pytest.mark.parametrize(
    "foreign", [np.log, partial(np.log), lambda x: x, RobustScaler.fit.__func__]
)
def test_code_of_other_packages_has_no_fingerprint(foreign: object) -> None:
    if foreign is RobustScaler.fit.__func__:
        assert "RobustScaler.fit" in fingerprint(foreign)
        return
    with pytest.raises(NotCacheableError, match="is not code of this package"):
        fingerprint(foreign)


def test_fingerprints_differ_by_steps_and_arguments() -> None:
    clip = [partial(SmoothClip.fit, limit=limit) for limit in (3.0, 3.5)]
    steps = [[RobustScaler.fit], [RobustScaler.fit, clip[0]], [RobustScaler.fit, clip[1]]]
    steps += [[clip[0], RobustScaler.fit], [partial(QuantileNormal.fit, levels=11)]]
    whole = [partial(FeatureTransform.fit, steps=one) for one in steps]
    others = [
        ForwardReturn(1, None),
        ForwardReturn(1, 1.0),
        Holdout(val_fraction=0.1, test_fraction=0.2, embargo=0, refit=False),
    ]
    others += [FeatureSet.of(["vwap"]), FeatureSet.of(["vix"])]
    assert len({json.dumps(fingerprint(one)) for one in [*whole, *others]}) == len(whole + others)


def damage_byte(entry: Path) -> None:
    path = max(entry.glob("*.npy"), key=lambda file: file.stat().st_size)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def damage_manifest(entry: Path) -> None:
    path = entry / "manifest.json"
    path.write_text(path.read_text().replace('"rows_in": 12000', '"rows_in": 12001'))


def truncate_array(entry: Path) -> None:
    path = next(iter(sorted(entry.glob("*.npy"))))
    path.write_bytes(path.read_bytes()[:-8])


def remove_manifest(entry: Path) -> None:
    (entry / "manifest.json").unlink()


def remove_array(entry: Path) -> None:
    next(iter(sorted(entry.glob("*.npy")))).unlink()


@pytest.mark.parametrize(
    "damage", [damage_byte, damage_manifest, truncate_array, remove_manifest, remove_array]
)
def test_damaged_entry_is_rebuilt_with_a_warning(
    parquet: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Any
) -> None:
    cache = Cache(str(tmp_path), 1.0)
    whole = load_data(parquet, cache, "transform=robust")
    names = entries(cache)
    manifests = tmp_path.glob("*/manifest.json")
    damaged = [path.parent for path in manifests if "rows_in" in path.read_text()]
    damage(damaged[0])
    with caplog.at_level(logging.WARNING):
        again = load_data(parquet, cache, "transform=robust")
    assert f"cache entry {damaged[0]} is damaged" in caplog.text
    assert_same(again, whole)
    assert entries(cache) == names
    caplog.clear()
    load_data(parquet, cache, "transform=robust")
    assert "is damaged" not in caplog.text


def write(sink: ArraySink, scratch: Path) -> Mapping[str, Any]:  # noqa: ARG001
    sink.append("a", np.arange(3.0))
    return {"rows": 1}


def stop(sink: ArraySink, scratch: Path) -> Mapping[str, Any]:
    write(sink, scratch)
    raise KeyboardInterrupt


def test_interrupted_build_leaves_no_entry(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1.0)
    with pytest.raises(KeyboardInterrupt):
        cache.get_or_build({"a": 1}, stop)
    assert entries(cache) == set()


def test_unwritable_folder_disables_the_cache_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        entry = Cache(str(tmp_path / "file" / "kept"), 1.0).get_or_build({"a": 1}, write)
    assert entry.arrays["a"].tolist() == [0, 1, 2]
    assert "cannot write to cache.folder" in caplog.text


def test_entry_of_a_faster_process_is_used(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1.0)

    def build_after_another(sink: ArraySink, scratch: Path) -> Mapping[str, Any]:
        cache.get_or_build({"a": 1}, write)
        return write(sink, scratch)

    entry = cache.get_or_build({"a": 1}, build_after_another)
    assert entry.arrays["a"].tolist() == [0, 1, 2]
    assert len(entries(cache)) == 1


def test_least_recently_used_entry_is_removed_and_the_newest_kept(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 6e-7)  # 600 bytes: two entries

    def used(number: int, seconds: int) -> str:
        cache.get_or_build({"number": number}, write)
        entry = tmp_path / cache_key({"number": number})
        if entry.is_dir():
            os.utime(entry, (seconds, seconds))
        return entry.name

    first, second = used(1, 100), used(2, 200)
    used(1, 300)
    third = used(3, 400)
    assert third in entries(cache)
    assert first in entries(cache)
    assert second not in entries(cache)
    tiny = Cache(str(tmp_path), 1e-9)
    tiny.get_or_build({"number": 4}, write)
    assert entries(tiny) == {cache_key({"number": 4})}


def test_old_unfinished_build_is_removed(tmp_path: Path) -> None:
    for name, age in ((".unfinished-old", 1e6), (".unfinished-recent", 10.0)):
        (tmp_path / name).mkdir()
        then = os.stat(tmp_path).st_mtime - age
        os.utime(tmp_path / name, (then, then))
    cache = Cache(str(tmp_path), 1.0)
    cache.get_or_build({"a": 1}, write)
    assert entries(cache) == {".unfinished-recent", cache_key({"a": 1})}


def test_folder_with_other_files_raises(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.npy").write_bytes(b"years of work")
    message = rf"cache\.folder={tmp_path} holds files that are no cache \(1, such as thesis\)"
    with pytest.raises(ConfigError, match=message):
        Cache(str(tmp_path), 1e-9).get_or_build({"a": 1}, write)
    assert (tmp_path / "thesis" / "chapter.npy").read_bytes() == b"years of work"


def test_trimming_keeps_foreign_folders_and_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("manifest.json", "a.npy"):
        (outside / name).write_bytes(b"not of the cache")
    cache = Cache(str(tmp_path / "cache"), 1e-9)
    cache.get_or_build({"a": 1}, write)
    folder = tmp_path / "cache"
    (folder / "notes").mkdir()
    (folder / "notes" / "a.npy").write_bytes(b"not of the cache")
    (folder / cache_key({"link": 1})).symlink_to(outside)
    cache.get_or_build({"a": 2}, write)
    cache.get_or_build({"link": 1}, write)
    assert {path.name for path in outside.iterdir()} == {"manifest.json", "a.npy"}
    assert (folder / "notes" / "a.npy").exists()
    assert not (folder / cache_key({"a": 1})).exists()


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_cache_size_not_above_0_raises(size: float) -> None:
    with pytest.raises(ConfigError, match=rf"cache\.max_gb={size} must be > 0"):
        Cache(None, size)


def test_memory_sink_and_folder_sink_append_the_same_arrays(tmp_path: Path) -> None:
    memory, folder = MemorySink(), FolderSink(tmp_path)
    for sink in (memory, folder):
        for rows in (3, 0, 2):
            sink.append("x", np.full((rows, 2), rows, dtype=np.float32))
            sink.append("time", np.arange(rows).astype("datetime64[ns]"))
        sink.patch("x", np.array([4, 0]), np.array([[9, 9], [8, 8]], dtype=np.float32))
        sink.append("empty", np.zeros((0, 4)))
    folder.finish({})
    for name, whole in memory.arrays().items():
        kept = np.load(tmp_path / f"{name}.npy", allow_pickle=False)
        assert kept.dtype == whole.dtype
        assert np.array_equal(kept, whole)
    assert np.load(tmp_path / "x.npy")[:, 0].tolist() == [8, 3, 3, 2, 9]

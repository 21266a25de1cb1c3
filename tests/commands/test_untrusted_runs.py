"""Files of a run folder are not trusted: damage ends in one message, and no file runs code."""

import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from omegaconf import OmegaConf

from robust_fin import evaluate, predict, train
from robust_fin.bundle.config import (
    CONSTRUCTORS,
    build,
    check_constructors,
    parse_config,
    read_config,
)
from robust_fin.bundle.folder import load_bundle
from robust_fin.cli.composition import conf_folder
from robust_fin.errors import BundleError, RobustFinError
from robust_fin.runs.results import publish
from robust_fin.runs.run import Run
from robust_fin.runtime.records import read_table
from robust_fin.sweeps.hydra_sweeper import read_resume_command
from robust_fin.sweeps.job import SweepRecord
from tests.conftest import MakeBars
from tests.small_runs import files_below, reseal

Damage = Callable[[bytes, random.Random], bytes]
NO_PAYLOAD = "robust_fin.trusted_by_nobody"
# what a command reads; TensorBoard's events, the report and val_losses.parquet are only written
READ = (
    *("bundle/config.yaml", "bundle/manifest.json", "bundle/model.safetensors"),
    *("bundle/provenance.json", "bundle/transforms.json", "bundle/transforms.safetensors"),
    *("metrics.json", "predictions.parquet", "rows.json", ".hydra/overrides.yaml"),
    *("checkpoints/last.ckpt", "checkpoints/refit/last.ckpt"),
)


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def emptied(_content: bytes, _draw: random.Random) -> bytes:
    return b""


def nested(_content: bytes, draw: random.Random) -> bytes:
    return b"[" * 100_000 if draw.random() < 0.5 else b'{"a":' * 100_000 + b"1" + b"}" * 100_000


def of_another_type(content: bytes, draw: random.Random) -> bytes:
    """Replace the value of one field by one of another type; binary files get bytes inserted."""
    try:
        settings = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeDecodeError):
        settings = None
    if not isinstance(settings, dict) or not settings:
        place = draw.randrange(len(content))
        return content[:place] + draw.randbytes(8) + content[place:]
    node, name = draw.choice(list(containers(settings)))
    node[name] = draw.choice([None, True, -1, 1e300, "text", [], {}, [1, "a"], {"a": 1}])
    return json.dumps(settings).encode()


def containers(node: Any) -> Iterator[tuple[Any, Any]]:
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        yield node, name
        if isinstance(value, dict | list):
            yield from containers(value)


DAMAGES: tuple[Damage, ...] = (flipped, cut, emptied, nested, of_another_type)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory, make_bars: MakeBars) -> Path:
    path = tmp_path_factory.mktemp("bars") / "es.parquet"
    make_bars(rows=9000).to_parquet(path)
    return path


def commands(run: Path, bars: Path, whole: Path) -> dict[str, Callable[[], int]]:
    out = run / "scores.parquet"
    accept = "source.accept=[holes,calendar,products,bar,zone,stamp,tick]"
    words = [f"run={run}", f"source.path={bars}", f"out={out}", "source.timezone=UTC", accept]
    return {
        "evaluate": lambda: evaluate.main([f"run={run}", "verbose=0"]),
        "compare": lambda: evaluate.main([f"run=[{run},{whole}]", "verbose=0"]),
        "predict": lambda: predict.main(words),
        "resume": lambda: train.main([f"resume={run}", "trainer.max_epochs=2", "verbose=0"]),
    }


def try_damage(whole: Path, folder: Path, bars: Path, *, seed: int) -> str:
    """Damage one file of a run, run one command, and describe the case; errors propagate."""
    draw = random.Random(seed)
    run, name = folder / "run", draw.choice(READ)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    damage = draw.choice(DAMAGES)
    content = (run / name).read_bytes()
    (run / name).write_bytes(damage(content, draw))
    if name.startswith("bundle/") and name != "bundle/manifest.json" and draw.random() < 0.5:
        reseal(run)  # as if the damage had been there from the start
    verb = draw.choice(list(commands(run, bars, whole)))
    case = f"seed {seed}: {verb} with {name} {damage.__name__}"
    try:
        code = commands(run, bars, whole)[verb]()
    except Exception as error:
        raise AssertionError(f"{case} raised {type(error).__name__}") from error
    assert code in (0, 1), case
    if code == 0 and verb == "predict":
        score = pd.read_parquet(run / "scores.parquet")["score"]
        assert np.isfinite(score).all(), f"{case} wrote scores that are not finite"
    return case


def test_damaged_file_ends_in_one_message(smoke_run: Path, bars: Path, tmp_path: Path) -> None:
    for seed in range(24):
        try_damage(smoke_run, tmp_path, bars, seed=seed)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write reports without pictures, which take most of the time of `evaluate`."""

    def without(*arguments: Any, **words: Any) -> Any:
        return publish(*arguments, **{**words, "pictures": False})

    monkeypatch.setattr(evaluate, "publish", without)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many_damaged_files_end_in_one_message(
    block: int, smoke_run: Path, bars: Path, tmp_path: Path
) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        try_damage(smoke_run, tmp_path, bars, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(5))
def test_commands_of_a_shell_print_no_traceback(
    block: int, smoke_run: Path, bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shell(module: str) -> Callable[[list[str]], int]:
        def main(words: list[str]) -> int:
            command = [sys.executable, "-m", f"robust_fin.{module}", *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert "Traceback" not in done.stderr
            return done.returncode

        return main

    for module in (evaluate, predict, train):
        monkeypatch.setattr(module, "main", shell(module.__name__.rpartition(".")[2]))
    for seed in range(5000 + 10 * block, 5010 + 10 * block):
        try_damage(smoke_run, tmp_path, bars, seed=seed)


def test_files_that_are_damaged_here_are_those_of_a_run(smoke_run: Path) -> None:
    assert set(READ) <= files_below(smoke_run)


# code in files


def test_constructors_are_those_of_conf() -> None:
    found: dict[str, set[str]] = {}

    def walk(node: Any, key: str) -> None:
        if isinstance(node, dict):
            if "_target_" in node:
                found.setdefault(key, set()).add(node["_target_"])
            for name, value in node.items():
                walk(value, f"{key}.{name}" if key else str(name))
        elif isinstance(node, list):
            for value in node:
                walk(value, f"{key}.*")

    for path in sorted(conf_folder().rglob("*.yaml")):
        text, group = path.read_text(), ".".join(path.relative_to(conf_folder()).parts[:-1])
        walk(yaml.safe_load(text), "" if "@package _global_" in text else group)
    for key in [key for key in found if key.startswith("callbacks.")]:
        found.setdefault("callbacks.*", set()).update(found.pop(key))
    not_in_a_run = ("hydra", "sweep", "executor", "select")
    of_a_run = {k: v for k, v in found.items() if k.partition(".")[0] not in not_in_a_run}
    assert {key: set(targets) for key, targets in CONSTRUCTORS.items()} == of_a_run


def test_own_config_names_registered_constructors_only(smoke_run: Path) -> None:
    config = read_config(smoke_run)
    check_constructors(config)
    assert build(config, "features").names


def payloads(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the config with a constructor put in the place of each value in turn."""
    count = sum(1 for _ in containers(config))
    for number in range(count):
        changed = json.loads(json.dumps(config))
        node, name = list(containers(changed))[number]
        node[name] = {"_target_": f"{NO_PAYLOAD}.run", "value": node[name]}
        yield str(name), changed


def test_payload_in_any_field_of_the_config_is_named(smoke_run: Path) -> None:
    plain = yaml.safe_load((smoke_run / "bundle" / "config.yaml").read_text())
    cases = list(payloads(plain))
    assert len(cases) > 150
    for name, changed in cases:
        config = OmegaConf.create(changed)
        with pytest.raises(BundleError, match=rf"{NO_PAYLOAD}.run .*modules=\[{NO_PAYLOAD}\]"):
            check_constructors(config)
        check_constructors(config, modules=[NO_PAYLOAD, "robust_fin", "lightning", "torch"])
        assert name


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("model", "torch.load"),
        ("model", "robust_fin.training.losses.huber"),  # ours, in another group
        ("optimizer", "numpy.testing.measure"),
        ("loss", "pandas.read_pickle"),
        ("source", "robust_fin.data.cache.Cache"),
        ("transform", "builtins.exec"),
    ],
)
def test_constructor_of_another_group_is_refused(key: str, target: str, smoke_run: Path) -> None:
    config = read_config(smoke_run)
    config[key]._target_ = target
    with pytest.raises(BundleError, match=rf"{key}._target_={target} in the run names code"):
        build(config, key)


def test_commands_refuse_code_unless_the_user_names_it(
    smoke_run: Path, bars: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    path = run / "bundle" / "config.yaml"
    path.write_text(path.read_text().replace("models.mlp.ResidualMLP", "models.mlp.residual"))
    reseal(run)
    for verb in ("predict", "resume"):
        assert commands(run, bars, smoke_run)[verb]() == 1
        said = capsys.readouterr().err
        assert "model._target_=robust_fin.models.mlp.residual" in said
        assert "add modules=[robust_fin.models.mlp] to the command" in said
    assert commands(run, bars, smoke_run)["evaluate"]() == 0  # builds no net


def test_modules_of_features_must_be_named(smoke_run: Path) -> None:
    config = read_config(smoke_run)
    config.features.modules = ["antigravity"]
    with pytest.raises(BundleError, match=r"features.modules\[0\]=antigravity .*modules=\[anti"):
        build(config, "features")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &x [1]\nb: *x", "line 2 has an alias"),
        ("a: ${oc.env:HOME}", "a=.* is an interpolation"),
        ("a: [1, '${b}']\nb: 1", r"a\[1\]=.* is an interpolation"),
        ("[" * 60 + "]" * 60, "more than 40 levels"),
        ("a: " + "x" * (1 << 20), "more than 1,048,576 bytes"),
        ("[1, 2]", "holds no settings"),
        ("", "holds no settings"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
    ],
)
def test_config_that_is_not_plain_is_refused(text: str, words: str) -> None:
    with pytest.raises(BundleError, match=words):
        parse_config(text, origin="config.yaml")


# sealed bundles


def damaged_weights(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    from safetensors.torch import load_file, save_file

    path = run / "bundle" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)
    reseal(run)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w[sorted(w)[0]].view(-1)[0].fill_(float("nan")), "is not finite"),
        (lambda w: w.update({sorted(w)[0]: w[sorted(w)[0]].long()}), "is of type torch.int64"),
        (lambda w: w.pop(sorted(w)[0]), "weights of another net"),
        (lambda w: w.update({sorted(w)[0]: w[sorted(w)[0]].reshape(-1, 1)[:1]}), "has shape"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Any]], object], words: str, smoke_run: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    damaged_weights(run, change)
    with pytest.raises(BundleError, match=words):
        load_bundle(run)


@pytest.mark.parametrize("name", ["config.yaml", "model.safetensors", "provenance.json"])
def test_changed_bundle_is_refused(name: str, smoke_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    path = run / "bundle" / name
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(BundleError, match=rf"{name} was changed after the run had finished"):
        load_bundle(run)


def test_no_verdict_from_scores_that_are_not_finite(smoke_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(smoke_run, tmp_path / "run"))
    table = read_table(run / "predictions.parquet", {})
    table.loc[7, "score"] = np.nan
    table.to_parquet(run / "predictions.parquet", index=False)
    with pytest.raises(BundleError, match="score is not finite in 1 rows, first in row 7"):
        _ = Run.open(run).verdict


def test_record_of_a_sweep_is_typed(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text('{"words": 3, "cwd": "/", "jobs": {}}')
    with pytest.raises(RobustFinError, match="words is of type int, not list"):
        SweepRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("model._target_=os.system", r"model._target_=os.system .*modules=\[os\]"),
        ("model={_target_:subprocess.run}", r"subprocess.run .*modules=\[subprocess\]"),
        ("features.modules=[antigravity]", r"antigravity .*modules=\[antigravity\]"),
        ("hydra.searchpath=[/tmp]", "may not have"),
        ("+hydra.callbacks.x._target_=os.abort", "may not have"),
        ("name=${oc.env:HOME}", "may not have"),
    ],
)
def test_recorded_command_names_no_code(word: str, said: str, tmp_path: Path) -> None:
    record = SweepRecord(tmp_path, ["seed=1,2", word], str(tmp_path))
    record.write()
    with pytest.raises(RobustFinError, match=said):
        read_resume_command([f"sweep.resume={tmp_path}"])


def test_recorded_command_may_name_the_modules_of_the_user(tmp_path: Path) -> None:
    words = ["model._target_=my_net.Net", "loss._target_=robust_fin.training.losses.huber"]
    SweepRecord(tmp_path, words, str(tmp_path)).write()
    given, _ = read_resume_command([f"sweep.resume={tmp_path}", "modules=[my_net]"])
    assert given[:2] == words

"""Two ranks train and end like one process. The ranks are real processes on the CPU."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robust_fin import train
from tests.small_runs import files_below, read_metrics, run_training

BATCH = 128  # rows a step, over all processes
DUAL = {
    "HIP_VISIBLE_DEVICES": "0,1",
    "PYTORCH_ROCM_ARCH": "gfx1100",
    "PYTORCH_HIP_ALLOC_CONF": "max_split_size_mb:128",
    "PYTORCH_ALLOC_CONF": "max_split_size_mb:128",
}
LONG = ("split.refit=false", "trainer.max_epochs=400", "checkpoint.every_n_steps=20")
# sitecustomize.py of the ranks: records the environment and the files opened for writing
WATCH = """
import json, os, sys
rank = os.environ.get("ROBUST_FIN_RANK")
if rank is not None and sys.argv[:1] == ["-m"]:
    folder = os.environ["WATCHED"]
    started = dict(line.partition("=")[::2] for line in
                   open("/proc/self/environ").read().split(chr(0)) if line)
    with open(os.path.join(folder, f"rank_{rank}.json"), "w") as file:
        json.dump({"pid": os.getpid(), "started": started, "torch": "torch" in sys.modules}, file)
    wrote = open(os.path.join(folder, f"wrote_{rank}.txt"), "w", buffering=1)
    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            mode, flags = arguments[1], arguments[2] or 0
            if set(mode or "") & set("wxa+") or flags & (os.O_WRONLY | os.O_RDWR):
                wrote.write(os.path.abspath(arguments[0]) + chr(10))
        elif event in ("os.mkdir", "os.rename", "os.remove"):
            wrote.write(os.path.abspath(str(arguments[0])) + chr(10))
    sys.addaudithook(hook)
"""

posix = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")
pytestmark = [pytest.mark.processes, posix]


def watched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which every rank started later records its environment and writes."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(WATCH)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("WATCHED", str(folder))
    return folder


def ranks_of(folder: Path) -> dict[int, int]:
    """Return the process id of each rank, once both have started."""
    wait_for(folder / "rank_1.json")
    wait_for(folder / "rank_0.json")
    return {k: json.loads((folder / f"rank_{k}.json").read_text())["pid"] for k in (0, 1)}


def wait_for(path: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not (path.exists() and path.read_text(errors="replace")):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def curves(folder: Path) -> dict[str, list[float]]:
    found = EventAccumulator(str(folder)).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("val/")]
    return {tag: [one.value for one in found.Scalars(tag)] for tag in tags}


def weights(run: Path) -> torch.Tensor:
    found = load_file(run / "bundle/model.safetensors")
    return torch.cat([found[name].reshape(-1).double() for name in sorted(found)])


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Run folders of one process and of two ranks with the same global batch, and their records."""
    base = tmp_path_factory.mktemp("pair")
    with pytest.MonkeyPatch.context() as patch:
        records = watched(base / "records", patch)
        dual = ("hardware=rocm_dual", "hardware.check=false", "trainer.accelerator=cpu")
        run_training(base / "two", f"batch_size={BATCH // 2}", "trainer=ddp", *dual)
    run_training(base / "one", f"batch_size={BATCH}")
    return base / "one", base / "two", records


def test_two_ranks_train_the_weights_of_one_process(pair: tuple[Path, Path, Path]) -> None:
    one, two, _ = pair
    assert read_metrics(two)["steps"] == read_metrics(one)["steps"]
    assert relative(weights(two), weights(one)) < 1e-5


def test_two_ranks_have_the_metrics_of_one_process(pair: tuple[Path, Path, Path]) -> None:
    one, two = (read_metrics(folder) for folder in pair[:2])
    timed = {"fit_seconds", "steps_per_second"}
    assert set(one) == set(two)
    wanted = {name: one[name] for name in set(one) - timed if one[name] is not None}
    assert {name for name in one if one[name] is None} == {n for n in two if two[n] is None}
    assert {name: two[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=1e-6)
    scores = [pd.read_parquet(folder / "predictions.parquet") for folder in pair[:2]]
    assert list(scores[0]["time"]) == list(scores[1]["time"])
    np.testing.assert_allclose(scores[1]["score"], scores[0]["score"], rtol=0, atol=1e-5)


def test_every_val_row_is_scored_once_per_epoch_on_two_ranks(pair: tuple[Path, Path, Path]) -> None:
    one, two = (curves(folder / "tensorboard") for folder in pair[:2])
    assert len(one) == 7
    for name, values in one.items():
        assert len(values) == 2
        # a row too many or too few moves a mean over 1,310 rows by about one part in a thousand
        assert two[name] == pytest.approx(values, rel=1e-5, abs=1e-7), name


def test_ranks_get_the_environment_of_their_devices_before_torch_is_imported(
    pair: tuple[Path, Path, Path],
) -> None:
    for rank in (0, 1):
        records = json.loads((pair[2] / f"rank_{rank}.json").read_text())
        assert records["torch"] is False
        assert {name: records["started"][name] for name in DUAL} == DUAL
        assert records["started"]["LOCAL_RANK"] == str(rank)
    assert not set(DUAL) & set(os.environ)


def test_only_rank_0_writes_into_the_run_folder(pair: tuple[Path, Path, Path]) -> None:
    one, two, records = pair
    inside = [
        [line for line in (records / f"wrote_{k}.txt").read_text().splitlines() if str(two) in line]
        for k in (0, 1)
    ]
    assert inside[1] == []
    assert any(line.endswith("metrics.json.part") for line in inside[0])  # so the watch does see

    def names(folder: Path) -> set[str]:
        return {name.split(".out.tfevents")[0] for name in files_below(folder)}

    assert names(two) == names(one)
    curves = [one for one in (two / "tensorboard").glob("events*") if one.suffix != ".report"]
    assert len(curves) == 1


@pytest.mark.slow
def test_killed_rank_ends_the_run_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    records, run = watched(tmp_path / "records", monkeypatch), tmp_path / "run"
    killed: dict[str, float] = {}

    def kill() -> None:
        pids = ranks_of(records)
        wait_for(run / "checkpoints/last.ckpt")
        killed["pid"], killed["at"] = pids[1], time.monotonic()
        os.kill(pids[1], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    code = train.main(words(run, "trainer=ddp", *LONG))
    seconds = time.monotonic() - killed["at"]
    thread.join()
    assert code == 1
    assert seconds < 60
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert errors == [
        f"error: rank 1 of 2 (process {killed['pid']}) was killed by SIGKILL (the kernel "
        "does this when memory runs out); the other ranks were stopped. python -m robust_fin.train "
        f"resume={run} continues from the last checkpoint"
    ]
    assert not (run / "metrics.json").exists()
    assert errors == ["error: " + json.loads((run / "failure.json").read_text())["message"]]


def words(run: Path, *more: str) -> list[str]:
    quick = ("trainer.enable_progress_bar=false", "cache.folder=null", "batch_size=64")
    return ["+experiment=smoke", f"hydra.run.dir={run}", *quick, *more]


def test_missing_devices_end_in_one_message(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("there are two devices")
    assert train.main(["+experiment=dual_hip", f"hydra.run.dir={tmp_path / 'run'}"]) == 1
    message = capfd.readouterr().err
    assert message.startswith("error: hardware.platform=rocm needs 2 AMD devices")
    assert message.count("\n") == 1
    assert "Write hardware=" in message
    assert not (tmp_path / "run/bundle").exists()


# the rest takes one more start of two processes each


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["rank 0", "the starter"])
def test_no_process_survives_the_death_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    records, run = watched(tmp_path / "records", monkeypatch), tmp_path / "run"
    command = [sys.executable, "-m", "robust_fin.train", *words(run, "trainer=ddp", *LONG)]
    starter = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    pids = ranks_of(records)
    wait_for(run / "checkpoints/last.ckpt")
    began = time.monotonic()
    os.kill(pids[0] if victim == "rank 0" else starter.pid, signal.SIGKILL)
    _, errors = starter.communicate(timeout=60)
    while any(is_running(pid) for pid in pids.values()):
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    if victim == "rank 0":
        assert starter.returncode == 1
        assert b"error: rank 0 of 2" in errors


def is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def interrupted(run: Path, records: Path, *more: str, ask: Callable[[dict[int, int]], None]) -> int:
    """Return the exit code of a run that is interrupted once it has a checkpoint."""

    def act() -> None:
        pids = ranks_of(records)
        wait_for(run / "checkpoints/last.ckpt")
        ask(pids)

    thread = threading.Thread(target=act)
    thread.start()
    code = train.main(words(run, *more))
    thread.join()
    return code


@pytest.mark.slow
def test_ctrl_c_stops_both_ranks_and_resume_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    records, run = watched(tmp_path / "records", monkeypatch), tmp_path / "cut"
    more = ("trainer=ddp", "split.refit=false", "trainer.max_epochs=30", "model.dropout=0.1")
    more = (*more, "checkpoint.every_n_steps=20")
    code = interrupted(run, records, *more, ask=lambda _: os.kill(os.getpid(), signal.SIGINT))
    assert code == 130
    assert "stopped after step" in capfd.readouterr().err
    place = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert 20 <= place < 30 * 71
    assert train.main([f"resume={run}"]) == 0
    assert train.main(words(tmp_path / "whole", *more)) == 0
    assert read_metrics(run)["steps"] == read_metrics(tmp_path / "whole")["steps"]
    assert torch.equal(weights(run), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_sweep_starts_the_ranks_of_each_job(tmp_path: Path) -> None:
    more = ("trainer.enable_progress_bar=false", "trainer.max_epochs=1", "batch_size=64")
    sweep = ["+experiment=smoke", f"hydra.sweep.dir={tmp_path}", "-m", "seed=0,1"]
    assert train.main([*sweep, *more, "trainer.devices=1,2", "cache.folder=null"]) == 0
    found = [read_metrics(tmp_path / str(number)) for number in range(4)]
    assert [one["seed"] for one in found] == [0, 0, 1, 1]
    steps = [one["steps"] for one in found]
    assert steps[0] == steps[2] > steps[1] == steps[3]


@pytest.mark.slow
def test_error_of_all_ranks_is_printed_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "gone.csv"
    assert train.main(words(tmp_path / "run", "trainer=ddp", f"source.path={missing}")) == 1
    message = capfd.readouterr().err
    assert message.startswith(f"error: there is no file {missing}")
    assert message.count("error: ") == 1


def started(
    folder: Path, command: Sequence[str], *more: str, environ: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start a rank as another launcher would, in the default run folder below `folder`."""
    given = [one for one in words(folder, "trainer=ddp", *more) if not one.startswith("hydra")]
    return subprocess.Popen(
        [sys.executable, "-m", *command, "robust_fin.train", *given],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.getcwd(), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(folder: Path, *more: str, options: Sequence[str] = ()) -> subprocess.Popen[str]:
    options = options or ("--standalone", "--nproc_per_node=2")
    command = ["torch.distributed.run", *options, "-m"]
    return started(folder, command, *more, environ={"OMP_NUM_THREADS": "1"})


def one_folder(folder: Path, processes: Sequence[subprocess.Popen[str]]) -> Path:
    """Return the run folder that all ranks share, once they have ended."""
    said = [one.communicate(timeout=300) for one in processes]
    assert [one.returncode for one in processes] == [0] * len(processes), said
    (run,) = (folder / "outputs/smoke").iterdir()
    assert [path.name for path in folder.iterdir()] == ["outputs"]
    assert "".join(out for out, _ in said).count(f"report       {run}") == 1
    assert files_below(run) >= {"metrics.json", "train.log", ".hydra/config.yaml"}
    return run


@pytest.mark.slow
def test_torchrun_trains_the_same_run_in_one_folder(
    tmp_path: Path, pair: tuple[Path, Path, Path]
) -> None:
    run = one_folder(tmp_path, [torchrun(tmp_path)])
    assert torch.equal(weights(run), weights(pair[1]))


@pytest.mark.slow
def test_two_torchruns_of_one_process_each_train_as_two_machines(
    tmp_path: Path, pair: tuple[Path, Path, Path]
) -> None:
    meet = ("--nnodes=2", "--nproc_per_node=1", f"--master_port={free_port()}")
    machines = [
        torchrun(
            tmp_path,
            "trainer.devices=1",
            "trainer.num_nodes=2",
            options=(*meet, "--master_addr=127.0.0.1", f"--node_rank={number}"),
        )
        for number in (0, 1)
    ]
    assert torch.equal(weights(one_folder(tmp_path, machines)), weights(pair[1]))


@pytest.mark.slow
def test_srun_tasks_become_ranks(tmp_path: Path, pair: tuple[Path, Path, Path]) -> None:
    job = {
        "SLURM_JOB_ID": "417",
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    tasks = [
        started(tmp_path, [], environ={**job, "SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)})
        for k in (0, 1)
    ]
    assert torch.equal(weights(one_folder(tmp_path, tasks)), weights(pair[1]))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "telling"),
    [
        (["trainer.devices=4"], "torchrun started 2 processes, but trainer.devices=4"),
        (["-m", "seed=0,1"], "a sweep cannot be run under torchrun or srun"),
    ],
)
def test_torchrun_with_a_contradicting_trainer_is_an_error(
    tmp_path: Path, more: list[str], telling: str
) -> None:
    run = torchrun(tmp_path, *more)
    _, errors = run.communicate(timeout=300)
    assert run.returncode != 0
    assert f"error: {telling}" in errors


@pytest.mark.slow
def test_train_span_smaller_than_one_batch_per_rank_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*words(tmp_path / "run", "trainer=ddp"), "batch_size=5000"]) == 1
    assert capfd.readouterr().err == (
        "error: train has 9174 rows, fewer than batch_size=5000 times 2 processes; lower it\n"
    )

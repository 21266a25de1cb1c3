import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch

from robust_fin import doctor
from robust_fin.runtime.machine_checks import BAD, NOTE, OK, MachineFinding
from robust_fin.runtime.process_state import RankError
from robust_fin.training.engine.build import NetPasses
from robust_fin.training.engine.loop_library import NoCompilerError
from tests.runtime.test_devices import CPU_ONLY, PAIR, hardware, machine
from tests.training.engine.test_build import PARTS, net

CPU = torch.device("cpu")


def replace_checks(monkeypatch: pytest.MonkeyPatch, **by_name: object) -> None:
    """Replace functions of the doctor by ones that return or raise a fixed value."""

    def return_or_raise(value: object, *_: object, **__: object) -> object:
        if isinstance(value, Exception):
            raise value
        return value

    for name, value in by_name.items():
        monkeypatch.setattr(doctor, name, partial(return_or_raise, value))


def read_findings(path: Path) -> dict[str, dict[str, str]]:
    return {one["check"]: one for one in json.loads(path.read_text())}


def test_healthy_machine_exits_with_0_and_lists_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replace_checks(monkeypatch, compiled_error=NoCompilerError("g++"), check_all_reduce=2.5)
    out = tmp_path / "findings.json"
    assert doctor.main([f"out={out}"]) == 0
    found = read_findings(out)
    assert [one["status"] for one in found.values()].count(BAD) == 0
    assert f"torch {torch.__version__}" in found["versions"]["found"]
    assert found["compiler"]["status"] == NOTE
    assert "the command 'g++' does not exist" in found["compiler"]["found"]
    assert "engine=plain" in found["compiler"]["remedy"]
    assert "10 steps" in found["numbers on cpu"]["found"]
    assert "64 cycles" in found["memory of cpu"]["found"]
    assert found["all-reduce"]["found"] == (
        "exact over 2 processes on the CPU (gloo), 2.5 s including their start"
    )
    text = capsys.readouterr().out
    assert "robust_fin.doctor" in text
    assert f"{len(found)} checks in" in text


def test_bad_setting_exits_with_1_and_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    replace_checks(monkeypatch, compiled_error=NoCompilerError("g++"), check_all_reduce=0.1)
    monkeypatch.setenv("PYTORCH_HIP_ALLOC_CONF", PAIR)
    out = tmp_path / "findings.json"
    assert doctor.main([f"out={out}", f"threads={2 * (os.cpu_count() or 1)}"]) == 1
    torch.set_num_threads(1)
    found = read_findings(out)
    assert found["PYTORCH_HIP_ALLOC_CONF"]["status"] == BAD
    assert "keep one of the two" in found["PYTORCH_HIP_ALLOC_CONF"]["remedy"]
    message = capfd.readouterr().err
    assert "checks are bad (PYTORCH_HIP_ALLOC_CONF, threads)" in message
    assert "Traceback" not in message


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
def test_full_report_with_the_environment_of_two_devices(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "findings.json"
    words = ["hardware=rocm_dual", "hardware.check=false", f"out={out}"]
    assert doctor.main(words) == 0
    found = read_findings(out)
    assert {one["status"] for one in found.values()} == {OK}
    assert "a loop was built" in found["compiler"]["found"]
    assert doctor.main(["hardware=rocm_dual", f"out={out}"]) == 1
    assert read_findings(out)["hardware"]["remedy"].startswith("write hardware=cpu trainer=ddp")
    assert "1 of" in capfd.readouterr().err


def test_devices_are_listed_and_a_missing_device_is_bad() -> None:
    found = list(doctor.devices_there(machine("rocm", 2), hardware("rocm_dual")))
    assert [one.check for one in found] == ["device cpu", "device cuda:0", "device cuda:1"]
    assert found[1].found == "Radeon RX 7900 XT, 20.0 GB, gfx1100"
    missing = list(doctor.devices_there(CPU_ONLY, hardware("rocm_dual")))[-1]
    assert (missing.check, missing.status) == ("hardware", BAD)
    assert missing.found.startswith("hardware.platform=rocm needs 2 AMD devices")
    assert missing.remedy.startswith("write hardware=cpu")


@pytest.mark.parametrize(
    ("scale", "status"), [(1 + 1e-6, OK), (1 + 1e-4, BAD), (float("nan"), BAD), (0.0, BAD)]
)
def test_wrong_numbers_are_bad(scale: float, status: str) -> None:
    one = torch.arange(1.0, 5.0, dtype=torch.float64)
    wanted = NetPasses(one, one, one)
    found = doctor.against(wanted, lambda **_: NetPasses(one * scale, one, one), CPU)
    assert found.status == status
    assert found.check == "numbers on cpu"


def test_failing_device_is_bad() -> None:
    def fail(**_: object) -> NetPasses:
        raise RuntimeError("HIP error: invalid device function\nmore")

    one = torch.ones(1)
    found = doctor.against(NetPasses(one, one, one), fail, torch.device("cuda:1"))
    assert found == MachineFinding(
        "numbers on cuda:1",
        BAD,
        "HIP error: invalid device function",
        "train elsewhere; update driver and torch, or replace the device",
    )


def test_changed_memory_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_checks(monkeypatch, damage_after_churn=(67_108_864, 144))
    found = doctor.memory(CPU)
    assert found.status == BAD
    assert found.found == "67,108,864 live bytes changed by cycle 144 of allocation"


@pytest.mark.parametrize("error", [RankError("3 of 9 sums are wrong"), RuntimeError("no route")])
def test_failing_all_reduce_is_bad(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_checks(monkeypatch, check_all_reduce=error)
    found = doctor.all_reduce(machine("rocm", 2))
    assert (found.status, found.found) == (BAD, f"over 2 devices: {error}")
    assert "NCCL_DEBUG=INFO" in found.remedy


def test_compiler_with_wrong_results_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        cached, compile_seconds = False, 1.0

    replace_checks(monkeypatch, compiled_error=(Loop(), 0.5), compiler_version="g++ 0.1")
    found = doctor.compiled_loop(net(), PARTS)
    assert found.status == BAD
    assert found.found == "g++ 0.1; a loop was built in 1.0 s; relative error 5.0e-01"
    replace_checks(
        monkeypatch, compiled_error=RuntimeError("g++: internal compiler error\nat line 3")
    )
    assert doctor.compiled_loop(net(), PARTS).found == "g++: internal compiler error"

"""Scripts in place of the SLURM commands that submitit and the package use.

A job's script runs in the background in its own session. The file `calls` lists the commands,
`<number>.sh` is the script of a job and `<number>.state` its state.
"""

import os
import stat
import time
from pathlib import Path

import pytest

_SCRIPTS = {
    "sbatch": """
number=$(($(cat next 2>/dev/null || echo 100) + 1)); echo $number >next
cp "$1" $number.sh
echo PENDING >$number.state
if [ ! -e full ]; then (cd "$OLDPWD"; setsid fake_run $number </dev/null >/dev/null 2>&1 &); fi
echo "Submitted batch job $number"
""",
    "fake_run": """
echo RUNNING >$1.state
export SLURM_JOB_ID=$1 SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0
(cd "$OLDPWD" && bash "$FAKE_SLURM/$1.sh")
code=$?
if [ -e $1.requeue ]; then rm $1.requeue; cd "$OLDPWD"; exec fake_run $1; fi
[ -e $1.over ] || { [ $code = 0 ] && echo COMPLETED || echo FAILED; } >$1.state
""",
    "srun": """
while [ "${1#--}" != "$1" ]; do
  case $1 in
    --output) out=$2; shift;;
    --error) err=$2; shift;;
  esac
  shift
done
echo $$ >$SLURM_JOB_ID.pid
cd "$OLDPWD"
out=${out//%j/$SLURM_JOB_ID}; err=${err//%j/$SLURM_JOB_ID}
exec "$@" >>"${out//%t/0}" 2>>"${err//%t/0}"
""",
    "scancel": """
number=${@: -1}; state=$(cat $number.state)
case $1 in
  --state=PENDING) [ $state = PENDING ] && echo "CANCELLED by 0" >$number.state;;
  --signal=*) [ $state = RUNNING ] && kill -${1#--signal=} $(cat $number.pid);;
  *) echo "CANCELLED by 0" >$number.state; touch $number.over
     [ $state = RUNNING ] && kill -TERM $(cat $number.pid);;
esac
exit 0
""",
    "sacct": """
echo "JobID|State|NodeList"
for one in *.state; do echo "${one%.state}|$(cat $one)|here"; done
""",
    "squeue": """
number=${@: -1}; number=${number#--jobs=}
grep -lE 'PENDING|RUNNING' $number.state
exit 0
""",
    "scontrol": "touch $2.requeue",
}


class FakeSlurm:
    """A folder with the scripts and their files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        for name, text in _SCRIPTS.items():
            path = folder / "bin" / name
            record = "" if name == "fake_run" else f'echo {name} "$@" >>"$FAKE_SLURM/calls"'
            path.write_text(f'#!/bin/bash\n{record}\ncd "$FAKE_SLURM"\n{text}')
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("FAKE_SLURM", str(folder))
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")

    def script(self, job: int) -> list[str]:
        return (self.folder / f"{job}.sh").read_text().splitlines()

    def state(self, job: int) -> str:
        return (self.folder / f"{job}.state").read_text().strip()

    def calls(self, name: str) -> list[str]:
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if line.split()[0] == name]

    def signal(self, job: int, number: int) -> None:
        """Send a signal to the task, as SLURM does."""
        os.kill(int((self.folder / f"{job}.pid").read_text()), number)

    def wait_for_end(self, job: int) -> None:
        deadline = time.monotonic() + 20
        while self.state(job) in ("PENDING", "RUNNING"):
            assert time.monotonic() < deadline
            time.sleep(0.02)

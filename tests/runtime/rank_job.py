"""Program of the ranks in the launcher tests; imports little, so that it starts quickly."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from robust_fin.errors import ConfigError, Interrupted
from robust_fin.runtime.process_state import exit_with_parent, report_alive, run_and_record_exit

LONGEST = 300.0  # seconds; longer than the tests wait for a rank


def report(out: Path, rank: int) -> None:
    """Write the environment, PID and arguments of this process to `rank_N.json`."""
    started = {"environ": dict(os.environ), "pid": os.getpid(), "argv": sys.argv}
    path = out / f"rank_{rank}.json"
    path.with_suffix(".part").write_text(json.dumps(started))
    path.with_suffix(".part").replace(path)


def act(action: str, out: Path, rank: int) -> None:
    if action == "listen":
        try:
            report(out, rank)
            time.sleep(LONGEST)
        except KeyboardInterrupt:
            raise Interrupted("stopped after step 7") from None
    if action == "ignore_sigint":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    report(out, rank)
    if action in ("wait", "ignore_sigint"):
        time.sleep(LONGEST)
    elif action == "config_error":
        raise ConfigError(f"rank {rank} has a wrong setting")
    elif action == "crash":
        raise ZeroDivisionError(f"rank {rank} divides by zero")
    elif action == "exit":
        sys.stderr.write("last output\n")
        os._exit(3)


def main() -> int:
    rank = int(os.environ.get("ROBUST_FIN_RANK", "0"))
    folder = Path(sys.argv[1].partition("=")[2])
    exit_with_parent(folder)
    report_alive(folder, rank)
    task = json.loads((folder / "task.json").read_text())
    return run_and_record_exit(
        folder, rank, lambda: act(task["actions"][rank], Path(task["out"]), rank)
    )


if __name__ == "__main__":
    sys.exit(main())

"""What the ranks of the launch tests do: a module of its own, light enough to start in a moment."""

import json
import os
import signal
import sys
import time
from pathlib import Path

from robust_fin.errors import ConfigError, Interrupted
from robust_fin.runtime.process_state import exit_with_parent, run_and_record_exit


def report(out: Path, rank: int) -> None:
    """What this process started with."""
    found = {"environ": dict(os.environ), "pid": os.getpid(), "argv": sys.argv}
    path = out / f"rank_{rank}.json"
    path.with_suffix(".part").write_text(json.dumps(found))
    path.with_suffix(".part").replace(path)


def work(word: str, out: Path, rank: int) -> None:
    if word == "listen":
        try:
            report(out, rank)
            time.sleep(60)
        except KeyboardInterrupt:
            raise Interrupted("stopped after step 7") from None
    if word == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    report(out, rank)
    if word in ("wait", "deaf"):
        time.sleep(60)
    elif word == "refuse":
        raise ConfigError(f"rank {rank} refuses")
    elif word == "crash":
        raise ZeroDivisionError(f"rank {rank} divides by nothing")
    elif word == "exit":
        sys.stderr.write("the last words\n")
        os._exit(3)


def main() -> int:
    rank = int(os.environ.get("ROBUST_FIN_RANK", "0"))
    folder = Path(sys.argv[1].partition("=")[2])
    exit_with_parent(folder)
    task = json.loads((folder / "task.json").read_text())
    return run_and_record_exit(
        folder, rank, lambda: work(task["words"][rank], Path(task["out"]), rank)
    )


if __name__ == "__main__":
    sys.exit(main())

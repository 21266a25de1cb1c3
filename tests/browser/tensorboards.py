"""A TensorBoard in a process of its own, and where it listens."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Its address; it shows the runs below `folder`, on a free port of this machine alone."""
    words = [
        "--logdir",
        folder.name,
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--reload_interval",
        "1",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *words],
        cwd=folder.parent,  # the page names the folder as it is given
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = []
        for line in process.stderr:
            said.append(line)
            if result := re.search(r"http://\S+", line):
                yield result.group(0)
                break
        else:
            raise AssertionError("".join(said))
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()

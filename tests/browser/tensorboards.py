"""Run TensorBoard in a separate process."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[str]:
    """Show the runs below `folder` on a free local port; yield the URL."""
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
        cwd=folder.parent,  # the page shows the folder name as given
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

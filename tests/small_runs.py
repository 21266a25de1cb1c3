"""Short training runs for tests, in this process."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from robust_fin import train
from robust_fin.bundle.folder import MANIFEST
from robust_fin.runtime.files import LOCK

QUICK = ("trainer.enable_progress_bar=false", "cache.folder=null", "report.pictures=false")


def run_training(folder: Path, *options: str, experiment: str = "smoke") -> dict[str, Any]:
    """Train in `folder`; return its metrics.json."""
    code = train.main([f"+experiment={experiment}", f"hydra.run.dir={folder}", *QUICK, *options])
    assert code == 0
    return read_metrics(folder)


def read_metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def overrides(folder: Path) -> Sequence[str]:
    return (folder / ".hydra" / "overrides.yaml").read_text().splitlines()


@contextlib.contextmanager
def locked_by_another(folder: Path) -> Iterator[None]:
    """Hold a folder's lock as another process would: with a file of its own."""
    with (folder / LOCK).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def reseal(run: Path) -> None:
    """Make the manifest of a changed bundle right again, as somebody who forges a run would."""
    bundle = run / "bundle"
    sealed = json.loads((bundle / MANIFEST).read_text())
    sealed["sha256"] = {name: _sha256(bundle / name) for name in sealed["sha256"]}
    (bundle / MANIFEST).write_text(json.dumps(sealed))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

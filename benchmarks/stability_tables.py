"""python benchmarks/stability_tables.py SWEEP_FOLDER ... writes the tables of docs/stability.md.

The folders are sweeps of `+experiment=ladder` and `+experiment=ablation`, one per data set.
Everything between the markers is computed from finished runs, including the text. Tables of an
experiment without a given folder are kept.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from ablation_table import ablation
from ladder_table import ladder
from stability_jobs import Job, data_name, read_sweep

DOCUMENT = Path(__file__).parent.parent / "docs" / "stability.md"
WRITERS: dict[str, Callable[[Sequence[Job]], str]] = {"ladder": ladder, "ablation": ablation}


def marks(name: str) -> tuple[str, str]:
    """Return the markers before and after the tables of an experiment."""
    return (
        f"<!-- {name}: written by benchmarks/stability_tables.py -->",
        f"<!-- end of {name} -->",
    )


def main(folders: Sequence[Path], *, document: Path = DOCUMENT) -> None:
    """Write the tables between their markers."""
    sweeps = [read_sweep(folder) for folder in folders]
    text = document.read_text(encoding="utf-8")
    for name, write in WRITERS.items():
        parts = [
            f"### {data_name(jobs[0])}\n\n{write(jobs)}"
            for jobs in sweeps
            if jobs[0].config.name == name
        ]
        if parts:
            text = replaced(text, name, "\n\n".join(parts))
    document.write_text(text, encoding="utf-8")


def replaced(text: str, name: str, tables: str) -> str:
    """Return the document with new tables between the markers of an experiment."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"the document has no lines {begin} and {end}")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("folders", type=Path, nargs="+", metavar="SWEEP_FOLDER")
    main(asked.parse_args().folders)

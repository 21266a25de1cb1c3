"""Take the screenshots of the README and docs/tensorboard.md: a report, a run, a sweep of six.

python -m benchmarks.screenshots [--runs FOLDER] [--out docs]

The run is `+experiment=top5` on synthetic bars; the sweep has three learning rates and two nets.
With --runs the runs are kept in that folder and reused. Chromium must be installed.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from robust_fin import train
from robust_fin.runtime.terminal import show
from tests.browser.devtools import Browser, browser
from tests.browser.tensorboards import tensorboard

WIDTH = 1200
COLOURS = 128  # size of the palette: small files with sharp letters
RUN = ("+experiment=top5", "source.synthetic.signal=0.1", "trainer.enable_progress_bar=false")
RATES, NETS = "0.001,0.003,0.01", "[16,8],[64,32]"
DEEP = """const deep = (node) => [node, ...(node.shadowRoot ? deep(node.shadowRoot) : []),
  ...[...node.childNodes].flatMap(deep)];"""
# unchecks the columns that are the same for every run
HIDE = f"""(() => {{ {DEEP}
  const kept = ["optimizer.lr", "model.hidden"];
  deep(document.body).filter((one) => one.className === "hparam-checkbox" && one.checked &&
    !kept.includes(one.textContent.trim())).forEach((one) => one.click());
}})()"""
SCROLL = f"""(() => {{ {DEEP}
  deep(document.body).find((one) => one.nodeType === Node.TEXT_NODE &&
    one.textContent.trim() === "report/provenance").parentElement.scrollIntoView();
}})()"""


def make_runs(folder: Path) -> None:
    """Train the missing runs."""
    if not (folder / "top5" / "metrics.json").is_file():
        train.main([*RUN, f"hydra.run.dir={folder / 'top5'}", "cache.folder=null"])
    if not (folder / "sweep" / "sweep.csv").is_file():
        swept = [f"optimizer.lr={RATES}", f"model.hidden={NETS}", f"hydra.sweep.dir={folder}/sweep"]
        train.main([*RUN, *swept, "-m"])


@contextmanager
def opened(folder: Path, place: str, words: set[str], *, height: int) -> Iterator[Browser]:
    """Open TensorBoard on a folder and wait until it shows `words`."""
    with (
        tempfile.TemporaryDirectory() as profile,
        tensorboard(folder) as url,
        browser(Path(profile)) as page,
    ):
        page.open(f"{url}{place}", width=WIDTH, height=height)
        page.wait_for(words)
        yield page


def keep(page: Browser, path: Path) -> None:
    """Save a screenshot with a reduced palette."""
    page.settle()
    page.shoot(path)
    with Image.open(path) as shot:
        small = shot.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    small.save(path, optimize=True)
    show(f"{path}  {path.stat().st_size // 1000} kB")


def shoot_report(run: Path, path: Path) -> None:
    """Save a screenshot of the top of a run's report."""
    with tempfile.TemporaryDirectory() as profile, browser(Path(profile)) as page:
        page.open((run / "report.html").as_uri(), width=1000, height=780)
        page.wait_for({"Net and baselines"})
        keep(page, path)


def main() -> None:
    """Train, take the screenshots and save them."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--runs", type=Path)
    asked.add_argument("--out", type=Path, default=Path("docs"))
    given = asked.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary) if given.runs is None else given.runs
        make_runs(runs)
        one, sweep, out = runs / "top5", runs / "sweep", given.out
        shoot_report(one, out / "report.png")
        with opened(one, "#custom_scalars", {"skill on val"}, height=1180) as page:
            keep(page, out / "tensorboard_custom_scalars.png")
        with opened(
            one, "?tagFilter=^val/(skill|rank_ic)$#timeseries", {"/skill"}, height=900
        ) as page:
            keep(page, out / "tensorboard_time_series.png")
        with opened(one, "#images", {"report/calibration"}, height=1000) as page:
            keep(page, out / "tensorboard_images.png")
        with opened(one, "#text", {"report/verdict"}, height=900) as page:
            page.run(SCROLL)
            keep(page, out / "tensorboard_text.png")
        with opened(one, "#histograms", {"gradients"}, height=900) as page:
            keep(page, out / "tensorboard_histograms.png")
        with opened(sweep, "#hparams", {"optimizer.lr", "5/tensorboard"}, height=480) as page:
            page.run(HIDE)
            keep(page, out / "tensorboard_hparams.png")


if __name__ == "__main__":
    main()

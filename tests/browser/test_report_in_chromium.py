"""The report in a browser: on a desktop, on a phone, in dark mode."""

from pathlib import Path

import numpy as np
import pytest

from tests.browser.chromium import Seen, find_browser, look
from tests.evaluation.run_folders import scored, write_run

pytestmark = pytest.mark.processes

TITLES = [
    "Rank IC by month", "Rank IC by hour", "Calibration by decile of the forecast",
    "Skill over time", "Spread of the members", "Loss compared with a constant forecast",
    "Gradient norms",
]  # fmt: skip
LABELS = {
    "Rank IC by month": ("rank IC", "month of the trading date", "2024-01", "all rows"),
    "Rank IC by hour": ("hour in America/Chicago, from 17:00 on", "17:00", "estimate"),
    "Calibration by decile of the forecast": ("mean forecast, rank", "mean realised rank"),
    "Skill over time": ("loss saved, %", "net", "ridge", "24-01-01"),
    "Spread of the members": ("skill on test, %", "rank IC on test", "their mean forecast"),
    "Loss compared with a constant forecast": ("objective on train", "loss on val", "constant"),
    "Gradient norms": ("gradient norm", "optimizer step", "clipped above 1", "norm, refit"),
}
SCREEN, PHONE, HEIGHT = 1200, 390, 9000


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the report of a population with skill."""
    find_browser()
    run = tmp_path_factory.mktemp("runs") / "planted"
    write_run(run, scored(strength=0.2), members=16)
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def screen(html: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(html, tmp_path_factory.mktemp("looks") / "s", width=SCREEN, height=HEIGHT)


@pytest.fixture(scope="module")
def phone(html: str, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return look(html, tmp_path_factory.mktemp("looks") / "p", width=PHONE, height=HEIGHT)


def colours(seen: Seen, place: int) -> tuple[int, float]:
    """Count the colours of a plot, and compute the share of pixels that are not background."""
    x, y, width, height = seen.probe["pictures"][place]["box"]
    region = np.asarray(seen.image.crop((round(x), round(y), round(x + width), round(y + height))))
    assert region.size > 0
    packed = region.reshape(-1, 3).astype(np.int64) @ [1 << 16, 1 << 8, 1]
    result, counts = np.unique(packed, return_counts=True)
    return len(result), float(1 - counts.max() / counts.sum())


@pytest.mark.parametrize("which", ["screen", "phone"])
def test_page_shows_all_plots_and_fetches_nothing(
    which: str, request: pytest.FixtureRequest
) -> None:
    seen: Seen = request.getfixturevalue(which)
    assert seen.console == []
    assert seen.probe["fetched"] == []
    assert seen.probe["inner"] == {"screen": SCREEN, "phone": PHONE}[which]
    assert seen.probe["scroll"] <= seen.probe["inner"], "the page scrolls sideways"
    assert seen.probe["height"] <= HEIGHT
    assert [one["title"] for one in seen.probe["pictures"]] == TITLES
    assert "\nSkill\n" in seen.probe["text"]


@pytest.mark.parametrize("which", ["screen", "phone"])
@pytest.mark.parametrize("title", TITLES)
def test_plot_is_drawn_with_its_labels(
    which: str, title: str, request: pytest.FixtureRequest
) -> None:
    seen: Seen = request.getfixturevalue(which)
    place = TITLES.index(title)
    picture = seen.probe["pictures"][place]
    assert set(LABELS[title]) <= set(picture["labels"])
    assert picture["letters"] >= {"screen": 12, "phone": 9}[which]  # CSS pixels
    number, drawn = colours(seen, place)
    assert number > 30
    assert 0.01 < drawn < 0.6


def test_check_detects_an_empty_plot(screen: Seen) -> None:
    x, y, *_ = screen.probe["pictures"][0]["box"]
    blank = screen.image.copy()
    blank.paste((255, 255, 255), (round(x), round(y), round(x) + 600, round(y) + 600))
    assert colours(Seen(screen.probe, [], blank), 0)[1] < 0.01


def test_page_is_dark_if_the_reader_prefers_it(html: str, tmp_path: Path) -> None:
    seen = look(html, tmp_path / "look", width=PHONE, height=HEIGHT, dark=True)
    assert seen.image.getpixel((2, 2)) == (0x14, 0x17, 0x1B)
    for place in range(len(TITLES)):
        assert colours(seen, place)[1] > 0.01


def test_noise_is_shown_as_no_skill(tmp_path: Path) -> None:
    find_browser()
    write_run(tmp_path / "run", scored(strength=0.0), pictures=False)
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    seen = look(html, tmp_path / "look", width=PHONE, height=1000)
    assert seen.console == []
    assert "\nNo skill\n" in seen.probe["text"]


def test_check_detects_fetches_and_script_errors(html: str, tmp_path: Path) -> None:
    wrong = '<img src="http://127.0.0.1:9/x.png" alt=""><script>missing()</script></main>'
    seen = look(html.replace("</main>", wrong, 1), tmp_path / "l", width=PHONE, height=1000)
    assert any("127.0.0.1:9/x.png" in line for line in seen.console)
    assert any("missing is not defined" in line for line in seen.console)


def test_required_browser_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.browser.chromium.shutil.which", lambda _: None)
    monkeypatch.setenv("ROBUST_FIN_REQUIRE_BROWSER", "1")
    with pytest.raises(pytest.fail.Exception, match="none of chromium, chromium-browser, google-"):
        find_browser()
    monkeypatch.delenv("ROBUST_FIN_REQUIRE_BROWSER")
    with pytest.raises(pytest.skip.Exception):
        find_browser()

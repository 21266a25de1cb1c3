"""verbose=0|1|2 changes what a run says, and nothing else of it."""

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from robust_fin import evaluate, predict, train
from robust_fin.bundle.folder import read_config
from robust_fin.errors import ConfigError
from robust_fin.ledger.trials import config_hash
from robust_fin.runs.run import Run
from robust_fin.runs.schema import get_verbosity, plain_values
from robust_fin.runtime.terminal import DETAILED, NORMAL, QUIET, progress_is_shown, show, verbosity
from tests.runtime.test_progress import console

WORDS = ("source.synthetic.rows=3000", "features=study", "trainer.max_epochs=1",
         "split.refit=false", "cache.folder=null", "report.pictures=false")  # fmt: skip
Capture = pytest.CaptureFixture[str]


def said(folder: Path, capfd: Capture, *words: str) -> tuple[str, str]:
    capfd.readouterr()
    assert train.main(["+experiment=smoke", f"hydra.run.dir={folder}", *WORDS, *words]) == 0
    found = capfd.readouterr()
    return found.out, found.err


def test_a_pipe_gets_one_table_and_three_paths_and_no_control_characters(
    tmp_path: Path, capfd: Capture
) -> None:
    out, err = said(tmp_path / "run", capfd)
    run = Run(tmp_path / "run")
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    assert out.count("skill over the constant") == 1
    assert out.splitlines()[-4:] == [
        f"report       {run.folder}/report.html",
        f"TensorBoard  tensorboard --logdir {run.folder}",
        f"bundle       {run.folder}/bundle",
        run.verdict,
    ]
    assert all(Path(line.split()[-1]).exists() for line in out.splitlines()[-4:-1])


def test_quiet_leaves_the_verdict_and_the_same_run(tmp_path: Path, capfd: Capture) -> None:
    folders = [tmp_path / "quiet", tmp_path / "detailed"]
    assert said(folders[0], capfd, "verbose=0") == (f"{Run(folders[0]).verdict}\n", "")
    out, _ = said(folders[1], capfd, "verbose=2")
    assert "what is" not in out
    assert out.count("95 % intervals") >= 2  # the tables that the summary stands for
    quiet, detailed = (read_config(one) for one in folders)
    assert (quiet.verbose, detailed.verbose) == (0, 2)
    assert config_hash(plain_values(quiet)) == config_hash(plain_values(detailed))
    skills = [Run(one).metrics["test/skill"] for one in folders]
    assert skills[0] == skills[1]
    capfd.readouterr()
    assert evaluate.main([f"run={folders[0]}", "verbose=0"]) == 0
    assert capfd.readouterr() == (f"{Run(folders[0]).verdict}\n", "")
    scores = tmp_path / "scores.parquet"
    words = [f"run={folders[0]}", f"out={scores}", "source.synthetic.rows=50", "verbose=0"]
    assert predict.main(words) == 0
    assert capfd.readouterr().out.endswith(f"without an outcome yet: {scores}\n")


@pytest.mark.parametrize(
    ("verbose", "printed"), [(QUIET, "verdict\n"), (NORMAL, "table\nverdict\n")]
)
def test_what_matters_most_is_said_last_of_all(verbose: int, printed: str, capfd: Capture) -> None:
    from robust_fin.runtime.terminal import DETAILS, NOTHING, RESULT, console_level

    with verbosity(verbose):
        show("details", level=DETAILS)
        show("table")
        show("verdict", level=RESULT)
        assert progress_is_shown(console(terminal=True)) is (verbose != QUIET)
    with console_level(NOTHING), verbosity(DETAILED):
        show("verdict", level=RESULT)
    assert capfd.readouterr().out == printed


def test_loggers_are_as_they_were_after() -> None:
    ours = logging.getLogger("robust_fin")
    before = ours.level
    with verbosity(DETAILED):
        assert ours.level == logging.DEBUG
    assert ours.level == before


def test_a_number_that_means_nothing_is_refused() -> None:
    assert get_verbosity(OmegaConf.create({})) == NORMAL  # of a run from before there was a choice
    with pytest.raises(ConfigError, match=r"verbose=3 must be 0 \(errors and the verdict\)"):
        get_verbosity(OmegaConf.create({"verbose": 3}))

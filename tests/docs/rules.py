"""Rules for testing the commands of the docs; every command is matched by exactly one rule.

A command is run with overrides that make it small (RUN), or only composed because it needs devices
or several machines (COMPOSE), or expanded by make (EXPAND), or run with --help, which must list its
flags (HELP), or not run, for a stated reason (NOT).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tests.docs.blocks import Command

RUN, COMPOSE, EXPAND, HELP, NOT = "run", "compose", "expand", "help", "not here"

QUIET = ("trainer.enable_progress_bar=false", "cache.folder=null", "report.pictures=false")
SMALL = (*QUIET, "source.synthetic.rows=14000", "trainer.max_epochs=1")
_JOBS = {  # smaller grids and populations
    "+experiment=ladder": (
        *("model.hidden=[16,8]", "optimizer.lr=0.001,0.01", "trainer.precision=32-true"),
        *("stress=none", "trainer.max_steps=20"),
    ),
    "+experiment=ablation": (
        *("target_scale=rank", "schedule.warmup=0", "model=plain_mlp", "population.members=2"),
        *("model.hidden=[8]", "trainer.max_steps=20"),
    ),
    "+experiment=population": ("population.members=4",),
    "+experiment=robust": ("population.members=2",),
    "+experiment=search": ("sweep.trials=2",),
    "sweep=optuna": ("sweep.trials=2",),
    "sweep=narrow": ("sweep.trials=2",),
}
_DEVICES = (
    r"hardware=(cuda|rocm|rocm_dual)|trainer=ddp_hip|\+experiment=dual_hip|trainer\.num_nodes=.*"
    r"|executor\.partition=.*|executor\.address=auto"
)


@dataclass(frozen=True, slots=True)
class Rule:
    """How a kind of command is tested.

    Attributes:
        name: name of the kind.
        holds: returns True for a command of this kind.
        how: RUN, COMPOSE, EXPAND, HELP or NOT.
        words: arguments appended when it is run.
        reason: why it is not run.
    """

    name: str
    holds: Callable[[Command], bool]
    how: str
    words: Callable[[Command], tuple[str, ...]] = lambda _: ()
    reason: str = ""


def small_training(command: Command) -> tuple[str, ...]:
    """Return the overrides that make a training command small."""
    few = [words for name, words in _JOBS.items() if name in command.words]
    if command.says(r"split=walk_forward|split\.by=contract"):  # the few bars are of one contract
        few.append(("split.by=trading_date", "split.test_blocks=2"))
    return (*SMALL, *(word for words in few for word in words))


def _first(*names: str) -> Callable[[Command], bool]:
    return lambda command: command.words[0] in names


def _verb(*names: str) -> Callable[[Command], bool]:
    return lambda command: command.verb in names and not (_is_elsewhere(command) or _asks(command))


def _is_elsewhere(command: Command) -> bool:
    return command.says(_DEVICES) or command.words[0] in ("srun", "torchrun")


def _trains(command: Command) -> bool:
    return _verb("train")(command) and not _resumes(command)


def _resumes(command: Command) -> bool:
    return command.says(r"(sweep\.)?resume=.*")


def _asks(command: Command) -> bool:
    return command.says(r"--help|-h|--cfg|--info|--hydra-help") or command.words == ("robust-fin",)


def _is_ours(command: Command) -> bool:
    return command.verb is not None or command.words[0] == "robust-fin"


def _installs(command: Command) -> bool:
    return command.says("pip|venv") or command.words[0] in ("py", "pip")


RULES = (
    Rule("make", _first("make"), EXPAND),
    Rule("benchmark", lambda one: one.says(r"benchmarks/\w+\.py"), HELP),
    Rule("example", lambda one: one.says(r".*examples/.*\.py"), RUN, lambda _: ("--rows=14000",)),
    Rule("tensorboard", _first("tensorboard"), RUN, lambda _: ("--inspect",)),
    Rule("train", _trains, RUN, small_training),
    Rule("resume", lambda one: _verb("train")(one) and _resumes(one), RUN),
    Rule("help", lambda one: _is_ours(one) and _asks(one), RUN),
    Rule("completion", _first("eval"), RUN),
    Rule("devices and machines", lambda one: one.verb is not None and _is_elsewhere(one), COMPOSE),
    Rule("leakcheck", _verb("leakcheck"), RUN, lambda _: (*SMALL[1:4], "leaks.cuts=2")),
    Rule("inspect", _verb("inspect"), RUN),
    Rule("select", _verb("select"), RUN, lambda _: ("cache.folder=null", "select.draws=50")),
    Rule(
        "predict, evaluate, replay, doctor", _verb("predict", "evaluate", "replay", "doctor"), RUN
    ),
    Rule("install", _installs, NOT, reason="packages: .ci/run installs on a bare machine"),
    Rule("administer", _first("sudo", "apt-get"), NOT, reason="changes the machine"),
)


@cache
def rules_of(command: Command) -> list[Rule]:
    """Return the matching rules; exactly one is expected."""
    return [rule for rule in RULES if rule.holds(command)]

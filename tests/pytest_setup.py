"""Setup of the test session: speed, Ctrl-C, and skipped tests in continuous integration."""

import copy
import os
import re
import signal
from typing import Any

import pytest


def restore_ctrl_c() -> None:
    """Install Python's default SIGINT handler in this process; child processes inherit it.

    A non-interactive shell starts background jobs (`pytest &`) with SIGINT ignored. Python keeps
    that, and children inherit it; a test that sends the signal would wait forever.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


def compose_once_for_the_mode() -> None:
    """Remember which experiments are sweeps: Hydra composes the whole config to learn it.

    A command composes its config twice, once for `hydra.mode` alone, which only the experiment,
    the group sweep and hydra's own keys can change.
    """
    from hydra._internal.hydra import Hydra

    original, known = Hydra.get_mode, dict[tuple[object, ...], Any]()

    def get_mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        names = ("experiment", "sweep", "hydra.mode")
        deciding = [word for word in overrides if any(name in word for name in names)]
        key = (config_name, *deciding)
        mode = known[key] if key in known else original(self, config_name, overrides)
        if mode is not None:  # None: the config cannot be composed
            known[key] = mode
        return mode

    Hydra.get_mode = get_mode  # type: ignore[method-assign]


def compose_from_memory() -> None:
    """Remember what Hydra makes of the YAML files: a third of the time of all tests otherwise.

    What is remembered depends on the primary config, the chosen groups and the search path alone.
    Overrides of single keys, which have a dot or name no group, are applied to a copy.
    """
    from hydra._internal import config_loader_impl
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.defaults_list import DefaultsList, Overrides

    loader = config_loader_impl.ConfigLoaderImpl
    list_defaults, merge_files = (
        config_loader_impl.create_defaults_list,
        loader._compose_config_from_defaults_list,
    )
    read_file = FileConfigSource.load_config
    lists, merged, files = dict[Any, DefaultsList](), dict[Any, Any](), dict[Any, Any]()

    def search_path(repo: Any) -> tuple[str, ...]:
        return tuple(f"{source.provider} {source.path}" for source in repo.get_sources())

    def create_defaults_list(
        repo: Any, config_name: str, overrides_list: list[Any], **flags: bool
    ) -> DefaultsList:
        choosing = [one for one in overrides_list if "." not in one.key_or_group]
        words = tuple(one.input_line for one in choosing)
        key = (config_name, words, *flags.items(), search_path(repo))
        if key not in lists:
            lists[key] = list_defaults(repo, config_name, choosing, **flags)
        found = copy.copy(lists[key])
        found.config_overrides = Overrides(repo, overrides_list).config_overrides
        return found

    def compose(self: Any, defaults: list[Any], repo: Any) -> Any:
        key = (tuple(map(repr, defaults)), search_path(repo))
        if key not in merged:
            merged[key] = merge_files(self, defaults, repo)
        return copy.deepcopy(merged[key])

    def load_config(self: FileConfigSource, config_path: str) -> Any:
        key = (self.path, config_path)
        if key not in files:
            files[key] = read_file(self, config_path)
        return copy.deepcopy(files[key])

    FileConfigSource.load_config = load_config  # type: ignore[method-assign]
    config_loader_impl.create_defaults_list = create_defaults_list
    loader._compose_config_from_defaults_list = compose  # type: ignore[method-assign]


def precompile_headers() -> None:
    """Parse torch's C++ headers once for all libraries of the tests: 2 s each instead of 5 s."""
    from robust_fin.training.engine import inductor

    original = inductor.compile_source

    def compile_source(*arguments: Any, **words: Any) -> Any:
        from torch._inductor.codecache import CppCodeCache, CppPythonBindingsCodeCache

        CppCodeCache._get_uncompiled_header = CppPythonBindingsCodeCache._get_uncompiled_header
        return original(*arguments, **words)

    inductor.compile_source = compile_source


# skip reasons that are accepted in continuous integration
ACCEPTED_IN_CI = (
    r"\.(csv|csv\.gz|parquet|txt) is absent",  # real data is not part of the repository
    r"cases is absent",  # nor are the odd files
    r"there is no GPU",
    r"there is a GPU",
    r"this user may not mount a tmpfs",  # needs root
    r"slow: run by make test-slow",
)


def fail_instead_of_skipping(report: pytest.TestReport | pytest.CollectReport) -> None:
    """If the environment variable CI is set, fail a test skipped for no reason of ACCEPTED_IN_CI.

    Args:
        report: changed in place.
    """
    if not os.environ.get("CI") or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
    if not any(re.search(pattern, reason) for pattern in ACCEPTED_IN_CI):
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} is skipped in continuous integration: {reason}"

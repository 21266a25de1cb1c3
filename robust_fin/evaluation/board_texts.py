"""What a run says on TensorBoard's Text page, in Markdown."""

from collections.abc import Mapping
from typing import Any

from robust_fin.evaluation.report_origin import origin_rows


def config_text(config: str) -> str:
    """A config, as a block of YAML."""
    return f"```yaml\n{config}```\n"


def provenance_text(provenance: Mapping[str, Any]) -> str:
    """Data, versions and commit, as a table."""
    rows = (" | ".join(_cell(one) for one in row) for row in origin_rows(provenance))
    return "\n".join(["| what was read, with which code | |", "|---|---|", *rows]) + "\n"


def _cell(words: str) -> str:
    return words.replace("|", "\\|")

"""What a check of a machine found, and what to do about it."""

from dataclasses import dataclass

OK, NOTE, BAD = "ok", "note", "bad"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a report.

    Attributes:
        check: what was looked at.
        status: `ok`; `note`, which a run survives; or `bad`, which spoils runs or their speed.
        found: what is there.
        remedy: what to do; empty where all is well.
    """

    check: str
    status: str
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Only what is bad or noted has a remedy, and then it has one."""
        assert self.status in (OK, NOTE, BAD)
        assert bool(self.remedy) == (self.status != OK)

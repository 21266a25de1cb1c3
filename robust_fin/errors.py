"""Errors that a user can cause and fix; each message says what, where and what to change."""


class RobustFinError(ValueError):
    """Base class; the command line prints these errors without a traceback."""


class ConfigError(RobustFinError):
    """A setting that is unknown, out of range, or contradicts another."""


class SourceError(RobustFinError):
    """A file of bars that is missing, empty or unreadable."""


class SchemaError(SourceError):
    """A bar table that breaks a rule of `robust_fin.market.schema`."""


class SplitError(RobustFinError):
    """A split that is impossible: too few rows, or every row purged."""


class TransformError(RobustFinError):
    """A transform that cannot be fitted on the training rows."""


class BundleError(RobustFinError):
    """A folder without a usable run or bundle, or bars that do not fit the bundle."""


class ResumeError(RobustFinError):
    """A run that cannot be resumed: other bars, another config, or no valid checkpoint."""


class DiskFullError(RobustFinError):
    """A file that could not be written because the disk is full."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM, raised after a complete optimizer step and a checkpoint.

    It is not an Exception, so that it ends a sweep, and not a KeyboardInterrupt, which Lightning
    would turn into exit code 1.
    """


class NonFiniteError(RobustFinError):
    """A loss, gradient or weight that is not finite; training stops at that step."""


class Pruned(RobustFinError):  # noqa: N818 - not an error of the user
    """A trial that was pruned because other trials were better on val at that point."""

"""The few things a user can cause and fix; each message says what, where and what to change."""


class RobustFinError(ValueError):
    """Base of every error that a user can cause; the command line prints it without a traceback."""


class ConfigError(RobustFinError):
    """A setting that names nothing, contradicts another or is out of its range."""


class SourceError(RobustFinError):
    """A file of bars that is missing, empty or cannot be read as one."""


class SchemaError(SourceError):
    """A bar table that was read and breaks a rule of the contract in `robust_fin.market.schema`."""


class SplitError(RobustFinError):
    """Spans that cannot be cut: too few rows, or every row purged."""


class TransformError(RobustFinError):
    """A transform that cannot be fitted on the training rows it was given."""


class BundleError(RobustFinError):
    """A run folder or bundle that is not one, or does not fit the bars it is asked to score."""


class ResumeError(RobustFinError):
    """A run that cannot go on: other bars, another config, or no checkpoint to be trusted."""


class DiskFullError(RobustFinError):
    """A file that could not be written because no space was left."""


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM, answered after a whole optimizer step and a checkpoint.

    Not an error of a job, so it ends a sweep; not a KeyboardInterrupt, which Lightning would turn
    into an exit code of 1.
    """


class NonFiniteError(RobustFinError):
    """A loss, gradient or weight that stopped being a number; training ends where it happened."""


class Pruned(RobustFinError):  # noqa: N818 - nobody's mistake
    """A trial of a search that was ended early, because others did better on val by then."""

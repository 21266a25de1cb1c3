"""Curves for TensorBoard, at a third of the events."""

from collections.abc import Mapping

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor


class StepTensorBoardLogger(TensorBoardLogger):
    """Lightning's own, which writes what is logged of one step as one event instead of one a curve.

    TensorBoard shows the same. An event costs its writer some 80 microseconds, which is most of
    what logging costs a run of the compiled engine.
    """

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float | Tensor], step: int | None = None) -> None:
        """Write one event.

        Args:
            metrics: tag -> a number, or a tensor of one.
            step: where its points lie.

        Raises:
            ValueError: a tensor of several numbers, or of none.
        """
        points = [
            Summary.Value(tag=f"{self.prefix}{tag}", simple_value=float(value))
            for tag, value in metrics.items()
        ]
        if points:
            self.experiment._get_file_writer().add_summary(Summary(value=points), step)

    @property
    def prefix(self) -> str:
        """What stands before every tag."""
        return f"{self._prefix}{self.LOGGER_JOIN_CHAR}" if self._prefix else ""

"""Read back the TensorBoard event files of a run."""

import logging
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo, SessionStartInfo

EVERYTHING = {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0}


class Board:
    """The events of one folder.

    Args:
        folder: with event files in it.
    """

    def __init__(self, folder: Path) -> None:
        logging.getLogger("tensorboard").setLevel(logging.ERROR)  # logs every purge
        self.events = EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()
        self.tags: dict[str, list[str]] = self.events.Tags()

    def curve(self, tag: str) -> dict[int, float]:
        """Return step -> value of a scalar."""
        return {one.step: one.value for one in self.events.Scalars(tag)}

    def text(self, tag: str) -> str:
        (event,) = self.events.Tensors(tag)
        return event.tensor_proto.string_val[0].decode()

    def layout(self) -> layout_pb2.Layout:
        (event,) = self.events.Tensors("custom_scalars__config__")
        return layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])

    def experiment(self) -> api_pb2.Experiment:
        return metadata.parse_experiment_plugin_data(self._hparams(metadata.EXPERIMENT_TAG))

    def start(self) -> SessionStartInfo:
        content = self._hparams(metadata.SESSION_START_INFO_TAG)
        return metadata.parse_session_start_info_plugin_data(content)

    def end(self) -> SessionEndInfo:
        content = self._hparams(metadata.SESSION_END_INFO_TAG)
        return metadata.parse_session_end_info_plugin_data(content)

    def has_ended(self) -> bool:
        return metadata.SESSION_END_INFO_TAG in self.tags["tensors"]

    def settings(self) -> dict[str, bool | float | str]:
        """Return the hyperparameters with their types."""
        given = self.start().hparams
        return {name: getattr(one, one.WhichOneof("kind")) for name, one in given.items()}

    def _hparams(self, tag: str) -> bytes:
        return self.events.SummaryMetadata(tag).plugin_data.content

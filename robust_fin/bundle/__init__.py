"""The bundle of a finished run: save, load, predict. It contains no pickle."""

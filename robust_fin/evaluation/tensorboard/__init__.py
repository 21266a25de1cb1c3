"""Results and settings of a run in TensorBoard."""

"""What a finished run is on disk; save, load, predict. No pickle in it."""

"""The command line: Hydra composition, help, suggestions, and one message per error."""

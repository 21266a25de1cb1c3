"""What everything stands on: terminal output, atomic files, devices, processes and ranks."""

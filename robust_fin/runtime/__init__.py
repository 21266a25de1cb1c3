"""Foundations: terminal output, atomic files, devices, processes and ranks."""

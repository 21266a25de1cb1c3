"""Machines, devices and the processes of one run; knows nothing of bars or nets."""

"""Fitting: losses, schedules, the LightningModule, and what keeps a run sound."""

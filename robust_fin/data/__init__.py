"""Data as the net sees it: targets, fitted transforms, spans, and the LightningDataModule."""

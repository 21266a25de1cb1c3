"""What the net sees: targets, fitted transforms, spans, and the LightningDataModule."""

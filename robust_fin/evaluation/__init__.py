"""What a run is worth, read from its predictions table alone; nothing here sees a model."""

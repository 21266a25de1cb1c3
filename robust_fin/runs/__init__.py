"""Training jobs: settings, the story of a training, its results, debugging."""

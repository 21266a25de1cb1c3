"""What runs a job: typed settings, the story of a training, its results, debugging."""

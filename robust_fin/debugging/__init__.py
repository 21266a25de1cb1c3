"""Short looks at a training run that is not to be a result: what `debug=` chooses."""

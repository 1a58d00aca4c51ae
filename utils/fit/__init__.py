"""Training: the loop that teachers and students share, the search for a batch size, evaluation and loggers."""

"""Training: the loop that teachers and students share, its batch size, its evaluation and its loggers."""

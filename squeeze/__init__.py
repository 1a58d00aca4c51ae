"""Train a teacher on the real data."""

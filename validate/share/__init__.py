"""A synthetic set with its labels and results as a folder for the Hugging Face Hub."""

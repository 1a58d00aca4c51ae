"""Networks: architectures by name, checkpoints, teachers and what they see."""

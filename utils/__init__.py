"""What two or more stages share: data, models, checkpoints, images, runtime."""

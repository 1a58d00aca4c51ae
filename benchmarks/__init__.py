"""What this project's speed is measured against, and the measuring."""

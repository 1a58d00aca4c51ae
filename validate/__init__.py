"""Train students from scratch on a set of images, and report their accuracy."""

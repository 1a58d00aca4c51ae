"""Score every real image by the teacher; select the images that start the synthesis."""

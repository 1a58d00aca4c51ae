"""Data: known data sets, image folders, and batches read from them."""

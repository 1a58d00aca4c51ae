"""Optimise images against the frozen teacher, early ones long, late ones short."""

"""The recipe: torch-free, so that a mistake in it is told in a fraction of a second."""

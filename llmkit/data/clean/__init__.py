"""Cleaning: steps over records, in the recipe's order, each with its counts. `CLEANERS` is the table of steps."""

"""`python -m llmkit` is the `llmkit` program."""

from llmkit.cli import main

main()

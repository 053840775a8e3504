"""Speed and memory of llmkit beside its peers; benchmarks/README.md says how the figures are made."""

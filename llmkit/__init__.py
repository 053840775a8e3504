"""llmkit: pretrain and fine-tune language models from one strict YAML recipe."""

__version__ = "0.1.0"

"""llmkit: pretrain and fine-tune language models from one strict YAML recipe.

Importing it makes transformers' Auto classes know llmkit's own architectures; transformers itself is not imported.
"""

from llmkit.models.registry import install

__version__ = "0.1.0"

install()

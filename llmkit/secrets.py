"""What looks like a password, and keeping it out of everything that is said or written.

Messages and logs pass through `redact`: errors where they are made, text for people where it is escaped.
"""

from __future__ import annotations

import os
import re

KINDS = {
    "a Hugging Face token": r"hf_[A-Za-z0-9]{20,}",
    "an API key": r"sk-[A-Za-z0-9_-]{20,}",
    "a GitHub token": r"(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a GitLab token": r"glpat-[A-Za-z0-9_-]{20,}",
    "an AWS access key": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "a Slack token": r"xox[abprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
}
_KINDS = {kind: re.compile(rf"(?<![A-Za-z0-9]){pattern}") for kind, pattern in KINDS.items()}
_ANY = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(KINDS.values())})")
_NAME = re.compile(
    r"(?:^|_)(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?<!cls_)(?<!sep_)(?<!mask_)token$"
    r"|(?:^|_)(?:secret|password|passwd|credentials?|api_?key|access_?key|private_?key)$",
    re.IGNORECASE,
)
_SHORTEST = 8
"""Characters: a shorter value of a variable is a word that may stand anywhere."""


def secret_kind(text: str) -> str | None:
    """What kind of secret `text` holds, if it looks like one."""
    return next((kind for kind, pattern in _KINDS.items() if pattern.search(text)), None)


def names_secret(name: str) -> bool:
    """Whether a key or an environment variable of this name holds a secret: HF_TOKEN, wandb_api_key, password."""
    return _NAME.search(name) is not None


def redact(text: str) -> str:
    """`text` without what looks like a secret, and without the secrets of this process's environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and names_secret(name):
            text = text.replace(value, f"[{name}]")
    return _ANY.sub("[secret]", text)

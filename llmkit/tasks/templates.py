"""Chat templates by name, and where a recipe's template comes from. Jinja, as tokenizers carry them; torch-free.

A template is code of its author: it is rendered by transformers in Jinja's immutable sandbox, on plain data only.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmkit.errors import ModelError, RecipeError
from llmkit.files import read_object

_CONTENT = "{{ message['content'] or '' }}{% if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}"
_START = "{{ bos_token or eos_token or '' }}"
_TOOLS = "{% if tools %}{{ 'Tools:\\n' + (tools | tojson) + '\\n\\n' }}{% endif %}"

PLAIN = (
    _START
    + _TOOLS
    + "{% for message in messages %}"
    + _CONTENT
    + "{% if message['role'] == 'assistant' %}{{ eos_token }}"
    "{% elif not (message['content'] or '').endswith('\\n') %}{{ '\\n' }}{% endif %}{% endfor %}"
)
"""Turns as they are, each on a line of its own; for base models and completion pairs."""

ALPACA = (
    _START + "{% if messages and messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}"
    "{{ 'Below is an instruction that describes a task. Write a response that appropriately completes the request.' }}"
    "{% endif %}{% if tools %}{{ '\\n\\n### Tools:\\n' + (tools | tojson) }}{% endif %}"
    "{% for message in messages %}{% if not (loop.first and message['role'] == 'system') %}"
    "{% if message['role'] == 'user' %}{{ '\\n\\n### Instruction:\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '\\n\\n### Response:\\n' }}"
    "{% else %}{{ '\\n\\n### ' + (message['role'] | capitalize) + ':\\n' }}{% endif %}"
    + _CONTENT
    + "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}"
)
"""Stanford Alpaca's prompt, extended to several turns; needs no token that a model does not have."""

CHATML = (
    "{% if tools %}{{ '<|im_start|>system\\nTools:\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    + _CONTENT
    + "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ bos_token or '' }}"
    "{% if tools %}{{ '<|start_header_id|>system<|end_header_id|>\\n\\nTools:\\n' + (tools | tojson) }}"
    "{{ '<|eot_id|>' }}{% endif %}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}"
    + _CONTENT
    + "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)

TEMPLATES: dict[str, str] = {"plain": PLAIN, "alpaca": ALPACA, "chatml": CHATML, "llama3": LLAMA3}
DEFAULT = "alpaca"

TRIAL_SECONDS = 10
"""Of the processor's time, for the first conversation that a template is tried on; it takes milliseconds."""

_CONTROL = re.compile(r"<\|[^|<>\s]{1,60}\|>")


@dataclass(frozen=True)
class Template:
    """`name` is for messages: a built-in name, a file, or "the tokenizer's own template"."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


def resolve_template(wanted: str | None, tokenizer_dir: Path | None) -> Template:
    """The template a recipe asks for: a built-in name or a file; None: the tokenizer's own, else alpaca.

    Raises RecipeError for an unknown name, ModelError for a tokenizer's template that cannot be read.
    """
    if wanted is not None:
        if wanted in TEMPLATES:
            return Template(wanted, TEMPLATES[wanted])
        path = Path(wanted)
        if not path.is_file():
            near = difflib.get_close_matches(wanted, list(TEMPLATES), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            message = f"no such file and no built-in template {wanted!r} (there are {', '.join(TEMPLATES)}){hint}"
            raise RecipeError(message, key="tokenizer.chat_template")
        try:
            return Template(wanted, path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{wanted} cannot be read: {error}", key="tokenizer.chat_template") from error
    own = None if tokenizer_dir is None else own_template(tokenizer_dir)
    if own is not None:
        return Template("the tokenizer's own template", own)
    return Template(DEFAULT, TEMPLATES[DEFAULT])


def own_template(tokenizer_dir: Path) -> str | None:
    """The template in a tokenizer's directory: chat_template.jinja, or `chat_template` of tokenizer_config.json."""
    try:
        if (tokenizer_dir / "chat_template.jinja").exists():
            return (tokenizer_dir / "chat_template.jinja").read_text(encoding="utf-8")
        if not (tokenizer_dir / "tokenizer_config.json").exists():
            return None
        own = read_object(tokenizer_dir / "tokenizer_config.json", ModelError).get("chat_template")
    except (OSError, ValueError) as error:
        raise ModelError(f"the chat template in {tokenizer_dir} cannot be read: {error}") from error
    if isinstance(own, list):
        named = [entry for entry in own if isinstance(entry, dict) and entry.get("name") == "default"]
        own = named[0].get("template") if named else None
    return own if isinstance(own, str) else None


@contextmanager
def on_trial(template: Template) -> Iterator[None]:
    """Raises ModelError in the block where a template does not come to an end: loops within loops are allowed in the
    sandbox. Signals reach the main thread alone; elsewhere the template has been tried before."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(signum: int, frame: object) -> None:
        message = f"chat template {template.name} is not done after {TRIAL_SECONDS} s with a short conversation"
        raise ModelError(message, key="tokenizer.chat_template")

    handler = signal.signal(signal.SIGVTALRM, late)
    timer = signal.setitimer(signal.ITIMER_VIRTUAL, TRIAL_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, *timer)
        signal.signal(signal.SIGVTALRM, handler)


def control_tokens(template: str) -> list[str]:
    """Tokens such as `<|im_end|>` that a template writes, in order of appearance; those that it puts together from
    parts are not seen and stay plain text."""
    return list(dict.fromkeys(_CONTROL.findall(template)))

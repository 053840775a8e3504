"""One message for a launch of many: ranks that `--num-processes` started leave what ended them with their parent.

The parent tells the earliest, since the others mostly failed of it or of the same mistake. In a launch of somebody
else's there is no parent to tell: ranks above 0 hold their message back until the launcher would have ended them.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from llmkit.errors import LlmkitError

DIRECTORY = "LLMKIT_HANDOVER"
"""Names the parent's directory to its children."""
HOLD_SECONDS = 5.0
"""A launcher that has seen another rank fail ends this one within a second or so."""


def leave(error: LlmkitError) -> bool:
    """In a child of `--num-processes`: leaves the message for the parent. False where there is none."""
    directory = os.environ.get(DIRECTORY)
    if directory is None:
        return False
    content = {"at": time.time(), "status": error.status, "told": str(error), **error.as_json()}
    try:
        (Path(directory) / os.environ.get("RANK", "0")).write_text(json.dumps(content), encoding="utf-8")
    except OSError:
        return False
    return True


def earliest(directory: Path) -> LlmkitError | None:
    """What the rank that failed first has left. Names the rank where the first one did not fail of the same."""
    left = {int(file.name): json.loads(file.read_text(encoding="utf-8")) for file in directory.iterdir()}
    if not left:
        return None
    rank = min(left, key=lambda rank: (left[rank]["at"], rank))
    content = left[rank]
    alone = rank > 0 and left.get(0, {}).get("told") != content["told"]
    message = f"rank {rank}: {content['message']}" if alone else content["message"]
    error = LlmkitError(message, file=content["file"], line=content["line"], key=content["key"])
    error.status, error.code = content["status"], content["code"]
    return error


def hold_back() -> None:
    """In a rank above 0 of another launcher: gives rank 0 the time to tell, and the launcher to end us for it."""
    if threading.current_thread() is not threading.main_thread():
        return  # the main thread is stuck, and its end overdue
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(HOLD_SECONDS)

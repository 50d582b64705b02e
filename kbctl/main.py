"""The ``kbctl`` program: what can be answered at once is answered here, the rest by :mod:`kbctl.cli`.

What must stay true: importing this file loads next to nothing, because a prompt may ask for the version and
a shell for its completions each time that it starts; and what is answered here reads as it would from there.
"""

import os
import sys

from kbctl.shipped import COMPLETIONS, completions
from kbctl.version import __version__


def run() -> None:
    """Do what the command line says, and end the process."""
    if _is_answered_at_once(sys.argv[1:]):
        return
    from kbctl.cli import app

    try:
        app()
    except SystemExit as ended:
        # All is closed and written by now; to take every module apart again would be 15 % of `kbctl keys`.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)


def _is_answered_at_once(args: list[str]) -> bool:
    if args == ["--version"]:
        answer: str | None = f"kbctl {__version__}\n"
    elif len(args) == 2 and args[0] == "completion" and args[1] in COMPLETIONS:
        answer = completions(args[1])
    else:
        answer = None
    if answer is None:
        return False
    try:
        sys.stdout.write(answer)
        sys.stdout.flush()
    except OSError:
        return False  # the long way knows what to say
    return True

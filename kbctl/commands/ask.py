"""Questions to the person: hidden input and confirmations.

What must stay true: a question is asked only of a terminal and only on stderr, so that stdout stays the
answer; a script that would have been asked is refused instead, never waited for and never taken for a yes.
"""

import getpass
import sys

from kbctl.errors import Exit, KbctlError

_SECRET_CHARACTERS_MAX = 64 * 1024


def from_terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def to_terminal() -> bool:
    """Whether somebody reads the answer, rather than a file or another program."""
    return sys.stdout.isatty()


def confirm(question: str, *, refusal: str, remedy: str) -> None:
    """Go on only after a yes.

    Raises:
        KbctlError: the answer was not yes, or nobody is there to ask.
    """
    if not from_terminal():
        raise KbctlError("confirmation_needed", refusal, remedy, Exit.REFUSED)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise KbctlError("not_confirmed", "nothing was changed", "", Exit.REFUSED)


def secret(prompt: str, *, what: str, remedy: str) -> str:
    """A secret: typed unseen on a terminal, otherwise all of stdin without its final newline.

    Never an argument: those can be read by every process of this machine.
    """
    if from_terminal():
        given = getpass.getpass(prompt, stream=sys.stderr)
    else:
        given = sys.stdin.read(_SECRET_CHARACTERS_MAX + 1)
        given = given.removesuffix("\n").removesuffix("\r")
    if not given.strip():
        raise KbctlError("secret_empty", f"no {what} was given", remedy, Exit.USAGE)
    if len(given) > _SECRET_CHARACTERS_MAX:
        raise KbctlError("secret_too_long", f"that is too long for a {what}", remedy, Exit.USAGE)
    return given

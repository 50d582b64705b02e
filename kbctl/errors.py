"""The one error that people see: a code for machines, a sentence, and a remedy that works when pasted.

Nothing else crosses from a failure to a terminal or to a JSON answer, so a message here must never
hold a secret.
"""

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of the command line; part of its contract."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    INTEGRITY = 5
    NOT_FOUND = 6
    # Of `kbctl run` alone, as a shell says them of the command.
    NOT_RUNNABLE = 126
    COMMAND_NOT_FOUND = 127


class KbctlError(Exception):
    """A failure with its remedy.

    Attributes:
        code: machine code, snake_case, stable.
        message: one sentence without a final full stop.
        remedy: a command that can be pasted, or a short instruction; may be empty.
        exit_status: what the process exits with when this reaches the top.
    """

    def __init__(self, code: str, message: str, remedy: str = "", exit_status: Exit = Exit.INTERNAL) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.remedy = remedy
        self.exit_status = exit_status

"""Runs a command in our place: the same terminal, the same process group, its signals, its exit status.

What must stay true: no signal that can be caught ends us before the command has ended and what comes after it
is done. The command stays in our process group, so that the terminal treats both as one job in a pipeline,
with Ctrl-Z and in the background; what the terminal sends reaches it without us, anything else we pass on.
"""

import errno
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from kbctl.errors import Exit, KbctlError

_PASSED_ON: Final = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
_OURS: Final = (signal.SIGCHLD, signal.SIGALRM)
# Python ignores these for itself; a program expects them as they come.
_AS_THEY_COME: Final = tuple(
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ") if hasattr(signal, name)
)


class Held:
    """Signals wait while this is held; ``wait`` takes them in turn. At its end they are as they were."""

    def __enter__(self) -> Self:
        # What we were told to ignore (nohup) the command ignores too, and nobody passes it on.
        listening = {each for each in _PASSED_ON if signal.getsignal(each) is not signal.SIG_IGN}
        self.signals = listening | set(_OURS)
        # Ignored by default, and so lost on some systems even while it waits.
        self._handlers = {each: signal.signal(each, lambda *_: None) for each in _OURS}
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        # Meant for the command, and it has ended: they must not end us with another exit status.
        while late := signal.sigpending() & self.signals:
            signal.sigwait(late)
        signal.pthread_sigmask(signal.SIG_SETMASK, self.mask)
        for each, handler in self._handlers.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)

    def wait(self, pid: int, late_s: float, late: Callable[[], None]) -> int:
        """Pass signals on to the command until it has ended; its exit status, 128+n after signal n.

        Args:
            pid: the command.
            late_s: how long after SIGTERM or SIGHUP it should have ended.
            late: called once when it has not.
        """
        ending = False
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                return code if code >= 0 else 128 - code
            number, from_terminal = _next(self.signals)
            if number == signal.SIGALRM:
                late()
            elif number != signal.SIGCHLD:
                if not from_terminal:
                    _pass_on(pid, number)
                if number in _ENDING and not ending:
                    ending = True
                    signal.setitimer(signal.ITIMER_REAL, late_s)


def _next(signals: set[signal.Signals]) -> tuple[int, bool]:
    """The next signal, and whether the terminal sent it, to the command as well."""
    if hasattr(signal, "sigwaitinfo"):
        taken = signal.sigwaitinfo(signals)
        return taken.si_signo, taken.si_code > 0
    number = signal.sigwait(signals)
    # macOS doesn't say who sent it: while a terminal has us in front, these are its keys.
    return number, number in (signal.SIGINT, signal.SIGQUIT) and _in_front()


def _in_front() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _pass_on(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass  # gone, or another user's by now (setuid)


def find(name: str) -> str:
    """The program of this name, as a shell finds it.

    Raises:
        KbctlError: there is none (127), or it can't be run (126).
    """
    found = shutil.which(name)
    if found is not None:
        return found
    if os.sep in name and os.path.lexists(name):
        raise _not_runnable(name, "it is not an executable file", f"ls -ld {name}")
    raise KbctlError(
        "command_not_found",
        f"there is no command {name!r}",
        f"ls -l {name}" if os.sep in name else f"command -v {name}",
        Exit.COMMAND_NOT_FOUND,
    )


def start(program: str, command: list[str], environment: Mapping[str, str], held: Held) -> int:
    """Start the command; its pid.

    Raises:
        KbctlError: it can't be run.
    """
    try:
        return os.posix_spawn(program, command, environment, setsigmask=held.mask, setsigdef=_AS_THEY_COME)
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise KbctlError(
                "command_not_found",
                f"{program} names an interpreter that is not there",
                f"head -n 1 {program}",
                Exit.COMMAND_NOT_FOUND,
            ) from None
        raise _not_runnable(program, os.strerror(error.errno or 0).lower(), f"file {program}") from None


def _not_runnable(name: str, why: str, remedy: str) -> KbctlError:
    return KbctlError("command_not_runnable", f"{name} can't be run: {why}", remedy, Exit.NOT_RUNNABLE)

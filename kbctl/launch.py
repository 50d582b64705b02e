"""Starts and stops the daemon's process.

What must stay true: the daemon inherits nothing that could steer it or leak from it. Its environment is an
allowlist, its imports ignore ``PYTHON*`` and the current folder, its files are private to their owner, and it
is a session of its own, so that closing the terminal or Ctrl-C does not end it. It reports once, on a pipe
that only it holds: a pipe that closes in silence is a start that failed.
"""

import fcntl
import os
import select
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kbctl import __version__, wire
from kbctl.client import Client
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home

_ENVIRONMENT = frozenset(
    "HOME PATH USER LOGNAME LANG TZ TMPDIR DBUS_SESSION_BUS_ADDRESS CREDENTIALS_DIRECTORY KBCTL_HOME".split()
)
# Of a service manager, which wants to hear from its own child only.
_NOTIFY = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_ENVIRONMENT_PREFIXES = ("LC_", "XDG_", "COVERAGE_")

# A keyring that a person has to unlock is the slowest part of a start.
_START_S_MAX = 90.0
# The daemon drains for up to 10 s and then closes its database.
_STOP_S_MAX = 20.0
_REPORT_BYTES_MAX = 1024 * 1024
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Options:
    """What ``kbctl up`` passes on."""

    sandbox: bool = False
    port: int | None = None
    upstreams: Sequence[str] = ()
    accept_rollback: bool = False
    passphrase: str | None = None

    def __repr__(self) -> str:
        return f"Options(sandbox={self.sandbox}, port={self.port})"


@dataclass(frozen=True, slots=True)
class Stopped:
    """What ``kbctl down`` found."""

    pid: int
    in_flight: int


def start(home: Home, options: Options, *, waiting: Callable[[], None] = lambda: None) -> wire.Status:
    """Start the daemon of this home and wait until it serves.

    Args:
        home: made, private to its owner, when it isn't there.
        options: what the daemon is told.
        waiting: called about fifty times a second until the daemon has reported.

    Raises:
        KbctlError: what the daemon said instead, with the exit status that it gave.
    """
    _make_private(home)
    log = os.open(home.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    reading, writing = os.pipe()
    try:
        began_at = os.fstat(log).st_size
        try:
            process = subprocess.Popen(  # noqa: S603  # our own interpreter, no shell
                [*_command(home, options), "--report-fd", str(writing)],
                stdin=subprocess.DEVNULL if options.passphrase is None else subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=home.root,
                env=environment(os.environ),
                pass_fds=(writing,),
                start_new_session=True,
            )
        finally:
            os.close(writing)
            os.close(log)
        _hand_over(process, options.passphrase)
        try:
            line = _read_report(reading, waiting)
        except BaseException:
            # Ctrl-C while waiting: what we started and nobody has seen yet must not stay behind.
            process.terminate()
            process.wait()
            raise
    finally:
        os.close(reading)
    try:
        return _started(home, process, line, began_at)
    except KbctlError as error:
        if error.code == "home_in_use":
            raise _in_use(home, error) from None
        raise


def _in_use(home: Home, error: KbctlError) -> KbctlError:
    """The same, with what to do after an upgrade, when it is another version that runs here."""
    try:
        running = Client(home).status().version
    except KbctlError as other:
        if other.code != "api_mismatch":
            return error
        return KbctlError("version_differs", other.message, "kbctl down && kbctl up", Exit.REFUSED)
    if running == __version__:
        return error
    Client.others.clear()  # told here
    return KbctlError(
        "version_differs",
        f"kbctl {running} runs here already, and this is {__version__}: the old one goes on until it is"
        " started again; keys, holds and spend stay as they are",
        "kbctl down && kbctl up",
        Exit.REFUSED,
    )


def replace_process(home: Home, options: Options) -> None:
    """Become the daemon, in this terminal; returns only by raising."""
    _make_private(home)
    command = [*_command(home, options), "--foreground"]
    reading, writing = os.pipe()
    # Shorter than a pipe's buffer, so this cannot block: the reader is this very process, later.
    os.write(writing, _passphrase_line(options.passphrase))
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    sys.stdout.flush()
    sys.stderr.flush()
    told = {name: os.environ[name] for name in _NOTIFY if name in os.environ}
    os.execve(sys.executable, command, {**environment(os.environ), **told})  # noqa: S606  # our own interpreter, no shell


def stop(home: Home) -> Stopped | None:
    """Drain and end the daemon of this home and wait until it is gone; None when none was running."""
    try:
        with Client(home) as client:
            reply = client.shutdown()
    except KbctlError as error:
        if error.exit_status is not Exit.UNREACHABLE:
            raise
        if not is_locked(home):
            return None
        raise KbctlError(
            "daemon_unreachable",
            "a daemon holds this home but does not answer",
            "kbctl logs",
            Exit.UNREACHABLE,
        ) from None
    deadline = time.monotonic() + _STOP_S_MAX
    while is_locked(home):
        if time.monotonic() > deadline:
            raise KbctlError(
                "still_running", f"the daemon is still running after {_STOP_S_MAX:.0f} s", f"kill {reply.pid}"
            )
        time.sleep(_POLL_S)
    return Stopped(pid=reply.pid, in_flight=reply.in_flight)


def restore(
    home: Home, file: Path, *, sandbox: bool, waiting: Callable[[], None] = lambda: None
) -> wire.Restored:
    """Put a backup in the place of the database of this home, which no daemon may serve.

    Raises:
        KbctlError: nothing was changed.
    """
    _make_private(home)
    command = [
        *_python("kbctld.restore"),
        "--home",
        str(home.root),
        *(["--sandbox"] if sandbox else []),
        str(file),
    ]
    with subprocess.Popen(  # noqa: S603  # our own interpreter, no shell
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd=home.root, env=environment(os.environ)
    ) as process:
        assert process.stdout is not None  # noqa: S101 - for the type checker
        while not select.select([process.stdout], [], [], _POLL_S)[0]:
            waiting()
        line = process.stdout.read()
    try:
        said = wire.decode(line, wire.Restored)
    except wire.WireError:
        raise KbctlError("restore_failed", "it ended without a word", "kbctl restore FILE") from None
    if said.error is not None:
        raise KbctlError(said.error.code, said.error.message, said.error.remedy, _exit(said.exit_status))
    return said


def is_locked(home: Home) -> bool:
    """Whether a daemon lives in this home: it holds the lock for as long as it does."""
    try:
        lock = os.open(home.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two of us asking at once don't take each other for a daemon.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def needs_passphrase(home: Home) -> bool:
    """Whether the config of this home keeps secrets under a passphrase."""
    try:
        config = tomllib.loads(home.config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # the daemon says what is wrong with it, better than we could
    secrets = config.get("secrets")
    return isinstance(secrets, dict) and secrets.get("backend") == "passphrase"


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What the daemon may inherit: not ``PYTHON*``, ``LD_*``, ``*_PROXY``, ``SSL_*`` or API keys."""
    return {
        name: value
        for name, value in inherited.items()
        if name in _ENVIRONMENT or name.startswith(_ENVIRONMENT_PREFIXES)
    }


def _command(home: Home, options: Options) -> list[str]:
    command = [*_python("kbctld"), "--home", str(home.root)]
    if options.sandbox:
        command.append("--sandbox")
    if options.port is not None:
        command += ["--port", str(options.port)]
    for upstream in options.upstreams:
        command += ["--upstream", upstream]
    if options.accept_rollback:
        command.append("--accept-rollback")
    if options.passphrase is not None:
        command.append("--passphrase-stdin")
    return command


def _python(module: str) -> list[str]:
    # -E and -P: neither PYTHON* variables nor the current folder may choose what a module is.
    return [sys.executable, "-E", "-P", "-m", module]


def _exit(status: int) -> Exit:
    return Exit(status) if status in {int(known) for known in Exit} - {Exit.OK} else Exit.INTERNAL


def _make_private(home: Home) -> None:
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KbctlError(
            "home_unusable",
            f"the home {home.root} cannot be made: {error.strerror}",
            "KBCTL_HOME=~/kbctl-home kbctl up",
            Exit.REFUSED,
        ) from None


def _passphrase_line(passphrase: str | None) -> bytes:
    return b"" if passphrase is None else passphrase.encode() + b"\n"


def _hand_over(process: subprocess.Popen[bytes], passphrase: str | None) -> None:
    if process.stdin is None:
        return
    try:
        process.stdin.write(_passphrase_line(passphrase))
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read: its report or its silence says why


def _read_report(reading: int, waiting: Callable[[], None]) -> bytes | None:
    """The line on the pipe; b"" when it was closed without one, None when there was none in time."""
    deadline = time.monotonic() + _START_S_MAX
    report = bytearray()
    while b"\n" not in report:
        waiting()
        if time.monotonic() > deadline:
            return None
        if not select.select([reading], [], [], _POLL_S)[0]:
            continue
        chunk = os.read(reading, 65536)
        if not chunk or len(report) > _REPORT_BYTES_MAX:
            return b""
        report += chunk
    return bytes(report.partition(b"\n")[0])


def _started(home: Home, process: subprocess.Popen[bytes], line: bytes | None, began_at: int) -> wire.Status:
    if line is None:
        process.terminate()
        process.wait()
        raise KbctlError(
            "start_timeout",
            f"the daemon had not started after {_START_S_MAX:.0f} s and was stopped",
            "kbctl logs",
        )
    try:
        started = wire.decode(line, wire.Started)
    except wire.WireError:
        process.terminate()
        process.wait()
        last = _last_line(home, began_at)
        raise KbctlError(
            "start_failed",
            f"the daemon ended while it started{f'; its last words: {last}' if last else ''}",
            "kbctl logs",
        ) from None
    if started.status is not None:
        # It outlives us on purpose. Without this, Popen warns about a child that nobody waits for.
        process.returncode = 0
        return started.status
    process.wait()
    error = started.error or wire.ErrorBody(code="start_failed", message="the daemon did not start")
    raise KbctlError(error.code, error.message, error.remedy, _exit(started.exit_status))


def _last_line(home: Home, began_at: int) -> str:
    """The last line that this start wrote to the log; a traceback ends with what went wrong."""
    try:
        with home.log.open("rb") as log:
            log.seek(began_at)
            lines = log.read(_REPORT_BYTES_MAX).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

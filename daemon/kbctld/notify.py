"""Tells a service manager how the daemon is: sd_notify(3), without a library.

What must stay true: nothing is said before it is so, and a manager that does not listen stops nothing. The
watchdog is told that all is well by the event loop itself, and only while the journal's writer gets on: a
daemon that can't record anything any more, or hangs, is one to start again.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, MutableMapping

log = logging.getLogger("kbctld")


class Notifier:
    """One service manager's socket; without one all of it does nothing.

    Args:
        environ: where the manager says where it listens. It is taken out, so that no child says anything.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        pid, usec = environ.pop("WATCHDOG_PID", ""), environ.pop("WATCHDOG_USEC", "")
        # An @ stands for the NUL byte of an abstract name.
        self._address = f"\0{address[1:]}" if address[:1] == "@" else address
        self._socket: socket.socket | None = None
        self.watchdog_s: float | None = None
        """How often the manager wants to hear from us at least; None if it does not."""
        if address[:1] not in ("/", "@"):
            return
        if pid in ("", str(os.getpid())) and usec.isascii() and usec.isdigit() and int(usec):
            self.watchdog_s = int(usec) / 1e6
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def tell(self, *lines: str) -> None:
        """Such as ``READY=1``."""
        if self._socket is not None:
            try:
                self._socket.sendto("\n".join(lines).encode(), self._address)
            except OSError as error:
                log.warning("the service manager does not listen: %s", error.strerror)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    async def watch(self, alive: Callable[[], bool]) -> None:
        """Tell the watchdog that all is well for as long as it is; ends only when it is cancelled."""
        if self.watchdog_s is None:
            return
        well = True
        while True:
            before, well = well, alive()
            if well:
                self.tell("WATCHDOG=1")
            elif before:
                log.critical("the watchdog is told nothing any more: calls can't be recorded")
                self.tell("STATUS=calls can't be recorded")
            await asyncio.sleep(self.watchdog_s / 3)

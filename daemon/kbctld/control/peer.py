"""Who is on the other end of the UNIX socket: only the daemon's own user and root may ask.

File modes alone do not decide it: the socket may have been handed to another process, and a folder's mode
can be changed by mistake.
"""

import asyncio
import os
import socket
import struct
import sys

from kbctld.control.routes import Asker, HttpError, Route
from kbctld.http1.gate import Head
from kbctld.http1.server import Request

# struct ucred {pid, uid, gid}: unix(7)
_LINUX_UCRED = struct.Struct("3i")
# struct xucred {version, uid, ngroups, groups[16]}: unix(4) of the BSDs and macOS
_MACOS_XUCRED = struct.Struct("2Ih16I")
_SOL_LOCAL, _LOCAL_PEERCRED = 0, 1


def peer_uid(connection: socket.socket) -> int | None:
    """The user on the other end; None where the platform does not tell."""
    if sys.platform == "linux":
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size)
        return int(_LINUX_UCRED.unpack(raw)[1])
    if sys.platform == "darwin":
        raw = connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _MACOS_XUCRED.size)
        return int(_MACOS_XUCRED.unpack(raw.ljust(_MACOS_XUCRED.size, b"\0"))[1])
    return None


def is_operator(transport: asyncio.BaseTransport) -> bool:
    """Whether this peer may use the operator API."""
    connection = transport.get_extra_info("socket")
    try:
        uid = peer_uid(connection)
    except OSError:
        return False
    return uid is not None and uid in (os.getuid(), 0)


def on_socket(request: Request, head: Head, _route: Route | None) -> Asker:
    """The gate of the socket: whoever got through ``is_operator`` may do everything, but no web page.

    Raises:
        HttpError: a page, by way of a forwarded socket.
    """
    if head.get(b"origin") is not None or head.get(b"sec-fetch-site") not in (None, b"none"):
        raise HttpError(403, "origin_not_allowed", "the operator API does not answer web pages")
    transport = request.connection.transport
    try:
        uid = peer_uid(transport.get_extra_info("socket")) if transport is not None else None
    except OSError:
        uid = None  # it has hung up meanwhile
    return Asker("" if uid is None else f"uid {uid}", "admin")

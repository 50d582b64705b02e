"""What was written is on the medium, and not on its way there.

What must stay true: whoever makes a file durable does it by ``sync``. SQLite does the same for its own files
where ``fullfsync`` is on.
"""

import errno
import fcntl
import os
import sys
from pathlib import Path

_UNKNOWN_THERE = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY)


def sync(descriptor: int) -> None:
    """Wait until a file, or the names in a folder, would outlive a power cut.

    On macOS fsync(2) leaves them in the drive's cache, as its manual says; F_FULLFSYNC does not. File systems
    that don't know it get what they know. After an error nothing is tried again: it might
    succeed, and mean less than it says.

    Raises:
        OSError: that can't be known.
    """
    if sys.platform == "darwin":
        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in _UNKNOWN_THERE:
                raise
            os.fsync(descriptor)
    else:
        os.fsync(descriptor)


def sync_path(path: Path) -> None:
    """The same of a file, or of a folder's names, that nobody holds open.

    Raises:
        OSError: that can't be known.
    """
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        sync(opened)
    finally:
        os.close(opened)

"""``python -m kbctld.restore``: puts a backup in place of the database. People use ``kbctl restore``.

What must stay true: no daemon serves the home meanwhile, and none can start; the anchor stays as it is.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from kbctl import wire
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home
from kbctld.app import check_home, take_lock
from kbctld.control.care import contents_view
from kbctld.store.backup import restore


def main() -> int:
    """Do it, and say how it went in one line of JSON on standard output."""
    parser = argparse.ArgumentParser(prog="kbctld.restore")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--sandbox", action="store_true")
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    os.umask(0o077)
    try:
        said = _restore(Home(given.home), given.file, sandbox=given.sandbox)
        status = Exit.OK
    except KbctlError as error:
        body = wire.ErrorBody(code=error.code, message=error.message, remedy=error.remedy)
        said, status = wire.Restored(error=body, exit_status=int(error.exit_status)), error.exit_status
    sys.stdout.buffer.write(wire.encode(said) + b"\n")
    return int(status)


def _restore(home: Home, file: Path, *, sandbox: bool) -> wire.Restored:
    check_home(home)
    lock = take_lock(home)
    try:
        home.state(sandbox=sandbox).mkdir(mode=0o700, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        done = restore(file, home.database(sandbox=sandbox), home.anchor(sandbox=sandbox), stamp=stamp)
    finally:
        os.close(lock)
    return wire.Restored(
        file=str(file),
        database=str(home.database(sandbox=sandbox)),
        bytes=done.contents.bytes,
        sha256=done.sha256,
        holds=contents_view(done.contents),
        kept=None if done.kept is None else str(done.kept),
        calls_behind=0 if done.behind is None else max(done.behind.call_no - done.contents.height.call_no, 0),
        changes_behind=0
        if done.behind is None
        else max(done.behind.changes - done.contents.height.changes, 0),
        must_accept=done.behind is not None or done.unanchored,
    )


if __name__ == "__main__":
    sys.exit(main())

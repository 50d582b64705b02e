"""Run by the tests, to be killed or starved: appends calls and says on stdout which were acknowledged.

``append FOLDER``: until killed, eight at once; one line per acknowledged call id.
``sequence FOLDER COUNT``: one after the other; a JSON object says how far it came and what failed.
``full FOLDER``: on a small file system of its own, through "no space left" and back; a JSON object.
"""

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path

from kbctl.errors import KbctlError
from kbctld.store.journal import JournalError
from tests.store.support import call, journal_in


async def append(folder: Path) -> None:
    async with journal_in(folder) as journal:
        numbers = itertools.count(journal.database.height.call_no)

        async def one_after_another() -> None:
            for number in numbers:
                row = call(number)
                await journal.append(row)
                os.write(1, f"{row.call_id}\n".encode())
                row.outcome = "posted"
                journal.finish(row)

        await asyncio.gather(*(one_after_another() for _ in range(8)))


async def sequence(folder: Path, count: int) -> dict[str, object]:
    acknowledged: list[str] = []
    failures: list[str] = []
    try:
        async with journal_in(folder) as journal:
            for number in range(count):
                row = call(number)
                try:
                    await journal.append(row)
                except JournalError as error:
                    failures.append(str(error))
                else:
                    acknowledged.append(row.call_id)
            stopped = journal.stopped
    except KbctlError as error:
        return {"acknowledged": acknowledged, "start": error.code}
    return {"acknowledged": acknowledged, "failures": failures, "stopped": stopped}


async def full(folder: Path) -> dict[str, object]:
    ballast = folder / "ballast"
    async with journal_in(folder) as journal:
        early = call(0)
        await journal.append(early)
        free = os.statvfs(folder)
        ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 64 * 1024))
        acknowledged, failures = [early.call_id], list[str]()
        for number in range(1, 100):
            row = call(number, metadata=json.dumps({"note": "x" * 4000}))
            try:
                await journal.append(row)
            except JournalError as error:
                failures.append(str(error))
                if len(failures) == 5:
                    break
            else:
                acknowledged.append(row.call_id)
        early.outcome = "posted"  # its end comes while nothing can be written
        journal.finish(early)
        await asyncio.sleep(0.1)
        ballast.unlink()
        late = call(1000)
        await journal.append(late)
        acknowledged.append(late.call_id)
    return {"acknowledged": acknowledged, "failures": failures, "stopped": journal.stopped}


def main() -> None:
    os.umask(0o077)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "append":
        asyncio.run(append(folder))
        return
    said = asyncio.run(full(folder) if what == "full" else sequence(folder, int(sys.argv[3])))
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main()

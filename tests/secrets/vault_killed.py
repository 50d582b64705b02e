"""Run by test_vault_file: writers of an encrypted file, killed at random moments (kill -9).

Prints one JSON object: how many rounds ran and what was found wrong. A process of its own, because it forks.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from kbctld.secrets.secret import Secret
from kbctld.secrets.vault_file import open_vault


async def rotate(directory: Path, first: int, acknowledge: int) -> None:
    """Write numbers until killed; say each one that write() has promised."""
    vault = await open_vault("keyfile", directory)
    for number in range(first, first + 1_000_000):
        await vault.write("stripe", Secret(str(number)))
        os.write(acknowledge, b"%d\n" % number)


async def read(directory: Path) -> int:
    secret = await (await open_vault("keyfile", directory)).read("stripe")
    return int(secret.reveal()) if secret else 0


def main() -> None:
    root, rounds = Path(sys.argv[1]), int(sys.argv[2])
    wrong: list[str] = []
    kills_between_writes = 0
    for number in range(rounds):
        # Every third round starts with nothing: the creation of key and store is killed too.
        directory = root / str(number // 3)
        before = asyncio.run(read(directory)) if number % 3 else 0
        source, sink = os.pipe()
        child = os.fork()
        if child == 0:
            asyncio.run(rotate(directory, before + 1, sink))
            os._exit(1)
        os.close(sink)
        time.sleep(random.uniform(0, 0.02 if number % 3 == 0 else 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with os.fdopen(source) as lines:
            acknowledged = max((int(line) for line in lines.read().splitlines()), default=before)
        try:
            found = asyncio.run(read(directory))
        except Exception as error:  # noqa: BLE001  any is a finding
            wrong.append(f"round {number}: {error!r}")
            continue
        kills_between_writes += acknowledged > before
        if found not in (acknowledged, acknowledged + 1):
            wrong.append(f"round {number}: acknowledged {acknowledged}, found {found}")
        leftovers = {path.name for path in directory.iterdir()}
        if not leftovers <= {"secrets.kbctl", "secrets.kbctl.new", "secrets.key", "secrets.key.new"}:
            wrong.append(f"round {number}: {leftovers}")
    print(json.dumps({"rounds": rounds, "in_rotation": kills_between_writes, "wrong": wrong}))  # noqa: T201


if __name__ == "__main__":
    main()

"""Run by test_secret_service inside one D-Bus session: plays a scenario and prints what happened as JSON.

A process of its own, because a session bus and a keyring live as long as the session does. It kills the
Secret Service that it found, so that also a stopped one ends with the session.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import secretstorage
from jeepney import DBusErrorResponse  # type: ignore[import-untyped]
from jeepney.bus_messages import message_bus  # type: ignore[import-untyped]
from jeepney.io.blocking import Proxy  # type: ignore[import-untyped]

from kbctl.errors import KbctlError
from kbctld.secrets.os_keyring import OsKeyring
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import first_choice

TEXT = "sk_test_canary_4eC39HqLyjWDarjtT1zdp7dc"

daemons: set[int] = set()


def daemon() -> int:
    """The pid of the Secret Service on this bus; 0 when none runs."""
    with closing(secretstorage.dbus_init()) as connection:
        try:
            (pid,) = Proxy(message_bus, connection).GetConnectionUnixProcessID("org.freedesktop.secrets")
        except DBusErrorResponse:
            return 0
    daemons.add(int(pid))
    return int(pid)


async def code(attempt: Awaitable[object]) -> str:
    """The code of the error, or what it gave."""
    try:
        result = await attempt
    except KbctlError as error:
        is_leak = TEXT in f"{error!r} {error.remedy} {error.__cause__!r}"
        return "leak" if is_leak else error.code
    return result.reveal() if isinstance(result, Secret) else repr(result)


async def four(keyring: OsKeyring) -> list[str]:
    """What the four operations answer."""
    attempts = (
        keyring.probe(),
        keyring.read("stripe"),
        keyring.write("stripe", Secret(TEXT)),
        keyring.remove("stripe"),
    )
    return [await code(attempt) for attempt in attempts]


async def cycle() -> dict[str, object]:
    keyring, other = OsKeyring(), OsKeyring("/srv/agents")
    big = "ü" * 4000
    result: dict[str, object] = {"first_choice": await first_choice(Path("/nonexistent"))}
    result["nothing yet"] = await code(keyring.read("stripe"))
    await keyring.write("stripe", Secret(TEXT))
    await other.write("stripe", Secret("other"))
    await keyring.write("big", Secret(big))
    result["written"] = [await code(keyring.read("stripe")), await code(other.read("stripe"))]
    result["big"] = await code(keyring.read("big")) == big
    result["together"] = [
        await code(r) for r in [asyncio.ensure_future(keyring.read("stripe")) for _ in range(6)]
    ]
    await keyring.write("stripe", Secret("rotated"))
    result["rotated"] = await code(keyring.read("stripe"))
    await keyring.remove("stripe")
    await keyring.remove("stripe")
    await keyring.remove("big")
    result["removed"] = [await code(keyring.read("stripe")), await code(other.read("stripe"))]
    await other.remove("stripe")
    await keyring.write("kept", Secret(TEXT))
    with closing(secretstorage.dbus_init()) as connection:
        items = secretstorage.get_default_collection(connection).get_all_items()
        result["items"] = [item.get_label() for item in items]
    return result


async def persisted() -> dict[str, object]:
    keyring = OsKeyring()
    result: dict[str, object] = {"kept": await code(keyring.read("kept"))}
    # Another program's item of our name and another attribute may shadow ours: which one is found first is
    # the keyring's choice. If it is theirs, that is noticed; and both are removable.
    with closing(secretstorage.dbus_init()) as connection:
        collection = secretstorage.get_default_collection(connection)
        attributes = {"service": "kbctl", "username": "kept", "application": "another"}
        collection.create_item("shadow", attributes, b"shadow", replace=False)
    result["shadowed"] = [await code(keyring.write("kept", Secret("new"))), await code(keyring.read("kept"))]
    await keyring.remove("kept")
    result["removed"] = await code(keyring.read("kept"))
    return result


async def locked() -> dict[str, object]:
    return {
        "answers": await four(OsKeyring()),
        "first_choice": await code(first_choice(Path("/nonexistent"))),
    }


async def uncreated() -> dict[str, object]:
    result: dict[str, object] = {"answers": await four(OsKeyring())}
    result["headless"] = await first_choice(Path("/nonexistent"))
    os.environ["DISPLAY"] = ":99"
    result["display"] = await code(first_choice(Path("/nonexistent")))
    return result


async def stopped() -> dict[str, object]:
    keyring = OsKeyring(deadline_s=0.6)
    await OsKeyring().write("stripe", Secret(TEXT))
    os.kill(daemon(), signal.SIGSTOP)
    lags, answers, seconds = [], [], []
    try:
        for _ in range(3):
            started = time.monotonic()
            reading = asyncio.create_task(code(keyring.read("stripe")))
            lag = 0.0
            while not reading.done():
                before = time.monotonic()
                await asyncio.sleep(0.005)
                lag = max(lag, time.monotonic() - before - 0.005)
            answers.append(await reading)
            seconds.append(time.monotonic() - started)
            lags.append(lag)
        first = await code(first_choice(Path("/nonexistent"), deadline_s=0.6))
    finally:
        os.kill(daemon(), signal.SIGCONT)
    return {
        "answers": answers,
        "seconds": seconds,
        "lag": min(lags),
        "first_choice": first,
        "continued": await code(OsKeyring().read("stripe")),
    }


async def killed() -> dict[str, object]:
    keyring = OsKeyring()
    await keyring.write("stripe", Secret(TEXT))
    pid = daemon()
    os.kill(pid, signal.SIGKILL)
    while daemon() == pid:
        pass  # until the bus has noticed
    return {"after": await code(keyring.read("stripe")), "restarted": daemon() not in (0, pid)}


def victim(steering: dict[str, str]) -> None:
    """A program that uses the keyring library as its documentation says."""
    program = "import keyring; keyring.set_password('kbctl', 'control', 'control')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        [sys.executable, "-c", program], env={**environment, **steering}, stderr=subprocess.DEVNULL
    )


async def hostile() -> dict[str, object]:
    """K1: everything that steers the keyring library points at a thief."""
    home = Path(os.environ["HOME"])
    thief, loot = home / "thief", home / "loot"
    thief.mkdir()
    source = f"""
import pathlib
LOOT = pathlib.Path({str(loot)!r})
LOOT.open("a").write("imported\\n")
"""
    backend = """
from keyring.backend import KeyringBackend
class Keyring(KeyringBackend):
    priority = 99
    def get_password(self, service, username): return "stolen"
    def set_password(self, service, username, password): LOOT.open("a").write(password)
    def delete_password(self, service, username): LOOT.open("a").write(username)
"""
    (thief / "thief_backend.py").write_text(source + backend)
    for module in ("sitecustomize", "usercustomize", "secretstorage", "jeepney"):
        (thief / f"{module}.py").write_text(source)
    # An entry point, as `pip install keyrings.alt` makes one.
    (thief / "thief-1.dist-info").mkdir()
    (thief / "thief-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: thief\nVersion: 1\n")
    (thief / "thief-1.dist-info/entry_points.txt").write_text("[keyring.backends]\nthief = thief_backend\n")
    settings = f"[backend]\ndefault-keyring=thief_backend.Keyring\nkeyring-path={thief}\n"
    for folder in (home / ".config", home / "config", home / ".local/share", home / "data"):
        (folder / "python_keyring").mkdir(parents=True, exist_ok=True)
        (folder / "python_keyring/keyringrc.cfg").write_text(settings)

    controls = {
        "PYTHON_KEYRING_BACKEND": {
            "PYTHON_KEYRING_BACKEND": "thief_backend.Keyring",
            "PYTHONPATH": str(thief),
        },
        "keyringrc.cfg": {"XDG_CONFIG_HOME": str(home / "config")},
        "PYTHONPATH": {"PYTHONPATH": str(thief)},
    }
    stolen = []
    for steering in controls.values():
        victim(steering)
        stolen.append(loot.exists())
        loot.unlink(missing_ok=True)

    os.environ.update({"XDG_CONFIG_HOME": str(home / "config"), "XDG_DATA_HOME": str(home / "data")})
    os.environ.update(controls["PYTHON_KEYRING_BACKEND"])
    os.environ["KEYRING_PROPERTY_PREFERRED_COLLECTION"] = "/org/freedesktop/secrets/collection/session"
    os.environ["KEYRING_PROPERTY_APPID"] = "thief"
    os.chdir(thief)
    keyring = OsKeyring()
    await keyring.probe()
    await keyring.write("stripe", Secret(TEXT))
    answer = await code(keyring.read("stripe"))
    with closing(secretstorage.dbus_init()) as connection:
        items = list(secretstorage.get_default_collection(connection).get_all_items())
        attributes = [item.get_attributes().get("application") for item in items]
    await keyring.remove("stripe")
    return {"controls stolen": stolen, "answer": answer, "loot": loot.exists(), "application": attributes}


SCENARIOS: dict[str, Callable[[], Awaitable[dict[str, object]]]] = {
    scenario.__name__: scenario
    for scenario in (cycle, persisted, locked, uncreated, stopped, killed, hostile)
}


async def play(name: str) -> None:
    try:
        daemon()
        result = await SCENARIOS[name]()
        daemon()
        sys.stdout.write(json.dumps({**result, "daemons": sorted(daemons)}))
    finally:
        for pid in daemons:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1]))

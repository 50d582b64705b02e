"""The choice of a store: explicit, never a silent downgrade; and opening what was chosen."""

import asyncio
import socket
from pathlib import Path

import pytest

from kbctl.errors import Exit, KbctlError
from kbctld.secrets.secret import Secret
from kbctld.secrets.store import KINDS, MemoryStore, SecretStore, first_choice, open_store


@pytest.fixture
def no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DBUS_SESSION_BUS_ADDRESS", "CREDENTIALS_DIRECTORY", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)


def give_credential(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.mkdir()
    (directory / "kbctl-key").write_bytes(b"k" * 32)
    (directory / "kbctl-key").chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))


@pytest.mark.usefixtures("no_bus")
def test_without_a_keyring_it_is_a_key_file_and_the_person_is_told(tmp_path: Path) -> None:
    kind, notice = asyncio.run(first_choice(tmp_path))
    assert kind == "keyfile"
    assert notice.startswith("There is no OS keyring here: there is no session bus. ")
    assert "not against a program that runs as the same user" in notice
    assert 'secrets.backend = "passphrase"' in notice
    assert list(tmp_path.iterdir()) == [], "choosing makes nothing"


@pytest.mark.usefixtures("no_bus")
def test_a_systemd_credential_comes_before_a_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_credential(tmp_path / "credentials", monkeypatch)
    kind, notice = asyncio.run(first_choice(tmp_path / "home"))
    assert kind == "systemd-credential"
    assert "`kbctl-key`" in notice


@pytest.mark.usefixtures("no_bus")
def test_a_file_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asyncio.run(open_store("passphrase", tmp_path, passphrase=Secret("pass")))
    give_credential(tmp_path / "credentials", monkeypatch)
    kind, notice = asyncio.run(first_choice(tmp_path))
    assert kind == "passphrase"
    assert "as before" in notice


@pytest.mark.usefixtures("no_bus")
def test_a_keyring_that_hangs_is_not_an_absent_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as bus:
        bus.bind(str(tmp_path / "bus"))
        bus.listen()
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", f"unix:path={tmp_path / 'bus'}")
        with pytest.raises(KbctlError) as caught:
            asyncio.run(first_choice(tmp_path, deadline_s=0.8))
    assert (caught.value.code, caught.value.exit_status) == ("keyring_timeout", Exit.REFUSED)
    assert 'secrets.backend = "keyfile"' in caught.value.remedy


def test_each_kind_opens_as_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_credential(tmp_path / "credentials", monkeypatch)

    async def opened(kind: str) -> SecretStore:
        return await open_store(kind, tmp_path / kind, namespace="/x", passphrase=Secret("pass"))

    stores = [asyncio.run(opened(kind)) for kind in KINDS]
    assert tuple(store.kind for store in stores) == KINDS
    assert len({store.description for store in stores}) == len(KINDS)
    assert all(f"{store!r}".startswith("<") for store in stores)


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KbctlError) as caught:
        asyncio.run(open_store("chainer", tmp_path))
    assert (caught.value.code, caught.value.exit_status) == ("secret_backend_unknown", Exit.REFUSED)
    assert all(kind in caught.value.remedy for kind in KINDS)


def test_memory_forgets_with_the_process() -> None:
    async def scenario() -> None:
        store = MemoryStore()
        assert await store.read("stripe") is None
        await store.write("stripe", Secret("a"))
        assert await store.read("stripe") == Secret("a")
        await store.remove("stripe")
        await store.remove("stripe")
        assert await store.read("stripe") is None
        with pytest.raises(KbctlError):
            await store.write("stripe", Secret(""))
        assert await MemoryStore().read("stripe") is None

    asyncio.run(scenario())

"""K6: the encrypted file detects every change, survives every kill, and opens for its key only."""

import asyncio
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from kbctl.errors import Exit, KbctlError
from kbctld.secrets.secret import Secret
from kbctld.secrets.vault_file import Document, VaultFile, open_vault, parse, serialize

TEXT = "sk_test_canary_4eC39HqLyjWDarjtT1zdp7dc"
OTHER = "re_canary_another_secret"
PASSPHRASE = Secret("correct horse")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


async def filled(home: Path) -> VaultFile:
    """A store with two secrets."""
    vault = await open_vault("keyfile", home)
    await vault.write("stripe", Secret(TEXT))
    await vault.write("resend", Secret(OTHER))
    return vault


def refusal(kind: str, home: Path, passphrase: Secret | None = None) -> KbctlError:
    """What opening and reading answers; nothing of it may hold a secret, and all of it a remedy."""

    async def attempt() -> None:
        vault = await open_vault(kind, home, passphrase)
        await vault.read("stripe")

    with pytest.raises(KbctlError) as caught:
        asyncio.run(attempt())
    error = caught.value
    said = f"{error!r} {error.message} {error.remedy} {error.__cause__!r}"
    assert TEXT not in said
    assert PASSPHRASE.reveal() not in said
    assert error.remedy
    assert error.message
    assert not error.message.endswith(".")
    return error


def redigested(raw: bytes) -> bytes:
    """As who changes the file on purpose would leave it: with a digest that fits."""
    lines = raw[: raw.rindex(b"\n", 0, -1) + 1]
    return lines + hashlib.sha256(lines).hexdigest().encode() + b"\n"


def use_credential(directory: Path, monkeypatch: pytest.MonkeyPatch, content: bytes = b"k" * 32) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "kbctl-key"
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o400)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))
    return path


@pytest.mark.parametrize("kind", ["keyfile", "passphrase", "systemd-credential"])
def test_what_is_written_is_read_by_the_next_process(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credential(tmp_path / "credentials", monkeypatch)
    passphrase = PASSPHRASE if kind == "passphrase" else None

    async def first() -> None:
        vault = await open_vault(kind, home, passphrase)
        assert vault.kind == kind
        assert await vault.read("stripe") is None
        await vault.write("stripe", Secret("old"))
        await vault.write("stripe", Secret(TEXT))
        await vault.write("ünï @ /home/x", Secret("sécret \N{SNOWMAN}"))
        await vault.write("gone", Secret(OTHER))
        await vault.remove("gone")
        await vault.remove("never there")

    async def second() -> None:
        vault = await open_vault(kind, home, passphrase)
        assert await vault.read("stripe") == Secret(TEXT)
        assert await vault.read("ünï @ /home/x") == Secret("sécret \N{SNOWMAN}")
        assert await vault.read("gone") is None

    asyncio.run(first())
    asyncio.run(second())
    for path in home.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert TEXT.encode() not in path.read_bytes()
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "secrets.key").exists() == (kind == "keyfile")


def test_the_same_secret_never_looks_the_same(home: Path) -> None:
    async def boxes() -> list[bytes]:
        vault = await filled(home)
        seen = []
        for _ in range(5):
            await vault.write("stripe", Secret(TEXT))
            document, seal = parse((home / "secrets.kbctl").read_bytes(), home)
            seen += [
                document.entries["stripe"].secret.nonce,
                document.entries["stripe"].secret.box,
                seal.nonce,
            ]
        return seen

    seen = asyncio.run(boxes())
    assert len(set(seen)) == len(seen)


def test_writers_at_the_same_time_lose_nothing(home: Path) -> None:
    async def scenario() -> None:
        vault = await open_vault("keyfile", home)
        await asyncio.gather(*(vault.write(f"name {number}", Secret(f"{number}")) for number in range(20)))
        for number in range(20):
            assert await vault.read(f"name {number}") == Secret(f"{number}")

    asyncio.run(scenario())


def test_every_flipped_bit_is_damage(home: Path) -> None:
    asyncio.run(filled(home))
    raw = bytearray((home / "secrets.kbctl").read_bytes())
    for position in range(len(raw)):
        for bit in range(8):
            raw[position] ^= 1 << bit
            with pytest.raises(KbctlError) as caught:
                parse(bytes(raw), home)
            assert caught.value.code == "secret_store_damaged"
            raw[position] ^= 1 << bit
    parse(bytes(raw), home)


def test_every_flipped_bit_is_found_when_the_digest_was_made_to_fit(home: Path) -> None:
    """What the digest would not see, the seal does: a person at the file instead of an accident."""
    asyncio.run(filled(home))
    path = home / "secrets.kbctl"
    raw = bytearray(path.read_bytes())
    codes = set()

    async def attempt() -> None:
        for position in range(len(raw) - 65):  # the last line is the digest itself
            bit = 1 << random.randrange(8)
            raw[position] ^= bit
            path.write_bytes(redigested(bytes(raw)))
            raw[position] ^= bit
            try:
                await open_vault("keyfile", home)
            except KbctlError as error:
                codes.add(error.code)
            else:
                pytest.fail(f"byte {position}, bit {bit} made no difference")

    asyncio.run(attempt())
    assert codes <= {"secret_store_damaged", "secret_key_wrong", "secret_store_newer"}


@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_on_disk_are_found_by_an_open_store(home: Path, seed: int) -> None:
    path = home / "secrets.kbctl"
    chance = random.Random(seed)

    async def scenario() -> None:
        vault = await filled(home)
        raw = path.read_bytes()
        for _ in range(100):
            changed = bytearray(raw)
            changed[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            for attempt in (
                vault.read("stripe"),
                vault.write("stripe", Secret("new")),
                vault.remove("stripe"),
            ):
                with pytest.raises(KbctlError) as caught:
                    await attempt
                assert caught.value.exit_status == Exit.INTEGRITY
            assert path.read_bytes() == changed, "a damaged file is evidence and is left alone"
        path.write_bytes(raw)
        assert await vault.read("stripe") == Secret(TEXT)

    asyncio.run(scenario())


@pytest.mark.parametrize("sealed_anew", [False, True], ids=["seal of the old file", "seal that fits"])
def test_swapped_entries_are_found(home: Path, sealed_anew: bool) -> None:
    """Even if the seal of the whole were forged, a box opens under its own name and version only."""
    path = home / "secrets.kbctl"

    def change(vault: VaultFile, document: Document, seal_line: bytes, entries: dict[str, object]) -> None:
        changed = msgspec.structs.replace(document, entries=entries)
        if sealed_anew:
            path.write_bytes(serialize(changed, vault._cipher))
        else:
            path.write_bytes(
                redigested(msgspec.json.encode(changed) + b"\n" + seal_line + b"\n" + b"digest\n")
            )

    async def scenario() -> None:
        vault = await filled(home)
        raw = path.read_bytes()
        document, _ = parse(raw, path)
        stripe, resend = document.entries["stripe"], document.entries["resend"]
        renumbered = msgspec.structs.replace(stripe, version=stripe.version + 1)
        for entries in ({"resend": stripe, "stripe": resend}, {"resend": resend, "stripe": renumbered}):
            change(vault, document, raw.split(b"\n")[1], {**entries})
            with pytest.raises(KbctlError) as caught:
                await vault.read("stripe")
            assert caught.value.code == "secret_store_damaged"

    asyncio.run(scenario())


def test_an_old_or_dropped_entry_is_found(home: Path) -> None:
    path = home / "secrets.kbctl"

    async def scenario() -> None:
        vault = await filled(home)
        old, _ = parse(path.read_bytes(), path)
        await vault.write("stripe", Secret("rotated"))
        raw = path.read_bytes()
        new, _ = parse(raw, path)
        for entries in (
            {"resend": new.entries["resend"], "stripe": old.entries["stripe"]},
            {"stripe": new.entries["stripe"]},
        ):
            body = msgspec.json.encode(msgspec.structs.replace(new, entries=entries))
            path.write_bytes(redigested(body + b"\n" + raw.split(b"\n")[1] + b"\n" + b"digest\n"))
            with pytest.raises(KbctlError) as caught:
                await vault.read("stripe")
            assert caught.value.code == "secret_store_damaged"

    asyncio.run(scenario())


@pytest.mark.parametrize("length", [0, 1, 64, 200, -1])
def test_a_cut_file_is_damage(home: Path, length: int) -> None:
    asyncio.run(filled(home))
    path = home / "secrets.kbctl"
    path.write_bytes(path.read_bytes()[:length])
    error = refusal("keyfile", home)
    assert (error.code, error.exit_status) == ("secret_store_damaged", Exit.INTEGRITY)


def test_a_newer_file_is_not_damage(home: Path) -> None:
    asyncio.run(filled(home))
    path = home / "secrets.kbctl"
    path.write_bytes(redigested(b'{"format":"kbctl-secrets/2","new":1}\nanything\nmore\ndigest\n'))
    assert refusal("keyfile", home).code == "secret_store_newer"


def test_a_store_that_vanishes_is_not_an_empty_one(home: Path) -> None:
    async def scenario() -> None:
        vault = await filled(home)
        (home / "secrets.kbctl").unlink()
        for attempt in (vault.read("stripe"), vault.write("stripe", Secret("new"))):
            with pytest.raises(KbctlError) as caught:
                await attempt
            assert (caught.value.code, caught.value.exit_status) == ("secret_store_missing", Exit.INTEGRITY)

    asyncio.run(scenario())


def test_passphrases(home: Path) -> None:
    assert refusal("passphrase", home).code == "passphrase_missing"
    assert refusal("passphrase", home, Secret("")).code == "passphrase_missing"
    asyncio.run(open_vault("passphrase", home, PASSPHRASE))
    error = refusal("passphrase", home, Secret("correct horse\n"))
    assert (error.code, error.exit_status) == ("passphrase_wrong", Exit.REFUSED)


def test_a_store_opens_as_what_it_is(home: Path) -> None:
    asyncio.run(filled(home))
    error = refusal("passphrase", home, PASSPHRASE)
    assert error.code == "secret_store_kind"
    assert 'backend = "keyfile"' in error.remedy


def test_a_missing_key_file_beside_a_store(home: Path) -> None:
    asyncio.run(filled(home))
    (home / "secrets.key").unlink()
    error = refusal("keyfile", home)
    assert (error.code, error.exit_status) == ("secret_key_missing", Exit.INTEGRITY)
    assert not (home / "secrets.key").exists(), "a new key would hide that the old one is lost"

    # The remedy, pasted.
    subprocess.run(error.remedy.split("`")[1], shell=True, check=True)
    asyncio.run(open_vault("keyfile", home))


def test_a_key_without_a_store_is_used(home: Path) -> None:
    """What a crash between the two leaves."""
    asyncio.run(filled(home))
    key = (home / "secrets.key").read_bytes()
    (home / "secrets.kbctl").unlink()
    asyncio.run(filled(home))
    assert (home / "secrets.key").read_bytes() == key


def test_another_key_does_not_open(home: Path) -> None:
    asyncio.run(filled(home))
    (home / "secrets.key").write_bytes(os.urandom(32))
    error = refusal("keyfile", home)
    assert (error.code, error.exit_status) == ("secret_key_wrong", Exit.REFUSED)


def test_a_cut_key_is_damage(home: Path) -> None:
    asyncio.run(filled(home))
    (home / "secrets.key").write_bytes(b"k" * 31)
    error = refusal("keyfile", home)
    assert (error.code, error.exit_status) == ("secret_key_damaged", Exit.INTEGRITY)


@pytest.mark.parametrize("name", ["secrets.key", "secrets.kbctl"])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o666, 0o601])
def test_a_file_open_to_others_is_refused_until_the_remedy_was_pasted(
    home: Path, name: str, mode: int
) -> None:
    asyncio.run(filled(home))
    (home / name).chmod(mode)
    error = refusal("keyfile", home)
    assert (error.code, error.exit_status) == ("secret_file_unsafe", Exit.REFUSED)
    subprocess.run(error.remedy, shell=True, check=True)
    asyncio.run(open_vault("keyfile", home))


@pytest.mark.parametrize("name", ["secrets.key", "secrets.kbctl"])
def test_a_symbolic_link_is_refused(home: Path, name: str) -> None:
    asyncio.run(filled(home))
    (home / name).rename(home / "elsewhere")
    (home / name).symlink_to(home / "elsewhere")
    error = refusal("keyfile", home)
    assert (error.code, error.message) == ("secret_file_unsafe", f"{home / name} is a symbolic link")


def test_a_dangling_link_is_not_followed_to_make_a_key(home: Path, tmp_path: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "secrets.key").symlink_to(tmp_path / "planted")
    assert refusal("keyfile", home).code == "secret_file_unsafe"
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["secrets.key", "secrets.kbctl"])
def test_a_fifo_neither_opens_nor_hangs(home: Path, name: str) -> None:
    asyncio.run(filled(home))
    (home / name).unlink()
    os.mkfifo(home / name, 0o600)
    assert refusal("keyfile", home).code == "secret_file_unsafe"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["secrets.key", "secrets.kbctl"])
def test_a_file_of_another_user_is_refused(home: Path, name: str) -> None:
    asyncio.run(filled(home))
    os.chown(home / name, 12345, 12345)
    assert refusal("keyfile", home).message.endswith("belongs to another user")


def test_a_disk_that_refuses_is_an_error_with_a_remedy(home: Path) -> None:
    home.write_text("not a folder")
    assert refusal("keyfile", home).code == "secret_file_unreachable"


def test_systemd_credentials(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "credentials"
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert refusal("systemd-credential", home).code == "systemd_credential_missing"
    path = use_credential(directory, monkeypatch, b"short")
    assert refusal("systemd-credential", home).code == "systemd_credential_short"
    path = use_credential(directory, monkeypatch, b"a" * 44)
    path.chmod(0o440)  # as systemd shows it where it grants by access control list
    asyncio.run(open_vault("systemd-credential", home))
    path.chmod(0o444)
    assert refusal("systemd-credential", home).code == "secret_file_unsafe"
    use_credential(directory, monkeypatch, b"b" * 44)
    error = refusal("systemd-credential", home)
    assert (error.code, error.exit_status) == ("systemd_credential_wrong", Exit.REFUSED)


def test_a_slow_key_does_not_hold_the_event_loop(home: Path) -> None:
    """Argon2id takes 0.1 s and more; meanwhile the loop turns."""

    async def scenario() -> int:
        turns = 0
        opening = asyncio.create_task(open_vault("passphrase", home, PASSPHRASE))
        while not opening.done():
            await asyncio.sleep(0.001)
            turns += 1
        await opening
        return turns

    assert asyncio.run(scenario()) > 5


def test_killed_writers_leave_the_old_secret_or_the_new_one(tmp_path: Path) -> None:
    script = Path(__file__).with_name("vault_killed.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "60"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    report = json.loads(run.stdout)
    assert report["wrong"] == []
    assert report["rounds"] == 60
    assert report["in_rotation"] > 10, "too few kills hit a rotation to prove anything"

"""The book of real secrets: rotation, removal, a store that fails, and versions that are never used twice."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from kbctl.errors import Exit, KbctlError
from kbctld import credentials as module
from kbctld.credentials import Credential, Credentials
from kbctld.secrets.secret import Secret
from kbctld.store import queries
from kbctld.vault import Vault
from tests.daemon.support import MAIL, NOON, STRIPE, locked, stored, vault_in
from tests.support.loop import run

FIRST, SECOND, THIRD = "sk_test_canary_one_1", "sk_test_canary_two_2", "sk_test_canary_three_3"


class Store:
    """A place for secrets that fails when it is told to, and takes its time."""

    kind = "memory"
    description = "a drawer"

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        self.stuck = False
        self.delays_s: list[float] = []

    async def read(self, name: str) -> Secret | None:
        await self._answer()
        return Secret(self.kept[name]) if name in self.kept else None

    async def write(self, name: str, secret: Secret) -> None:
        await self._answer()
        self.kept[name] = secret.reveal()

    async def remove(self, name: str) -> None:
        await self._answer()
        self.kept.pop(name, None)

    async def _answer(self) -> None:
        if self.delays_s:
            await asyncio.sleep(self.delays_s.pop(0))
        if self.stuck:
            raise KbctlError("keyring_locked", "the keyring is locked", "unlock it", Exit.REFUSED)


@asynccontextmanager
async def credentials_in(vault: Vault, store: Store) -> AsyncIterator[Credentials]:
    reader = vault.journal.database.reader
    book = Credentials(store, vault.journal)
    await book.load(await queries.credentials(reader), await queries.last_versions(reader))
    try:
        yield book
    finally:
        book.close()


async def put(book: Credentials, text: str, name: str = "stripe") -> Credential:
    return await book.set(name, STRIPE, text, NOON, "tester")


def secret_of(book: Credentials, name: str = "stripe") -> str | None:
    credential = book.get(name)
    return credential.secret.reveal() if credential is not None and credential.secret is not None else None


async def failure(work: Awaitable[object]) -> KbctlError:
    """What it says; never a secret, and always a remedy."""
    with pytest.raises(KbctlError) as caught:
        await work
    said = f"{caught.value!r} {caught.value.message} {caught.value.remedy}"
    assert not any(text in said for text in (FIRST, SECOND, THIRD))
    assert caught.value.remedy
    return caught.value


def test_a_secret_that_was_set_is_there_after_a_restart_and_in_no_row(folder: Path) -> None:
    """Its name and version are in the database, itself only in its store."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            made = await put(book, FIRST)
            assert (made.version, made.vendor, made.set_ns, secret_of(book)) == (1, "stripe", NOON, FIRST)
            await put(book, SECOND, "stripe:acme")
            assert FIRST not in repr(made)
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            assert [credential.name for credential in book] == ["stripe", "stripe:acme"]
            assert (secret_of(book), secret_of(book, "stripe:acme")) == (FIRST, SECOND)

    run(main())
    assert FIRST.encode() not in (folder / "kbctl.db").read_bytes()


def test_a_rotation_counts_and_bites_at_once(folder: Path) -> None:
    """The next call uses the new one; the version tells retries of the old one apart."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            assert [(await put(book, text)).version for text in (FIRST, SECOND, THIRD)] == [1, 2, 3]
            assert secret_of(book) == THIRD == store.kept["stripe"]

    run(main())


def test_what_was_removed_is_gone_and_comes_back_with_a_version_of_its_own(folder: Path) -> None:
    """A secret set again may be another account's: nothing kept for version 1 may be taken for its."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
            await put(book, SECOND)
            await book.remove("stripe", NOON, "tester")
            assert (book.get("stripe"), store.kept) == (None, {})
            assert (await failure(book.remove("stripe", NOON, "tester"))).exit_status is Exit.NOT_FOUND
            assert (await put(book, THIRD)).version == 3
            await book.remove("stripe", NOON, "tester")
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            assert list(book) == []
            assert (await put(book, FIRST)).version == 4

    run(main())


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("Stripe", FIRST, "credential_name"),
        ("", FIRST, "credential_name"),
        ("stripe/acme", FIRST, "credential_name"),
        ("stripe:", FIRST, "credential_name"),
        ("stripe\n", FIRST, "credential_name"),
        ("stripe", "", "credential_malformed"),
        ("stripe", "short", "credential_malformed"),
        ("stripe", "sk_test with blanks", "credential_malformed"),
        ("stripe", "sk_test_line\nbreak: x", "credential_malformed"),
        ("stripe", "sk_test_ünicode", "credential_malformed"),
        ("stripe", "s" * 4097, "credential_malformed"),
        ("stripe", "vault_key_" + "a" * 49, "credential_malformed"),
    ],
)
def test_a_name_or_secret_that_can_not_be_changes_nothing(
    folder: Path, name: str, text: str, code: str
) -> None:
    """Nothing that would split a header or be a vault key by mistake."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            error = await failure(put(book, text, name))
            assert (error.code, error.exit_status) == (code, Exit.USAGE)
            assert (list(book), store.kept) == ([], {})

    run(main())


def test_a_store_that_does_not_answer_changes_nothing(folder: Path) -> None:
    """The old secret stays in use; the error is the store's own."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
            store.stuck = True
            assert (await failure(put(book, SECOND))).code == "keyring_locked"
            assert secret_of(book) == FIRST

    run(main())
    assert stored(folder, "SELECT name, version FROM credential") == [("stripe", 1)]


def test_a_rotation_that_can_not_be_recorded_is_undone(folder: Path) -> None:
    """Else the next start would use the new secret under the old one's version."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            with locked(folder):
                assert (await failure(put(book, FIRST))).code == "audit_unavailable"
            assert (list(book), store.kept) == ([], {})
            await put(book, FIRST)
            with locked(folder):
                assert (await failure(put(book, SECOND))).code == "audit_unavailable"
            assert (secret_of(book), store.kept) == (FIRST, {"stripe": FIRST})

    run(main())
    assert stored(folder, "SELECT name, version FROM credential") == [("stripe", 1)]


def test_a_removal_bites_at_once_and_can_be_asked_again_until_it_is_done(folder: Path) -> None:
    """The store is stuck, then the database: the secret is out of use from the first moment on."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
            store.stuck = True
            assert (await failure(book.remove("stripe", NOON, "tester"))).code == "keyring_locked"
            assert book.get("stripe") is None
            store.stuck = False
            with locked(folder):
                assert (await failure(book.remove("stripe", NOON, "tester"))).code == "audit_unavailable"
            await book.remove("stripe", NOON, "tester")
            assert (await failure(book.remove("stripe", NOON, "tester"))).code == "credential_unknown"
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            assert list(book) == []

    run(main())


@pytest.mark.parametrize("delays_s", [[0.02, 0.0], [0.0, 0.02]])
def test_two_rotations_at_once_end_with_one_secret_everywhere(folder: Path, delays_s: list[float]) -> None:
    """Whichever is last: memory, store and version agree."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
            store.delays_s = delays_s
            made = await asyncio.gather(put(book, SECOND), put(book, THIRD))
            assert sorted(credential.version for credential in made) == [2, 3]
            newest = max(made, key=lambda credential: credential.version)
            assert newest.secret is not None
            assert secret_of(book) == store.kept["stripe"] == newest.secret.reveal()

    run(main())
    assert stored(folder, "SELECT version FROM credential") == [(3,)]


def test_a_removal_overtakes_a_rotation_under_way(folder: Path) -> None:
    """Asked for later, it wins: the secret is in no place afterwards."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
            store.delays_s = [0.02]
            setting = asyncio.ensure_future(put(book, SECOND))
            await asyncio.sleep(0)
            await book.remove("stripe", NOON, "tester")
            await setting
            assert (book.get("stripe"), store.kept) == (None, {})

    run(main())
    assert stored(folder, "SELECT count(*) FROM credential") == [(0,)]


def test_what_can_not_be_read_at_start_is_unavailable_and_comes_by_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never "there is none": a reason, a remedy, and another try in the background."""
    store = Store()
    monkeypatch.setattr(module, "_RETRY_S", 0.01)

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
        store.stuck = True
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            credential = book.get("stripe")
            assert credential is not None
            assert (credential.secret, credential.problem) == (None, "the keyring is locked; unlock it")
            store.stuck = False
            while credential.secret is None:
                await asyncio.sleep(0.005)
            assert (secret_of(book), credential.problem) == (FIRST, None)

    run(main())


def test_what_its_store_has_lost_says_so_until_it_is_set_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody deleted the item by hand."""
    store = Store()
    monkeypatch.setattr(module, "_RETRY_S", 0.01)

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST)
        store.kept.clear()
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            credential = book.get("stripe")
            assert credential is not None
            assert credential.problem == "a drawer has no item for it; kbctl credential set stripe"
            await put(book, SECOND)
            await asyncio.sleep(0.03)
            assert secret_of(book) == SECOND

    run(main())


def test_a_credential_of_one_vendor_does_not_become_another_s(folder: Path) -> None:
    """Keys that name it were issued for the one."""
    store = Store()

    async def main() -> None:
        async with vault_in(folder) as vault, credentials_in(vault, store) as book:
            await put(book, FIRST, "money")
            error = await failure(book.set("money", MAIL, SECOND, NOON, "tester"))
            assert (error.code, error.exit_status) == ("credential_vendor", Exit.REFUSED)
            assert secret_of(book, "money") == FIRST == store.kept["money"]

    run(main())

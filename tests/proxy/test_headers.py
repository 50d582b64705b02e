"""P11, P12: of an agent's head the vendor gets an allowlist, one Host, one real credential, no vault key."""

import base64
from collections.abc import Callable
from pathlib import Path

import pytest

from kbctld.core.refusal import Code, Refusal
from kbctld.core.slots import Shown, find_vault_key
from kbctld.core.vault_key import mint
from kbctld.vault import Selection
from tests.support.loop import run
from tests.support.world import SECRET, TARGET, World, open_world, stripe

ALLOWED = [
    "accept",
    "accept-language",
    "content-type",
    "idempotency-key",
    "stripe-version",
    "user-agent",
    "x-stripe-client-telemetry",
    "x-stripe-client-user-agent",
]
DROPPED = [
    "accept-charset",
    "accept-encoding",
    "alt-used",
    "api-key",
    "apikey",
    "baggage",
    "cache-control",
    "cf-connecting-ip",
    "cookie",
    "date",
    "dnt",
    "forwarded",
    "from",
    "if-match",
    "if-none-match",
    "keep-alive",
    "max-forwards",
    "pragma",
    "prefer",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "referer",
    "sec-websocket-key",
    "sec-websocket-version",
    "stripe-account-id",
    "stripe-signature",
    "te",
    "traceparent",
    "trailer",
    "true-client-ip",
    "via",
    "warning",
    "www-authenticate",
    "x-agent-run-id",
    "x-amz-security-token",
    "x-api-key-2",
    "x-auth-token",
    "x-authorization",
    "x-forwarded-authorization",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-goog-api-key",
    "x-original-url",
    "x-real-ip",
    "x-request-id",
    "x-rewrite-url",
    "x-stainless-retry-count",
    "x-stripe-routing-context",
    "x-vault-key",
]
SINGLE = ["content-type", "cookie", "idempotency-key", "stripe-version", "user-agent"]
BALANCE = "/stripe/v1/balance"

SPELLINGS: dict[str, Callable[[str], str]] = {"lower": str.lower, "mixed": str.title, "upper": str.upper}


def upstream(world: World) -> dict[bytes, bytes]:
    """The fields of the newest request, each of which stands once."""
    fields = world.heard.fields
    assert len({name for name, _ in fields}) == len(fields)
    return dict(fields)


def always(world: World) -> dict[bytes, bytes]:
    return {
        b"host": b"127.0.0.1:%d" % world.vendor.port,
        b"authorization": b"Bearer " + SECRET.encode(),
        b"accept-encoding": b"identity",
    }


def test_the_lists_are_long_and_the_vendor_s_own() -> None:
    assert len(ALLOWED) + len(DROPPED) >= 60
    assert set(ALLOWED) == stripe().forward_headers


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_only_what_is_on_the_allowlist_is_forwarded(tmp_path: Path, spelling: str) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for name in (*ALLOWED, *DROPPED):
                sent = SPELLINGS[spelling](name).encode(), b"marker of " + name.encode()
                reply = await world.ask(world.request("GET", BALANCE, sent, body=b""))
                assert reply.status == 200, name
                wanted = always(world) | ({name.encode(): sent[1]} if name in ALLOWED else {})
                assert upstream(world) == wanted, name

    run(main())


def test_repeated_headers_are_dropped_or_refused_never_merged(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for name in (*ALLOWED, *DROPPED):
                twice = (name.encode(), b"one"), (name.title().encode(), b"two")
                reply = await world.ask(world.request("GET", BALANCE, *twice, body=b""))
                if name in ALLOWED or name in SINGLE:
                    assert (reply.status, reply.code) == (400, "ambiguous_request"), name
                else:
                    assert reply.status == 200, name
                    assert upstream(world) == always(world), name
            await world.check_oracle()

    run(main())


def test_what_connection_names_stays_here(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            for name in (*ALLOWED, *DROPPED):
                for named in (name, f"close, {name.upper()}", f" x ,{name.title()} "):
                    fields = (name.encode(), b"marker"), (b"Connection", named.encode())
                    reply = await world.ask(world.request("GET", BALANCE, *fields, body=b""))
                    assert reply.status == 200, name
                    assert upstream(world) == always(world), name

    run(main())


@pytest.mark.parametrize("name", ["host", "content-length", "transfer-encoding", "accept-encoding", "date"])
def test_connection_can_t_take_away_what_we_write_ourselves(tmp_path: Path, name: str) -> None:
    """Hop-by-hop stripping as an attack: what decides is ours, however Connection names it."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            assert (await world.ask()).status == 200
            plain = world.heard.raw
            raw = world.request("POST", TARGET, (b"Connection", name.encode()))
            assert (await world.ask(raw)).status == 200
            assert world.heard.raw == plain

    run(main())


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("authorization", 401, "key_missing"),
        ("content-type", 415, "unsupported_body"),
    ],
)
def test_connection_that_names_what_decides_is_refused(
    tmp_path: Path, name: str, status: int, code: str
) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            reply = await world.ask(world.request("POST", TARGET, (b"Connection", name.encode())))
            assert (reply.status, reply.code) == (status, code)
            assert world.vendor.lines == 0

    run(main())


def test_connection_that_names_the_idempotency_key_takes_it_from_both(tmp_path: Path) -> None:
    """Else a retry would share the first one's hold here and be a charge of its own at the vendor."""
    fields = (b"Idempotency-Key", b"once"), (b"Connection", b"idempotency-key")

    async def main() -> None:
        async with open_world(tmp_path) as world:
            for _ in range(2):
                assert (await world.ask(world.request("POST", TARGET, *fields))).status == 200
            assert world.posted_cents == 200
            assert [row["idempotency_key"] for row in await world.rows()] == [None, None]

    run(main())


# --- credentials ---------------------------------------------------------------------------------


def basic(user: str, password: str) -> bytes:
    return b"Basic " + base64.b64encode(f"{user}:{password}".encode())


REAL = "sk_live_51SomebodysRealKeyThatMustNotLeave"


def test_every_slot_is_read_and_swapped_for_the_real_secret(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            key = world.key
            for fields in (
                [(b"Authorization", b"Bearer " + key.encode())],
                [(b"authorization", b"bearer " + key.encode())],
                [(b"AUTHORIZATION", b"BEARER   " + key.encode())],
                [(b"Authorization", basic(key, ""))],
                [(b"Authorization", basic("", key))],
                [(b"Authorization", basic(key, key))],
                [(b"Authorization", basic("AC0123", key))],
                [(b"Authorization", basic(key, REAL))],
                [(b"X-Api-Key", key.encode())],
                [(b"X-Api-Key", key.encode()), (b"Authorization", b"Bearer " + key.encode())],
                # What looks like a real secret beside it is dropped, not forwarded and not repeated.
                [(b"X-Api-Key", key.encode()), (b"Authorization", b"Bearer " + REAL.encode())],
                [(b"X-Api-Key", REAL.encode()), (b"Authorization", b"Bearer " + key.encode())],
                [(b"X-Api-Key", key.encode()), (b"Authorization", b"Digest " + REAL.encode())],
                [(b"X-Api-Key", key.encode()), (b"Authorization", b"Basic !" + REAL.encode())],
            ):
                reply = await world.ask(world.request("GET", BALANCE, *fields, body=b"", key=""))
                assert reply.status == 200, fields
                assert upstream(world) == always(world), fields

    run(main())


def test_no_vault_key_or_two_or_a_wrong_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_world(tmp_path) as world:
            _, other = await world.issue()
            key, bearer = world.key, b"Bearer "
            missing, unknown = (401, "key_missing"), (401, "key_unknown")
            two = (400, "ambiguous_request")
            stranger = mint(bytes(32))
            for fields, wanted in (
                ([], missing),
                ([(b"Authorization", bearer + REAL.encode())], missing),
                ([(b"Authorization", basic("user", REAL))], missing),
                ([(b"Authorization", key.encode())], missing),
                ([(b"Authorization", b"Bearer")], missing),
                ([(b"Authorization", b"Token " + key.encode())], missing),
                ([(b"Authorization", b"Basic " + key.encode())], missing),
                ([(b"X-Api-Key", b"")], missing),
                ([(b"Cookie", b"key=" + key.encode())], missing),
                ([(b"Proxy-Authorization", bearer + key.encode())], missing),
                ([(b"Authorization", bearer + key[:-1].encode())], unknown),
                ([(b"Authorization", bearer + key.encode() + b"x")], unknown),
                (
                    [(b"Authorization", bearer + key.upper().replace("VAULT_KEY_", "vault_key_").encode())],
                    unknown,
                ),
                ([(b"Authorization", bearer + stranger.encode())], unknown),
                ([(b"Authorization", bearer + key.encode() + b", Bearer " + other.encode())], unknown),
                ([(b"Authorization", bearer + key.encode() + b"," + key.encode())], unknown),
                ([(b"Authorization", basic(key, other))], two),
                ([(b"X-Api-Key", key.encode()), (b"Authorization", bearer + other.encode())], two),
                ([(b"X-Api-Key", key.encode()), (b"Authorization", basic("x", other))], two),
                ([(b"Authorization", bearer + key.encode())] * 2, two),
                ([(b"X-Api-Key", key.encode()), (b"x-api-key", other.encode())], two),
            ):
                reply = await world.ask(world.request("GET", BALANCE, *fields, body=b"", key=""))
                assert (reply.status, reply.code) == wanted, fields
                assert REAL.encode() not in reply.body
                assert key.encode() not in reply.body
            assert world.vendor.lines == 0

    run(main())


def test_the_vault_key_leaves_nowhere(tmp_path: Path) -> None:
    """Neither in a dropped slot, nor in a field or target that would be forwarded, nor into the audit."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            key = world.key.encode()
            for name in (*DROPPED, "stripe-signature"):
                raw = world.request("GET", BALANCE, (name.encode(), b"Bearer " + key), body=b"")
                assert (await world.ask(raw)).status == 200, name
                assert key not in world.heard.raw, name
            before = len(world.vendor.arrived)
            for name in ALLOWED:
                raw = world.request("GET", BALANCE, (name.encode(), b"a " + key), body=b"")
                assert (await world.ask(raw)).code == "ambiguous_request", name
            encoded = world.key.replace("_", "%5F")
            for target in (
                f"/stripe/v1/customers/{world.key}",
                f"/stripe/v1/customers?email={world.key}",
                f"/stripe/v1/customers?email={encoded}",
                f"/stripe/v1/customers?{world.key}=x",
                f"/stripe/v1/customers?a=x{world.key}x",
            ):
                raw = world.request("GET", target, body=b"")
                assert (await world.ask(raw)).code == "ambiguous_request", target
            assert len(world.vendor.arrived) == before
            named = world.request("GET", "/stripe/v1/customers?vault_key_id=vk_1", body=b"")
            assert (await world.ask(named)).status == 200, "the control"
            rows = await world.rows()
            assert not [row for row in rows if world.key in repr(row)]

    run(main())


def test_find_vault_key_reads_every_slot_and_nothing_else() -> None:
    key = mint(bytes(range(32)))
    assert find_vault_key(b"Bearer " + key.encode(), None) == Shown(key, "bearer")
    assert find_vault_key(basic(key, ""), None) == Shown(key, "basic")
    assert find_vault_key(basic("", key), key.encode()) == Shown(key, "basic")
    assert find_vault_key(None, key.encode()) == Shown(key, "x-api-key")
    for nothing in (None, b"", b"Bearer", b"Basic", b"Basic ====", b"Basic \xff", key.encode()):
        verdict = find_vault_key(nothing, None)
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.KEY_MISSING
    for odd in (b"Bearer " + key.encode()[:-1], b"Bearer vault_key_\xff", b"Bearer " + key.encode() + b" x"):
        verdict = find_vault_key(odd, None)
        assert isinstance(verdict, Refusal)
        assert verdict.code is Code.KEY_UNKNOWN


def test_L1_each_request_of_a_connection_is_its_own_key_s(tmp_path: Path) -> None:
    """What was found out of a key is kept with the connection, for the same bytes and no others."""

    async def main() -> None:
        async with open_world(tmp_path) as world:
            other, other_key = await world.issue()
            agent = await world.connect()
            for key in (world.key, world.key, other_key, world.key, other_key, other_key):
                await agent.send(world.request("GET", BALANCE, body=b"", key=key))
                assert (await agent.reply("GET")).status == 200
                assert (await world.last())["key_no"] == (other.no if key == other_key else world.grant.no)
            await world.vault.revoke(Selection(numbers=frozenset({other.no})), "tester")
            for key, status in (
                (other_key, 401),
                (world.key, 200),
                (other_key[:-1] + "0", 401),
                (other_key, 401),
            ):
                await agent.send(world.request("GET", BALANCE, body=b"", key=key))
                assert (await agent.reply("GET")).status == status
            agent.close()

    run(main())

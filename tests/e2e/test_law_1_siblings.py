"""Laws 1 and 9: 1,000 grandchildren race for the last $100 of the one cap that is above them all."""

import asyncio
import random
from collections import Counter

from kbctl.client import AsyncClient
from kbctl.paths import Home
from kbctl.wire import IssueRequest
from tests.e2e.support import Kbctl, PretendStripe, post

PARENTS, CHILDREN = 20, 50
LEFT = 100
PATH = "/v1/payment_intents"


def charge(dollars: int) -> str:
    return f"amount={dollars * 100}&currency=usd"


async def storm(port: int, keys: list[str], chance: random.Random) -> Counter[int]:
    """Each key asks for $2 to $9, then for $1, on one connection, all keys at once; the statuses."""
    statuses: Counter[int] = Counter()

    async def sibling(key: str, dollars: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for amount in (dollars, 1):
            body = charge(amount)
            head = (
                f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write((head + body).encode())
            answer = await reader.readuntil(b"\r\n\r\n")
            statuses[int(answer[9:12])] += 1
            await reader.readexactly(int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
        writer.close()

    await asyncio.gather(*(sibling(key, chance.randint(2, 9)) for key in keys))
    return statuses


async def issue_family(home: Home, grandparent: str) -> list[str]:
    """The keys of the grandchildren."""
    gate = asyncio.Semaphore(16)  # connections of the operator
    async with AsyncClient(home) as client:

        async def child_of(parent: str) -> str:
            async with gate:
                return (await client.issue(IssueRequest(parent_vault_key=parent))).vault_key

        parents = await asyncio.gather(*(child_of(grandparent) for _ in range(PARENTS)))
        return await asyncio.gather(*(child_of(parent) for parent in parents for _ in range(CHILDREN)))


def test_L12_1000_siblings_get_exactly_what_their_grandparent_has_left(
    served: Kbctl, stripe_server: PretendStripe
) -> None:
    """Whatever the order they come in, the vendor's own book says $100.00 more than before."""
    grandparent = served("issue", "--tenant", "acme", "--cap", "1000").strip()
    port = int(served.json("status")["proxy_url"].rpartition(":")[2])
    seed = random.randrange(2**32)

    async def play() -> Counter[int]:
        keys = await issue_family(Home(served.home), grandparent)
        assert len(set(keys)) == PARENTS * CHILDREN
        assert (await post(port, PATH, grandparent, charge(1000 - LEFT)))[0] == 200
        return await storm(port, keys, random.Random(seed))

    answers = asyncio.run(play())

    assert set(answers) == {200, 429}, f"{answers}, seed {seed}"
    assert answers.total() == 2 * PARENTS * CHILDREN
    assert stripe_server.authorised_cents() == 1000 * 100, f"seed {seed}"
    assert len(stripe_server.entries()) == answers[200] + 1
    shown = served.json("show", grandparent)
    assert (shown["spent_usd"], shown["held_usd"]) == (1000, 0)
    spent = served.json("spend", "--by", "tenant")
    assert [(line["calls"], line["spent_usd"]) for line in spent] == [(answers.total() + 1, 1000)]


def test_L12_control_a_check_of_each_key_alone_overspends_in_the_same_storm() -> None:
    """The same storm at a proxy whose keys each fit what is left: it overspends, or the test is blind."""
    spent: Counter[str] = Counter()

    async def naive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            body = await reader.readexactly(int(head.partition("Content-Length: ")[2].split("\r\n")[0]))
            key = head.partition("Bearer ")[2].split("\r\n")[0]
            dollars = int(body.partition(b"amount=")[2].split(b"&")[0]) // 100
            fits = spent[key] + dollars <= LEFT
            await asyncio.sleep(0.01)  # where it calls the vendor
            spent[key] += dollars if fits else 0
            status = b"200 OK" if fits else b"429 Too Many Requests"
            writer.write(b"HTTP/1.1 %b\r\nContent-Length: 2\r\n\r\n{}" % status)
        writer.close()

    async def play() -> Counter[int]:
        server = await asyncio.start_server(naive, "127.0.0.1", 0, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        keys = [f"vault_key_{number}" for number in range(PARENTS * CHILDREN)]
        answers = await storm(port, keys, random.Random(1))
        server.close()
        await server.wait_closed()
        return answers

    answers = asyncio.run(play())

    assert answers.total() == 2 * PARENTS * CHILDREN
    assert spent.total() > LEFT

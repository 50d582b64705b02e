"""The gate of the UNIX socket: the actor is the peer's own uid, and a web page is no operator."""

import asyncio
import os
from pathlib import Path

from kbctl import wire
from kbctld.control.peer import on_socket
from kbctld.control.routes import Ask, Reply, Route, Routes
from kbctld.http1.server import Limits, Server
from tests.support.agent import Agent
from tests.support.loop import run


def test_who_asks_on_the_socket(folder: Path) -> None:
    """By the kernel's word, not by anything that is sent."""
    actors = []

    async def take(ask: Ask) -> Reply:
        actors.append(ask.actor)
        return Reply(wire.Health(ok=True))

    async def main() -> None:
        routes = Routes([Route("GET", "/a", take, "admin", "A", gives=wire.Health)])
        server = Server(lambda request: routes.handle(request, on_socket), routes.reject, Limits())
        loop = asyncio.get_running_loop()
        server.serve(await loop.create_unix_server(server.protocol, str(folder / "s")))
        agent = Agent(*await asyncio.open_unix_connection(str(folder / "s")))
        for line, status in (("", 200), ("Origin: null\r\n", 403), ("Sec-Fetch-Site: none\r\n", 200)):
            await agent.send(f"GET /a HTTP/1.1\r\nHost: x\r\n{line}\r\n".encode())
            assert (await agent.reply("GET")).status == status
        agent.close()
        await server.drain(1.0)

    run(main())
    assert actors == [f"uid {os.getuid()}"] * 2

"""P14, P15: the request goes to who proves to be the vendor, whatever the environment says."""

import asyncio
import datetime
import json
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from kbctld.proxy.upstream import read_origin, verifying_context
from tests.support.agent import Agent, Reply
from tests.support.loop import run
from tests.support.vendor import Line, Vendor, vendor_on_loopback
from tests.support.world import BODY, SECRET, TARGET, World, open_world

HOUR = datetime.timedelta(hours=1)


def speaks_as(leaf: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    """Whom the daemon is told to trust."""
    return trustme.CA()


@asynccontextmanager
async def tls_world(folder: Path, ca: trustme.CA, context: ssl.SSLContext) -> AsyncIterator[World]:
    ca.cert_pem.write_to_path(folder / "ca.pem")
    async with vendor_on_loopback(context) as vendor:
        origin = f"https://localhost:{vendor.port}"
        async with open_world(folder, vendor=vendor, origin=origin, ca_file=folder / "ca.pem") as world:
            yield world


async def unsent(world: World) -> str:
    """This call is refused as not sent; the sentence that says why."""
    reply = await world.ask()
    assert (reply.status, reply.code) == (502, "upstream_unreachable")
    row = await world.last()
    assert (row["outcome"], world.held_cents, world.posted_cents) == ("voided", 0, 0)
    assert not world.vendor.arrived
    await world.check_books()
    return str(row["reason"])


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("expired", "certificate has expired"),
        ("not yet valid", "certificate is not yet valid"),
        ("another host", "hostname mismatch"),
        ("another address", "hostname mismatch"),
        ("self-signed", "unable to get local issuer certificate"),
    ],
)
def test_a_vendor_that_can_t_prove_who_it_is_gets_nothing(
    tmp_path: Path, ca: trustme.CA, kind: str, why: str
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    leaf = {
        "expired": lambda: ca.issue_cert("localhost", not_after=now - HOUR),
        "not yet valid": lambda: ca.issue_cert("localhost", not_before=now + HOUR),
        "another host": lambda: ca.issue_cert("api.other.invalid"),
        "another address": lambda: ca.issue_cert("127.0.0.2"),
        "self-signed": lambda: trustme.CA().issue_cert("localhost"),
    }[kind]()

    async def main() -> None:
        async with tls_world(tmp_path, ca, speaks_as(leaf)) as world:
            assert why in (await unsent(world)).lower()

    run(main())


def test_a_vendor_that_proves_it_is_served(tmp_path: Path, ca: trustme.CA) -> None:
    """The control, with the same context."""

    async def main() -> None:
        async with tls_world(tmp_path, ca, speaks_as(ca.issue_cert("localhost"))) as world:
            for _ in range(2):
                assert (await world.ask()).status == 200
            assert world.vendor.lines == 1
            assert world.heard.all(b"host") == [f"localhost:{world.vendor.port}".encode()]
            await world.check_books()

    run(main())


def test_old_tls_is_refused(tmp_path: Path, ca: trustme.CA) -> None:
    old = speaks_as(ca.issue_cert("localhost"))
    for bound, version in (("minimum", ssl.TLSVersion.TLSv1), ("maximum", ssl.TLSVersion.TLSv1_1)):
        with pytest.warns(DeprecationWarning, match="is deprecated"):
            setattr(old, f"{bound}_version", version)
    old.set_ciphers("DEFAULT@SECLEVEL=0")

    async def main() -> None:
        async with tls_world(tmp_path, ca, old) as world:
            await unsent(world)

    run(main())


def test_a_vendor_that_speaks_no_tls_gets_no_request(tmp_path: Path) -> None:
    heard = bytearray()

    async def plain(line: Line) -> None:
        await line.say(b"220 hello\r\n")
        heard.extend(await line.hear_out())

    async def main() -> None:
        async with vendor_on_loopback() as vendor:
            vendor.script = plain
            origin = f"https://localhost:{vendor.port}"
            async with open_world(tmp_path, vendor=vendor, origin=origin) as world:
                await unsent(world)

    run(main())
    assert SECRET.encode() not in heard


def test_the_context_takes_nothing_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    context = verifying_context()
    assert context.keylog_filename is None
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert len(context.get_ca_certs()) > 50, "the bundled roots"


@pytest.mark.parametrize(
    ("text", "host", "port", "tls", "authority"),
    [
        ("https://api.stripe.com", "api.stripe.com", 443, True, "api.stripe.com"),
        ("https://localhost:8443", "localhost", 8443, True, "localhost:8443"),
        ("http://127.0.0.1:9000", "127.0.0.1", 9000, False, "127.0.0.1:9000"),
        ("http://[::1]:9000", "::1", 9000, False, "[::1]:9000"),
        ("http://localhost", "localhost", 80, False, "localhost"),
    ],
)
def test_origins(text: str, host: str, port: int, tls: bool, authority: str) -> None:
    origin = read_origin(text)
    assert (origin.host, origin.port, origin.tls, origin.authority) == (host, port, tls, authority)


# --- the whole daemon in a hostile environment ---------------------------------------------------


async def operator(socket: Path, method: str, path: str, body: dict[str, Any]) -> Reply:
    agent = Agent(*await asyncio.open_unix_connection(str(socket)))
    raw = json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: kbctl\r\nContent-Type: application/json\r\n"
    await agent.send(head.encode() + b"Content-Length: %d\r\n\r\n" % len(raw) + raw)
    reply = await agent.reply()
    agent.close()
    assert reply.status < 300, reply
    return reply


async def pay(port: int, key: str) -> Reply:
    agent = await Agent.connect(port)
    fields = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(BODY)}\r\n"
    kind = "Content-Type: application/x-www-form-urlencoded\r\n"
    await agent.send(f"POST {TARGET} HTTP/1.1\r\n{fields}{kind}\r\n".encode() + BODY)
    reply = await agent.reply()
    agent.close()
    return reply


@asynccontextmanager
async def daemon(home: Path, upstream: str, environment: dict[str, str]) -> AsyncIterator[dict[str, Any]]:
    """A real daemon; gives its status."""
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "kbctld", "--home", str(home), "--port", "0", "--upstream", f"stripe={upstream}"),
        *("--report-fd", str(writing)),
        env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        pass_fds=[writing],
    )
    os.close(writing)
    try:
        with os.fdopen(reading) as report:
            started = json.loads(await asyncio.to_thread(report.readline))
        assert started.get("status"), started
        yield started["status"]
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize("signed_by", ["whom the operator trusts", "whom the environment trusts"])
def test_the_environment_steers_nothing(ca: trustme.CA, signed_by: str) -> None:
    evil = trustme.CA()

    async def main(home: Path) -> None:
        ca.cert_pem.write_to_path(home / "ca.pem")
        evil.cert_pem.write_to_path(home / "evil.pem")
        (home / "config.toml").write_text(f'ca_file = "{home}/ca.pem"\n[secrets]\nbackend = "keyfile"\n')
        (home / "config.toml").chmod(0o600)
        leaf = (ca if signed_by == "whom the operator trusts" else evil).issue_cert("127.0.0.1")
        async with vendor_on_loopback() as canary, vendor_on_loopback(speaks_as(leaf)) as vendor:
            environment = hostile(home, canary)
            async with daemon(home, f"https://127.0.0.1:{vendor.port}", environment) as status:
                socket, port = Path(status["socket"]), int(status["proxy_url"].rpartition(":")[2])
                await operator(socket, "PUT", "/credentials/stripe", {"secret": SECRET})
                terms = {"vendor": "stripe", "daily_usd_cap": 5}
                issued = await operator(socket, "POST", "/vault/keys", terms)
                reply = await pay(port, issued.json["vault_key"])
            if signed_by == "whom the operator trusts":
                assert reply.status == 200, reply
                assert vendor.arrived[0].all(b"authorization") == [b"Bearer " + SECRET.encode()]
            else:
                assert (reply.status, reply.code) == (502, "upstream_unreachable")
                assert not vendor.arrived
            assert canary.lines == 0, "nobody else was even connected to"
        assert not (home / "keys.log").exists()

    with tempfile.TemporaryDirectory(prefix="kb") as folder:
        run(main(Path(folder)))


def hostile(home: Path, canary: Vendor) -> dict[str, str]:
    """What a hostile or careless environment holds."""
    proxies = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
    (home / "netrc").write_text("machine 127.0.0.1 login evil password evil\n")
    (home / "netrc").chmod(0o600)
    return {
        **dict.fromkeys(proxies, f"http://127.0.0.1:{canary.port}"),
        "SSL_CERT_FILE": str(home / "evil.pem"),
        "SSL_CERT_DIR": str(home),
        "SSLKEYLOGFILE": str(home / "keys.log"),
        "REQUESTS_CA_BUNDLE": str(home / "evil.pem"),
        "CURL_CA_BUNDLE": str(home / "evil.pem"),
        "NETRC": str(home / "netrc"),
        "HOME": str(home),
    }

"""The fixed upstream: one nginx worker that answers 200 to who brings the real secret, and 401 to all others.

So every 200 that a proxy passes on proves that it swapped the key.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trustme

from tests.bench.machine import NotInstalledError, free_port
from tests.e2e.support import SECRET

_SIZE = 1500
_LONG = 10**9


def _answer() -> str:
    said = {
        "id": "pi_3MtwBwLkdIwHu7ix28a3tqPa",
        "object": "payment_intent",
        "amount": 1,
        "amount_capturable": 0,
        "amount_received": 0,
        "currency": "usd",
        "customer": "cus_NffrFeUfNV2Hib",
        "livemode": False,
        "metadata": {"agent_run": "run_2026_11_21"},
        "payment_method_types": ["card", "link"],
        "status": "requires_payment_method",
        "description": "",
    }
    said["description"] = "x" * (_SIZE - len(json.dumps(said)))
    return json.dumps(said)


ANSWER = _answer()


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a proxy sends calls to.

    Attributes:
        ca: whom to trust about it; None for plain HTTP.
    """

    host: str
    port: int
    ca: Path | None

    @property
    def url(self) -> str:
        return f"{'http' if self.ca is None else 'https'}://{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Fixed:
    """One that runs, both ways."""

    plain: Origin
    tls: Origin
    pid: int
    _status: int

    def heard(self) -> int:
        """How many requests it has read, this one included."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._status}/") as answer:
            return int(answer.read().decode().splitlines()[2].split()[2])


@contextmanager
def fixed() -> Iterator[Fixed]:
    """Start one.

    Raises:
        NotInstalledError: there is no nginx.
    """
    with tempfile.TemporaryDirectory(prefix="kb") as name:
        folder = Path(name)
        authority = trustme.CA()
        leaf = authority.issue_cert("localhost", "127.0.0.1")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        leaf.private_key_and_cert_chain_pem.write_to_path(folder / "leaf.pem")
        plain, tls, status = (free_port() for _ in range(3))
        config = f"""
            map $http_authorization $known {{ default 0; "Bearer {SECRET}" 1; }}
            server {{
                listen 127.0.0.1:{plain} backlog=4096;
                listen 127.0.0.1:{tls} ssl backlog=4096;
                ssl_certificate {folder}/leaf.pem;
                ssl_certificate_key {folder}/leaf.pem;
                default_type application/json;
                if ($known = 0) {{ return 401 '{{"error":{{"message":"not the real secret"}}}}'; }}
                location / {{ return 200 '{ANSWER}'; }}
            }}
            server {{ listen 127.0.0.1:{status}; location / {{ stub_status; }} }}
        """
        process = start_nginx(folder, config)
        try:
            _await(process, status)
            yield Fixed(
                Origin("127.0.0.1", plain, None),
                Origin("localhost", tls, folder / "ca.pem"),
                process.pid,
                status,
            )
        finally:
            process.terminate()
            process.wait(20)


def start_nginx(folder: Path, config: str) -> "subprocess.Popen[bytes]":
    """One worker, which keeps connections and writes no log.

    Raises:
        NotInstalledError: there is none.
    """
    (folder / "nginx.conf").write_text(nginx_config(folder, config))
    return subprocess.Popen([nginx(), "-p", str(folder), "-c", "nginx.conf", "-e", "nginx.log"])


def nginx() -> str:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        raise NotInstalledError("nginx", "apt-get install nginx")
    return program


def nginx_config(folder: Path, http: str) -> str:
    user = "user root root;" if os.geteuid() == 0 else ""
    paths = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""
        daemon off; worker_processes 1; worker_rlimit_nofile 8192; pid {folder}/nginx.pid; {user}
        error_log {folder}/nginx.log crit;
        events {{ worker_connections 4096; }}
        http {{
            access_log off; map_hash_bucket_size 256; {paths}
            keepalive_timeout 1h; keepalive_requests {_LONG};
            {http}
        }}
    """


def _await(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/").close()
            return
        except OSError:
            assert process.poll() is None, "nginx ended as it started"
            assert time.monotonic() < deadline, "nginx did not come up"
            time.sleep(0.02)

"""Other proxies, which only swap the key: how each is found, told what to do, and started.

What must stay true: each swaps by looking the agent's key up, verifies TLS where there is TLS, keeps its
connections to both sides, and has one thread, so that the comparison is fair to it. One that is not installed
is left out by name.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.bench.fixed import Origin, nginx, nginx_config
from tests.bench.machine import NotInstalledError

_HERE = Path(__file__).parent
_PIP = "python3 -m venv DIR && DIR/bin/pip install -r tests/bench/peers.txt, then --peers DIR"


@dataclass(frozen=True, slots=True)
class Job:
    """What a proxy is to do: listen, and send what brings the key to the origin with the secret instead."""

    folder: Path
    port: int
    origin: Origin
    key: str
    secret: str
    streams: bool = False
    """Whether answers come bit by bit, so that nothing may wait for the whole."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A kind of proxy.

    Attributes:
        find: its program, given the folder of the peers' environment; raises NotInstalledError.
        command: writes its files, and gives the command line and what to add to its environment.
        version: what its program is asked to tell its version.
        fresh: started for each slice anew: httpx goes on for seconds after its clients have left, and would
            take the core from whoever is next.
        tls: whether it is run in front of a TLS upstream, too.
    """

    name: str
    find: Callable[[Path | None], str]
    command: Callable[[str, Job], tuple[list[str], dict[str, str]]]
    version: tuple[str, ...]
    fresh: bool = False
    tls: bool = True


def start(peer: Peer, program: str, job: Job) -> "subprocess.Popen[bytes]":
    """Start one; what it says goes to a file in its folder."""
    command, added = peer.command(program, job)
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(job.folder), **added}
    with (job.folder / "said").open("wb") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=job.folder, env=environment
        )


def version(peer: Peer, program: str) -> str:
    """What a program says its version is: the first line with a number in it."""
    done = subprocess.run([program, *peer.version], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    return next((line.strip() for line in lines if any(sign.isdigit() for sign in line)), "")


def _found(what: str, install: str) -> Callable[[Path | None], str]:
    def find(_peers: Path | None) -> str:
        program = shutil.which(what) or shutil.which(what, path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise NotInstalledError(what, install)
        return program

    return find


def _in_peers(what: str) -> Callable[[Path | None], str]:
    def find(peers: Path | None) -> str:
        program = shutil.which(what, path=str(peers / "bin")) if peers is not None else shutil.which(what)
        if program is None:
            raise NotInstalledError(what, _PIP)
        return program

    return find


def _python_with_uvicorn(peers: Path | None) -> str:
    program = sys.executable if peers is None else str(peers / "bin" / "python")
    try:
        subprocess.run(
            [program, "-c", "import uvicorn, httptools, uvloop, httpx"], check=True, capture_output=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise NotInstalledError("uvicorn with httpx", _PIP) from None
    return program


# --- what each is told --------------------------------------------------------------------------------


def _nginx(program: str, job: Job) -> tuple[list[str], dict[str, str]]:
    tls = ""
    if job.origin.ca is not None:
        tls = (
            f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {job.origin.ca};"
            f" proxy_ssl_name {job.origin.host}; proxy_ssl_server_name on;"
        )
    http = f"""
        map $http_authorization $real {{ default ""; "Bearer {job.key}" "Bearer {job.secret}"; }}
        upstream origin {{
            server 127.0.0.1:{job.origin.port};
            keepalive 512; keepalive_requests 1000000000; keepalive_timeout 1h;
        }}
        server {{
            listen 127.0.0.1:{job.port} backlog=4096;
            if ($real = "") {{ return 401; }}
            location / {{
                proxy_pass {"http" if job.origin.ca is None else "https"}://origin;
                proxy_http_version 1.1;
                proxy_set_header Connection "";
                proxy_set_header Authorization $real;
                proxy_buffering {"off" if job.streams else "on"};
                {tls}
            }}
        }}
    """
    (job.folder / "nginx.conf").write_text(nginx_config(job.folder, http))
    return [program, "-p", str(job.folder), "-c", "nginx.conf", "-e", "nginx.log"], {}


def _haproxy(program: str, job: Job) -> tuple[list[str], dict[str, str]]:
    tls = ""
    if job.origin.ca is not None:
        host = job.origin.host
        tls = f"ssl verify required ca-file {job.origin.ca} sni str({host}) verifyhost {host}"
    (job.folder / "keys.map").write_text(f"{job.key} {job.secret}\n")
    (job.folder / "haproxy.cfg").write_text(f"""
global
    nbthread 1
    maxconn 8000
defaults
    mode http
    timeout connect 30s
    timeout client 1h
    timeout server 1h
    timeout http-keep-alive 1h
    http-reuse always
frontend agents
    bind 127.0.0.1:{job.port} backlog 4096
    http-request set-var(txn.real) req.hdr(Authorization),word(2," "),map({job.folder}/keys.map)
    http-request return status 401 unless {{ var(txn.real) -m found }}
    http-request set-header Authorization "Bearer %[var(txn.real)]"
    default_backend vendor
backend vendor
    server vendor 127.0.0.1:{job.origin.port} pool-purge-delay 1h {tls}
""")
    return [program, "-db", "-q", "-f", str(job.folder / "haproxy.cfg")], {}


def _envoy(program: str, job: Job) -> tuple[list[str], dict[str, str]]:
    typed = "type.googleapis.com/envoy.extensions"
    real = {"key": "authorization", "value": f"Bearer {job.secret}"}
    routes = [
        {
            "match": {
                "prefix": "/",
                "headers": [{"name": "authorization", "string_match": {"exact": f"Bearer {job.key}"}}],
            },
            "route": {"cluster": "vendor", "timeout": "60s"},
            "request_headers_to_add": [{"header": real, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}],
        },
        {"match": {"prefix": "/"}, "direct_response": {"status": 401}},
    ]
    manager = {
        "@type": f"{typed}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "agents",
        "codec_type": "HTTP1",
        "generate_request_id": False,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{typed}.filters.http.router.v3.Router"},
            }
        ],
    }
    cluster: dict[str, object] = {
        "name": "vendor",
        "type": "STATIC",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "vendor",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(job.origin.port)}}]}],
        },
    }
    if job.origin.ca is not None:
        names = [{"san_type": "DNS", "matcher": {"exact": job.origin.host}}]
        validation = {
            "trusted_ca": {"filename": str(job.origin.ca)},
            "match_typed_subject_alt_names": names,
        }
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{typed}.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": job.origin.host,
                "common_tls_context": {"validation_context": validation},
            },
        }
    listener = {
        "name": "agents",
        "address": _address(job.port),
        "filter_chains": [{"filters": [{"name": "envoy.http_connection_manager", "typed_config": manager}]}],
    }
    config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    (job.folder / "envoy.json").write_text(json.dumps(config))
    command = [program, "-c", str(job.folder / "envoy.json"), "--concurrency", "1"]
    return [*command, "--disable-hot-restart", "--log-level", "error"], {}


def _address(port: int) -> Mapping[str, object]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _mitmproxy(program: str, job: Job) -> tuple[list[str], dict[str, str]]:
    command = [program, "--quiet", "--mode", f"reverse:{job.origin.url}", "--listen-host", "127.0.0.1"]
    command += ["--listen-port", str(job.port), "--set", f"confdir={job.folder}"]
    return [*command, "--scripts", str(_HERE / "mitm_swap.py")], _keys(job)


def _httpx(program: str, job: Job) -> tuple[list[str], dict[str, str]]:
    command = [program, "-m", "uvicorn", "--app-dir", str(_HERE), "httpx_proxy:app", "--no-access-log"]
    command += ["--host", "127.0.0.1", "--port", str(job.port), "--backlog", "4096", "--log-level", "warning"]
    return command, {**_keys(job), "UPSTREAM": job.origin.url}


_VERSIONS = "import httpx, uvicorn; print('uvicorn', uvicorn.__version__, 'httpx', httpx.__version__)"


def _keys(job: Job) -> dict[str, str]:
    return {"KEYS": json.dumps({f"Bearer {job.key}": f"Bearer {job.secret}"})}


def _find_nginx(_peers: Path | None) -> str:
    return nginx()


NGINX = Peer("nginx", _find_nginx, _nginx, ("-v",))
PEERS = (
    NGINX,
    Peer("haproxy", _found("haproxy", "apt-get install haproxy"), _haproxy, ("-v",)),
    Peer("envoy", _in_peers("envoy"), _envoy, ("--version",)),
    Peer("mitmproxy", _in_peers("mitmdump"), _mitmproxy, ("--version",), tls=False),
    Peer("httpx", _python_with_uvicorn, _httpx, ("-c", _VERSIONS), fresh=True, tls=False),
)

"""The operator API against its own OpenAPI document: whatever Schemathesis sends, no answer surprises."""

import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.e2e.support import Kbctl

# Left out: /shutdown ends the daemon, /vault/self takes a vault key. Of the checks: that all that fits the
# schema is accepted (a cap above zero is no matter of schema), and that TRACE is answered 405 (the gate in
# front of every route knows no such method).
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,allow_header_conformance,"
    "use_after_free,ignored_auth"
)


def test_no_answer_is_a_server_error_or_undocumented(home: Kbctl, tmp_path: Path) -> None:
    """An admin token, every operation, right and wrong data; nothing fails inside the daemon."""
    home("up", "--sandbox", "--port", "0")
    status = home.json("status")
    socket = httpx.HTTPTransport(uds=status["socket"])
    with httpx.Client(transport=socket, base_url="http://localhost") as operator:
        token = operator.post("/tokens", json={"expires_in": "never"}).json()["token"]
        (tmp_path / "openapi.json").write_bytes(operator.get("/openapi.json").content)

    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json")),
        *("--url", status["proxy_url"], "--header", f"Authorization: Bearer {token}"),
        *("--checks", CHECKS, "--exclude-path", "/shutdown", "--exclude-path", "/vault/self"),
        *("--phases", "examples,coverage,fuzzing", "--max-examples", "60", "--no-color"),
        *("--continue-on-failure", "--suppress-health-check", "all"),
    ]
    hooks = str(Path(__file__).with_name("fuzz_hooks.py"))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "SCHEMATHESIS_HOOKS": hooks},
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "generated" in done.stdout
    assert home.json("status")["state"] == "serving"
    log = "".join(path.read_text() for path in home.home.rglob("*.log"))
    assert "failed inside the daemon" not in log
    assert token not in log

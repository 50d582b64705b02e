"""Law 6: the real secret is in its store and in the vendor's request, and nowhere else."""

import base64
import os
from pathlib import Path

import httpx

from tests.e2e.support import SECRET, Kbctl, PretendStripe


def disguises(secret: str) -> list[bytes]:
    raw = secret.encode()
    return [raw, base64.b64encode(raw)[:-4], raw.hex().encode(), raw[::-1]]


def test_P23_the_real_secret_is_in_no_file_output_environment_or_argument(
    served: Kbctl, stripe_server: PretendStripe
) -> None:
    """Good calls, refusals, errors and commands, then a search of everything they left behind."""
    url = served.json("status")["proxy_url"]
    key = served("issue", "--tenant", "acme", "--cap", "100").strip()
    agent = httpx.Client(trust_env=False, headers={"Authorization": f"Bearer {key}"})
    answers = []
    for path, form in [
        ("/stripe/v1/payment_intents", {"amount": "1000", "currency": "usd"}),
        ("/stripe/v1/payment_intents", {"amount": "1e3", "currency": "usd"}),
        ("/stripe/v1/payment_intents", {"amount": "99999", "currency": "usd"}),
        ("/stripe/v1/nothing_here", {}),
        ("/stripe/v1/../charges", {}),
    ]:
        answers.append(agent.post(url + path, data=form))
    answers.append(agent.get(f"{url}/stripe/v1/unknown_thing"))
    answers.append(
        httpx.get(f"{url}/stripe/v1/balance", headers={"Authorization": f"Bearer {SECRET}"}, trust_env=False)
    )
    agent.close()
    for command in (["status"], ["keys"], ["audit"], ["credential", "list"], ["logs"], ["show", key]):
        served(*command)
        if command != ["logs"]:
            served(*command, "--json")
    served("credential", "set", "stripe", stdin=f"{SECRET} with blanks\n", status=2)
    served("credential", "set", "nosuchvendor", stdin=SECRET, status=2)
    pid = served.pid()
    environments = Path(f"/proc/{pid}/environ").read_bytes() + Path(f"/proc/{pid}/cmdline").read_bytes()

    everything = {str(path): path.read_bytes() for path in served.home.rglob("*") if path.is_file()}
    everything["output"] = served.said.encode()
    everything["process"] = environments
    everything["answers"] = b"".join(a.content + repr(a.headers).encode() for a in answers)
    assert any(name.endswith("kbctl.db-wal") for name in everything)
    found = [
        (name, needle)
        for name, content in everything.items()
        for needle in disguises(SECRET)
        if needle in content
    ]
    assert found == []
    vault_key_places = [name for name, content in everything.items() if key.encode() in content]
    assert vault_key_places == ["output"]  # `issue` printed it, once, and nothing kept it


def test_the_search_itself_finds_a_planted_secret(tmp_path: Path) -> None:
    """The control: the same needles in a file that does hold the secret."""
    planted = tmp_path / "planted"
    planted.write_bytes(os.urandom(100) + base64.b64encode(SECRET.encode()) + os.urandom(100))

    assert any(needle in planted.read_bytes() for needle in disguises(SECRET))

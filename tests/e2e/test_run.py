"""``kbctl run``: unchanged agents under a key of their own, and the key gone whatever becomes of them."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.support import Kbctl, wait_gone
from tests.e2e.test_stripe_sdk import sdk
from tests.sdks.support import node_modules

__all__ = ["sdk"]


@pytest.fixture
def sandbox(home: Kbctl) -> Kbctl:
    """A daemon with pretend money."""
    home("up", "--sandbox", "--port", "0")
    return home


def environment(kbctl: Kbctl, **more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(kbctl.home), "KBCTL_HOME": str(kbctl.home), **more}


def start(kbctl: Kbctl, *command: str, args: tuple[str, ...] = (), **also: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "kbctl", "run", "--cap", "500", *args, "--", *command],
        stdin=also.pop("stdin", subprocess.DEVNULL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(kbctl, **also.pop("more", {})),
        **also,
    )


def run(kbctl: Kbctl, *command: str, **also: Any) -> tuple[int, str, str]:
    process = start(kbctl, *command, **also)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def python(code: str, path: list[str] | None = None) -> list[str]:
    return [sys.executable, "-c", f"import sys; sys.path[:0] = {path or []!r}\n{code}"]


def statuses(kbctl: Kbctl) -> list[str]:
    return [key["status"] for key in kbctl.json("keys", "--status", "all")["keys"]]


# As the articles write it, after "two environment variables, zero code changes".
AGENTS = {
    "the environment alone": """
import stripe
print(stripe.PaymentIntent.create(amount=12000, currency="usd").amount)
""",
    "a key of the environment": """
import os, stripe
stripe.api_key = os.environ["STRIPE_SECRET_KEY"]
print(stripe.PaymentIntent.create(amount=12000, currency="usd").amount)
""",
    "a base_url of the module": """
import os, stripe
stripe.api_key = os.environ["STRIPE_SECRET_KEY"]
stripe.base_url = os.environ["KBCTL_PROXY_URL"] + "/stripe/v1"
print(stripe.PaymentIntent.create(amount=12000, currency="usd").amount)
""",
    "a base_url of a client": """
import os, stripe
client = stripe.StripeClient(
    api_key=os.environ["STRIPE_API_KEY"], base_url=os.environ["KBCTL_PROXY_URL"] + "/stripe/v1/"
)
print(client.payment_intents.create(params={"amount": 12000, "currency": "usd"}).amount)
""",
    "a client without any": """
import os, stripe
client = stripe.StripeClient(os.environ["STRIPE_API_KEY"])
print(client.payment_intents.create(params={"amount": 12000, "currency": "usd"}).amount)
""",
}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
def test_an_unchanged_agent_spends_through_the_proxy(sandbox: Kbctl, sdk: list[str], agent: str) -> None:
    """The call is counted, and the key is gone afterwards."""
    status, out, err = run(sandbox, *python(agent, sdk), args=("--tenant", "acme"))

    assert (status, out) == (0, "12000\n"), err
    assert "spent $120.00 of $500.00; 1 call, 0 refused; revoked" in err
    assert "WARNING" not in err
    (row,) = sandbox.json("audit", "--tenant", "acme")
    assert row["metadata"]["agent_run_id"].startswith("run_")
    assert row["agent_run_label"] == f"run:{row['metadata']['agent_run_id']}/tenant:acme"
    assert statuses(sandbox) == ["revoked"]


def test_the_cap_holds_in_a_run(sandbox: Kbctl) -> None:
    """The fifth call is refused, and the agent's own failure is the status."""
    code = "import stripe\nfor _ in range(9): stripe.PaymentIntent.create(amount=12000, currency='usd')"
    status, _, err = run(sandbox, *python(code))

    assert status == 1
    assert "cap_exhausted" in err
    assert "spent $480.00 of $500.00; 5 calls, 1 refused; revoked" in err


def test_a_base_url_elsewhere_is_said_and_not_followed(sandbox: Kbctl) -> None:
    """No call goes to a host that the agent made up."""
    code = """
import stripe
stripe.base_url = "https://proxy.keys.invalid/stripe/v1"
print(stripe.PaymentIntent.create(amount=100, currency="usd").amount)
stripe.StripeClient("x", base_addresses={"api": "https://stripe.invalid"})
"""
    status, out, err = run(sandbox, *python(code))

    assert (status, out) == (0, "100\n"), err
    assert err.count("WARNING") == 2


@pytest.mark.parametrize(
    ("code", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_the_status_is_the_command_s(sandbox: Kbctl, code: str, status: int) -> None:
    """128+n after signal n."""
    assert run(sandbox, "sh", "-c", code)[0] == status
    assert statuses(sandbox) == ["revoked"]


def test_input_and_output_pass_through(sandbox: Kbctl) -> None:
    """Untouched; the summary is on stderr."""
    process = start(sandbox, "sh", "-c", "cat; echo to stderr >&2", stdin=subprocess.PIPE, args=("--quiet",))
    assert process.communicate("a\0b\n", timeout=60) == ("a\0b\n", "to stderr\n")


WAITS = r"""
import os, signal, sys, time
def told(number, frame):
    os.write(1, b"told %s\n" % signal.Signals(number).name.encode())  # print can't be entered twice
    sys.exit(9)
for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"):
    signal.signal(getattr(signal, name), told)
os.write(1, b"ready\n")
for _ in range(600):
    time.sleep(0.1)  # one that came just before a sleep is told of after it
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGQUIT"])
def test_signals_are_passed_on_and_the_key_is_revoked(sandbox: Kbctl, name: str) -> None:
    """The command decides how it ends; we end after it."""
    if signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and so by whatever is started from here")
    process = start(sandbox, *python(WAITS))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"

    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (9, f"told {name}\n")
    assert "revoked" in err
    assert statuses(sandbox) == ["revoked"]


def test_a_command_that_will_not_end_loses_its_key(sandbox: Kbctl) -> None:
    """Five seconds after SIGTERM, before whoever sent it turns to SIGKILL."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "print('ready', flush=True)\nwhile True: time.sleep(1)"
    )
    process = start(sandbox, *python(code))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    deadline = time.monotonic() + 20
    while statuses(sandbox) != ["revoked"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert process.poll() is None
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 137
    assert "goes on without it" in err


def test_a_key_outlives_kbctl_only_after_sigkill_and_then_a_day_at_most(sandbox: Kbctl) -> None:
    """What nobody can catch."""
    process = start(sandbox, *python(WAITS))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (key,) = sandbox.json("keys")["keys"]
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    process.kill()
    os.kill(int(found.stdout), signal.SIGKILL)
    process.communicate(timeout=60)

    assert key["expires_at"] is not None
    assert statuses(sandbox) == ["active"]


def test_nohup_is_passed_down(sandbox: Kbctl) -> None:
    """What we were told to ignore, the command ignores, and we do not pass it on."""
    code = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, flush=True)"
    command = [sys.executable, "-m", "kbctl", "run", "--cap", "5", "-q", "--", *python(code)]
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *command],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(sandbox),
    )
    assert done.stdout == "True\n", done.stderr


def test_ctrl_c_at_a_terminal_reaches_the_command_once(sandbox: Kbctl, tmp_path: Path) -> None:
    """The terminal sends it to both of us; passed on, it would arrive twice."""
    log = tmp_path / "log"
    code = f"""
import os, signal, time
log = open({str(log)!r}, "a", buffering=1)
signal.signal(signal.SIGINT, lambda *_: log.write("told\\n"))
log.write("ready %s\\n" % (os.getpgrp() == os.tcgetpgrp(0)))
until = time.monotonic() + 3
while time.monotonic() < until: time.sleep(0.1)
raise SystemExit(5)
"""
    pid, terminal = pty.fork()
    if pid == 0:
        command = [sys.executable, "-m", "kbctl", "run", "--cap", "5", "-q", "--", *python(code)]
        os.execve(sys.executable, command, environment(sandbox))
    deadline = time.monotonic() + 30
    while not log.exists() or "ready" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.write(terminal, b"\x03")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)

    assert log.read_text() == "ready True\ntold\n"
    assert os.waitstatus_to_exitcode(status) == 5
    assert statuses(sandbox) == ["revoked"]


def test_a_daemon_that_went_away_is_said(sandbox: Kbctl) -> None:
    """The command's status stands, and stderr says which key may still live."""
    code = f"import os, signal; os.kill({sandbox.pid()}, signal.SIGKILL)"
    pid = sandbox.pid()
    status, _, err = run(sandbox, *python(code))
    wait_gone(pid)

    assert status == 0
    assert "could not be revoked" in err
    assert "try: kbctl revoke vk_" in err


def test_env_lines_lead_a_shell_s_agent_to_the_proxy(sandbox: Kbctl) -> None:
    """Without a shim, an agent that sets the base itself."""
    lines = sandbox("env", "--issue", "--cap", "5")
    agent = (
        "import os, stripe; stripe.api_key = os.environ['STRIPE_API_KEY']; "
        "stripe.api_base = os.environ['STRIPE_BASE_URL']; "
        "print(stripe.PaymentIntent.create(amount=100, currency='usd').amount)"
    )
    done = subprocess.run(
        ["sh", "-c", f'{lines}\nexec "$0" -c "{agent}"', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(sandbox),
    )
    assert done.stdout == "100\n", done.stderr


NODE_AGENT = """
const stripe = new Stripe(process.env.STRIPE_SECRET_KEY);
stripe.paymentIntents.create({ amount: 12000, currency: 'usd' }).then((intent) => console.log(intent.amount));
"""


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("agent.cjs", "const Stripe = require('stripe');"),
        ("agent.mjs", "import Stripe from 'stripe';"),
    ],
)
def test_an_unchanged_node_agent(sandbox: Kbctl, tmp_path: Path, name: str, head: str) -> None:
    """Required or imported."""
    (tmp_path / "node_modules").symlink_to(node_modules())
    (tmp_path / name).write_text(head + NODE_AGENT)

    status, out, err = run(sandbox, "node", name, cwd=tmp_path)

    assert (status, out) == (0, "12000\n"), err
    assert "WARNING" not in err
    (row,) = sandbox.json("audit")
    assert (row["vendor"], row["amount_usd"]) == ("stripe", 120)


def test_vendor_check_has_an_exit_status(sandbox: Kbctl, tmp_path: Path) -> None:
    """0 and 2, each finding by file and line."""
    file = tmp_path / "acme.toml"
    file.write_text('schema = 1\nname = "Acme"\ncolour = "red"\n')

    told = sandbox("vendor", "check", str(file), status=2)

    assert f"{file}:3: there is no key `colour`" in told
    assert json.loads(sandbox("vendor", "check", str(file), "--json", status=2))["findings"]
    shipped = Path(__file__).parents[2] / "daemon" / "kbctld" / "vendors" / "stripe.toml"
    assert "good" in sandbox("vendor", "check", str(shipped))
    assert "payouts.create" in sandbox("vendor", "show", "stripe")

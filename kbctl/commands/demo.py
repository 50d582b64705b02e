"""``demo``: the whole story, with pretend money, in a home that is thrown away.

It is a test of itself: every sentence with an ``ok`` before it was checked against what the proxy, the audit
and the pretend vendor answered, and one that does not hold makes the demo fail. Nothing of the person's own
home, keys or daemon is touched, and the daemon of the demo is stopped however the demo ends.
"""

import json as json_text
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kbctl.commands.command import Command
from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home

if TYPE_CHECKING:
    import httpx

    from kbctl import wire
    from kbctl.client import Client

CAP = Decimal(500)
CHARGE = Decimal(120)
_CHARGE_MINOR = 12_000
_FITS = int(CAP // CHARGE)
_CROWD = 20
# A loop that nothing stops would be the very defect that the demo is about.
_LOOP_MAX = 10


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(cls=Command)(demo)


def demo(
    json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON instead.")] = False,
) -> None:
    """Show caps, revocation and audit at work. Pretend money, nothing kept.

    \b
    Example:
      kbctl demo
    """
    from kbctl import launch

    home = Home(Path(tempfile.mkdtemp(prefix="kbctl-demo-")).resolve())
    started = False
    try:
        status = _start(home)
        started = True
        story = Story(told=not json)
        _play(story, home, status)
    finally:
        try:
            if started:
                launch.stop(home)
        finally:
            shutil.rmtree(home.root, ignore_errors=True)
    story.end()


def _start(home: Home) -> "wire.Status":
    from kbctl import launch

    try:
        return launch.start(home, launch.Options(sandbox=True, port=0))
    except KbctlError as error:
        # Its own remedy speaks of a home that is about to be gone.
        raise KbctlError(error.code, error.message, "kbctl up --sandbox", error.exit_status) from None


@dataclass(slots=True)
class Story:
    """What was expected and came true, and how it is told."""

    told: bool
    checks: list[dict[str, Any]] = field(default_factory=list)
    scenes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def scene(self, text: str) -> None:
        from kbctl import render

        self.scenes += 1
        if self.told:
            render.scene(self.scenes, text)

    def tell(self, who: str, text: str, style: str = "") -> None:
        from kbctl import render

        if self.told:
            render.told(who, text, style=style)

    def expect(self, holds: bool, text: str) -> None:
        from kbctl import render

        self.checks.append({"holds": holds, "expected": text})
        if self.told:
            render.verdict(holds, text)

    def end(self) -> None:
        """The summary, and the exit code."""
        from kbctl import render

        failed = [check["expected"] for check in self.checks if not check["holds"]]
        if self.told:
            if not failed:
                render.moral(len(self.checks), time.monotonic() - self.began)
        else:
            summary = {"ok": not failed, "checks": self.checks, **self.figures}
            sys.stdout.write(json_text.dumps(summary, indent=2) + "\n")
        if failed:
            raise KbctlError(
                "demo_failed",
                f"{len(failed)} of {len(self.checks)} expectations did not hold, the first: {failed[0]}",
                "kbctl demo --json",
                Exit.INTERNAL,
            )


class Agent:
    """An agent as it would be: it knows a URL and a key, and charges customers."""

    def __init__(self, http: "httpx.Client", key: "wire.IssuedKey") -> None:
        self._http = http
        self.key = key
        self._sent = 0

    def charge(self) -> "httpx.Response":
        return self.post(
            "/v1/payment_intents", f"amount={_CHARGE_MINOR}&currency=usd&customer=cus_{self.key.tenant}"
        )

    def post(self, path: str, form: str) -> "httpx.Response":
        self._sent += 1
        headers = {
            "authorization": f"Bearer {self.key.vault_key}",
            "content-type": "application/x-www-form-urlencoded",
            # One per attempt: a loop that means to charge again, not a retry.
            "idempotency-key": f"{self.key.key_id}-{self._sent}",
        }
        return self._http.post(f"{self.key.proxy_url}/stripe{path}", content=form, headers=headers)

    def charge_together(self, count: int) -> "list[httpx.Response]":
        # Keys are numbered before the threads start, so that no two attempts share one.
        with ThreadPoolExecutor(count) as crowd:
            return list(crowd.map(lambda _: self.charge(), range(count)))


def _play(story: Story, home: Home, status: "wire.Status") -> None:
    import httpx

    from kbctl.client import Client

    if story.told:
        from kbctl import render

        render.prologue(status)
    limits = httpx.Limits(max_connections=_CROWD)
    with Client(home) as kbctl, httpx.Client(trust_env=False, timeout=10, limits=limits) as http:
        acme, globex = _issue(story, kbctl, http)
        _loop(story, acme, globex)
        _crowd(story, acme)
        _forbidden(story, acme)
        _revocation(story, kbctl, acme, globex)
        _audit(story, kbctl)
        _books(story, kbctl, http, status)


def _issue(story: Story, kbctl: "Client", http: "httpx.Client") -> tuple[Agent, Agent]:
    from kbctl import wire

    story.scene("Two tenants, one agent each, one key each")
    agents = []
    for tenant in ("acme", "globex"):
        allow = ["POST /v1/payment_intents", "GET /v1/*"]
        key = kbctl.issue(wire.IssueRequest(tenant=tenant, daily_usd_cap=CAP, allowed_endpoints=allow))
        agents.append(Agent(http, key))
        story.tell(tenant, f"kbctl issue --tenant {tenant} --cap {CAP}  ->  {key.key_id}")
    held = {agent.key.vault_key for agent in agents}
    own = len(held) == 2 and all(key.startswith("vault_key_") for key in held)
    story.expect(own, "each agent holds a key of its own, and neither holds Stripe's")
    return agents[0], agents[1]


def _loop(story: Story, acme: Agent, globex: Agent) -> None:
    story.scene(f"acme's agent is stuck in a loop that charges ${CHARGE} each time")
    allowed = 0
    for _ in range(_LOOP_MAX):
        answer = acme.charge()
        if answer.is_success:
            allowed += 1
            story.tell("acme", f"charge ${CHARGE}: done, ${CHARGE * allowed} of ${CAP} today", "green")
            continue
        story.tell("acme", f"charge ${CHARGE}: HTTP {answer.status_code}, and nothing reached Stripe", "red")
        story.tell("", _message(answer))
        break
    story.expect(_code(answer) == "cap_exhausted", f"acme was stopped after {_FITS} charges by cap_exhausted")
    story.expect(allowed == _FITS, f"${CHARGE * _FITS} were spent; one more would have been over ${CAP}")
    story.expect(globex.charge().is_success, "globex, with a key of its own, goes on charging")


def _crowd(story: Story, acme: Agent) -> None:
    story.scene(f"acme's agent tries {_CROWD} times at once")
    codes = [_code(answer) for answer in acme.charge_together(_CROWD)]
    story.expect(
        codes == ["cap_exhausted"] * _CROWD, f"{codes.count('cap_exhausted')} of {_CROWD} were refused"
    )


def _forbidden(story: Story, acme: Agent) -> None:
    story.scene("It tries what it was never given")
    for path, form in (
        ("/v1/payouts", "amount=100&currency=usd"),
        ("/v1/ephemeral_keys", "customer=cus_acme"),
    ):
        answer = acme.post(path, form)
        story.tell("acme", f"POST {path}: HTTP {answer.status_code}", "red")
        story.tell("", _message(answer))
        story.expect(
            _code(answer) == "endpoint_not_allowed", f"POST {path} was refused before it left this machine"
        )


def _revocation(story: Story, kbctl: "Client", acme: Agent, globex: Agent) -> None:
    story.scene("You revoke acme's key")
    began = time.perf_counter()
    reply = kbctl.revoke(acme.key.key_id)
    took_ms = (time.perf_counter() - began) * 1000
    story.tell("you", f"kbctl revoke {acme.key.key_id}  ->  done and on disk after {took_ms:.0f} ms")
    story.figures["revoke_ms"] = round(took_ms, 1)
    answer = acme.charge()
    story.tell("acme", f"charge ${CHARGE}: HTTP {answer.status_code}", "red")
    story.tell("", _message(answer))
    revoked = len(reply.revoked) == 1 and answer.status_code == 401 and _code(answer) == "key_revoked"
    story.expect(revoked, "acme's very next call was refused")
    story.expect(globex.charge().is_success, "globex did not notice")


def _audit(story: Story, kbctl: "Client") -> None:
    from kbctl import render
    from kbctl.client import AuditFilter

    story.scene("The audit of acme:  kbctl audit --label tenant:acme")
    calls = [call for page in kbctl.audit(AuditFilter(label_contains="tenant:acme")) for call in page]
    if story.told:
        render.audit(_gathered(calls))
    results = [call.policy_check_result for call in calls]
    # Some of the crowd may be folded into the row of their first.
    attempts = len(calls) + sum(call.folded for call in calls)
    expected = _FITS + 1 + _CROWD + 2 + 1
    story.expect(
        attempts == expected,
        f"all {expected} attempts are on record, {results.count('allowed')} of them allowed",
    )
    story.expect({call.tenant for call in calls} == {"acme"}, "and nothing of globex is among them")
    refused = [call for call in calls if call.policy_check_result != "allowed"]
    untouched = all(call.vendor_request_id is None and not call.amount_usd for call in refused)
    story.expect(untouched, "no refused attempt reached Stripe, and none counts against the cap")
    story.figures["attempts"] = attempts


def _gathered(calls: "list[wire.Call]") -> "list[wire.Call]":
    """For reading: refusals of the same kind in a row as one line."""
    from msgspec.structs import replace

    shown: list[wire.Call] = []
    for call in calls:
        last = shown[-1] if shown else None
        same = last and (last.policy_check_result, last.endpoint) == (call.policy_check_result, call.endpoint)
        if last and same and call.policy_check_result != "allowed":
            shown[-1] = replace(last, folded=last.folded + 1 + call.folded)
        else:
            shown.append(call)
    return shown


def _books(story: Story, kbctl: "Client", http: "httpx.Client", status: "wire.Status") -> None:
    from kbctl import render

    story.scene("Whose count is right? The pretend Stripe kept its own")
    origin = next(upstream.origin for upstream in status.upstreams if upstream.vendor == "stripe")
    book = http.get(f"{origin}/_sandbox/book").raise_for_status().json()
    vendor = Decimal(int(book["authorised_minor"].get("usd", 0))) / 100
    keys = {key.tenant: key for key in kbctl.keys(status="all")}
    spent = {tenant: key.spent_usd + key.held_usd for tenant, key in keys.items()}
    ours = sum(spent.values(), Decimal(0))
    if story.told:
        render.keys(list(keys.values()))
    story.tell("Stripe", f"{render.usd(vendor)} authorised")
    story.tell("kbctl", f"{render.usd(ours)} spent or held, for acme and globex together")
    story.expect(vendor == ours, "both counts agree to the cent")
    within = all(amount <= CAP for amount in spent.values())
    story.expect(within and vendor <= CAP * len(keys), "the vendor never saw a dollar more than the cap")
    story.figures |= {"vendor_usd": f"{vendor:.2f}", "ledger_usd": f"{ours:.2f}", "cap_usd": f"{CAP:.2f}"}


def _code(answer: "httpx.Response") -> str:
    """The code of a refusal in Stripe's own error form, or "" for anything else."""
    try:
        code = answer.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return ""
    return code if isinstance(code, str) else ""


def _message(answer: "httpx.Response") -> str:
    """What the agent was told, word for word."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text

"""``kbctl run`` with the real SDKs, newest and old: agents that know of no proxy, led there by the shim.

What must stay true: an agent holds a vault key and nothing else, so that a call that is not led there, and
fails its test, is worth nothing where it goes.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sdks.support import VENDORS, Ports, Street, node_modules, old_sdks, street


@pytest.fixture(scope="module")
def here(ports: Ports) -> Iterator[Street]:
    """A daemon before the mocks."""
    with street(ports) as made:
        yield made


def run(here: Street, folder: Path, *command: str, **more: str) -> tuple[str, str]:
    """The standard output and error of a command with a key of its own, over every vendor."""
    home = {"HOME": str(here.kbctl.home), "KBCTL_HOME": str(here.kbctl.home)}
    vendors = [word for vendor in VENDORS for word in ("--vendor", vendor)]
    done = subprocess.run(
        [sys.executable, "-m", "kbctl", "run", "--cap", "500", *vendors, "--", *command],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={"PATH": os.environ["PATH"], **home, **more},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


PYTHON = """
import warnings
warnings.simplefilter("ignore")
import anthropic, openai, resend, stripe
from importlib.metadata import version
from twilio.rest import Client

ends = {"to": "+14155550100", "from_": "+14155550111"}
print(stripe.Charge.create(amount=1000, currency="usd", source="tok_visa").amount)
print(Client().messages.create(body="Hello", **ends).num_segments)
print(len(Client().verify.v2.services.list(limit=1)))
mail = {"from": "me@x.test", "to": ["a@x.test"], "subject": "Hi", "text": "Hello"}
print(bool(resend.Emails.send(mail)["id"]))
hi = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
print(openai.OpenAI().chat.completions.create(model="gpt-4o-mini", **hi).choices[0].message.content)
print(anthropic.Anthropic().messages.create(model="claude-haiku-4-5", **hi).content[0].text)
"""


@pytest.mark.parametrize("old", [False, True], ids=["newest", "old"])
def test_agents_in_python_need_the_environment_alone(here: Street, tmp_path: Path, old: bool) -> None:
    """Every vendor's SDK in one program."""
    more = {"PYTHONPATH": old_sdks()} if old else {}
    out, err = run(here, tmp_path, sys.executable, "-c", PYTHON, **more)

    assert out.split() == ["1000", "1", "1", "True", "hello", "hello"], err
    assert "WARNING" not in err
    assert "6 calls, 0 refused; revoked" in err


NODE = """
const stripe = new Stripe(process.env.STRIPE_API_KEY);
const text = { body: 'Hello', to: '+14155550100', from: '+14155550111' };
const mail = { from: 'me@x.test', to: ['a@x.test'], subject: 'Hi', text: 'Hello' };

async function main() {
  console.log((await stripe.charges.create({ amount: 1000, currency: 'usd', source: 'tok_visa' })).amount);
  console.log((await twilio().messages.create(text)).numSegments);
  console.log((await twilio().verify.v2.services.list({ limit: 1 })).length);
  console.log(Boolean((await new Resend().emails.send(mail)).data.id));
  const file = { data: Buffer.from('PNG'), name: 'a.png', type: 'image/png' };
  await stripe.files.create({ purpose: 'dispute_evidence', file }).catch((error) => console.log(error.code));
}

main();
"""
HEADS = {
    "agent.cjs": """
const Stripe = require('stripe');
const twilio = require('twilio');
const { Resend } = require('resend');
""",
    "agent.mjs": """
import Stripe from 'stripe';
import twilio from 'twilio';
import { Resend } from 'resend';
""",
}


ALIASED = "old, under other names"


@pytest.fixture(params=["newest", "old", ALIASED])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the packages and the agents that use them."""
    modules = tmp_path / "node_modules"
    for name, head in HEADS.items():
        if request.param == ALIASED:
            head = re.sub(r"'(\w+)'", r"'\1-old'", head)
        (tmp_path / name).write_text(head + NODE)
    if request.param == ALIASED:
        modules.symlink_to(node_modules())
        return tmp_path
    modules.mkdir()
    for package in node_modules().iterdir():
        name = package.name.removesuffix("-old")
        if name not in VENDORS:
            (modules / name).symlink_to(package)
        elif package.name.endswith("-old") == (request.param == "old"):
            # Node goes by where a package really is, and the shim with it.
            shutil.copytree(package, modules / name, copy_function=link)
    return tmp_path


def link(source: str, target: str) -> None:
    """Copy a file, without its bytes where that can be done."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


THEIRS = """
console.log('theirs');
require('dns').lookup = (host) => { throw new Error(`a call to ${host} was to leave this machine`); };
"""


@pytest.mark.parametrize("name", HEADS)
def test_agents_in_node_need_the_environment_alone(here: Street, project: Path, name: str) -> None:
    """Required or imported, behind what NODE_OPTIONS holds already; an upload is led to the proxy, too."""
    (project / "theirs.cjs").write_text(THEIRS)

    out, err = run(here, project, "node", name, NODE_OPTIONS="--require ./theirs.cjs")

    assert out.startswith("theirs\n")  # once more where Node runs it in the thread of the hooks, too
    assert out.replace("theirs", "").split() == ["1000", "1", "1", "true", "amount_unknown"], err
    assert "WARNING" not in err
    assert "5 calls, 1 refused; revoked" in err

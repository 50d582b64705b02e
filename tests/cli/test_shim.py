"""The shim on its own: what it chains, what it leaves alone, and that it never fails in silence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kbctl import environment
from kbctl.environment import SHIM

PROXY = "http://127.0.0.1:4815"
KEYS = {
    "KBCTL_PROXY_URL": PROXY,
    "STRIPE_API_KEY": "vault_key_a",
    "STRIPE_BASE_URL": f"{PROXY}/stripe",
    "TWILIO_AUTH_TOKEN": "vault_key_a",
}
STRIPE = 'api_key = None\napi_base = upload_api_base = "https://api.stripe.invalid"\n'
CLIENT = (
    "class StripeClient:\n"
    "    def __init__(self, api_key, *, base_addresses=None):\n"
    "        self.seen = base_addresses\n"
)
TWILIO = "class Client:\n    def get_hostname(self, uri):\n        return uri\n"


def other_pythons() -> list[str]:
    """Those on the PATH that run, and what KBCTL_TEST_PYTHONS lists; an agent may have any."""
    named = [path for path in os.environ.get("KBCTL_TEST_PYTHONS", "").split(":") if path]
    found = [shutil.which(f"python3.{minor}") for minor in (8, 9, 10, 12, 13, 14)]
    return [
        path
        for path in [*named, *filter(None, found)]
        if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0
    ]


def package(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent != folder:
            (path.parent / "__init__.py").touch()


def python(
    code: str, *paths: Path, program: str = sys.executable, keys: dict[str, str] | None = None, **more: str
) -> "subprocess.CompletedProcess[str]":
    given = os.pathsep.join(map(str, (SHIM, *paths)))
    return subprocess.run(
        [program, "-B", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": given, **(KEYS if keys is None else keys), **more},
    )


@pytest.mark.parametrize("program", [sys.executable, *other_pythons()])
def test_it_steers_in_every_python(tmp_path: Path, program: str) -> None:
    """Module, client and Twilio's products."""
    package(tmp_path, stripe____init__=STRIPE, stripe___stripe_client=CLIENT, twilio__rest=TWILIO)
    (tmp_path / "stripe" / "__init__.py").write_text(STRIPE)
    (tmp_path / "stripe" / "_stripe_client.py").write_text(CLIENT)
    code = (
        "import inspect, stripe, stripe._stripe_client as c, twilio.rest as t\n"
        "print(stripe.api_key, stripe.api_base, stripe.upload_api_base)\n"
        "print(c.StripeClient('k', base_url='http://localhost:4815/stripe/v1/').seen['api'])\n"
        "print(sorted(set(c.StripeClient('k').seen.values())))\n"
        "print('base_addresses' in str(inspect.signature(c.StripeClient)))\n"
        "print(t.Client().get_hostname('https://verify.twilio.com/v2/Services?a=1'))\n"
        "print(t.Client().get_hostname('http://127.0.0.1:4815/twilio/x'))\n"
        "print(type(stripe.__loader__).__name__, stripe.__spec__.loader is stripe.__loader__)\n"
    )
    done = python(code, tmp_path, program=program)

    assert done.stdout.splitlines() == [
        f"vault_key_a {PROXY}/stripe {PROXY}/stripe",
        "http://localhost:4815/stripe",
        f"['{PROXY}/stripe']",
        "True",
        f"{PROXY}/twilio/verify.twilio.com/v2/Services?a=1",
        "http://127.0.0.1:4815/twilio/x",
        "SourceFileLoader True",
    ]
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("url", "host"), [("https://eviltwilio.com/x", "eviltwilio.com"), ("https://a.test/x", "a.test")]
)
def test_another_host_is_not_steered_and_said(tmp_path: Path, url: str, host: str) -> None:
    """Only Twilio's own."""
    package(tmp_path, twilio__rest=TWILIO)
    done = python(f"import twilio.rest as t; print(t.Client().get_hostname({url!r}))", tmp_path)

    assert done.stdout == f"{url}\n"
    assert f"a call of twilio to {host} leads around the proxy" in done.stderr


BROKEN = [
    pytest.param({"stripe": "api_base = None"}, "import stripe", id="no api_base"),
    pytest.param({"stripe": "x = 1"}, "import stripe", id="another module"),
    pytest.param(
        {"stripe___stripe_client": "class StripeClient:\n    def __init__(self, key): pass"},
        "import stripe._stripe_client",
        id="no base_addresses",
    ),
    pytest.param({"twilio__rest": "class Client: pass"}, "import twilio.rest", id="no get_hostname"),
]


@pytest.mark.parametrize(("files", "code"), BROKEN)
def test_what_can_t_be_steered_is_said(tmp_path: Path, files: dict[str, str], code: str) -> None:
    """Loudly; strict makes the import fail."""
    if "stripe___stripe_client" in files:
        (tmp_path / "stripe").mkdir()
        (tmp_path / "stripe" / "__init__.py").write_text(STRIPE)
        (tmp_path / "stripe" / "_stripe_client.py").write_text(files["stripe___stripe_client"])
    else:
        package(tmp_path, **files)

    done = python(f"{code}; print('went on')", tmp_path)
    strict = python(f"{code}; print('went on')", tmp_path, KBCTL_SHIM="strict")

    assert done.stdout == "went on\n"
    assert "kbctl: WARNING: this version of" in done.stderr
    assert (strict.returncode, strict.stdout) == (1, "")
    assert "ImportError: this version of" in strict.stderr


def test_an_import_that_fails_fails_as_without_us(tmp_path: Path) -> None:
    """Its own error, and no warning."""
    package(tmp_path, stripe="raise KeyError('theirs')")
    done = python("import stripe", tmp_path)

    assert "KeyError: 'theirs'" in done.stderr
    assert "WARNING" not in done.stderr
    package(tmp_path, twilio="")
    assert "ModuleNotFoundError" in python("import twilio.rest", tmp_path).stderr


def test_a_sitecustomize_that_was_there_still_runs(tmp_path: Path) -> None:
    """Under its own name, and before the program."""
    package(tmp_path, sitecustomize="import sys; sys.stdout.write(__file__ + '\\n')\nHERE = 1")
    done = python("import sitecustomize; print(sitecustomize.HERE, sitecustomize.__file__)", tmp_path)

    theirs = str(tmp_path / "sitecustomize.py")
    assert done.stdout.splitlines() == [theirs, f"1 {theirs}"]


def test_one_that_fails_does_not_take_us_along(tmp_path: Path) -> None:
    """Python says so and goes on; stripe is steered all the same."""
    package(tmp_path, sitecustomize="raise KeyError('theirs')", stripe=STRIPE)
    done = python("import stripe; print(stripe.api_base)", tmp_path)

    assert done.stdout == f"{PROXY}/stripe\n"
    assert "theirs" in done.stderr


@pytest.mark.parametrize(
    "keys",
    [
        pytest.param({}, id="no key"),
        pytest.param(KEYS | {"STRIPE_API_KEY": "sk_live_x", "TWILIO_AUTH_TOKEN": "x"}, id="real keys"),
        pytest.param(KEYS | {"KBCTL_SHIM": "off"}, id="off"),
        pytest.param({name: KEYS[name] for name in KEYS if name != "KBCTL_PROXY_URL"}, id="no proxy"),
    ],
)
def test_without_a_vault_key_nothing_is_touched(tmp_path: Path, keys: dict[str, str]) -> None:
    """As if we were not there."""
    package(tmp_path, stripe=STRIPE)
    done = python("import stripe, sys; print(stripe.api_base, len(sys.meta_path))", tmp_path, keys=keys)

    plain = subprocess.run(
        [sys.executable, "-c", "import sys; print(len(sys.meta_path))"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": os.environ["PATH"]},
        check=True,
    )
    assert done.stdout == f"https://api.stripe.invalid {plain.stdout}"


def test_a_base_of_the_environment_that_is_not_the_proxy_is_not_followed(tmp_path: Path) -> None:
    """Something between us and the agent has changed it."""
    package(tmp_path, stripe=STRIPE)
    done = python(
        "import stripe; print(stripe.api_base)", tmp_path, STRIPE_BASE_URL="https://a.invalid/stripe"
    )

    assert done.stdout == f"{PROXY}/stripe\n"


def test_the_module_can_be_loaded_again(tmp_path: Path) -> None:
    """And is steered again."""
    package(tmp_path, stripe=STRIPE)
    code = "import importlib, stripe; importlib.reload(stripe); print(stripe.api_base, type(stripe).__name__)"

    assert python(code, tmp_path).stdout == f"{PROXY}/stripe module\n"


# --- Node -------------------------------------------------------------------------------------------


def node(tmp_path: Path, code: str, *, mode: str = "", **files: str) -> "subprocess.CompletedProcess[str]":
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    for name, text in files.items():
        folder = tmp_path / "node_modules" / name
        folder.mkdir(parents=True)
        (folder / "index.js").write_text(text)
    (tmp_path / "agent.cjs").write_text(code)
    shim = environment.with_shim({})["NODE_OPTIONS"]
    return subprocess.run(
        ["node", "agent.cjs"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "NODE_OPTIONS": shim,
            **KEYS,
            "KBCTL_SHIM": mode,
        },
    )


NODE_STRIPE = """
class Stripe {
  constructor(key, config) { this.props = this._getPropsFromConfig(config || {}); }
  _getPropsFromConfig(config) { return config; }
}
module.exports = Stripe;
"""


def test_node_is_given_the_proxy_as_the_default_host(tmp_path: Path) -> None:
    """What the agent says itself stands, and is said where it leads elsewhere."""
    code = """
const Stripe = require('stripe');
const { host, port, protocol } = new Stripe('k').props;
console.log(host, port, protocol, new Stripe('k', { host: 'mock.test' }).props.host);
"""
    done = node(tmp_path, code, stripe=NODE_STRIPE)

    assert done.stdout == "127.0.0.1 4815 http mock.test\n"
    assert done.stderr.count("WARNING") == 1


def test_node_says_what_it_can_t_steer(tmp_path: Path) -> None:
    """Another stripe."""
    done = node(tmp_path, "require('stripe'); console.log('went on')", stripe="module.exports = class {};")
    assert done.stdout == "went on\n"
    assert "this version of stripe can't be steered" in done.stderr


def test_node_strict(tmp_path: Path) -> None:
    """No call at all."""
    done = node(tmp_path, "require('twilio')", mode="strict", twilio="module.exports = class {};")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this version of twilio can't be steered" in done.stderr


def test_what_is_shipped() -> None:
    """The folder in front of PYTHONPATH holds nothing that a program could import by accident."""
    files = {path.name for path in SHIM.iterdir() if path.name != "__pycache__"}
    assert files == {"sitecustomize.py", "register.cjs", "hooks.mjs"}

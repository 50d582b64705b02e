"""An addon of mitmproxy that swaps the key."""

import json
import os
from typing import Any

_KEYS: dict[str, str] = json.loads(os.environ["KEYS"])


def request(flow: Any) -> None:
    """Called for every request; one with an unknown key goes on as it is, and the upstream refuses it."""
    said = flow.request.headers.get("authorization", "")
    flow.request.headers["authorization"] = _KEYS.get(said, said)

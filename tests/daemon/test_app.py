"""What the composition root decides itself."""

from pathlib import Path

import pytest

from kbctl.paths import Home
from kbctld.app import App, Options
from kbctld.config import Config
from kbctld.core.pace import Rate, read_rate
from kbctld.core.vendor_file import RateClass
from kbctld.prices import Prices
from tests.daemon.support import MAIL, RATES, STRIPE


@pytest.mark.parametrize(
    ("overridden", "set_by_operator", "read", "write"),
    [
        ({}, {}, "100/s", "100/s"),
        ({}, {"write": "25/s"}, "100/s", "25/s"),
        ({"stripe": "INSECURE http://127.0.0.1:9000"}, {}, None, None),
        ({"stripe": "SANDBOX http://127.0.0.1:9000"}, {"write": "25/s"}, None, "25/s"),
        ({"mail": "INSECURE http://127.0.0.1:9000"}, {}, "100/s", "100/s"),
    ],
)
def test_a_vendor_s_own_rate_holds_where_the_vendor_is(
    folder: Path,
    overridden: dict[str, str],
    set_by_operator: dict[str, str],
    read: str | None,
    write: str | None,
) -> None:
    """A mock has none, unless the operator says so."""
    rates = {kind: read_rate(text) for kind, text in set_by_operator.items()}
    vendors = {"stripe": STRIPE, "mail": MAIL}
    own: dict[str, dict[RateClass, Rate]] = {"stripe": rates}  # type: ignore[dict-item]
    app = App(Options(Home(folder)), Config(), vendors, RATES, own, Prices())
    app._overridden = overridden
    assert {str(kind): rate.text for kind, rate in app._rates_of(STRIPE).items()} == {
        kind: text for kind, text in (("read", read), ("write", write)) if text is not None
    }
    assert app._rates_of(MAIL) == {}

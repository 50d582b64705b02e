"""A list in a form that says what is to be paid: the sum of amount times quantity.

What must stay true: whatever is not known to leave the sum alone may change it.
"""

from collections.abc import Iterable

from kbctld.core.form import Form
from kbctld.core.money import MINOR_MAX, read_currency, read_minor
from kbctld.core.operation import Items
from kbctld.core.tariff import UntoldError


def sum_items(cost: Items, form: Form, query: Form) -> tuple[int, str]:
    """What the items come to, in minor units, and the one currency of them all, upper case.

    Raises:
        UntoldError: none are stated, one lacks a figure, or something beside them may change the sum.
        AmbiguousFieldError: a list with two readings.
    """
    items = form.items(cost.of)
    if not items:
        raise UntoldError(f"it states no {cost.of}", f"state {cost.of}")
    sent = [key.partition("[")[0] for key, _ in (*form.pairs, *query.pairs)]
    read = {cost.amount, cost.quantity, cost.currency}
    within = [path for item in items for path in item if path not in read]
    strays = [root for root in sent if root not in (cost.of, *cost.beside)]
    strays += [f"{cost.of}.{path}" for path in within if not _below(path, cost.item_beside)]
    if strays:
        raise UntoldError(f"{strays[0]} may change what {cost.of} come to", f"leave {strays[0]} out")
    total, currencies = 0, set[str]()
    for item in items:
        unit, quantity = read_minor(item.get(cost.amount, "")), read_minor(item.get(cost.quantity, ""))
        currency = read_currency(item.get(cost.currency, ""))
        if unit is None or quantity is None or currency is None:
            told = f"{cost.amount}, {cost.quantity} and {cost.currency}"
            raise UntoldError(f"one of its {cost.of} lacks a plain {told}", f"state {told} of each")
        total += unit * quantity
        currencies.add(currency)
    if len(currencies) > 1:
        raise UntoldError(f"its {cost.of} are in several currencies")
    if total >= MINOR_MAX:
        raise UntoldError("its amount is larger than any cap can be")
    return total, currencies.pop()


def _below(path: str, names: Iterable[str]) -> bool:
    """Whether it is one of these names, or stands below one."""
    return any(path == name or path.startswith(name + ".") for name in names)

"""A secret that shows itself only to who asks by name.

What must stay true: ``reveal()`` is the only way from a Secret to its text. ``str()``, ``format()`` and
``repr()`` give ``Secret(***)`` rather than raise: a forgotten ``reveal()`` in an f-string then sends a
placeholder that the vendor refuses, and a logger that formats one by accident neither leaks nor crashes.
"""

import hmac
from typing import NoReturn, final

from kbctl.errors import Exit, KbctlError

# Real API keys are below 1 KiB; a service account with its private key is below 4.
SECRET_BYTES_MAX = 16 * 1024


@final
class Secret:
    """A real secret in memory."""

    __slots__ = ("__text", "__weakref__")  # by a weak reference tests see that one is gone

    # A hash would be a fingerprint that lives on in sets and dicts.
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, text: str) -> None:
        self.__text = text

    def reveal(self) -> str:
        """The text itself; every call of this is a place to review."""
        return self.__text

    def __repr__(self) -> str:
        return "Secret(***)"

    def __format__(self, format_spec: str) -> str:
        return "Secret(***)"  # the width is ignored too: padding would tell the length

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_bytes(self), _bytes(other))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Neither pickle nor copy: a second copy is one that nobody accounts for."""
        raise TypeError("a Secret is neither pickled nor copied")


def checked(secret: Secret) -> str:
    """The text of a secret that may be stored.

    Empty is refused: a keyring that loses a secret answers the same way as one that kept an empty one.
    """
    if not secret.reveal():
        raise KbctlError(
            "secret_empty", "an empty secret cannot be stored", "type or pipe the secret", Exit.REFUSED
        )
    if len(_bytes(secret)) > SECRET_BYTES_MAX:
        raise KbctlError(
            "secret_too_large",
            f"a secret may have {SECRET_BYTES_MAX:,} bytes",
            "check that the right file was piped",
            Exit.REFUSED,
        )
    return secret.reveal()


def _bytes(secret: Secret) -> bytes:
    return secret.reveal().encode("utf-8", "surrogatepass")

"""kbctl: a capped, revocable key of its own for every AI agent that spends money.

The public Python API: :class:`Client` and :class:`AsyncClient` for who issues keys, :func:`derive` and
:func:`whoami` for the agent that holds one, and :class:`KbctlError`. They are found on first use, because a
command line that only prints its version must not load an HTTP library.
"""

from kbctl.version import __version__ as __version__

# As typing has it, which takes longer to import than all else that `kbctl --version` needs.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from kbctl.agent import derive, whoami
    from kbctl.client import AsyncClient, Client
    from kbctl.errors import KbctlError

__all__ = ["AsyncClient", "Client", "KbctlError", "__version__", "derive", "whoami"]


def __getattr__(name: str) -> "Any":
    if name in ("Client", "AsyncClient"):
        from kbctl import client

        return getattr(client, name)
    if name in ("derive", "whoami"):
        from kbctl import agent

        return getattr(agent, name)
    if name == "KbctlError":
        from kbctl.errors import KbctlError

        return KbctlError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

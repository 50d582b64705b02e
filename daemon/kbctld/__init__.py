"""The daemon: holds the real secrets, decides each call before it leaves, keeps the ledger.

An agent's request crosses the packages in one direction::

    http1    bytes -> a head that passed the gate, or a refusal
    proxy    one exchange, top to bottom; asks core twice (authorize, settle)
    core     pure: what is allowed, what it costs, what is left
    store    the journal: durable before the first byte leaves
    secrets  the real keys: OS keyring or an encrypted file

``control`` is the operator's side on a UNIX socket, ``sandbox`` the pretend vendors, and
``app`` the only file that knows every part.
"""

from kbctl.version import __version__ as __version__

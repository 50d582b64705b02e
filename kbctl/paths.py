"""Where everything of one kbctl home lives. ``KBCTL_HOME`` wins; otherwise the platform's data folder.

One folder holds config, database, socket, log and own vendors, so that moving, backing up or deleting a
kbctl is moving, backing up or deleting that folder. It is private to its owner (0700).
What only some homes need is imported where they need it: every command comes by here.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

# sockaddr_un.sun_path: 108 bytes on Linux, 104 on macOS, both with the final NUL.
SOCKET_PATH_BYTES_MAX = 107 if sys.platform == "linux" else 103


@dataclass(frozen=True, slots=True)
class Home:
    """The files of one kbctl home."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def vendors(self) -> Path:
        return self.root / "vendors"

    @property
    def log(self) -> Path:
        return self.root / "kbctld.log"

    @property
    def lock(self) -> Path:
        return self.root / "kbctld.lock"

    def state(self, *, sandbox: bool) -> Path:
        """The folder of database, anchor and secret files; pretend money never shares it with real money."""
        return self.root / "sandbox" if sandbox else self.root

    def database(self, *, sandbox: bool = False) -> Path:
        return self.state(sandbox=sandbox) / "kbctl.db"

    def anchor(self, *, sandbox: bool = False) -> Path:
        """Beside the database, never inside it: it remembers how far the database had come."""
        return self.state(sandbox=sandbox) / "kbctl.anchor"

    def checkpoints(self, *, sandbox: bool = False) -> Path:
        """The signed checkpoints of the audit, one a line; worth more as copies elsewhere."""
        return self.state(sandbox=sandbox) / "kbctl.checkpoints"

    @property
    def socket(self) -> Path:
        """The UNIX socket: in the home, or under the temp folder when the home's path is too long for one."""
        inside = self.root / "kbctl.sock"
        if len(os.fsencode(inside)) <= SOCKET_PATH_BYTES_MAX:
            return inside
        import hashlib
        import tempfile

        name = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"kbctl-{os.getuid()}" / f"{name}.sock"


def home() -> Home:
    """The home that this process works with."""
    chosen = os.environ.get("KBCTL_HOME")
    if chosen:
        return Home(Path(chosen).expanduser().absolute())
    import platformdirs

    return Home(Path(platformdirs.user_data_dir("kbctl", appauthor=False)).absolute())

"""Files with which a service manager starts the daemon: systemd for a user or the system, launchd.

What must stay true: the file says all that the daemon may do and nothing else is left open; no secret and
nothing that was typed stands in it but paths.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from kbctl.errors import Exit, KbctlError
from kbctl.paths import Home

SYSTEM_HOME = Path("/var/lib/kbctl")

# Each line takes away what the daemon has no use for; scored by `systemd-analyze security --offline`.
_HARDENED = """\
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
LimitCORE=0
LimitNOFILE=65536
"""
_HARDENED_SYSTEM = """\
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
PrivateUsers=yes
PrivateIPC=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
ProcSubset=pid
RemoveIPC=yes
KeyringMode=private
DevicePolicy=closed
MemorySwapMax=0
"""


@dataclass(frozen=True, slots=True)
class Service:
    """One file of a service manager.

    Attributes:
        path: where it goes.
        text: what stands in it.
        start: the commands that make the manager see and start it.
        stop: the commands that stop it and make the manager forget it.
    """

    path: Path
    text: str
    start: tuple[str, ...]
    stop: tuple[str, ...]


def service(home: Home, *, system: bool) -> Service:
    """What this machine's service manager wants.

    Args:
        home: of a user's own daemon; the system's is ``/var/lib/kbctl``.
        system: whether the daemon is a user of its own, ``kbctl``, that agents can't touch.
    """
    if sys.platform == "darwin":
        if system:
            raise KbctlError(
                "service_unknown",
                "a system service is made for systemd only",
                "kbctl service install",
                Exit.USAGE,
            )
        return _launchd(home)
    if sys.platform != "linux":
        raise KbctlError("service_unknown", f"there is no service for {sys.platform}", "kbctl up", Exit.USAGE)
    return _system() if system else _user(home)


def _command(home: Path) -> list[str]:
    return [sys.executable, "-E", "-P", "-m", "kbctld", "--foreground", "--home", str(home)]


def _quoted(words: list[str]) -> str:
    """As systemd reads a command: % and $ stand for themselves, and so does a blank."""
    texts = (
        word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$") for word in words
    )
    return " ".join(f'"{text}"' for text in texts)


def _unit(home: Path, service_lines: str, wanted_by: str) -> str:
    return f"""\
# Made by `kbctl service install`; `kbctl service uninstall` takes it away.
[Unit]
Description=kbctl: capped keys for AI agents
Documentation=man:systemd.exec(5)
After=network.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
ExecStart={_quoted(_command(home))}
TimeoutStartSec=90
TimeoutStopSec=20
WatchdogSec=30
Restart=on-failure
RestartSec=1
# A bad config, a home in use, a database that can't be believed: starting again changes none of it.
RestartPreventExitStatus=2 3 5
{service_lines}
[Install]
WantedBy={wanted_by}
"""


def _user(home: Home) -> Service:
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd" / "user"
    return Service(
        folder / "kbctl.service",
        _unit(home.root, _HARDENED, "default.target"),
        ("systemctl --user daemon-reload", "systemctl --user enable --now kbctl"),
        ("systemctl --user disable --now kbctl",),
    )


def _system() -> Service:
    python = Path(sys.executable)
    if python.is_relative_to("/home") or python.is_relative_to("/root"):
        raise KbctlError(
            "service_unreachable",
            f"{python} is in somebody's home, which a system service does not see",
            "sudo python3 -m venv /opt/kbctl && sudo /opt/kbctl/bin/pip install kbctl",
            Exit.REFUSED,
        )
    lines = (
        "User=kbctl\nGroup=kbctl\nStateDirectory=kbctl\nStateDirectoryMode=0700\n"
        f"RuntimeDirectory=kbctl\nRuntimeDirectoryMode=0750\n{_HARDENED}{_HARDENED_SYSTEM}"
    )
    return Service(
        Path("/etc/systemd/system/kbctl.service"),
        _unit(SYSTEM_HOME, lines, "multi-user.target"),
        (
            "id kbctl || sudo useradd --system --home-dir /var/lib/kbctl --shell /usr/sbin/nologin kbctl",
            "sudo systemctl daemon-reload",
            "sudo systemctl enable --now kbctl",
        ),
        ("sudo systemctl disable --now kbctl",),
    )


def _launchd(home: Home) -> Service:
    path = Path("~/Library/LaunchAgents/kbctl.plist").expanduser()
    words = "\n".join(f"    <string>{escape(word)}</string>" for word in _command(home.root))
    text = f"""\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>kbctl</string>
  <key>ProgramArguments</key>
  <array>
{words}
  </array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><dict><key>Crashed</key><true/></dict>
  <key>Umask</key><integer>63</integer>
  <key>StandardErrorPath</key><string>{escape(str(home.log))}</string>
</dict>
</plist>
"""
    where = shlex.quote(str(path))
    return Service(
        path,
        text,
        (f"launchctl bootstrap gui/$(id -u) {where}",),
        (f"launchctl bootout gui/$(id -u) {where}",),
    )

"""``python -m kbctld``: what ``kbctl up`` starts. People use ``kbctl up``."""

import argparse
import sys
from pathlib import Path

from kbctl.paths import Home, home
from kbctld.app import Options, Reporter, run
from kbctld.secrets.secret import Secret


def main() -> int:
    """Read the command line and serve until told to stop."""
    parser = argparse.ArgumentParser(
        prog="kbctld", description="The daemon of kbctl; start it with `kbctl up`."
    )
    parser.add_argument("--home", type=Path, default=None, help="folder of config, database and socket")
    parser.add_argument("--sandbox", action="store_true", help="send calls to the embedded pretend vendors")
    parser.add_argument("--port", type=int, default=None, help="proxy port on loopback; 0 takes a free one")
    parser.add_argument("--upstream", action="append", default=[], metavar="VENDOR=URL")
    parser.add_argument("--accept-rollback", action="store_true", help="serve a database that lost rows")
    parser.add_argument("--passphrase-stdin", action="store_true", help="read the passphrase from stdin")
    parser.add_argument("--report-fd", type=int, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--foreground", action="store_true", help="log to standard error")
    given = parser.parse_args()
    passphrase = Secret(sys.stdin.readline().rstrip("\n")) if given.passphrase_stdin else None
    options = Options(
        home=Home(given.home.absolute()) if given.home else home(),
        sandbox=given.sandbox,
        port=given.port,
        upstreams=given.upstream,
        accept_rollback=given.accept_rollback,
        passphrase=passphrase,
        foreground=given.foreground,
    )
    return run(options, Reporter(given.report_fd))


if __name__ == "__main__":
    sys.exit(main())

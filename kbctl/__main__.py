"""``python -m kbctl``, for where the program is not on the PATH."""

from kbctl.main import run

run()

"""Files that come with kbctl, beside its code."""

import os

COMPLETIONS = {"bash": "kbctl.bash", "zsh": "_kbctl", "fish": "kbctl.fish"}
"""The completion script of each shell, by its file's name in ``completions/``."""


def completions(shell: str) -> str | None:
    """The completion script of a shell; None where it did not come along."""
    package = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  # pathlib is slow to import
    for folder in (package, os.path.dirname(package)):  # noqa: PTH120  # of a wheel; of a checkout
        try:
            with open(f"{folder}/completions/{COMPLETIONS[shell]}", encoding="utf-8") as file:  # noqa: PTH123
                return file.read()
        except OSError:
            pass
    return None

"""The accountant is independent: the sandbox imports nothing of kbctl or kbctld but itself."""

from __future__ import annotations

import ast
from pathlib import Path

import kbctld.sandbox


def test_it_shares_no_code_with_what_it_checks() -> None:
    files = sorted(Path(kbctld.sandbox.__file__).parent.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file.name}: a relative import hides where it goes"
                names = [node.module or ""]
            for name in names:
                ours = name.split(".")[0] in ("kbctl", "kbctld")
                assert not ours or name.startswith("kbctld.sandbox"), f"{file.name} imports {name}"

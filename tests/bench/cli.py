"""How soon the command line answers, over how soon Python does nothing: `python -c pass`.

Modules are compiled before anything is timed, as an installer does, into a folder of our own. What must stay
true: each command says what it should, or the run is wrong.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.bench.report import Report, Watch
from tests.e2e.support import new_home

_COMPLETIONS = Path(__file__).parents[2] / "completions" / "kbctl.bash"
_TAB = 'source "$0"; COMP_WORDS=(kbctl rev); COMP_CWORD=1; _kbctl; echo "${COMPREPLY[@]}"'
"""As bash asks when TAB is pressed, with the reading of the script, which it does once, and its own start."""
_KEYS = 20
_FLOORS = {"--version": (8, 4), "completion": (12, 5), "keys": (20, 8)}


def drill(watch: Watch, *, rounds: int = 15) -> Report:
    """Run every command in turn, so many times."""
    report = Report("the command line")
    with new_home() as kbctl, tempfile.TemporaryDirectory(prefix="kb") as compiled:
        kbctl("up", "--port", "0", "--sandbox")
        for number in range(_KEYS):
            kbctl("issue", "--tenant", f"t{number}", "--cap", "5")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(kbctl.home),
            "KBCTL_HOME": str(kbctl.home),
            "PYTHONPYCACHEPREFIX": compiled,
        }
        commands = {
            "pass": ([sys.executable, "-c", "pass"], ""),
            "--version": ([sys.executable, "-m", "kbctl", "--version"], "kbctl"),
            "keys": ([sys.executable, "-m", "kbctl", "keys"], "t7"),
            "completion bash": ([sys.executable, "-m", "kbctl", "completion", "bash"], "COMPREPLY"),
        }
        bash = shutil.which("bash")
        if bash is None:
            report.skipped.append("bash is not installed: apt-get install bash")
        else:
            commands["completion"] = ([bash, "--norc", "-c", _TAB, str(_COMPLETIONS)], "revoke")
        took: dict[str, list[float]] = {name: [] for name in commands}
        tick = watch("commands", rounds + 1)
        for turn in range(rounds + 1):
            for name in commands if turn % 2 else reversed(commands):
                command, says = commands[name]
                began = time.monotonic()
                done = subprocess.run(command, env=environment, capture_output=True, text=True)
                if turn > 0:  # the first compiles
                    took[name].append((time.monotonic() - began) * 1000)
                report.check(done.returncode == 0 and says in done.stdout, f"{name} said {done.stderr}")
            tick(1)
    for name, (floor, goal) in _FLOORS.items():
        if name in took:
            ratios = [mine / bare for mine, bare in zip(took[name], took["pass"], strict=True)]
            shown = "completion (TAB)" if name == "completion" else f"kbctl {name}"
            report.score(f"{shown} over python -c pass", ratios, floor, goal)
    for name, each in took.items():
        report.add(f"{name}, median", median(each))
        report.samples.append({"kind": "command, ms", "name": name, "took": each})
    return report

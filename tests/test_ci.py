"""``.ci/run`` says which suites it has skipped, and fails where an installation has failed."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def debian(tmp_path):
    """The functions of the script, with stand-ins for ``id`` and, where it is there, ``apt-get``."""
    text = (ROOT / ".ci" / "run").read_text()
    functions = text[text.index("skipped=()") : text.index("one=$(command_of_readme")]

    def run(user, apt_get):
        programs = {"id": f"echo {user}", "cat": 'while read -r line; do echo "$line"; done < "$1"'}
        programs["mktemp"] = f"echo {tmp_path}/log"
        if apt_get is not None:
            programs["apt-get"] = apt_get.replace("HERE", str(tmp_path))
        for name, content in programs.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
            (tmp_path / name).chmod(0o755)
        script = f"set -euo pipefail\n{functions}\ndebian pages nowhere some packages\nsay_skipped"
        environment = os.environ | {"PATH": str(tmp_path)}
        return subprocess.run(
            ["/bin/bash", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(("user", "apt_get"), [(0, None), (1000, "exit 0"), (1000, None)])
def test_what_cannot_be_installed_is_skipped_and_said_at_the_end(debian, user, apt_get):
    done = debian(user, apt_get)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith("== SKIPPED: pages: there is no nowhere")


@pytest.mark.parametrize("apt_get", ["echo no network; exit 100", "echo no such package; exit 0"])
def test_an_installation_that_failed_fails(debian, apt_get):
    done = debian(0, apt_get)
    assert done.returncode == 1 and "SKIPPED" not in done.stdout
    said = done.stderr.splitlines()
    assert said[0].startswith("no ") and "expected apt-get to install nowhere for pages" in said[-1]


def test_what_was_installed_is_not_skipped(debian):
    done = debian(0, "echo '#!/bin/bash' > HERE/nowhere; /bin/chmod +x HERE/nowhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "== nothing was skipped for want of Slurm or Chromium"

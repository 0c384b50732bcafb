"""The training for profile-guided builds: every lesson can be taught, and is."""
import os
import pathlib
import re
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
TRAINER = TOP / "Tools" / "pgo" / "train.py"
PYTHON = os.environ.get("RWPYTHON") or str(TOP / "python")

pytestmark = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"{PYTHON} is not built")


def test_every_lesson():
    done = subprocess.run([PYTHON, "-W", "error", TRAINER, "--no-tests", "--share", "0.0001"], text=True, timeout=120,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    taught = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("lesson ")]
    lessons = re.findall(r"^@lesson\([0-9_]+\)\ndef (\w+)", TRAINER.read_text(), re.MULTILINE)
    assert len(lessons) > 20
    assert taught == [f"lesson {name}" for name in lessons] + ["lesson hand_overs"]

"""The training for profile-guided builds: every lesson can be taught, and is."""
import os
import pathlib
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
TRAINER = TOP / "Tools" / "pgo" / "train.py"
PYTHON = os.environ.get("RWPYTHON") or str(TOP / "python")

pytestmark = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"{PYTHON} is not built")


def test_every_lesson():
    done = subprocess.run([PYTHON, "-W", "error", TRAINER, "--no-tests", "--seconds", "0.001"], text=True, timeout=120,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    taught = [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("lesson ")]
    lessons = TRAINER.read_text().split("@lesson\ndef ")[1:]
    assert taught == [f"lesson {text.partition('(')[0]}" for text in lessons] + ["lesson hand_overs"]

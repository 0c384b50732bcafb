"""The demo, examples/analyse_source.py: right, and the same for any number of workers."""
import os
import pathlib
import re
import subprocess

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
DEMO = TOP / "examples" / "analyse_source.py"
PYTHON = os.environ.get("RWPYTHON") or str(TOP / "python")

pytestmark = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"{PYTHON} is not built")

SOURCES = {
    "long.py": "def long():\n" + "    step()\n" * 40,
    "sub/complex.py": """
class Machine:
    def run(self, tape):
        for symbol in tape:
            if symbol == 1:
                while self.go():
                    pass
            elif symbol == 2 or symbol == 3:
                step()
        return [x for x in tape if x]
""",
    "sub/nested.py": """
def outer():
    def inner():
        with open('x') as f:
            return f.read()
    return inner
""",
    "broken.py": "def broken(:\n",
    "latin.py": "# coding: no-such-coding\n",
    "null.py": "x = 1\0\n",
    "not_python.txt": "def nothing(): pass\n",
    "__pycache__/cached.py": "def nothing(): pass\n",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    for name, text in SOURCES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def demo(*args, status=0):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([PYTHON, str(DEMO), *map(str, args)], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=300, env=clean)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def report_of(tree, tmp_path, *args):
    path = tmp_path / "report"
    out = demo(tree, "--report", path, *args).stdout
    report = path.read_text()
    assert out.startswith(report)
    return report


def test_report(tree, tmp_path):
    report = report_of(tree, tmp_path, "--workers", 1)
    lines = report.splitlines()
    assert lines[0] == "3 files, 57 lines, 4 functions, 7 branches, 44 calls"
    assert re.search(r"^Longest functions .*\n  long +41 +0 +0  long\.py:1$", report, re.M)
    assert re.search(r"^Most complex functions .*\n  Machine\.run +8 +7 +3  sub/complex\.py:3$", report, re.M)
    assert re.search(r"^  outer +5 +0 +0  sub/nested\.py:2$", report, re.M)
    assert re.search(r"^  outer\.inner +3 +0 +1  sub/nested\.py:3$", report, re.M)
    assert re.search(r"^Most called names\n  step +41\n", report, re.M)
    assert "nothing" not in report


def test_files_that_do_not_parse_are_reported(tree, tmp_path):
    report = report_of(tree, tmp_path, "--workers", 2)
    skipped = report.partition("Skipped: ")[2].splitlines()
    assert skipped[0] == "3"
    assert [line.split(":")[:2] for line in skipped[1:]] == [
        ["  broken.py", " SyntaxError"], ["  latin.py", " SyntaxError"], ["  null.py", " SyntaxError"]]


def test_same_for_any_number_of_workers(tmp_path):
    folder = subprocess.run([PYTHON, "-c", "import json; print(json.__path__[0])"], capture_output=True, text=True,
                            timeout=60, check=True).stdout.strip()
    reports = [report_of(folder, tmp_path, "--workers", n) for n in (1, 2, 3)]
    assert reports[0] == reports[1] == reports[2]
    assert "_make_iterencode" in reports[0]


def test_both_runs(tree):
    done = demo(tree)
    assert re.search(r"^1 interpreter: [\d.]+ s", done.stdout, re.M)
    if os.cpu_count() > 1:
        assert re.search(r"^\d+ interpreters: [\d.]+ s.*speed-up [\d.]+$", done.stdout, re.M)
    handed_over = re.search(r"^lock \(pair\): ([\d,]+) hand-overs", done.stdout, re.M)
    assert int(handed_over[1].replace(",", "")) >= 2 * len(SOURCES)
    assert "100%" in done.stderr
    assert "[#" not in done.stderr
    assert "[#" in demo(tree, "--workers", 1, "--progress").stderr


def test_empty_folder(tmp_path):
    assert demo(tmp_path, "--workers", 2).stdout.startswith("0 files")


def test_help():
    text = demo("--help").stdout
    for word in ("--workers", "--top", "--report", "--progress", "PATH"):
        assert word in text


@pytest.mark.parametrize("args, words", [
    (["--workers", "0"], "at least 1"),
    (["--workers", "many"], "invalid int"),
    (["no/such/folder"], "no folder"),
])
def test_bad_arguments(args, words):
    assert words in demo(*args, status=2).stderr

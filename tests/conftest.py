"""What the tests of the build share: a small base, and repositories made of it."""
import hashlib
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
TOOLS = TOP / "Tools" / "upstream"
sys.path.insert(0, str(TOOLS))

SMALL_BASE = {
    "Python/eval.c": "".join(f"line {n};\n" for n in range(1, 41)),
    "Python/other.c": "int other;\n",
    "Lib/mod.py": "x = 1\ny = 2\n",
    "Makefile.pre.in": "all:\n",
    "configure": "#!/bin/sh\n",
}


def run(*argv, timeout=120, **kwargs):
    """A finished command with its output as one text."""
    kwargs.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run([str(word) for word in argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", timeout=timeout, **kwargs)


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repository(tmp_path):
    """A copy of the tools with no overlay in it, and an empty download cache."""
    root = tmp_path / "repo"
    shutil.copytree(TOOLS, root / "Tools" / "upstream", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("configure", "Makefile.pre.in"):
        shutil.copy(TOP / name, root)
    return root


@pytest.fixture
def environment(tmp_path):
    """Environment for commands: a download cache of the test's own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MAKE", "MFLAGS"))}
    return {**clean, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture
def small_base(tmp_path, repository):
    """A tarball with a handful of files, which the copied tools take for the base."""
    tarball = tmp_path / "small.tar.xz"
    with tarfile.open(tarball, "w:xz") as tar:
        for name, text in SMALL_BASE.items():
            member = tarfile.TarInfo("Python-9/" + name)
            member.size, member.mtime, member.mode = len(text), 1_000_000_000, 0o755
            tar.addfile(member, io.BytesIO(text.encode()))
    pin = hashlib.sha256(tarball.read_bytes()).hexdigest()
    basetar = repository / "Tools" / "upstream" / "basetar.py"
    lines = [f'SHA256 = "{pin}"' if line.startswith("SHA256 = ") else line for line in basetar.read_text().splitlines()]
    basetar.write_text("\n".join(lines) + "\n")
    return tarball


@pytest.fixture
def overlay(repository, small_base, environment):
    """Call the overlay tool of a repository that has the small base."""
    tool = repository / "Tools" / "upstream" / "overlay.py"

    def call(*words, status=0):
        done = run(sys.executable, tool, f"--with-base={small_base}", *words, cwd=repository, env=environment)
        assert done.returncode == status, done.stdout
        return done.stdout

    return call

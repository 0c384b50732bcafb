"""Getting the base: every place is verified, and what goes wrong says what to do."""
import os
import sys

import basetar
from conftest import TOOLS, run

TOOL = TOOLS / "overlay.py"


def test_wrong_checksum(tmp_path, environment):
    bad = tmp_path / "Python-3.13.5.tar.xz"
    bad.write_bytes(b"not a release")
    done = run(sys.executable, TOOL, f"--with-base={bad}", "fetch", env=environment)
    assert done.returncode == 1
    assert basetar.SHA256 in done.stdout
    assert basetar.sha256(bad) in done.stdout
    assert "Traceback" not in done.stdout
    cache = tmp_path / "cache" / "rwpython"
    assert [p.name for p in cache.iterdir()] == ["Python-3.13.5.tar.xz.rejected"]
    assert bad.exists()


def test_wrong_file_in_the_cache(tmp_path, environment):
    cache = tmp_path / "cache" / "rwpython"
    cache.mkdir(parents=True)
    (cache / basetar.FILE).write_bytes(b"cut short")
    done = run(sys.executable, TOOL, "fetch", env=environment)
    assert done.returncode == 1
    assert "wrong checksum" in done.stdout
    assert [p.name for p in cache.iterdir()] == ["Python-3.13.5.tar.xz.rejected"]


def test_given_file_is_missing(environment):
    done = run(sys.executable, TOOL, "--with-base=/nonexistent/base.tar.xz", "fetch", env=environment)
    assert done.returncode == 1
    assert "/nonexistent/base.tar.xz: no such file" in done.stdout


def test_no_network_and_no_cache(tmp_path, environment):
    # No apt-get, and a proxy that nobody listens at.
    (tmp_path / "bin").mkdir()
    environment |= {"PATH": str(tmp_path / "bin"), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    done = run(sys.executable, TOOL, "fetch", env=environment)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    for needed in ("Python-3.13.5.tar.xz", str(tmp_path / "cache" / "rwpython"), "--with-base=", basetar.SHA256):
        assert needed in done.stdout


def test_offline_asks_no_network(environment):
    done = run(sys.executable, TOOL, "--offline", "fetch", env=environment)
    assert done.returncode == 1
    assert "fetching" not in done.stdout


def test_given_file_goes_to_the_cache(overlay, tmp_path, small_base):
    assert "verified" in overlay("fetch")
    kept = tmp_path / "cache" / "rwpython" / basetar.FILE
    assert kept.read_bytes() == small_base.read_bytes()


def test_apt_is_asked_in_a_state_of_its_own(repository, small_base, tmp_path, environment):
    """A stand-in apt-get shows what would be asked, and delivers the file."""
    stand_in = tmp_path / "bin" / "apt-get"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n'
                        f'case $* in *source*) cp {small_base} {basetar.DEBIAN_ORIG} ;; esac\n')
    stand_in.chmod(0o755)
    environment["PATH"] = f"{stand_in.parent}:{os.environ['PATH']}"
    script = ("import basetar; basetar.debian_mirrors = lambda: [('http://archive.invalid/debian', None)];"
              "print(basetar.fetch())")
    done = run(sys.executable, "-c", script, cwd=repository / "Tools" / "upstream", env=environment)
    assert done.returncode == 0, done.stdout
    asked = (tmp_path / "asked").read_text().splitlines()
    assert [line.split()[-1] for line in asked] == ["update", "python3.13"]
    assert all("-oDir::State=" in line and "-oDir::Etc::sourceparts=/nonexistent" in line for line in asked)


def test_mirrors_of_both_formats(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d" / "debian.sources").write_text(
        "# comment\nTypes: deb\nURIs: http://one.invalid/debian\nSuites: stable stable-updates\nSigned-By: /key\n"
        "\nTypes: deb\nURIs: http://one.invalid/debian-security\nSuites: stable-security\n"
        "\nEnabled: no\nTypes: deb\nURIs: http://off.invalid/debian\nSuites: stable\n"
        "\nTypes: deb\nURIs: http://vendor.invalid/tools\nSuites: any\n")
    (tmp_path / "sources.list").write_text(
        "# deb http://old.invalid/debian stable main\n"
        "deb [arch=amd64 signed-by=/other] http://two.invalid/debian/ stable main\n"
        "deb http://two.invalid/debian-security stable-security main\n"
        "deb-src http://three.invalid/debian stable main\n")
    assert basetar.debian_mirrors(tmp_path) == [
        ("http://one.invalid/debian", "/key"),
        ("http://two.invalid/debian/", "/other"),
        ("http://three.invalid/debian", None)]


def test_tools_have_help():
    for tool in ("overlay.py", "build.py", "judge.py"):
        done = run(sys.executable, TOOLS / tool, "--help")
        assert done.returncode == 0 and "usage:" in done.stdout
    assert "--with-base" in run(TOOLS.parents[1] / "configure", "--help").stdout

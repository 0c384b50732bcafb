"""The configure and make drivers: what is missing is named, half a build is never a whole one."""
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

import basetar
from conftest import run, write

NEEDED = ("sh", "dirname", "mktemp", "rm", "cat", "sed", "id", "tail", "mkdir", "env", "grep", "cmp", "mv")


@pytest.fixture
def bare_path(tmp_path):
    """A PATH with a shell's helpers and python3, but no compiler and no make."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        (folder / name).symlink_to(shutil.which(name))
    (folder / "python3").symlink_to(sys.executable)
    return folder


def configure(repository, environment, *options, **variables):
    return run("/bin/sh", repository / "configure", *options, env={**environment, **variables})


def test_missing_compiler_and_make(repository, environment, bare_path):
    done = configure(repository, environment, PATH=str(bare_path))
    assert done.returncode == 1
    for line in ("a C compiler that can make a program (Debian package gcc)", "make (Debian package make)",
                 "next: ./configure --install-deps"):
        assert line in done.stdout
    assert not (repository / "Makefile").exists()


def test_compiler_that_does_not_work(repository, environment):
    done = configure(repository, environment, "CC=false")
    assert done.returncode == 1
    assert "a C compiler that can make a program (false)" in done.stdout


def test_missing_headers_required_and_optional(repository, environment):
    done = configure(repository, environment, CPPFLAGS="-nostdinc", PKG_CONFIG_LIBDIR="/nonexistent")
    assert done.returncode == 1
    for package in ("zlib1g-dev", "libffi-dev", "libssl-dev"):
        assert f"(Debian package {package})" in done.stdout
    assert "optional: sqlite3.h, for sqlite3 (Debian package libsqlite3-dev)" in done.stdout


def test_install_deps_asks_for_what_is_missing(repository, environment, bare_path, tmp_path):
    write(bare_path, {"apt-get": f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n', "sudo": '#!/bin/sh\nexec "$@"\n'})
    for name in ("apt-get", "sudo"):
        (bare_path / name).chmod(0o755)
    done = configure(repository, environment, "--install-deps", PATH=str(bare_path))
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0].endswith("update")
    assert {"install", "gcc", "make"} <= set(asked[1].split())
    # The stand-in installed nothing, and that is noticed.
    assert done.returncode == 1 and "what is required is missing" in done.stdout


def test_failing_apt_is_reported(repository, environment, bare_path):
    write(bare_path, {"apt-get": '#!/bin/sh\necho "E: no such mirror" >&2; exit 100\n', "sudo": '#!/bin/sh\nexec "$@"\n'})
    for name in ("apt-get", "sudo"):
        (bare_path / name).chmod(0o755)
    done = configure(repository, environment, "--install-deps", PATH=str(bare_path))
    assert done.returncode == 1
    assert "E: no such mirror" in done.stdout and "apt-get could not install" in done.stdout


@pytest.mark.parametrize("options, message", [
    (["prefix"], "what is 'prefix'?"),
    (["--with-base"], "--with-base needs a value"),
    (["--with-base=/nonexistent.tar.xz"], "/nonexistent.tar.xz: no such file"),
])
def test_bad_options(repository, environment, options, message):
    done = configure(repository, environment, *options)
    assert done.returncode == 1 and message in done.stdout


def test_configure_passes_options_on_and_repeats(repository, environment, small_base, tmp_path):
    """With a stand-in for the base's configure, which records how it was called."""
    write(repository, {
        "patches/configure.patch":
            "--- a/configure\n+++ b/configure\n@@ -1,0 +2,3 @@\n"
            "+echo \"$CC|$*\" >>called\n+test ! -e ../fail || exit 1\n+echo 'all:' >Makefile\n",
        "patches/series": "configure.patch\n"})
    words = (f"--with-base={os.path.relpath(small_base, repository)}", "--with-pydebug", "CFLAGS=-O1 -g")

    def call():
        return run("/bin/sh", "./configure", *words, cwd=repository, env={**environment, "CC": "gcc -pipe"})

    obj = repository / "build" / "obj"
    write(repository, {"build/fail": ""})
    done = call()
    assert done.returncode == 1 and "the base's configure failed" in done.stdout
    assert not (repository / "Makefile").exists()
    make = run(sys.executable, repository / "Tools" / "upstream" / "build.py", "make", env=environment)
    assert make.returncode == 1 and "next: ./configure" in make.stdout

    (repository / "build" / "fail").unlink()
    done = call()
    assert done.returncode == 0, done.stdout
    assert (obj / "called").read_text() == "gcc -pipe|--with-pydebug CFLAGS=-O1 -g\n"
    assert "configured already" in call().stdout
    words = words[:-1]
    assert "running its configure" in call().stdout
    assert (obj / "called").read_text() == "gcc -pipe|--with-pydebug\n"


# --- The make driver, with a stand-in for the base's Makefile -----------------

@pytest.fixture
def make_tree(repository, environment):
    """Run build.py's make over a Makefile that the test writes."""
    obj = repository / "build" / "obj"
    stamp = {"base": basetar.SHA256, "args": [], "variables": {}}

    def make(makefile=None, args=(), **kwargs):
        if makefile is not None:
            stamp["args"] = list(args)
            write(obj, {"Makefile": makefile, ".rwpython-configured": json.dumps(stamp)})
        return run(sys.executable, repository / "Tools" / "upstream" / "build.py", "make", env=environment, **kwargs)

    make.obj = obj
    return make


def test_make_leaves_python(make_tree, repository):
    done = make_tree("all build_all: a.o python\na.o:\n\techo cc -o a.o; touch a.o\n"
                     "python:\n\techo '#!/bin/sh' >python; echo 'echo built $$1' >>python; chmod +x python\n")
    assert done.returncode == 0, done.stdout
    assert run(repository / "python", "given").stdout == "built given\n"
    assert "compiled 1 files" in done.stdout
    assert "up to date" in make_tree().stdout


def test_failing_make_shows_the_end_of_its_log(make_tree, repository):
    done = make_tree("all build_all:\n\t@echo a.c:1: error: no good; exit 1\n")
    assert done.returncode == 1
    for part in ("a.c:1: error: no good", "build/make.log", "next:"):
        assert part in done.stdout
    assert not (repository / "python").exists()


def test_full_disk_while_building(make_tree):
    done = make_tree("all build_all:\n\tcat Makefile >/dev/full\n")
    assert done.returncode == 1
    assert "the disk is full" in done.stdout and "free some space" in done.stdout


def test_failing_training_is_shown_but_fails_no_build(make_tree):
    done = make_tree("all build_all:\n"
                     "\t@echo 'Building with support for profile generation:'; echo gcc -o a.o\n"
                     "\t@echo 'Running code to generate profile data'\n"
                     "\t@echo '0:00:01 load avg: 1.00 [ 7/43/1] test_generators failed (1 failure)'\n"
                     "\tfalse $(PROFILE_TASK)\n"
                     "\t@echo 'Rebuilding with profile guided optimizations:'; echo gcc -o a.o; touch python\n",
                     args=["--enable-optimizations"])
    assert done.returncode == 0, done.stdout
    told = [line for line in done.stdout.splitlines() if line.startswith(("step", "  training", "the training"))]
    assert [line[:18] for line in told] == ["step 1 of 3: compi", "step 2 of 3: runni", "  training: 0:00:0",
                                            "the training task ", "step 3 of 3: compi"]


PROFILED = ("CC=\t\t{cc}\nPGO_PROF_USE_FLAG=-fuse-profile\nall build_all:\n"
            "\techo 'task: $(PROFILE_TASK)' >>told; echo 'flag: $(PGO_PROF_USE_FLAG)' >>told; touch python\n")


@pytest.mark.parametrize("compiler, flag", [("true", "flag: -fuse-profile -fprofile-partial-training"),
                                            ("false", "flag: -fuse-profile"),
                                            ("no-such-compiler-here", "flag: -fuse-profile")])
def test_training_is_ours_and_the_flag_where_the_compiler_has_it(make_tree, compiler, flag):
    done = make_tree(PROFILED.format(cc=compiler).replace("'", '"'), args=["--enable-optimizations"])
    assert done.returncode == 0, done.stdout
    told = (make_tree.obj / "told").read_text().splitlines()
    assert told[0].startswith("task: ../../Tools/pgo/train.py ||") and told[1] == flag
    # Code without counts is cold but with that flag.
    assert ("; rm -f Python/parcel_*.gcda" in told[0]) == ("partial" in flag)


def test_training_and_flag_can_be_given(make_tree, environment):
    environment.update(PROFILE_TASK="-m given", PROFILE_FLAGS="")
    make_tree(PROFILED.format(cc="true").replace("'", '"'), args=["--enable-optimizations"])
    told = (make_tree.obj / "told").read_text().splitlines()
    assert told[0].startswith("task: -m given ||") and told[1] == "flag: -fuse-profile"


def test_stock_is_trained_as_the_base_trains(repository, environment):
    obj = repository / "build" / "stock" / "obj"
    write(obj, {"Makefile": PROFILED.format(cc="true").replace("'", '"'),
                ".rwpython-configured": json.dumps({"base": basetar.SHA256, "args": ["--enable-optimizations"],
                                                    "variables": {}})})
    done = run(sys.executable, repository / "Tools" / "upstream" / "build.py", "--stock", "make", env=environment)
    assert done.returncode == 0, done.stdout
    told = (obj / "told").read_text().splitlines()
    assert told[0].startswith("task: -m test --pgo") and told[1] == "flag: -fuse-profile"
    assert "gcda" not in told[0]


def test_half_a_product_is_not_kept_on_failure(make_tree):
    done = make_tree("all build_all: a.h\na.h:\n\techo half >a.h; exit 1\n")
    assert done.returncode == 1
    assert not (make_tree.obj / "a.h").exists()


def test_half_a_product_is_made_again_after_a_kill(make_tree, repository, environment):
    makefile = "all build_all: a.h python\na.h:\n\techo half >a.h; kill -9 $$(cat ../pids); sleep 60\npython:\n\ttouch python\n"
    write(make_tree.obj, {"Makefile": makefile,
                          ".rwpython-configured": json.dumps({"base": basetar.SHA256, "args": [], "variables": {}})})
    # The recipe kills the driver and make; the group, with the recipe, is killed here.
    script = ("import os, sys, build, pathlib\n"
              "sys.argv = ['build.py', 'make']\n"
              "pathlib.Path('../../build/pids').write_text(str(os.getpid()))\n"
              "build.main()\n")
    driver = subprocess.Popen([sys.executable, "-c", script], cwd=repository / "Tools" / "upstream", env=environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              start_new_session=True)
    assert driver.wait(60) == -signal.SIGKILL
    os.killpg(driver.pid, signal.SIGKILL)
    assert (make_tree.obj / "a.h").read_text() == "half\n"
    write(make_tree.obj, {"Makefile": makefile.replace("half", "whole").replace("kill -9", "true")
                          .replace("sleep 60", "true")})
    done = make_tree()
    assert done.returncode == 0, done.stdout
    assert (make_tree.obj / "a.h").read_text() == "whole\n"


def test_interrupt_reaches_what_make_runs(make_tree):
    """A shell's background job ignores SIGINT; the commands of a build must not."""
    check = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    done = make_tree(f"all build_all:\n\t{sys.executable} -c '{check}'\n\ttouch python\n",
                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN))
    assert done.returncode == 0, done.stdout

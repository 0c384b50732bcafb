"""Laying the overlay over the base, and bringing edits back."""
import os
import random
import signal
import sys

import pytest

import judge
import patchfile
from basetar import OverlayError
from conftest import SMALL_BASE, TOP, run, write

GOOD_PATCH = "--- a/Python/eval.c\n+++ b/Python/eval.c\n@@ -3 +3,2 @@\n-line 3;\n+line three;\n+more;\n"


def tree(root):
    return {p.relative_to(root).as_posix(): p.read_text() for p in root.rglob("*")
            if p.is_file() and not p.name.startswith(".rwpython")}


@pytest.fixture
def filled(repository):
    """A repository with two files of ours and one patch."""
    write(repository, {
        "Python/ours.c": "int ours;\n",
        "Lib/pack/__init__.py": "z = 3\n",
        "Doc/page.rst": "not laid over\n",
        "Lib/pack/__pycache__/x.pyc": "not laid over",
        "patches/Python/eval.c.patch": GOOD_PATCH,
        "patches/series": "# ours\nPython/eval.c.patch\n"})
    return repository


# --- Layout -----------------------------------------------------------------

def test_layout_is_base_and_ours_and_patches(filled, overlay):
    overlay("layout")
    expected = dict(SMALL_BASE)
    expected["Python/eval.c"] = expected["Python/eval.c"].replace("line 3;\n", "line three;\nmore;\n")
    expected["Python/ours.c"] = "int ours;\n"
    expected["Lib/pack/__init__.py"] = "z = 3\n"
    assert tree(filled / "build" / "src") == expected


def test_stock_is_the_base_alone(filled, overlay):
    overlay("layout", "--stock", "--to", filled / "build" / "stock" / "src")
    assert tree(filled / "build" / "stock" / "src") == SMALL_BASE


def test_covering_a_base_file_is_an_error(filled, overlay):
    write(filled, {"Lib/mod.py": "mine\n"})
    assert "Lib/mod.py would cover a file of the base" in overlay("layout", status=1)
    assert not (filled / "build" / "src").exists()
    (filled / "Lib" / "mod.py").unlink()
    overlay("layout")
    write(filled, {"Lib/mod.py": "mine\n"})
    assert "Lib/mod.py would cover" in overlay("layout", status=1)
    assert tree(filled / "build" / "src")["Lib/mod.py"] == SMALL_BASE["Lib/mod.py"]


@pytest.mark.parametrize("old, new, message", [
    ("-line 3;", "-line 4;", "removes lines that are not there"),
    ("@@ -3 +3,2 @@", "@@ -4 +4,2 @@", "removes lines that are not there"),
    ("@@ -3 +3,2 @@", "@@ -3 +9,2 @@", "says that it begins new line 9"),
    ("@@ -3 +3,2 @@", "@@ -99 +99,2 @@", "beyond the file's end"),
    ("@@ -3 +3,2 @@", "@@ -3 +3 @@", "promises -1 +1 lines but has -1 +2"),
    ("+more;\n", " line 4;\n", "a context line"),
    ("@@ -3 +3,2 @@", "", "no hunk|not a hunk"),
])
def test_a_patch_that_does_not_fit_is_named(filled, overlay, old, new, message):
    write(filled, {"patches/Python/eval.c.patch": GOOD_PATCH.replace(old, new)})
    output = overlay("layout", status=1)
    assert "patches/Python/eval.c.patch does not apply" in output
    assert any(part in output for part in message.split("|"))
    assert not (filled / "build" / "src").exists()


def test_series_and_folder_agree(filled, overlay):
    write(filled, {"patches/Lib/mod.py.patch": ""})
    assert "patches/Lib/mod.py.patch is not listed" in overlay("layout", status=1)
    (filled / "patches" / "Lib" / "mod.py.patch").unlink()
    (filled / "patches" / "Python" / "eval.c.patch").unlink()
    assert "lists Python/eval.c.patch, which is not in patches/" in overlay("layout", status=1)


def test_patch_for_a_file_that_the_base_lacks(filled, overlay):
    write(filled, {"patches/Python/none.c.patch": GOOD_PATCH, "patches/series": "Python/eval.c.patch\nPython/none.c.patch\n"})
    assert "the base has no file Python/none.c" in overlay("layout", status=1)


def in_tools(repository, environment, script, **kwargs):
    return run(sys.executable, "-c", script, cwd=repository / "Tools" / "upstream", env=environment, **kwargs)


def test_killed_layout_is_not_taken_for_whole(filled, overlay, environment, small_base):
    script = f"""
import os, signal, tarfile, pathlib
import basetar, overlay
extract, count = tarfile.TarFile.extract, 0
def dying(*args, **kwargs):
    global count
    extract(*args, **kwargs)
    count += 1
    if count == 3:
        os.kill(os.getpid(), signal.SIGKILL)
tarfile.TarFile.extract = dying
overlay.lay_out(overlay.TOP, overlay.TOP / "build" / "src", lambda: {str(small_base)!r})
"""
    assert in_tools(filled, environment, script).returncode == -signal.SIGKILL
    build = filled / "build"
    assert (build / "src.part").exists() and not (build / "src").exists()
    overlay("layout")
    assert not (build / "src.part").exists()
    assert len(tree(build / "src")) == len(SMALL_BASE) + 2


def test_killed_update_is_finished_by_the_next(filled, overlay, environment, small_base):
    overlay("layout")
    write(filled, {"Python/ours.c": "int edited;\n", "Lib/pack/__init__.py": "z = 4\n"})
    script = f"""
import os, signal
import overlay
write = overlay.write_whole
def dying(*args):
    write(*args)
    os.kill(os.getpid(), signal.SIGKILL)
overlay.write_whole = dying
overlay.lay_out(overlay.TOP, overlay.TOP / "build" / "src", lambda: {str(small_base)!r})
"""
    assert in_tools(filled, environment, script).returncode == -signal.SIGKILL
    overlay("layout")
    files = tree(filled / "build" / "src")
    assert files["Python/ours.c"] == "int edited;\n" and files["Lib/pack/__init__.py"] == "z = 4\n"


def test_full_disk_leaves_no_tree(filled, overlay, environment, small_base):
    write(filled, {"Python/big.c": "x" * 100_000})
    script = f"""
import resource
import basetar, overlay
with basetar.errors_shown("overlay"):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    overlay.lay_out(overlay.TOP, overlay.TOP / "build" / "src", lambda: {str(small_base)!r})
"""
    done = in_tools(filled, environment, script)
    assert done.returncode == 1 and "Traceback" not in done.stdout, done.stdout
    assert "free some space" in done.stdout
    assert not (filled / "build" / "src").exists() and not (filled / "build" / "src.part").exists()
    overlay("layout")


# --- Update -----------------------------------------------------------------

def test_update_touches_only_what_changed(filled, overlay):
    overlay("layout")
    src = filled / "build" / "src"
    for path in src.rglob("*.*"):
        os.utime(path, (1, 1))
    write(filled, {"Python/ours.c": "int edited;\n"})
    assert "wrote 1 files" in overlay("layout")
    fresh = [name for name in tree(src) if (src / name).stat().st_mtime > 1 and "." in name]
    assert fresh == ["Python/ours.c"]
    assert tree(src)["Python/ours.c"] == "int edited;\n"
    assert overlay("layout") .count("wrote") == 0


def test_update_follows_patches_and_removals(filled, overlay):
    overlay("layout")
    src = filled / "build" / "src"
    write(filled, {"patches/Python/eval.c.patch": GOOD_PATCH.replace("more", "less")})
    overlay("layout")
    assert "less;\n" in tree(src)["Python/eval.c"]
    (filled / "patches" / "Python" / "eval.c.patch").unlink()
    write(filled, {"patches/series": ""})
    (filled / "Lib" / "pack" / "__init__.py").unlink()
    (src / "Lib" / "pack" / "__pycache__").mkdir()
    overlay("layout")
    assert tree(src) == {**SMALL_BASE, "Python/ours.c": "int ours;\n"}
    assert not (src / "Lib" / "pack").exists()


def test_edits_in_the_tree_survive_an_update(filled, overlay):
    overlay("layout")
    src = filled / "build" / "src"
    write(src, {"Python/eval.c": "edited\n", "Lib/mod.py": "edited\n"})
    write(filled, {"Python/ours.c": "int edited;\n"})
    overlay("layout")
    assert tree(src)["Python/eval.c"] == tree(src)["Lib/mod.py"] == "edited\n"
    write(filled, {"patches/Python/eval.c.patch": GOOD_PATCH.replace("more", "less")})
    assert "edited both in the repository and in" in overlay("layout", status=1)
    assert tree(src)["Python/eval.c"] == "edited\n"


# --- Refresh ----------------------------------------------------------------

def test_refresh_brings_edits_back_and_repeats(filled, overlay):
    overlay("layout")
    src = filled / "build" / "src"
    write(filled, {"patches/Python/eval.c.patch": "Why: because.\n\n" + GOOD_PATCH})
    write(src, {
        "Lib/mod.py": "x = 1\nnew = 0\ny = 2\n",
        "Python/ours.c": "int edited;\n",
        "Python/new.c": "int new;\n",
        "Lib/pack/__pycache__/y.pyc": "litter",
        "Python/eval.c": tree(src)["Python/eval.c"].replace("line 30;\n", "")})
    overlay("refresh")
    assert (filled / "patches" / "Lib" / "mod.py.patch").read_text() == (
        "--- a/Lib/mod.py\n+++ b/Lib/mod.py\n@@ -1,0 +2 @@ x = 1\n+new = 0\n")
    assert (filled / "patches" / "Python" / "eval.c.patch").read_text().startswith("Why: because.\n\n--- a/Python/eval.c\n")
    assert (filled / "Python" / "ours.c").read_text() == "int edited;\n"
    assert (filled / "Python" / "new.c").read_text() == "int new;\n"
    assert "nothing to refresh" in overlay("refresh")
    assert "wrote" not in overlay("layout")
    before = tree(src)
    del before["Lib/pack/__pycache__/y.pyc"]
    overlay("layout", "--to", filled / "build" / "again")
    assert tree(filled / "build" / "again") == before


def test_refresh_keeps_newer_edits_of_the_repository(filled, overlay):
    overlay("layout")
    write(filled, {"Python/ours.c": "int newer;\n"})
    overlay("refresh")
    assert (filled / "Python" / "ours.c").read_text() == "int newer;\n"


def test_refresh_drops_a_patch_that_was_undone(filled, overlay):
    overlay("layout")
    write(filled / "build" / "src", {"Python/eval.c": SMALL_BASE["Python/eval.c"]})
    overlay("refresh")
    assert not (filled / "patches" / "Python").exists()
    assert "nothing to refresh" in overlay("refresh")


def test_refresh_from_a_checkout(filled, overlay, tmp_path):
    checkout = tmp_path / "checkout"
    write(checkout, {**SMALL_BASE, "Lib/mod.py": "x = 5\ny = 2\n", "Objects/a.c": "int a;\n"})
    for words in (["init", "-q"], ["add", "-A"]):
        assert run("git", *words, cwd=checkout).returncode == 0
    write(checkout, {"Objects/untracked.c": "int u;\n"})
    overlay("refresh", "--from", checkout)
    assert (filled / "Objects" / "a.c").exists() and not (filled / "Objects" / "untracked.c").exists()
    assert not (filled / "Python").exists() and not (filled / "Lib").exists()
    assert (filled / "patches" / "series").read_text().splitlines()[1:] == ["Lib/mod.py.patch"]
    assert (filled / "Doc" / "page.rst").exists()


def test_a_base_file_cannot_be_removed(filled, overlay):
    overlay("layout")
    (filled / "build" / "src" / "Python" / "other.c").unlink()
    assert "lacks 1 files of the base, Python/other.c first" in overlay("refresh", status=1)


def test_made_patches_give_back_what_they_were_made_from():
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    print("seed", seed)
    for _ in range(25):
        lines = [f"{chance.randrange(6)}\n" for _ in range(chance.randrange(30))]
        edited = [line for line in lines if chance.random() > 0.2]
        for _ in range(chance.randrange(1, 5)):
            edited.insert(chance.randrange(len(edited) + 1), "new \r\f\n")
        base, wanted = "".join(lines).encode(), "".join(edited).encode()
        if chance.random() < 0.3:
            base, wanted = base.rstrip(b"\n"), wanted + b"end"
        patch = patchfile.make("Python/x.c", base, wanted)
        assert patchfile.apply(patch, base) == wanted
        assert not [line for line in patchfile.to_lines(patch) if line.startswith(b" ")]


def test_patch_for_another_base_is_refused():
    patch = patchfile.make("x.c", b"a\nb\n", b"a\nc\n")
    with pytest.raises(OverlayError, match="not there"):
        patchfile.apply(patch, b"a\nx\n")


# --- Check ------------------------------------------------------------------

def test_check_finds_copied_lines(filled, overlay):
    assert "nothing of the base is covered or repeated" in overlay("check")
    copied = "".join(f"  line {n};\n" for n in range(10, 16))
    write(filled, {"Python/ours.c": "int a;\n" + copied})
    assert "Python/ours.c:2: 6 lines from here" in overlay("check", status=1)


def test_this_repository(environment):
    """Our own patches apply, and nothing of the base is repeated."""
    environment.pop("XDG_CACHE_HOME")
    if "XDG_CACHE_HOME" in os.environ:
        environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    done = run(sys.executable, TOP / "Tools" / "upstream" / "overlay.py", "--offline", "check", env=environment)
    assert done.returncode == 0, done.stdout


def test_names_of_our_test_files(tmp_path):
    write(tmp_path / "Lib" / "test", {
        "test_alone.py": "", "test_ours/__init__.py": "", "test_ours/test_a.py": "",
        "test_base_package/test_b.py": "", "support/test_no.py": ""})
    assert judge.own_test_files(tmp_path) == ["test.test_base_package.test_b", "test_alone", "test_ours"]

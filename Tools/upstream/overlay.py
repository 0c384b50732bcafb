#!/usr/bin/env python3
"""Lay this repository over its base, and bring edits back.

The repository holds what the base, a CPython release, does not: whole files at the
path that they have in a CPython tree, and patches/ for lines inside the base's files.
build/src is the two together.

What can be relied on:
  - A folder with the final name is whole: it is made under another name and renamed.
  - The manifest inside it is written last.  An update that was interrupted is
    finished by the next one, since each file is compared by its contents.
  - An update writes only the files that differ, so that make rebuilds little.
  - Edits made in build/src are never overwritten: they stay until refresh takes them,
    and when both sides have changed that is an error.
"""
import argparse
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import basetar
import patchfile
from basetar import OverlayError, say

TOP = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ("Include", "Lib", "Modules", "Objects", "Parser", "Programs", "Python")
MANIFEST = ".rwpython-layout.json"
LITTER = re.compile(r"(^|/)(__pycache__|\.git|\.mypy_cache|\.pytest_cache)(/|$)|\.(py[co]|o|so|a|orig|rej|sw[op])$|~$"
                    r"|(^|/)(\.#|\.rwpython-)")


def digest(data):
    return hashlib.sha256(data).hexdigest()


def write_whole(path, data, mode=None):
    """Write a file so that it has either its old or its new contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".rwpython-{path.name}.part")
    try:
        part.write_bytes(data)
        if mode is not None:
            part.chmod(mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def prune(folder, stop):
    """Remove folder and its parents below stop while nothing but caches is in them."""
    while folder != stop and folder.is_dir() and all(p.name == "__pycache__" for p in folder.iterdir()):
        shutil.rmtree(folder)
        folder = folder.parent


# --- What the repository says -----------------------------------------------

def walk(root, folders):
    """Paths of the files below root's folders, relative to root, without litter."""
    for folder in folders:
        for path, subfolders, files in os.walk(root / folder):
            subfolders[:] = sorted(d for d in subfolders if not LITTER.search(d))
            for file in sorted(files):
                if not LITTER.search(file):
                    yield (pathlib.Path(path) / file).relative_to(root).as_posix()


def series(top):
    """Names of the base's files that have a patch, in order."""
    path = top / "patches" / "series"
    lines = path.read_text().splitlines() if path.exists() else []
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    there = {p.relative_to(top / "patches").as_posix() for p in (top / "patches").rglob("*.patch")}
    for name in listed:
        if not name.endswith(".patch") or listed.count(name) > 1:
            raise OverlayError(f"patches/series: {name} is not a patch's name, or is listed twice")
    if missing := sorted(set(listed) - there):
        raise OverlayError(f"patches/series lists {', '.join(missing)}, which is not in patches/")
    if extra := sorted(there - set(listed)):
        raise OverlayError(f"patches/{extra[0]} is not listed in patches/series")
    return [name.removesuffix(".patch") for name in listed]


def patch_path(top, name):
    return top / "patches" / (name + ".patch")


class Wanted:
    """The repository's side: {path in the tree: where it comes from}."""

    def __init__(self, top):
        self.files = {name: top / name for name in walk(top, FOLDERS)}
        self.patches = {name: patch_path(top, name) for name in series(top)}
        for name in self.files.keys() & self.patches.keys():
            raise OverlayError(f"{name} is a file of ours and has a patch too")
        self.sources = {name: digest(path.read_bytes())
                        for name, path in {**self.files, **self.patches}.items()}

    def result(self, name, base):
        """(contents, mode or None) of a file; base gives the base's contents by name."""
        if name in self.files:
            path = self.files[name]
            return path.read_bytes(), path.stat().st_mode & 0o777
        if name in self.patches:
            if name not in base:
                raise OverlayError(f"patches/{name}.patch: the base has no file {name}")
            try:
                return patchfile.apply(self.patches[name].read_bytes(), base[name]), None
            except OverlayError as error:
                raise OverlayError(f"patches/{name}.patch does not apply: {error}") from None
        return base[name], None


def refuse_covering(files, base_names):
    for name in sorted(files):
        if name in base_names:
            raise OverlayError(f"{name} would cover a file of the base; change that file by a patch instead")


# --- Laying out -------------------------------------------------------------

def read_manifest(src):
    try:
        manifest = json.loads((src / MANIFEST).read_text())
        return manifest if manifest["base"] == basetar.SHA256 else None
    except (OSError, ValueError, KeyError):
        return None


def write_manifest(src, names, files):
    data = {"base": basetar.SHA256, "names": names, "files": files}
    write_whole(src / MANIFEST, json.dumps(data, indent=0, sort_keys=True).encode())


def lay_out(top, src, find_base, bare=False):
    """Make or update src; return how many files were written."""
    src.parent.mkdir(parents=True, exist_ok=True)
    with open(src.with_name(src.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        manifest = read_manifest(src)
        wanted = None if bare else Wanted(top)
        if manifest is None:
            return lay_out_new(src, find_base(), wanted)
        return 0 if bare else update(src, find_base, wanted, manifest)


def lay_out_new(src, tarball, wanted):
    part, old = src.with_name(src.name + ".part"), src.with_name(src.name + ".old")
    for folder in (part, old):
        if folder.exists():
            shutil.rmtree(folder)
    part.mkdir()
    try:
        names = basetar.unpack(tarball, part)
        files = {}
        if wanted:
            refuse_covering(wanted.files, set(names))
            base = {name: (part / name).read_bytes() for name in wanted.patches if (part / name).is_file()}
            for name in wanted.sources:
                data, mode = wanted.result(name, base)
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                if (part / name).exists():
                    mode = (part / name).stat().st_mode & 0o777
                write_whole(part / name, data, mode)
                files[name] = [wanted.sources[name], digest(data)]
        write_manifest(part, sorted(names), files)
        if src.exists():
            src.rename(old)
        part.rename(src)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if old.exists():
        shutil.rmtree(old)
    return len(names) + len(files)


def update(src, find_base, wanted, manifest):
    """Bring src up to date with the repository, touching as little as possible."""
    refuse_covering(wanted.files, set(manifest["names"]))
    was = manifest["files"]
    changed = [name for name in sorted(was.keys() | wanted.sources.keys())
               if wanted.sources.get(name) != was.get(name, [None])[0] or not (src / name).exists()]
    if not changed:
        return 0
    from_base = [name for name in changed if name in wanted.patches or name in manifest["names"]]
    base = basetar.read(find_base(), from_base) if from_base else {}

    plan, conflicts = {}, []
    for name in changed:
        gone = name not in wanted.sources and name not in base
        data, mode = (None, None) if gone else wanted.result(name, base)
        there = (src / name).read_bytes() if (src / name).is_file() else None
        known = was[name][1] if name in was else digest(base[name]) if name in base else None
        if there is not None and there != data and digest(there) != known:
            if data is None or digest(data) != known:
                conflicts.append(name)
            # Else only a patch's remarks have changed: the tree's edit stays.
            plan[name] = there, mode, there
        else:
            plan[name] = data, mode, there
    if conflicts:
        raise OverlayError(
            f"edited both in the repository and in {src}: {', '.join(conflicts)}\n"
            f"  next: bring the two together by hand, make them equal, and run this again")

    written = 0
    for name, (data, mode, there) in plan.items():
        path = src / name
        if data is None:
            path.unlink(missing_ok=True)
            prune(path.parent, src)
            was.pop(name, None)
        else:
            if there != data:
                if mode is None and path.exists():
                    mode = path.stat().st_mode & 0o777
                write_whole(path, data, mode)
            if name in wanted.sources:
                was[name] = [wanted.sources[name], digest(wanted.result(name, base)[0])]
            else:
                was.pop(name, None)
        written += there != data
    write_manifest(src, manifest["names"], was)
    return written


# --- Bringing edits back ----------------------------------------------------

def tree_files(tree):
    """Names of the files of a CPython tree that may have been edited."""
    if (tree / ".git").exists():
        done = subprocess.run(["git", "-C", str(tree), "ls-files", "-z"], stdout=subprocess.PIPE, check=True)
        names = [name for name in done.stdout.decode().split("\0") if name]
        return [name for name in names if (tree / name).exists()]
    return list(walk(tree, [""]))


def refresh(top, tree, tarball):
    """Make the repository say what tree says; return the names that changed."""
    base = basetar.read(tarball)
    names = tree_files(tree)
    if gone := sorted(base.keys() - set(names)):
        # Only names that litter would hide are expected here.
        gone = [name for name in gone if not (tree / name).exists()]
        if gone:
            raise OverlayError(f"{tree} lacks {len(gone)} files of the base, {gone[0]} first; "
                               f"an overlay can change files but not remove them")
    ours, patches, notes = set(), {}, []
    changed = []
    for name in sorted(set(names)):
        path = tree / name
        if name in base:
            data = path.read_bytes()
            if data != base[name]:
                patches[name] = data
        elif name.split("/")[0] in FOLDERS and not LITTER.search(name):
            ours.add(name)
        elif not (name.startswith(".") or LITTER.search(name)):
            notes.append(name)

    def put(path, data, mode=None):
        if not path.exists() or path.read_bytes() != data or (mode and path.stat().st_mode & 0o777 != mode):
            write_whole(path, data, mode)
            changed.append(path.relative_to(top).as_posix())

    for name in sorted(ours):
        executable = (tree / name).stat().st_mode & 0o100
        put(top / name, (tree / name).read_bytes(), 0o755 if executable else 0o644)
    for name in sorted(patches):
        path = patch_path(top, name)
        remarks = patchfile.split(path.read_bytes())[0] if path.exists() else b""
        put(path, patchfile.make(name, base[name], patches[name], remarks))
    opening = "# Patches to the base's files, one per file; written by `make refresh-patches`.\n"
    put(top / "patches" / "series", (opening + "".join(f"{name}.patch\n" for name in sorted(patches))).encode())

    obsolete = [top / name for name in walk(top, FOLDERS) if name not in ours]
    obsolete += [p for p in (top / "patches").rglob("*.patch")
                 if p.relative_to(top / "patches").as_posix().removesuffix(".patch") not in patches]
    for path in obsolete:
        path.unlink()
        changed.append(path.relative_to(top).as_posix() + " (removed)")
        prune(path.parent, top)
    for name in notes:
        say(f"overlay: note: {name} is new but outside {', '.join(FOLDERS)}: left there")
    return changed


# --- Checking ---------------------------------------------------------------

# A run of so many equal lines, each with something in it, counts as copied.
RUN = 6
BARE_LINE = re.compile(r"[\W_]*|#\s*include\b.*|(from|import)\s.*|else:?|try:|return( NULL| -1| 0)?;?|goto \w+;"
                       r"|break;|pass")
TEXT = {".c", ".h", ".py", ".rst", ".in", ".ac", ".sh", ".md", ".txt", ""}


def runs(text):
    """{run of RUN meaningful lines: number of its first line}."""
    lines = [(n, " ".join(line.split())) for n, line in enumerate(text.splitlines(), 1)]
    lines = [(n, line) for n, line in lines if not BARE_LINE.fullmatch(line)]
    return {tuple(line for _, line in lines[i:i + RUN]): lines[i][0] for i in range(len(lines) - RUN + 1)}


def check(top, tarball):
    """What is wrong with the overlay, as a list of lines."""
    wanted = Wanted(top)
    base = basetar.read(tarball)
    refuse_covering(wanted.files, base)
    wrong = []
    for name in wanted.patches:
        try:
            if wanted.result(name, base)[0] == base[name]:
                wrong.append(f"patches/{name}.patch changes nothing")
        except OverlayError as error:
            wrong.append(str(error))

    def is_text(name):
        return pathlib.PurePath(name).suffix in TEXT

    known = set()
    for name, data in base.items():
        if is_text(name) and len(data) <= 2_000_000:
            known.update(map(hash, runs(data.decode("utf-8", "replace"))))
    skip = {"build", "patches"}
    tops = [p.name for p in top.iterdir() if p.is_dir() and p.name not in skip and not p.name.startswith(".")]
    names = list(walk(top, sorted(tops))) + [p.name for p in top.iterdir() if p.is_file() and p.name != "LICENSE"]
    for name in names:
        path = top / name
        if is_text(name) and not path.is_symlink() and not (name == "Makefile" or name == "python"):
            for run, line in runs(path.read_text("utf-8", "replace")).items():
                if hash(run) in known:
                    wrong.append(f"{name}:{line}: {RUN} lines from here stand in the base too")
                    break
    return wrong


# --- Command line -----------------------------------------------------------

def parse(args):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--with-base", metavar="FILE", help="the base's tarball, instead of fetching it")
    parser.add_argument("--offline", action="store_true", help="take the base from the download cache only")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="get and verify the base; print where it is")
    command = commands.add_parser("layout", help="make or update the tree: base, files of ours, patches")
    command.add_argument("--to", type=pathlib.Path, default=TOP / "build" / "src", metavar="DIR",
                         help="the tree (default: build/src)")
    command.add_argument("--stock", action="store_true", help="the base alone")
    command = commands.add_parser("refresh", help="make files and patches from the edits in a tree")
    command.add_argument("--from", dest="tree", type=pathlib.Path, metavar="DIR",
                         help="any CPython tree, or a git checkout of one, of which the tracked files count; "
                              "what it no longer has is removed here (default: build/src)")
    commands.add_parser("check", help="check the patches, and that no file of ours repeats lines of the base")
    return parser.parse_args(args)


def main(args=None):
    args = parse(args)

    def find_base():
        return basetar.fetch(args.with_base, args.offline)

    if args.command == "fetch":
        say(f"base: {find_base()} is {basetar.FILE}, verified")
    elif args.command == "layout":
        written = lay_out(TOP, args.to.absolute(), find_base, bare=args.stock)
        if written:
            say(f"overlay: wrote {written} files in {os.path.relpath(args.to)}")
    elif args.command == "refresh":
        tree = args.tree
        if tree is None:
            tree = TOP / "build" / "src"
            if read_manifest(tree) is None:
                raise OverlayError("there is no build/src to take edits from; run ./configure first")
            # Edits of the repository go there first, or they would be undone here.
            lay_out(TOP, tree, find_base)
        changed = refresh(TOP, tree.absolute(), find_base())
        if args.tree is None:
            # Now the two agree, and the manifest has to say so.
            lay_out(TOP, tree, find_base)
        for name in changed:
            say(f"  {name}")
        say(f"overlay: {len(changed)} files changed" if changed else "overlay: nothing to refresh")
    elif args.command == "check":
        wrong = check(TOP, find_base())
        for line in wrong:
            say(f"overlay: {line}")
        if wrong:
            sys.exit(1)
        say("overlay: every patch applies, nothing of the base is covered or repeated")


if __name__ == "__main__":
    with basetar.errors_shown("overlay"):
        main()

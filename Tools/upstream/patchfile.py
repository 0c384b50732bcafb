"""Zero-context patches: made, read, and applied to the letter.

The base is known by its checksum, so a patch needs no context to find its place:
a hunk goes at the line that it names, what it removes must stand there exactly, or
nothing is applied.  No offset, no fuzz, no partly patched file.

A patch file may open with a few lines that say why; they are kept when the patch is
made anew.
"""
import os
import re
import subprocess
import tempfile

from basetar import OverlayError

HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
NO_NEWLINE = b"\\ No newline at end of file"


def split(patch):
    """(opening remarks, the rest), both bytes."""
    start = re.search(rb"^--- ", patch, re.M)
    return (patch, b"") if start is None else (patch[:start.start()], patch[start.start():])


def to_lines(data):
    """Lines with their ends; only a newline ends one, as git sees it."""
    return re.findall(rb"[^\n]*\n|[^\n]+", data)


def hunks(patch):
    """Yield (first line, removed lines, first new line, added lines); lines keep their ends."""
    _, body = split(patch)
    lines = to_lines(body)[2:]
    current = None
    for line in lines:
        match = HUNK.match(line)
        if match:
            if current:
                yield checked(*current)
            old, old_n, new, new_n = (1 if g is None else int(g) for g in match.groups())
            current = (old, old_n, [], new, new_n, [])
        elif current is None:
            raise OverlayError(f"not a hunk: {line!r}")
        elif line.startswith(b"-"):
            if current[5]:
                raise OverlayError(f"a hunk adds before it removes: {line!r}")
            current[2].append(line[1:])
        elif line.startswith(b"+"):
            current[5].append(line[1:])
        elif line.startswith(NO_NEWLINE):
            side = current[5] or current[2]
            side[-1] = side[-1].removesuffix(b"\n")
        elif line.startswith(b" "):
            raise OverlayError(f"a context line, where there should be none: {line!r}")
        else:
            raise OverlayError(f"not a line of a patch: {line!r}")
    if current is None:
        raise OverlayError("no hunk in it")
    yield checked(*current)


def checked(old, old_n, removed, new, new_n, added):
    if len(removed) != old_n or len(added) != new_n:
        raise OverlayError(f"hunk @@ -{old} +{new} @@ promises -{old_n} +{new_n} "
                           f"lines but has -{len(removed)} +{len(added)}")
    # A hunk that only inserts names the line that it comes after.
    return (old - 1 if removed else old), removed, (new - 1 if added else new), added


def apply(patch, base):
    """The patched bytes; OverlayError when a hunk does not fit exactly."""
    lines = to_lines(base)
    result, at = [], 0
    for start, removed, new_start, added in hunks(patch):
        if start < at or start + len(removed) > len(lines):
            raise OverlayError(f"hunk at line {start + 1} is out of order or beyond the file's end")
        if lines[start:start + len(removed)] != removed:
            raise OverlayError(f"hunk at line {start + 1} removes lines that are not there")
        result += lines[at:start]
        if len(result) != new_start:
            raise OverlayError(f"hunk at line {start + 1} says that it begins new line {new_start + 1}, "
                               f"but that is line {len(result) + 1}")
        result += added
        at = start + len(removed)
    return b"".join(result + lines[at:])


def make(name, base, wanted, remarks=b""):
    """The patch that turns base into wanted; the same bytes for the same input."""
    settings = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1",
                "GIT_ATTR_NOSYSTEM": "1", "LC_ALL": "C"}
    with tempfile.TemporaryDirectory(prefix="rwpython-diff-") as folder:
        # Git takes a file's language, for the function named in a hunk's header, from its name.
        for side, data in (("a", base), ("b", wanted)):
            path = os.path.join(folder, side, name)
            os.makedirs(os.path.dirname(path))
            with open(path, "wb") as f:
                f.write(data)
        done = subprocess.run(
            ["git", "diff", "--no-index", "--text", "--no-color", "--no-ext-diff", "--no-textconv", "-U0",
             "--diff-algorithm=histogram", "--inter-hunk-context=0", "--no-prefix", f"a/{name}", f"b/{name}"],
            cwd=folder, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 1:
        raise OverlayError(f"git diff of {name} failed: {done.stderr.decode(errors='replace').strip()}")
    patch = remarks + split(done.stdout)[1]
    if apply(patch, base) != wanted:
        raise OverlayError(f"the patch made for {name} does not give back what it was made from")
    return patch

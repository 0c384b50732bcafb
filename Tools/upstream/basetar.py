"""The base release: which one it is, where to get it, and what is in it.

The base is pinned by version and SHA-256.  Whatever place a copy comes from, it
passes through receive(): a copy under a temporary name in the download cache, a
checksum, then a rename.  So a file with the final name is a verified one, unless
somebody put it there by hand; for that reason cached() verifies as well.
"""
import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.error
import urllib.request

VERSION = "3.13.5"
SHA256 = "93e583f243454e6e9e4588ca2c2662206ad961659863277afcdb96801647d640"
FILE = f"Python-{VERSION}.tar.xz"
URL = f"https://www.python.org/ftp/python/{VERSION}/{FILE}"
DEBIAN_SOURCE = "python3.13"
DEBIAN_ORIG = f"{DEBIAN_SOURCE}_{VERSION}.orig.tar.xz"
DEBIAN_SUITE = "trixie"
DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

# Seconds; a mirror that says nothing for so long counts as absent.
NETWORK_TIMEOUT = 60


class OverlayError(Exception):
    """Something that the user must know; shown without a traceback."""


def say(*words):
    print(*words, flush=True)


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- The download cache -----------------------------------------------------

def cache_dir():
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "rwpython"


def cached():
    """The verified tarball in the cache, or None."""
    path = cache_dir() / FILE
    if not path.is_file():
        return None
    verify(path, path)
    return path


def verify(path, source):
    """Raise unless path is the base; a wrong file is moved out of the way."""
    found = sha256(path)
    if found == SHA256:
        return
    rejected = cache_dir() / (FILE + ".rejected")
    os.replace(path, rejected)
    raise OverlayError(
        f"wrong checksum: {source} is not the {FILE} that this tree is made for\n"
        f"  expected SHA-256 {SHA256}\n"
        f"  found            {found}\n"
        f"  that file is kept aside as {rejected}\n"
        f"  next: run again to fetch it anew, or give a good copy with --with-base=FILE")


def receive(file):
    """Take a copy of file into the cache, verified; return the copy."""
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"{FILE}.part{os.getpid()}"
    try:
        shutil.copyfile(file, part)
        verify(part, file)
        os.replace(part, cache / FILE)
    finally:
        part.unlink(missing_ok=True)
    return cache / FILE


# --- Debian's source package ------------------------------------------------

def stanzas(text):
    """The deb822 paragraphs of text, each a dict with lower-case field names."""
    for paragraph in re.split(r"\n\s*\n", text):
        fields, last = {}, None
        for line in paragraph.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                if last:
                    fields[last] += "\n" + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                last = name.strip().lower()
                fields[last] = value.strip()
        if fields:
            yield fields


def one_line_sources(text):
    """The entries of a one-line-format sources list, as the same dicts."""
    for line in text.splitlines():
        match = re.match(r"\s*deb(?:-src)?\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)", line)
        if match:
            options, uri, suite = match.groups()
            fields = {"uris": uri, "suites": suite}
            for option in (options or "").split():
                name, _, value = option.partition("=")
                fields[name.lower()] = value
            yield fields


def debian_mirrors(etc="/etc/apt"):
    """[(uri, signed-by)] of the Debian archives that this system is set up to use."""
    etc = pathlib.Path(etc)
    entries = []
    for path in sorted(etc.glob("sources.list.d/*.sources")):
        entries += stanzas(path.read_text("utf-8", "replace"))
    for path in [etc / "sources.list", *sorted(etc.glob("sources.list.d/*.list"))]:
        if path.is_file():
            entries += one_line_sources(path.read_text("utf-8", "replace"))
    mirrors = []
    for entry in entries:
        if entry.get("enabled", "yes").lower() in ("no", "false"):
            continue
        if "security" in entry.get("suites", ""):
            continue
        for uri in entry.get("uris", "").split():
            # The archive itself, not a vendor's own repository.
            if re.search(r"/debian/?$", uri) and (uri, entry.get("signed-by")) not in mirrors:
                mirrors.append((uri, entry.get("signed-by")))
    return mirrors


def from_apt():
    """Let apt fetch and authenticate the source package, in a state of its own."""
    if not shutil.which("apt-get"):
        raise OverlayError("no apt-get here")
    mirrors = debian_mirrors()
    if not mirrors:
        raise OverlayError("apt is not set up for a Debian archive")
    reason = ""
    for uri, signed_by in mirrors:
        with tempfile.TemporaryDirectory(prefix="rwpython-apt-") as state:
            # Run by root, apt downloads as another user, who must get in.
            os.chmod(state, 0o755)
            result = apt_source(pathlib.Path(state), uri, signed_by or DEBIAN_KEYRING)
            found = pathlib.Path(state) / DEBIAN_ORIG
            if found.is_file():
                return receive(found)
            lines = [line for line in result.splitlines() if line.startswith(("E:", "Err"))]
            reason = lines[-1] if lines else f"{DEBIAN_ORIG} did not come"
    raise OverlayError(reason)


def apt_source(state, uri, signed_by):
    for folder in ("lists/partial", "cache/archives/partial", "log"):
        (state / folder).mkdir(parents=True)
    # An embedded key spans lines; deb822 wants those after the first indented.
    key = signed_by.replace("\n", "\n ")
    (state / "base.sources").write_text(
        f"Types: deb-src\nURIs: {uri}\nSuites: {DEBIAN_SUITE}\nComponents: main\nSigned-By: {key}\n")
    options = {
        "Dir::Etc::sourcelist": state / "base.sources",
        "Dir::Etc::sourceparts": "/nonexistent",
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state / "cache",
        "Dir::Log": state / "log",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "Acquire::http::Timeout": NETWORK_TIMEOUT,
    }
    apt = ["apt-get", "-q"] + [f"-o{name}={value}" for name, value in options.items()]
    output = ""
    for command in (["update"], ["source", "--download-only", "--tar-only", DEBIAN_SOURCE]):
        done = subprocess.run(apt + command, cwd=state, stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"})
        output += done.stdout
        if done.returncode:
            break
    return output


# --- The release's own page -------------------------------------------------

def from_release_page():
    with tempfile.TemporaryDirectory(prefix="rwpython-base-") as folder:
        path = os.path.join(folder, FILE)
        try:
            with urllib.request.urlopen(URL, timeout=NETWORK_TIMEOUT) as answer, open(path, "wb") as f:
                shutil.copyfileobj(answer, f)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            raise OverlayError(getattr(error, "reason", None) or error) from None
        return receive(path)


def fetch(given=None, offline=False):
    """Path of the verified tarball, from the first place that has it."""
    if given:
        if not os.path.isfile(given):
            raise OverlayError(f"--with-base={given}: no such file")
        say(f"base: {FILE} from {given}")
        return receive(given)
    path = cached()
    if path:
        return path
    tried = []
    if not offline:
        for place, get in (("Debian's source package", from_apt), ("the release's page", from_release_page)):
            say(f"base: fetching {FILE} from {place}")
            try:
                return get()
            except OverlayError as error:
                if str(error).startswith("wrong checksum"):
                    raise
                tried.append(f"  {place}: {error}")
                say(f"base: not there: {error}")
    raise OverlayError("\n".join([
        f"the base release is not at hand: {FILE}", *tried,
        f"  expected SHA-256 {SHA256}",
        f"  next: get it on a machine with a network ({URL},",
        f"  or Debian's {DEBIAN_ORIG}, which is the same file) and put it at",
        f"  {cache_dir() / FILE}, or run ./configure --with-base=FILE"]))


# --- What is in it ----------------------------------------------------------

def members(tarball):
    """Yield (tar, member, path inside the release) for all but the top folder."""
    with tarfile.open(tarball) as tar:
        for member in tar:
            name = member.name.partition("/")[2]
            if name:
                yield tar, member, name


def read(tarball, names=None):
    """{path: bytes} of the base's files, all of them or those named."""
    left = None if names is None else set(names)
    found = {}
    for tar, member, name in members(tarball):
        if member.isfile() and (left is None or name in left):
            found[name] = tar.extractfile(member).read()
            if left is not None:
                left.discard(name)
                if not left:
                    break
    return found


def unpack(tarball, folder):
    """Extract the base into folder; return the paths of its files."""
    names = []
    uid, gid = os.getuid(), os.getgid()
    trust = {"filter": "fully_trusted"} if hasattr(tarfile, "data_filter") else {}
    for tar, member, name in members(tarball):
        member.name = name
        # Otherwise root's copy would belong to whoever packed the release.
        member.uid, member.gid, member.uname, member.gname = uid, gid, "", ""
        tar.extract(member, folder, **trust)
        if member.isfile():
            names.append(name)
    return names


@contextlib.contextmanager
def errors_shown(tool):
    """Turn what the user can act on into a message and exit status 1."""
    try:
        yield
    except OverlayError as error:
        sys.exit(f"{tool}: error: {error}")
    except OSError as error:
        import errno
        hint = "\n  next: free some space there and run the same command again" if error.errno in (
            errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        sys.exit(f"{tool}: error: {error}{hint}")
    except KeyboardInterrupt:
        sys.exit(130)

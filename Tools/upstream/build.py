#!/usr/bin/env python3
"""Configure and compile a laid-out tree, showing how far it is.

A build tree, build/obj for ours and build/stock/obj for the unpatched base, or one of
their variants with more options (build/obj-optimised, ...), is configured when its stamp file exists; the stamp is written last and holds what the
tree was configured with.  Output goes to a log; the terminal gets the progress, and
the log's end when something fails.
"""
import argparse
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import basetar
from basetar import OverlayError, say

TOP = pathlib.Path(__file__).resolve().parents[2]
BUILD = TOP / "build"
STAMP = ".rwpython-configured"
RUNNING = ".rwpython-compiling"
# Environment that the base's configure looks at.
VARIABLES = ("CC", "CXX", "CPP", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LIBS", "AR", "MACHDEP", "PROFILE_TASK",
             "PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR")
FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|File size limit exceeded|File too large"
                       r"|Errno 28\b|final close failed")
# What a kill may leave cut short.
PRODUCTS = re.compile(r"\.(o|a|so|h)$|^(python|_bootstrap_python|_freeze_module|_testembed)$")


# Builds to measure with: what is added to the options given to ./configure.
VARIANTS = {"optimised": ("--enable-optimizations", "--with-lto"), "freethreaded": ("--disable-gil",)}
# How ours is optimised by a profile.
TRAINER = TOP / "Tools" / "pgo" / "train.py"
PARTIAL = "-fprofile-partial-training"
# What the training only brushes would be compiled as cold; so its counts are forgotten.
BRUSHED = "Python/parcel_*.gcda"


class Tree:
    """A source tree, its build tree and its log."""

    def __init__(self, stock=False, variant=None):
        self.stock, self.variant = stock, variant
        root = BUILD / "stock" if stock else BUILD
        self.src, self.obj = root / "src", root / (f"obj-{variant}" if variant else "obj")
        self.python = self.obj / "python"
        # Where it is started from: ./python stands for the one that ./configure asked for.
        self.main = not stock and not variant
        self.shown = os.path.relpath(TOP / "python" if self.main else self.python)
        self.log_folder = root

    def configuration(self):
        try:
            return json.loads((self.obj / STAMP).read_text())
        except (OSError, ValueError):
            return None

    def log(self, name):
        return self.log_folder / (f"{name}-{self.variant}.log" if self.variant else f"{name}.log")


# --- Running with a log -----------------------------------------------------

class Progress:
    """One status line that is rewritten on a terminal, and a line now and then elsewhere."""

    INTERVAL = 20.0

    def __init__(self):
        self.tty = sys.stdout.isatty()
        self.last = time.monotonic()

    def status(self, text):
        if self.tty:
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("\r\033[K" + text[:width])
            sys.stdout.flush()
        elif time.monotonic() - self.last >= self.INTERVAL:
            self.last = time.monotonic()
            say(text)

    def line(self, text):
        if self.tty:
            sys.stdout.write("\r\033[K")
        say(text)

    def clear(self):
        if self.tty:
            sys.stdout.write("\r\033[K")
            sys.stdout.flush()


def run(argv, cwd, log, watch=None, env=None, append=False):
    """Run a command with its output in log, each line shown to watch; return its status."""
    # A shell's background job ignores SIGINT, and what it starts would too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(log, "ab" if append else "wb") as out:
        # make's job server is a pair of inherited descriptors.
        process = subprocess.Popen(argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, close_fds=False)
        try:
            for line in process.stdout:
                out.write(line)
                if watch:
                    watch(line.decode("utf-8", "replace").rstrip("\n"))
            return process.wait()
        finally:
            if process.poll() is None:
                # Ctrl-C reaches the command too: let it put its things away.
                process.terminate()
                process.wait()
            process.stdout.close()


def failed(what, log, *advice, lines=25):
    tail = log.read_text("utf-8", "replace").splitlines()
    for line in tail[-lines:]:
        say("  | " + line)
    free = shutil.disk_usage(log.parent).free // 2**20
    if free < 8 or any(FULL_DISK.search(line) for line in tail[-200:]):
        advice = (f"the disk is full ({free} MiB free under {log.parent}; a build takes about 500 MiB, "
                  f"3 GiB with optimisations)", "next: free some space and run the same command again")
    raise OverlayError("\n  ".join([f"{what} failed; the whole log: {os.path.relpath(log)}", *advice]))


# --- Configure --------------------------------------------------------------

def configure(tree, args):
    """Run the base's configure unless the tree is configured in the same way already."""
    if not tree.main:
        ours = Tree().configuration()
        if ours is None:
            raise OverlayError("run ./configure first: stock and variants are built with the same options")
        more = [arg for arg in VARIANTS.get(tree.variant, ()) if arg not in ours["args"]]
        args, variables = ours["args"] + more, ours["variables"]
    else:
        variables = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    wanted = {"base": basetar.SHA256, "args": args, "variables": variables}
    if tree.configuration() == wanted and (tree.obj / "Makefile").exists():
        say("base: configured already")
        return
    # Objects made with other options must not be taken for new ones.
    (tree.obj / STAMP).unlink(missing_ok=True)
    if tree.obj.exists():
        shutil.rmtree(tree.obj)
    tree.obj.mkdir(parents=True)
    say("base: running its configure")
    log, progress, began = tree.log("configure"), Progress(), time.monotonic()
    source = os.path.join("..", "src", "configure")
    environment = {**{k: v for k, v in os.environ.items() if k not in VARIABLES}, **variables}
    status = run([source, *args], tree.obj, log, env=environment,
                 watch=lambda line: progress.status("  " + line) if line.startswith("checking") else
                 progress.line("  " + line) if "unrecognized options" in line else None)
    progress.clear()
    if status:
        failed("the base's configure", log, f"details: {os.path.relpath(tree.obj / 'config.log')}")
    part = tree.obj / (STAMP + ".part")
    part.write_text(json.dumps(wanted, indent=1))
    part.replace(tree.obj / STAMP)
    say(f"base: configured in {time.monotonic() - began:.0f} s")


# --- Make -------------------------------------------------------------------

class Compilation:
    """Reads make's output and says how many of how many files are compiled."""

    OBJECT = re.compile(r"\s-o\s*(\S+\.o)\b")
    STAGES = {"Building with support for profile generation": "step 1 of 3: compiling for training",
              "Running code to generate profile data": None,
              "Rebuilding with profile guided": "step 3 of 3: compiling with the profile"}
    TRAINING = re.compile(r"\[\s*\d+/\d+(/\d+)?\] test|^lesson ")
    # Paragraphs of the base's output that the user should see.
    NOTICE = re.compile(r"The necessary bits|The following modules|Following modules built|Failed to build")

    def __init__(self, total):
        self.total, self.done, self.names = total, 0, set()
        self.progress = Progress()
        self.notice = self.training = self.failures = False

    def __call__(self, line):
        if self.notice:
            self.notice = bool(line.strip())
            if self.notice:
                self.progress.line("  " + line)
        elif self.NOTICE.match(line):
            self.notice = True
            self.progress.line("  " + line)
        elif any(line.startswith(start) and text for start, text in self.STAGES.items()):
            self.names.clear()
            self.training = False
            self.progress.line(next(t for s, t in self.STAGES.items() if line.startswith(s)))
        elif self.TRAINING.search(line):
            if not self.training:
                self.training = True
                self.progress.line("step 2 of 3: running the training task")
            self.progress.status("  " + line)
            if "failed" in line:
                self.progress.line("  training: " + line)
        elif self.training and "training task" in line:
            self.progress.line(line)
        else:
            match = self.OBJECT.search(line)
            if match:
                self.names.add(match.group(1))
                self.total = max(self.total, len(self.names))
                self.progress.status(f"  [{len(self.names):3}/{self.total}] {match.group(1)}")


def make_command(tree, *words):
    # A product whose recipe fails half way must not pass for made.
    command = ["make", "-C", str(tree.obj), "--no-print-directory", "--eval=.DELETE_ON_ERROR:"]
    if "-j" not in os.environ.get("MAKEFLAGS", "") and "jobserver" not in os.environ.get("MAKEFLAGS", ""):
        command.append(f"-j{len(os.sched_getaffinity(0))}")
    return command + list(words)


def build_environment(configuration):
    environment = dict(os.environ)
    # Interpreters that run during the build must be the built one and nothing of the user's.
    for name in [name for name in environment if name.startswith("PYTHON")]:
        del environment[name]
    if "--with-address-sanitizer" in configuration["args"]:
        # The interpreter leaks by design at exit; the tools that make runs would fail.
        environment.setdefault("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1:handle_segv=0")
    return environment


def drop_doubtful(tree):
    """After a kill, what was written last may be cut short: remove it, to be made again."""
    products = [p for p in tree.obj.rglob("*")
                if p.is_file() and PRODUCTS.search(p.name) and p.name != "pyconfig.h"]
    times = {p: p.stat().st_mtime for p in products}
    newest = max(times.values(), default=0)
    for path, when in times.items():
        if when > newest - 60:
            path.unlink()


def profile_words(tree, configuration, environment):
    """What make has to be told about the optimisation by a profile.

    For stock, the base's own ways.  Ours trains with more, and keeps what the training has
    not reached from being compiled for size; see "Flags" in Doc/internals/measurements.rst.
    """
    if "--enable-optimizations" not in configuration["args"]:
        return []
    task, flags = "-m test --pgo --timeout=1200", ""
    if not tree.stock:
        task = shlex.quote(os.path.relpath(TRAINER, tree.obj))
        flags = PARTIAL if takes(tree, PARTIAL, environment) else ""
    task = environment.get("PROFILE_TASK") or task
    flags = environment.get("PROFILE_FLAGS", flags)
    # Without that flag, what has no counts would be cold, too.
    then = f"; rm -f {BRUSHED}" if PARTIAL in flags else ""
    # A test that fails, as some do for root in a container, still trains; but it is shown.
    words = [f"PROFILE_TASK={task} || echo 'the training task failed in part, see above; going on'{then}"]
    if flags:
        words.append(f"PGO_PROF_USE_FLAG={variable(tree, 'PGO_PROF_USE_FLAG')} {flags}")
    return words


def variable(tree, name):
    """What the base's configure has set this to in the Makefile."""
    found = re.search(rf"^{name}=[ \t]*(.*)$", (tree.obj / "Makefile").read_text(), re.MULTILINE)
    return found.group(1) if found else ""


def takes(tree, flag, environment):
    """Does the compiler know this flag?"""
    command = [*shlex.split(variable(tree, "CC") or "cc"), "-Werror", flag, "-E", "-x", "c", os.devnull]
    try:
        return not subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL).returncode
    except OSError:
        return False


def make(tree):
    configuration = tree.configuration()
    if configuration is None:
        raise OverlayError("this tree is not configured, or its configuration was interrupted; next: ./configure")
    running, log = tree.obj / RUNNING, tree.log("make")
    if running.exists():
        drop_doubtful(tree)
    running.touch()
    environment = build_environment(configuration)
    dry = subprocess.run(["make", "-C", str(tree.obj), "-n", "build_all"], stdin=subprocess.DEVNULL, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                         env={**environment, "MAKEFLAGS": ""}, errors="replace")
    watch = Compilation(len(set(Compilation.OBJECT.findall(dry.stdout))))
    began = time.monotonic()
    words = ["all", *profile_words(tree, configuration, environment)]
    if watch.total:
        say(f"compiling {watch.total} files; log: {os.path.relpath(log)}")
    status = run(make_command(tree, *words), TOP, log, watch, environment)
    watch.progress.clear()
    running.unlink()
    if status or not tree.python.exists():
        failed("the build", log, "next: see the first error in the log; after a change, run make again")
    if tree.main:
        write_launcher(tree)
    if watch.names:
        say(f"compiled {len(watch.names)} files in {time.monotonic() - began:.0f} s: {tree.shown}")
    else:
        say(f"{tree.shown} is up to date")


def write_launcher(tree):
    """Make ./python start the built one.

    A symlink would nearly do, but a venv made through it would look for the build's
    landmarks beside the link.
    """
    launcher = TOP / "python"
    text = f"#!/bin/sh\nexec {shlex.quote(str(tree.python))} \"$@\"\n"
    if launcher.is_symlink() or not launcher.exists() or launcher.read_text() != text:
        part = TOP / f".python.{os.getpid()}"
        part.write_text(text)
        part.chmod(0o755)
        part.replace(launcher)


def install(tree, words):
    configuration = tree.configuration()
    if configuration is None:
        raise OverlayError("this tree is not configured; next: ./configure")
    log, progress = tree.log("install"), Progress()
    words = [word for word in words if word != "DESTDIR="]
    say(f"installing; log: {os.path.relpath(log)}")
    status = run(make_command(tree, "install", *words), TOP, log, lambda line: progress.status("  " + line[:100]),
                 build_environment(configuration))
    progress.clear()
    if status:
        failed("make install", log, "next: is the place writable? ./configure --prefix=DIR chooses another")
    shown = subprocess.run([str(tree.python), "-c", "import sysconfig; print(sysconfig.get_config_var('BINDIR'))"],
                           stdout=subprocess.PIPE, text=True).stdout.strip()
    destdir = next((word.partition("=")[2] for word in words if word.startswith("DESTDIR=")), "")
    say(f"installed {destdir}{shown}/python3.13")


def clean(tree):
    if (tree.obj / "Makefile").exists():
        if run(["make", "-C", str(tree.obj), "clean"], TOP, tree.log("clean")):
            failed("make clean", tree.log("clean"), "next: make distclean removes everything")
    (TOP / "python").unlink(missing_ok=True)


# --- Virtual environments for the tools -------------------------------------

def tool_venv(name, packages):
    """The python of build/NAME, a venv of ./python that has packages in it."""
    folder, log = BUILD / name, BUILD / f"{name}.log"
    python, stamp = folder / "bin" / "python", folder / ".rwpython-ready"
    if stamp.exists() and stamp.read_text() == " ".join(packages):
        return python
    say(f"making build/{name} with {' '.join(packages)}")
    for command in ([TOP / "python", "-m", "venv", "--clear", folder],
                    [python, "-m", "pip", "install", "-q", *packages]):
        if run([str(word) for word in command], TOP, log, append=command[0] == python):
            failed(f"making build/{name}", log, "next: it needs a network, or pip's settings for a local index")
    stamp.write_text(" ".join(packages))
    return python


def docs():
    requirements = TOP / "Doc" / "requirements.txt"
    packages = ["sphinx"]
    if requirements.exists():
        lines = (line.partition("#")[0].strip() for line in requirements.read_text().splitlines())
        packages = [line for line in lines if line]
    python = tool_venv("docs-venv", packages)
    log = BUILD / "docs.log"
    # -E: a page that is not read again would not repeat its warnings.
    if run([str(python), "-m", "sphinx", "-E", "-W", "--keep-going", "-b", "html", "Doc", "build/doc"], TOP, log):
        failed("make docs", log)
    say("documentation: build/doc/index.html")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="the unpatched base, in build/stock")
    parser.add_argument("--variant", choices=VARIANTS, help="with more options, in a build tree of its own")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("configure", help="run the base's configure, if needed")
    command.add_argument("args", nargs="*", help="after --: options for the base's configure")
    commands.add_parser("make", help="compile; leave ./python")
    command = commands.add_parser("install", help="install under the configured prefix")
    command.add_argument("words", nargs="*", help="variables for make, as DESTDIR=DIR")
    commands.add_parser("clean", help="remove what was compiled")
    commands.add_parser("docs", help="build the documentation, with sphinx in a venv of ./python")
    args = parser.parse_args()
    tree = Tree(args.stock, args.variant)
    if args.command == "configure":
        configure(tree, args.args)
    elif args.command == "make":
        make(tree)
    elif args.command == "install":
        install(tree, args.words)
    elif args.command == "clean":
        clean(tree)
    elif args.command == "docs":
        docs()


if __name__ == "__main__":
    with basetar.errors_shown("build"):
        main()

#!/usr/bin/env python3
"""Run the tests and judge them.

  fast      tests/ with pytest, and those test files in Lib/test that are ours
  upstream  the whole regression suite of the base, judged against stock
  all       both

A test file of the suite that fails is run again alone.  If it still fails, stock runs it
too (and is built for that): cases that fail on both are stock's, every other is red.  A
difference that is meant stands in tests/expected_differences.txt with its reason.

The last line is `N passed, N failed, N skipped`, in test cases; a case that fails on stock
as well, or is expected to differ, counts as skipped.  Exit status 1 if anything failed.
Logs, and that line once more in result.txt: build/test/.
"""
import argparse
import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
import sys
import time
import xml.etree.ElementTree

import basetar
import build
from basetar import OverlayError, say

TOP = build.TOP
LOGS = build.BUILD / "test"
# Seconds for one test file; the longest takes two minutes on an idle machine.
FILE_TIMEOUT = 600
# Lines shown of what a file printed that ended badly without a failing case.
SHOWN_OUTPUT = 30
# Seconds for all of tests/; each test there bounds its own commands.
PYTEST_TIMEOUT = 1500

# A line of regrtest's progress: "0:01:02 load avg: 2.01 [ 51/478/1] test_x failed (2 failures)".
FINISHED = re.compile(r"\[\s*\d+/\d+(?:/\d+)?\] ([\w.]+) "
                      r"(passed|skipped|ran no tests|failed|worker non-zero exit code|worker bug|timed out|interrupted)"
                      r"( \([^)]*(?:\([^)]*\))?\))?")
TOTALS = re.compile(r"^Total tests: run=([\d,]+)(?: \(filtered\))?(?: failures=[\d,]+)?(?: skipped=([\d,]+))?", re.M)
CASE = re.compile(r"^(?:FAIL|ERROR|UNEXPECTED SUCCESS): (\S+ \([^)]*\))", re.M)


@dataclasses.dataclass
class Part:
    """What one part of the tests came to."""
    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    red: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)

    def fail(self, text, output=()):
        self.failed += 1
        self.red.append("\n".join((text, *("    " + line for line in output))))


# --- Our tests --------------------------------------------------------------

def run_pytest():
    part, began = Part("tests/ (pytest)"), time.monotonic()
    python = build.tool_venv("venv", ["pytest"])
    report, log = LOGS / "pytest.xml", LOGS / "pytest.log"
    report.unlink(missing_ok=True)
    progress = build.Progress()

    def watch(line):
        if "::" in line:
            (progress.line if re.search(r"\b(FAILED|ERROR)\b", line) else progress.status)("  " + line)

    say(f"pytest: tests/; log: {os.path.relpath(log)}")
    command = ["timeout", "--kill-after=10", str(PYTEST_TIMEOUT), str(python), "-m", "pytest", "tests", "-v", "-ra",
               "-p", "no:cacheprovider", f"--junitxml={report}"]
    status = build.run(command, TOP, log, watch)
    progress.clear()
    part.seconds = time.monotonic() - began
    try:
        suites = list(xml.etree.ElementTree.parse(report).getroot().iter("testsuite"))
    except (OSError, xml.etree.ElementTree.ParseError):
        suites = []
    for suite in suites:
        for case in suite.iter("testcase"):
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                part.fail(f"{case.get('classname')}::{case.get('name')}")
            elif "skipped" in kinds:
                part.skipped += 1
            else:
                part.passed += 1
    if status and not part.failed or not part.passed:
        part.fail(f"pytest ended with status {status} after {part.passed} tests; see {os.path.relpath(log)}")
    return part


def own_test_files(top=TOP):
    """Names by which regrtest knows the test files that are ours."""
    tests, names = top / "Lib" / "test", set()
    for path in sorted(tests.rglob("test_*.py")):
        parts = path.relative_to(tests).with_suffix("").parts
        if len(parts) == 1:
            names.add(parts[0])
        elif parts[0].startswith("test_"):
            # A package of ours goes whole, a file of ours in a package of the base alone.
            ours = (tests / parts[0] / "__init__.py").exists()
            names.add(parts[0] if ours else ".".join(("test", *parts)))
    return sorted(names)


def run_own():
    part, began = Part("our files in Lib/test"), time.monotonic()
    names = own_test_files()
    if not names:
        part.notes.append("there are none")
        return part
    run = regrtest(build.Tree(), "own", names, jobs())
    totals(part, run)
    for name in sorted(run.bad):
        for case in sorted(run.cases.get(name, ())):
            take_off(part, case)
            part.fail(f"{name}: {case}")
        if not run.cases.get(name):
            part.fail(f"{name}: ({run.bad[name]})", printed_by(run.text, name))
    part.seconds = time.monotonic() - began
    return part


# --- regrtest ---------------------------------------------------------------

@dataclasses.dataclass
class Run:
    """A run of regrtest: what ended badly and how, the failing cases by file."""
    log: pathlib.Path
    text: str
    status: int
    ended: dict
    bad: dict
    cases: dict


def jobs():
    return len(os.sched_getaffinity(0))


def regrtest(tree, title, names, processes, exclude=()):
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{title}.log"
    # -W: the whole output of a file that fails, which names the cases.
    argv = [str(tree.python), "-m", "test", f"-j{processes}", "-W", f"--timeout={FILE_TIMEOUT}"]
    # Names come before options are over, so the list to leave out stands alone.
    argv += ["-x", *exclude] if exclude else names
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    progress, ended = build.Progress(), {}

    def watch(line):
        match = FINISHED.search(line)
        if match:
            ended[match[1]] = ending(match)
            (progress.line if is_bad(ended[match[1]]) else progress.status)("  " + line)

    shown = names if names and len(names) <= 3 else f"{len(names)} test files" if names else "all test files"
    say(f"regrtest{' on stock' if tree.stock else ''}: {shown if isinstance(shown, str) else ' '.join(shown)}; "
        f"log: {os.path.relpath(log)}")
    status = build.run(argv, TOP, log, watch, environment)
    progress.clear()
    text = log.read_text("utf-8", "replace")
    bad = {name: how for name, how in ended.items() if is_bad(how)}
    return Run(log, text, status, ended, bad, cases_by_file(text, bad))


def ending(match):
    """How a file ended, without how long that took."""
    reason = match[3] or ""
    return match[2] + ("" if re.search(r"\d (sec|min)\b", reason) else reason)


def is_bad(how):
    return how.startswith(("failed", "worker", "timed out", "interrupted"))


def cases_by_file(text, bad):
    """{test file: failing cases}; a case's dotted name says which file it is in."""
    found = {name: set() for name in bad}
    for case in CASE.findall(text):
        for name in bad:
            # Names may be test_x, test.test_pkg.test_x or pkg.test_x.
            if re.search(rf"\b{re.escape(name.rpartition('.')[2])}\b", case.partition("(")[2]):
                found[name].add(case)
    return found


def outcome(run, name):
    """The failing cases of a file that ran alone; how it ended, if no case says it."""
    if name not in run.ended:
        return {"(did not run)"}
    if name not in run.bad:
        return set()
    how = run.bad[name]
    cases = set(CASE.findall(run.text))
    if not cases or not how.startswith("failed"):
        cases.add(f"({how.strip()})")
    return cases


def totals(part, run):
    """Count all that ran as passed; failing cases are taken off one by one."""
    found = TOTALS.findall(run.text)
    if not found:
        part.fail(f"regrtest did not finish (status {run.status}); see {os.path.relpath(run.log)}")
        return
    ran, skipped = (int((group or "0").replace(",", "")) for group in found[-1])
    part.passed += ran - skipped
    part.skipped += skipped


def printed_by(text, name):
    """Lines that follow a file's line of progress, from regrtest's first warning on:
    they say what was altered, or where it crashed.  Who reads CI has no log."""
    lines, found = text.splitlines(), []
    for number, line in enumerate(lines):
        match = FINISHED.search(line)
        if match and match[1] == name:
            rest = lines[number + 1:]
            end = next((n for n, line in enumerate(rest) if FINISHED.search(line)), len(rest))
            found = rest[:end]
    first = next((n for n, line in enumerate(found) if "Warning -- " in line), max(0, len(found) - SHOWN_OUTPUT))
    return found[first:first + SHOWN_OUTPUT]


def take_off(part, case):
    # What stands in brackets only is a file that ended badly, no case that was counted.
    if not case.startswith("("):
        part.passed -= 1


# --- The base's suite -------------------------------------------------------

def expected_differences(path=TOP / "tests" / "expected_differences.txt"):
    """{(test file, case or ''): reason}"""
    expected = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        what, _, reason = line.partition("  # ")
        if not reason.strip():
            raise OverlayError(f"{path.name}:{number}: an expected difference needs its reason, after '  # '")
        name, _, case = what.strip().partition(" ")
        expected[name, case.strip()] = reason.strip()
    return expected


def run_suite(only=None):
    part, began = Part("the base's suite"), time.monotonic()
    expected = expected_differences()
    tree, stock = build.Tree(), build.Tree(stock=True)
    run = regrtest(tree, "suite", only or [], jobs(), exclude=() if only else own_test_files())
    totals(part, run)
    if part.failed:
        part.seconds = time.monotonic() - began
        return part
    stock_ready = False
    for name in sorted(run.bad):
        tested = regrtest(tree, f"alone-{name}", [name], 1)
        alone = outcome(tested, name)
        if not alone:
            part.notes.append(f"{name}: {run.bad[name]} among others, passes alone")
            continue
        if not stock_ready:
            build_stock()
            stock_ready = True
        on_stock = outcome(regrtest(stock, f"stock-{name}", [name], 1), name)
        for case in sorted(alone):
            take_off(part, case)
            if case in on_stock:
                part.skipped += 1
                part.notes.append(f"{name}: {case} fails on stock too")
            elif (name, case) in expected or (name, "") in expected:
                part.skipped += 1
                part.notes.append(f"{name}: {case} expected: "
                                  f"{expected.get((name, case)) or expected[name, '']}")
            else:
                part.fail(f"{name}: {case} passes on stock",
                          printed_by(tested.text, name) if case.startswith("(") else ())
    part.seconds = time.monotonic() - began
    return part


def build_stock():
    say("building stock, to compare with")
    status = subprocess.run(["make", "--no-print-directory", "stock"], cwd=TOP, stdin=subprocess.DEVNULL).returncode
    if status:
        raise OverlayError("stock could not be built; next: make stock, and see build/stock/make.log")


# --- Verdict ----------------------------------------------------------------

def show(parts):
    say()
    say(f"{'part':<24} {'passed':>8} {'failed':>8} {'skipped':>8} {'time':>7}")
    for part in parts:
        minutes, seconds = divmod(round(part.seconds), 60)
        say(f"{part.name:<24} {part.passed:>8} {part.failed:>8} {part.skipped:>8} {minutes:>4}:{seconds:02}")
    for part in parts:
        for note in part.notes:
            say(f"note: {part.name}: {note}")
    for part in parts:
        for red in part.red:
            say(f"RED: {part.name}: {red}")
    say()
    passed, failed, skipped = (sum(getattr(p, field) for p in parts) for field in ("passed", "failed", "skipped"))
    closing = f"{passed} passed, {failed} failed, {skipped} skipped"
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / "result.txt").write_text(closing + "\n")
    say(closing)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fast", "upstream", "all"))
    parser.add_argument("--only", type=shlex.split, metavar="NAMES",
                        help="of the base's suite, judge these test files only")
    args = parser.parse_args()
    if not build.Tree().python.exists():
        raise OverlayError("there is no ./python; next: make")
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / "result.txt").unlink(missing_ok=True)
    parts = []
    if args.what != "upstream":
        parts += [run_pytest(), run_own()]
    if args.what != "fast":
        parts.append(run_suite(args.only))
    sys.exit(1 if show(parts) else 0)


if __name__ == "__main__":
    with basetar.errors_shown("judge"):
        main()

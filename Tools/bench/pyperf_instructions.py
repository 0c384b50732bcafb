#!/usr/bin/env python3
"""Does a pyperformance benchmark take more instructions than on stock?

Question.  Times of one benchmark scatter by several percent from run to run, and
more on a machine that does other things too.  Where pyperformance_compare.py shows a
row that is slower, this tells whether the build has more to do there: it counts the
instructions of one round of the benchmark, in user mode, which hardly scatter.

Usage:
    python Tools/bench/pyperf_instructions.py --stock PYTHON --this PYTHON \\
        json_dumps:3 pathlib:2 scimark.2:1
    python Tools/bench/pyperf_instructions.py --results build/bench/pyperformance [NAME...]

The second form takes both builds, and every benchmark with as many loops as take 50 ms,
from what pyperformance_compare.py has left there: an hour or two.  PYTHON is that of a
virtual environment that has pyperformance and what the benchmark needs.  After the dot: which of a script's benchmarks, from 0; after the colon:
how many loops make a round (default: 1); where a loop is short, take more, so that the
difference to start-up and imports is clear.  Needs valgrind; a round takes about 50 times
as long under it.

Columns
    stock, this   million instructions of that many loops
    stock / this  above 1: this build executes fewer

The baseline is stock, built from the same tarball with the same flags.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

from pyperformance_compare import LIST

TIMEOUT = 900


def commands(python):
    """{benchmark: [script, its options...]}

    Each build has its own: coverage asks whether a file belongs to a library."""
    found = subprocess.run([python, "-c", LIST], check=True, capture_output=True, text=True)
    return json.loads(found.stdout)


def count(python, command, task, loops):
    """Instructions of a whole process that does this many loops."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith("PYTHON")}
    env["PYTHONHASHSEED"] = "0"
    # valgrind counts every byte of a "rep stosb"; a processor doesn't.
    env["GLIBC_TUNABLES"] = ("glibc.cpu.x86_rep_stosb_threshold=1000000000:"
                             "glibc.cpu.x86_rep_movsb_threshold=1000000000")
    result = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
         python, *command, "--worker",
         f"--worker-task={task}", "-w", "0", "-n", "1", "-l", str(loops)],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT)
    found = re.search(r"Collected *: *(\d+)", result.stderr)
    if result.returncode or not found:
        lines = result.stderr.strip().splitlines() or [""]
        raise RuntimeError(f"status {result.returncode}: {lines[-1]}")
    return int(found[1])


def arguments(folder, only):
    """NAME.TASK:LOOPS of all that has been measured there, the loops for 50 ms."""
    plans = json.loads((folder / "plan.json").read_text())
    for benchmark, tasks in plans.items():
        for plan in tasks if isinstance(tasks, list) else ():
            file = folder / "runs" / f"{plan['name']}.jsonl"
            if file.exists() and (not only or plan["name"] in only):
                first = json.loads(file.read_text().splitlines()[0])
                loops = max(1, round(0.05 / first["against"]["values"][0][0]))
                yield f"{benchmark}.{plan['task']}:{loops}", plan["name"]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", metavar="PYTHON")
    parser.add_argument("--this", metavar="PYTHON")
    parser.add_argument("--results", type=pathlib.Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME[.TASK][:LOOPS]")
    options = parser.parse_args()
    shown = {}
    if options.results:
        options.stock = options.stock or options.results / "venv-against/bin/python"
        options.this = options.this or options.results / "venv-this/bin/python"
        shown = dict(arguments(options.results, options.names))
        options.names = list(shown)
    if not (options.stock and options.this and options.names):
        parser.error("needs --results, or --stock, --this and names")
    known = {python: commands(python) for python in (options.stock, options.this)}
    print(f"{'benchmark':<28}{'stock':>10}{'this':>10}{'stock / this':>14}")
    ratios, failed = [], []
    for arg in options.names:
        name, _, loops = arg.partition(":")
        name, _, task = name.partition(".")
        if name not in known[options.stock]:
            parser.error(f"no such benchmark: {name}")
        loops, task = int(loops or 1), int(task or 0)
        row = shown.get(arg, f"{name}.{task}" if task else name)
        try:
            stock, this = [count(python, known[python][name], task, 2 * loops)
                           - count(python, known[python][name], task, loops)
                           for python in (options.stock, options.this)]
            if min(stock, this) < 100_000:
                raise RuntimeError("does its work in other processes")
        except (RuntimeError, subprocess.TimeoutExpired) as exc:
            print(f"{row}: {exc}", file=sys.stderr, flush=True)
            failed.append(row)
            continue
        ratios.append(stock / this)
        print(f"{row:<28}{stock / 1e6:>10.2f}{this / 1e6:>10.2f}"
              f"{stock / this:>14.4f}", flush=True)
    if ratios:
        print(f"{len(ratios)} benchmarks, geometric mean "
              f"{statistics.geometric_mean(ratios):.4f}, smallest {min(ratios):.4f}")
    return f"not counted: {' '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())

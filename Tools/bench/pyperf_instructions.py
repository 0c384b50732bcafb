#!/usr/bin/env python3
"""Does a pyperformance benchmark take more instructions than on stock?

Question.  Times of one benchmark scatter by several percent from run to run, and
more on a machine that does other things too.  Where pyperf_ratio.py shows a row
that is slower, this tells whether the build has more to do there: it counts the
instructions of one round of the benchmark, in user mode, which hardly scatter.

Usage (with a Python that has pyperformance):
    python Tools/bench/pyperf_instructions.py --stock PYTHON --this PYTHON \\
        json_dumps:3 pathlib:2 mako
    python Tools/bench/pyperf_instructions.py --results build/bench/pyperformance

The second form takes both builds, and every benchmark with as many loops as take 50 ms,
from what pyperformance_compare.py has left there: an hour or two.  PYTHON is that of a virtual environment that has pyperf and what the benchmark
needs.  After the colon: how many loops make a round (default: 1); where a loop is
short, take more, so that the difference to start-up and imports is clear.
Needs valgrind; a round takes about 50 times as long under it.

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

from pyperformance import _manifest

TIMEOUT = 900


def count(python, benchmark, loops):
    """Instructions of a whole process that does this many loops."""
    env = {name: value for name, value in os.environ.items()
           if not name.startswith("PYTHON")}
    env["PYTHONHASHSEED"] = "0"
    # valgrind counts every byte of a "rep stosb"; a processor doesn't.
    env["GLIBC_TUNABLES"] = ("glibc.cpu.x86_rep_stosb_threshold=1000000000:"
                             "glibc.cpu.x86_rep_movsb_threshold=1000000000")
    result = subprocess.run(
        ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null",
         python, benchmark.runscript, *benchmark.extra_opts, "--worker",
         "--worker-task=0", "-w", "0", "-n", "1", "-l", str(loops)],
        env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=TIMEOUT)
    found = re.search(r"Collected *: *(\d+)", result.stderr)
    if result.returncode or not found:
        lines = result.stderr.strip().splitlines() or [""]
        raise RuntimeError(f"status {result.returncode}: {lines[-1]}")
    return int(found[1])


def loops_of(folder):
    """{benchmark: loops that take 50 ms}, of its first result."""
    loops = {}
    for file in sorted(folder.glob("*/against-1.json")):
        data = json.loads(file.read_text())
        bench = data["benchmarks"][0]
        run = bench["runs"][-1]
        inner = next((place["metadata"]["inner_loops"] for place in (run, bench, data)
                      if "inner_loops" in place.get("metadata", {})), 1)
        loops[file.parent.name] = max(1, round(0.05 / (run["values"][0] * inner)))
    return loops


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", metavar="PYTHON")
    parser.add_argument("--this", metavar="PYTHON")
    parser.add_argument("--results", type=pathlib.Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME[:LOOPS]")
    options = parser.parse_args()
    if options.results:
        options.stock = options.stock or options.results / "venv-against/bin/python"
        options.this = options.this or options.results / "venv-this/bin/python"
        options.names = options.names or [
            f"{name}:{loops}" for name, loops in loops_of(options.results).items()]
    if not (options.stock and options.this and options.names):
        parser.error("needs --results, or --stock, --this and names")
    manifest = _manifest.load_manifest(None)
    benchmarks = {benchmark.name: benchmark for benchmark in manifest.benchmarks}
    print(f"{'benchmark':<28}{'stock':>10}{'this':>10}{'stock / this':>14}")
    ratios, failed = [], []
    for arg in options.names:
        name, _, loops = arg.partition(":")
        if name not in benchmarks:
            parser.error(f"no such benchmark: {name}")
        loops = int(loops or 1)
        try:
            stock, this = [count(python, benchmarks[name], 2 * loops)
                           - count(python, benchmarks[name], loops)
                           for python in (options.stock, options.this)]
            if min(stock, this) < 100_000:
                raise RuntimeError("does its work in other processes")
        except (RuntimeError, subprocess.TimeoutExpired) as exc:
            print(f"{name}: {exc}", file=sys.stderr, flush=True)
            failed.append(name)
            continue
        ratios.append(stock / this)
        print(f"{name:<28}{stock / 1e6:>10.2f}{this / 1e6:>10.2f}"
              f"{stock / this:>14.4f}", flush=True)
    if ratios:
        print(f"{len(ratios)} benchmarks, geometric mean "
              f"{statistics.geometric_mean(ratios):.4f}, smallest {min(ratios):.4f}")
    return f"not counted: {' '.join(failed)}" if failed else 0


if __name__ == "__main__":
    sys.exit(main())

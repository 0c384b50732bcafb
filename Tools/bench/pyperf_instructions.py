#!/usr/bin/env python3
"""Does a pyperformance benchmark take more instructions than on stock?

Question.  Times of one benchmark scatter by several percent from run to run, and
more on a machine that does other things too.  Where pyperf_ratio.py shows a row
that is slower, this tells whether the build has more to do there: it counts the
instructions of one round of the benchmark, in user mode, which hardly scatter.

Usage (with a Python that has pyperformance):
    python Tools/bench/pyperf_instructions.py --stock PYTHON --this PYTHON \\
        json_dumps:3 pathlib:2 mako

PYTHON is that of a virtual environment that has pyperf and what the benchmark
needs.  After the colon: how many loops make a round (default: 1); where a loop is
short, take more, so that the difference to start-up and imports is clear.
Needs valgrind; a round takes about 50 times as long under it.

Columns
    stock, this   million instructions of that many loops
    stock / this  above 1: this build executes fewer

The baseline is stock, built from the same tarball with the same flags.
"""
import argparse
import os
import re
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
        sys.exit(f"{benchmark.name}: status {result.returncode}\n"
                 f"{result.stderr[-2000:]}")
    return int(found[1])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", required=True, metavar="PYTHON")
    parser.add_argument("--this", required=True, metavar="PYTHON")
    parser.add_argument("names", nargs="+", metavar="NAME[:LOOPS]")
    options = parser.parse_args()
    manifest = _manifest.load_manifest(None)
    benchmarks = {benchmark.name: benchmark for benchmark in manifest.benchmarks}
    print(f"{'benchmark':<28}{'stock':>10}{'this':>10}{'stock / this':>14}")
    for arg in options.names:
        name, _, loops = arg.partition(":")
        if name not in benchmarks:
            parser.error(f"no such benchmark: {name}")
        loops = int(loops or 1)
        stock, this = [count(python, benchmarks[name], 2 * loops)
                       - count(python, benchmarks[name], loops)
                       for python in (options.stock, options.this)]
        print(f"{name:<28}{stock / 1e6:>10.2f}{this / 1e6:>10.2f}"
              f"{stock / this:>14.4f}", flush=True)


if __name__ == "__main__":
    main()

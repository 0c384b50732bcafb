#!/usr/bin/env python3
"""What do arenas that stay save a program that builds and drops large data?

    ./python Tools/bench/arenas.py --against build/stock/obj/python [--rounds 7]

Question   How long do graphs of some tens of megabytes take that are built, used and
           dropped again and again, as messages, requests and parsed documents are?
Method     One process of each build in turn, three times over, each with the median of
           --rounds repetitions; the median of the three.  No message passing: this is
           about one thread.
Baseline   Stock CPython of the same tarball and flags, where each arena goes back to
           the system and is asked for, faulted in and cleared again.
Reading    stock/this: above 1, this build is faster.  "peak" is resident memory.
"""

import argparse
import json
import statistics
import subprocess
import sys

CHILD = """
import json, pickle, resource, sys, time

def records(n):
    return [{'id': i, 'name': str(i), 'values': [i, 1.5]} for i in range(n)]

text = json.dumps(records(20_000 * SCALE))
data = pickle.dumps(json.loads(text))
WORK = {
    'ints': lambda: [i + 1_000_000 for i in range(400_000 * SCALE)],
    'records': lambda: records(20_000 * SCALE),
    'json.loads': lambda: json.loads(text),
    'pickle.loads': lambda: pickle.loads(data),
    'split': lambda: text.split(' '),
}
result = {}
for name, work in WORK.items():
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    result[name] = sorted(times)[len(times) // 2]
result['peak'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps(result))
"""


def measure(python, rounds, scale):
    code = f"ROUNDS = {rounds}; SCALE = {scale}\n" + CHILD
    done = subprocess.run([python, "-I", "-c", code], check=True,
                          capture_output=True, text=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="build/stock/obj/python", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--smoke", action="store_true", help="small and quick")
    parser.add_argument("--json", metavar="FILE", help="write all results to FILE")
    options = parser.parse_args()
    runs = {"this": [], "stock": []}
    for _ in range(1 if options.smoke else 3):
        for role, python in ("stock", options.against), ("this", sys.executable):
            runs[role].append(measure(python, min(options.rounds, 2) if options.smoke
                                      else options.rounds, 1 if options.smoke else 5))
    print(f"{'work':<14}{'stock ms':>10}{'this ms':>10}{'stock/this':>12}")
    for name in runs["this"][0]:
        stock, this = (statistics.median(run[name] for run in runs[role])
                       for role in ("stock", "this"))
        unit, digits = (2**-20, 1) if name == "peak" else (1e3, 2)
        print(f"{name + (' MiB' if name == 'peak' else ''):<14}"
              f"{stock * unit:>10.{digits}f}{this * unit:>10.{digits}f}"
              f"{stock / this:>12.2f}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(runs, file)


if __name__ == "__main__":
    main()

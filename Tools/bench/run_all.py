#!/usr/bin/env python3
"""Run the benchmarks one after the other: make bench, make bench-full.

Usage
    make bench          # about 8 minutes on two cores; nothing else should run
    make bench-full     # over an hour; goes on where it was interrupted
    ./python Tools/bench/run_all.py [--smoke | --full] [--resume] [--only SCRIPT ...]
                                    [--stock PYTHON] [--freethreaded PYTHON] [--out DIR]

Each script's tables are printed and kept in DIR (build/bench) as SCRIPT.txt, its results as
SCRIPT.json, from which "make bench-report" makes a page.  A baseline that is not built
is named and left out.  A script that fails does not stop the others; the status is 1
at the end.

--resume leaves out the scripts that have been run with the same builds, of stock too, and
the same options: DIR/SCRIPT.done says so.  When there are none left, all begin again.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

from runner import BASELINES, RESULTS, ROUNDS, TOP
from ways import BUILDS, FOLDER

# The scripts in the order of the report, with their options besides --json: those for
# --smoke, then for neither, then for --full.  None: not run.
COMPARING = 'comparing'     # has --smoke, --full, --stock and --freethreaded
SCRIPTS = {
    'limits': [['--smoke'], [], []],
    'scaling': COMPARING,
    'messages': COMPARING,
    'graphs': COMPARING,
    'pipeline': COMPARING,
    'fan': COMPARING,
    'pool_map': COMPARING,
    'read_mostly': COMPARING,
    'lifecycle': COMPARING,
    'worker_memory': COMPARING,
    'one_thread_time': COMPARING,
    'bystander': [['--smoke'],
                  ['--rounds', '3', '--seconds', '0.5', '--bystanders', '1', '2'], []],
    'write_section': [['--smoke'], ['--rounds', '3', '--samples', '1000'], []],
    'transfer': [['--smoke'], ['--rounds', '3', '--only', '10,000 dicts', '20 columns',
                               '1,000,000 ints'], []],
    'buffers': [['--smoke'], ['--rounds', '3'], []],
    'open_flat': [['--smoke'], ['--rounds', '3', '--most', '1000000'], []],
    'small_messages': [['--smoke'], None, []],
}


def options(name, args):
    words = SCRIPTS[name]
    if words is not COMPARING:
        words = words[list(ROUNDS).index(args.effort)]
        return [*words, '--stock', args.stock] if name == 'transfer' and args.stock else words
    return [*([f'--{args.effort}'] if args.effort != 'quick' else []),
            *(word for build in BASELINES if getattr(args, build)
              for word in (f'--{build}', getattr(args, build)))]


def run(name, words, out):
    """Run a script, showing and keeping what it prints; return its status."""
    script = os.path.join(FOLDER, f'{name}.py')
    results = out / f'{name}.json'
    if results.is_file():
        results.unlink()        # they would not be of what is printed now
    command = [sys.executable, script, *words, '--json', str(results)]
    with open(out / f'{name}.txt', 'w', encoding='utf-8') as kept:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                                   stdout=subprocess.PIPE)
        for line in process.stdout:
            print(line, end='', flush=True)
            kept.write(line)
        return process.wait()


class Done:
    """What says that a script has been run to its end, with which builds and options."""

    def __init__(self, out, name, words, builds):
        self.path = out / f'{name}.done'
        self.what = json.dumps([words, [[path, os.stat(path).st_mtime] for path in builds
                                        if os.path.exists(path)]])

    def __bool__(self):
        try:
            return self.path.read_text() == self.what
        except OSError:
            return False

    def clear(self):
        self.path.unlink(missing_ok=True)

    def set(self):
        self.path.write_text(self.what)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='Each script has a head that says what it asks and how to read its tables.')
    effort = parser.add_mutually_exclusive_group()
    for name in 'smoke', 'full':
        effort.add_argument(f'--{name}', dest='effort', action='store_const',
                            const=name, default='quick')
    parser.add_argument('--resume', action='store_true',
                        help='go on where the same command was interrupted')
    parser.add_argument('--only', nargs='+', choices=SCRIPTS, metavar='SCRIPT',
                        help=f'some of: {", ".join(SCRIPTS)}')
    for build, python in BASELINES.items():
        parser.add_argument(f'--{build}', metavar='PYTHON', help=f'default: {python}')
    parser.add_argument('--out', metavar='DIR', type=pathlib.Path, default=RESULTS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for build, python in BASELINES.items():
        if not os.path.exists(getattr(args, build) or TOP / python):
            print(f'without a baseline: {BUILDS[build]}')
    if os.getloadavg()[0] > 0.5:
        print(f'load average {os.getloadavg()[0]:.1f}: something else is running, and'
              ' will show in the figures')
    failed, began = [], time.monotonic()
    todo = {name: words for name in args.only or SCRIPTS
            if (words := options(name, args)) is not None}
    builds = [sys.executable, *(getattr(args, build) or str(TOP / python)
                                for build, python in BASELINES.items())]
    done = {name: Done(args.out, name, words, builds) for name, words in todo.items()}
    resume = args.resume and not all(done.values())
    for name, words in todo.items():
        if resume and done[name]:
            print(f'\n--- {name}.py: done before')
            continue
        start = time.monotonic()
        print(f'\n--- {name}.py {" ".join(words)}\n', flush=True)
        done[name].clear()
        if run(name, words, args.out) != 0:
            failed.append(name)
        else:
            done[name].set()
        print(f'({time.monotonic() - start:.0f} s)', flush=True)
    used = os.times()
    print(f'\n{time.monotonic() - began:.0f} s, of the processors'
          f' {used.children_user + used.children_system:.0f} s; results: {os.path.relpath(args.out)};'
          ' next: make bench-report')
    if failed:
        sys.exit(f'failed: {", ".join(failed)}')


if __name__ == '__main__':
    main()

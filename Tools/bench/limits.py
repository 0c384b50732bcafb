#!/usr/bin/env python3
"""What does the machine itself take: a wake-up, a page fault, a copy?

Question.  A message can't be faster than waking up who waits for it, a copy not faster than
memory.  Where are those limits on this machine?  The figures of the other scripts stand
against these.

Usage
    ./python Tools/bench/limits.py [--smoke] [--json FILE]

How.  Builds limits.c, next to this script, with cc -O2 and runs it: five repetitions of
each, after one to warm up.  No Python is involved.

How to read the table.  Medians, and the interquartile range in percent.  A copy in
seconds for each byte, which is also given as bandwidth; all others for one operation.
In a virtual machine "futex" depends on whether an idle core spins for a while: 2 to 30 us are
common.  "wake" is what it takes when it does not any more.  If the two threads run on one
core, a wake-up is cheaper than across cores.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

from benchlib import ensure, median, print_table, show, spread
from runner import Panel, write_own

LIMITS = {
    'syscall': 'a system call',
    'spin': 'there and back between two threads that spin',
    'futex': 'there and back between two threads by futex',
    'wake': 'a thread that slept for 2 ms, woken',
    'waker': 'the same, for who wakes it',
    'pipe': 'there and back between two threads by pipes',
    'thread': 'a thread, created and joined',
    'fork': 'a small process, forked and ended',
    'fault': 'a page of 4 KiB, touched first',
    'fault_huge': 'the same, in huge pages if the system has them',
    'copy': 'a byte, copied in memory',
    'walk': 'an object, reached by its pointer and changed',
    'rewrite': 'an object of 32 bytes, read and written again',
}
# Beyond this it was not that which was measured.
PLAUSIBLE = {'syscall': (1e-8, 1e-4), 'spin': (1e-9, 1e-2), 'futex': (1e-7, 1e-1),
             'wake': (1e-7, 1e-1), 'waker': (1e-7, 1e-1),
             'pipe': (1e-7, 1e-1), 'thread': (1e-6, 1), 'fork': (1e-5, 1),
             'fault': (1e-8, 1e-2), 'fault_huge': (1e-10, 1e-2), 'copy': (1e-12, 1e-7),
             'walk': (1e-11, 1e-5), 'rewrite': (1e-10, 1e-5)}


def measure(share):
    """{name: [seconds]}"""
    source = pathlib.Path(__file__).with_name('limits.c')
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, 'limits')
        try:
            subprocess.run(['cc', '-O2', '-pthread', '-o', program, source], check=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            sys.exit(f'limits.c can not be compiled ({exc}); next: is there a compiler, cc?')
        out = subprocess.run([program, str(share)], check=True, text=True,
                             stdout=subprocess.PIPE, timeout=300).stdout
    lines = [line.split() for line in out.splitlines()]
    return {name: [float(word) for word in words] for name, *words in lines}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog='The head of the script says how to read the table.')
    parser.add_argument('--smoke', action='store_true', help='quick')
    parser.add_argument('--json', metavar='FILE',
                        help='write the results, in the format of pyperf')
    args = parser.parse_args()
    found = measure(0.02 if args.smoke else 1)
    rows = []
    for name, times in found.items():
        low, high = PLAUSIBLE[name]
        ensure(low < median(times) < high, f'{name}: {times}')
        more = f'{1e-9 / median(times):.1f} GB/s' if name == 'copy' else ''
        rows.append((LIMITS[name], show(median(times)), f'{spread(times):.0f}%', more))
    print_table(('', 'seconds', '+-', ''), rows)
    panel = Panel('Limits of the machine', 'one operation')
    write_own(args.json, __file__, [(panel, LIMITS[name], 'this machine', [times])
                                    for name, times in found.items()])


if __name__ == '__main__':
    main()

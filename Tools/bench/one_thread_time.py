#!/usr/bin/env python3
"""What does one thread pay, in time?

Question.  The work of one_thread.py, timed.  Counting instructions, as that script does,
shows half a percent but not what they cost; a clock shows what a user sees, and on most
machines not half a percent.

Usage
    ./python Tools/bench/one_thread_time.py [--smoke | --full] [--rounds N]
                                            [--only WORD ...] [--json FILE]

How.  Each workload in fresh processes of each Python, in turns; the CPU time of the
thread, so that being scheduled away does not count.  "Inside" is the same in a
subinterpreter of that Python, with a lock of its own, run by the main thread.

How to read the table.  Speed: the time of stock divided by that of the row, so that 1 is as
fast as stock and more is faster.  A column for each workload; medians over the processes
and the interquartile range of the processes' medians in percent: a ratio that is nearer to
1 than this says nothing.  The baseline is stock 3.13.5 with the same flags, in the main
interpreter; inside is to be compared with "stock, inside".  "make
pyperformance" does the same with a whole suite and takes hours.
"""

import json
import os
import time

import one_thread
from runner import Cell, Panel, run
from ways import FOLDER, Way

INSIDE = ', inside'
OWN_WAYS = (Way('RWPython', 'this'), Way('stock', 'stock'), Way('RWPython' + INSIDE, 'this'),
            Way('stock' + INSIDE, 'stock'), Way('stock without GIL', 'freethreaded'))


def measure(way, workload, share, values):
    if way.name.endswith(INSIDE):
        return measure_inside(workload, share, values)
    return measure_here(workload, share, values)


def measure_inside(*args):
    import _interpreters
    id = _interpreters.create()
    ours, theirs = os.pipe()
    failure = _interpreters.exec(id, f"""if True:
        import json, os, sys
        sys.path.insert(0, {FOLDER!r})
        import one_thread_time
        times = one_thread_time.measure_here(*{args!r})
        os.write({theirs}, json.dumps(times).encode())
        """)
    if failure is not None:
        raise RuntimeError(failure.formatted)
    _interpreters.destroy(id)
    times = json.loads(os.read(ours, 65536))
    os.close(ours)
    os.close(theirs)
    return times


def measure_here(workload, share, values):
    func, units = one_thread.WORKLOADS[workload]
    units = max(1, int(units * share))
    times = []
    for i in range(-1, values):
        start = time.thread_time()
        func(units)
        if i >= 0:
            times.append(time.thread_time() - start)
    return times


PANEL = Panel('One thread', 'workload', 'speed', 'speed, stock = 1', base='stock')


def cells(args):
    effort = args.effort
    names = [name for name in one_thread.WORKLOADS
             if name not in one_thread.LOCKING | {'nothing'}]
    share, values = {'smoke': (0.01, 1), 'quick': (1, 3), 'full': (2, 5)}[effort]
    if effort == 'smoke':
        names = names[:3]
    return [Cell(PANEL, name, way, dict(workload=name, share=share, values=values))
            for name in names for way in OWN_WAYS]


if __name__ == '__main__':
    run(__doc__, cells)

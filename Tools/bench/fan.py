#!/usr/bin/env python3
"""How small can a task be, when one hands out tasks to a few workers?

Question.  One producer, one queue of tasks, a few workers that take from it, one queue
of answers: fan-out and fan-in.  Below some size of a task it costs more to hand it out
than to do it.  Where is that?

Usage
    ./python Tools/bench/fan.py [--smoke | --full] [--rounds N] [--only WORD ...]
                                [--json FILE]

How.  A fresh process, as many workers as there are cores (2 in most of our figures).  A
task is a pair, an int and a number of steps of a loop; the answer is a pair, too.  All
tasks are put, then all answers taken; the clock stands around both; every answer is
counted.

How to read the table.  Speed: tasks per second, against one thread of stock that does them
in a loop with nothing handed out.  A way pays off where it is above 1, and the number of
workers is the limit.  A column for each size of a task, in steps of a loop (a thousand
take some 30 us), a row for each way; medians over the processes and the interquartile range
in percent.  A Pipe has two ends only and so is not here.
"""

import os
import time

from benchlib import ensure
from runner import Cell, Panel, run
from ways import Way

OWN_WAYS = Way('one thread', 'stock'),


def task(number, steps):
    total = 0
    for i in range(steps):
        total += i & number
    return total


def work(tasks, answers):
    answers.put('ready')
    while (item := tasks.get()) is not None:
        number, steps = item
        answers.put((number, task(number, steps)))


def measure(way, steps, tasks, workers):
    items = [(i, steps) for i in range(tasks)]
    if way in OWN_WAYS:
        start = time.perf_counter()
        for number, n in items:
            task(number, n)
        return [(time.perf_counter() - start) / tasks]
    there, back = way.channel(), way.channel()
    started = [way.start(work, there, back) for _ in range(workers)]
    for _ in started:
        ensure(back.get() == 'ready', 'start')
    start = time.perf_counter()
    for item in items:
        there.put(item)
    answers = [back.get() for _ in items]
    seconds = time.perf_counter() - start
    for _ in started:
        there.put(None)
    for worker in started:
        worker.join()
    ensure(sorted(number for number, _ in answers) == list(range(tasks)), 'which tasks')
    ensure(answers[0][1] == task(answers[0][0], steps), 'an answer')
    return [seconds / tasks]


PANEL = Panel('Fan-out and fan-in', 'steps of a loop in one task', 'speed',
              'speed, one thread = 1', base='one thread')


def cells(args):
    effort = args.effort
    workers = os.cpu_count()
    result = []
    for steps in {'smoke': [10], 'quick': [10, 1000, 10_000],
                  'full': [10, 100, 1000, 10_000, 100_000]}[effort]:
        for way in (*OWN_WAYS, 'interpreters', 'stock interpreters', 'processes, Queue',
                    'threads', 'threads without GIL'):
            tasks = 100 if effort == 'smoke' else min(5000, 3_000_000 // steps)
            result.append(Cell(PANEL, steps, way, dict(steps=steps, tasks=tasks,
                                                       workers=workers)))
    return result


if __name__ == '__main__':
    run(__doc__, cells)

#!/usr/bin/env python3
"""How fast is a pipeline of three stages?

Question.  Text is parsed, what was parsed is changed, and what came of it is added
up: each stage is a worker, and what goes from one to the next is a list of dicts.
What a pipeline gains by more cores it can lose by handing things on.

Usage
    ./python Tools/bench/pipeline.py [--smoke | --full] [--rounds N] [--only WORD ...]
                                     [--json FILE]

How.  A fresh process, three workers.  The clock runs from the first text until the sum
of all of them is there, after a first one to warm up; the sum is checked.  Each stage
gives away what it made, so "interpreters, moved" moves it.

How to read the table.  Rows of data per second.  A column for each number of rows in
one message, a row for each way; medians over the processes, and the interquartile
range in percent.  The baselines are stock's ways, see messages.py; "one after the
other" does the same in one thread of stock, with nothing handed on: with c cores, at most
c times that can be reached, and at most what the slowest stage allows.
"""

import json
import time

from benchlib import ensure
from runner import Cell, Panel, run
from ways import Way

OWN_WAYS = Way('one after the other', 'stock'),


def text(rows, number):
    return '\n'.join(json.dumps({'id': i, 'name': f'name {i % 97}', 'price': i * 0.25,
                                 'tags': ['a', f't{i % 7}'], 'number': number})
                     for i in range(rows))


def parse(item):
    return [json.loads(line) for line in item.splitlines()]


def change(rows):
    return [{'name': row['name'].upper(), 'tags': sorted(set(row['tags'])),
             'gross': round(row['price'] * 1.19, 2), 'key': (row['number'], row['id'])}
            for row in rows if row['id'] % 5]


def add_up(rows):
    return sum(row['key'][1] + len(row['tags']) for row in rows)


def stage(func, get, put, wrap):
    while (item := get()) is not None:
        result = func(item)
        del item
        put(wrap(result))
        del result
    put(None)


def first(way_name, there, back):
    from ways import WAYS
    stage(parse, there.get, back.put, WAYS[way_name].wrap)


def second(way_name, there, back):
    from ways import WAYS
    stage(change, there.get, back.put, WAYS[way_name].wrap)


def third(there, back):
    stage(add_up, there.get, back.put, lambda obj: obj)


def measure(way, rows, messages):
    texts = [text(rows, number) for number in range(messages)]
    expected = sum(add_up(change(parse(item))) for item in texts)
    if way in OWN_WAYS:
        start = time.perf_counter()
        total = sum(add_up(change(parse(item))) for item in texts)
        seconds = time.perf_counter() - start
    else:
        channels = [way.channel() for _ in range(4)]
        workers = [way.start(first, way.name, *channels[:2]),
                   way.start(second, way.name, *channels[1:3]),
                   way.start(third, *channels[2:])]
        there, back = channels[0], channels[3]
        there.put(texts[0])
        back.get()
        start = time.perf_counter()
        # A Pipe is full at some point: answers are taken while texts are sent.
        for item in texts[:4]:
            there.put(item)
        total = 0
        for item in texts[4:]:
            total += back.get()
            there.put(item)
        there.put(None)
        while (part := back.get()) is not None:
            total += part
        seconds = time.perf_counter() - start
        for worker in workers:
            worker.join()
    ensure(total == expected, 'the sum')
    return [seconds / (rows * messages)]


PANEL = Panel('A pipeline of three stages', 'rows per message', 'rate', 'rows per second')


def cells(args):
    effort = args.effort
    result = []
    for rows in {'smoke': [10], 'quick': [10, 100, 1000], 'full': [1, 10, 100, 1000, 10_000]}[effort]:
        for way in (*OWN_WAYS, 'interpreters', 'interpreters, moved',
                    'stock interpreters', 'processes, Pipe', 'processes, Queue',
                    'threads', 'threads without GIL'):
            total = {'smoke': 100, 'quick': 20_000, 'full': 100_000}[effort]
            messages = max(5, total // rows)
            if way == 'stock interpreters':
                messages = min(messages, 50)
            result.append(Cell(PANEL, rows, way, dict(rows=rows, messages=messages)))
    return result


if __name__ == '__main__':
    run(__doc__, cells)

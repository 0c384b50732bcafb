#!/usr/bin/env python3
"""Find the longest and the most complex functions of a source tree, on all cores.

Every Python file below PATH (by default this Python's own standard library) is
parsed; for each function the number of its lines and branches, how deep it
nests, and which calls it makes are worked out.  The work is done twice: by one
interpreter, then by one for each core.  All of them are in this process; they
take file names from one queue and put their results into another.
"""

import ast
import os
import sys
import time
import warnings
from collections import Counter
from typing import NamedTuple

import interpreters


# What comes back over the queue

class Function(NamedTuple):
    path: str
    line: int
    name: str           # qualified: 'Class.method', 'outer.inner'
    lines: int
    branches: int       # places where it can go one way or another
    depth: int          # of if, for, while, with, try and match in each other
    calls: dict         # name of what is called, '.name' for attributes: times


class Source(NamedTuple):
    path: str
    lines: int
    functions: list     # of Function
    error: str | None   # why it could not be analysed


# What the workers do

FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef
NESTING = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith,
           ast.Try, ast.TryStar, ast.Match)
BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.IfExp,
            ast.ExceptHandler, ast.match_case, ast.comprehension)


class Measure:
    """What has been seen of one function, while its tree is walked."""

    def __init__(self, node, name):
        self.node = node
        self.name = name
        self.branches = 0
        self.depth = 0
        self.calls = {}

    def visit(self, node, depth):
        self.depth = max(self.depth, depth)
        if isinstance(node, BRANCHES):
            self.branches += 1
            if isinstance(node, ast.comprehension):
                self.branches += len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            self.branches += len(node.values) - 1
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name):
                name = called.id
            elif isinstance(called, ast.Attribute):
                name = '.' + called.attr
            else:
                return
            self.calls[name] = self.calls.get(name, 0) + 1

    def result(self, path):
        first, last = self.node.lineno, self.node.end_lineno
        return Function(path, first, self.name, last - first + 1,
                        self.branches, self.depth, self.calls)


def measure_functions(tree):
    """Return a Measure for each function in tree.

    A function inside another one counts by itself, and in the other one's
    lines.
    """
    measures = []
    todo = [(tree, None, '', 0)]
    while todo:
        node, measure, prefix, depth = todo.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, FUNCTIONS):
                inner = Measure(child, prefix + child.name)
                measures.append(inner)
                todo.append((child, inner, inner.name + '.', 0))
                continue
            if isinstance(child, ast.ClassDef):
                todo.append((child, measure, prefix + child.name + '.', depth))
                continue
            inside = depth
            if isinstance(child, NESTING) and not is_elif(child, node):
                inside += 1
            if measure is not None:
                measure.visit(child, inside)
            todo.append((child, measure, prefix, inside))
    return measures


def is_elif(node, parent):
    return (isinstance(node, ast.If) and isinstance(parent, ast.If)
            and parent.orelse == [node]
            and node.col_offset == parent.col_offset)


def analyse(path, shown):
    """Return the Source for the file at path, which is to be shown as shown."""
    try:
        with open(path, 'rb') as file:
            text = file.read()
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tree = ast.parse(text, shown)
        functions = [m.result(shown) for m in measure_functions(tree)]
    except (SyntaxError, ValueError, RecursionError, OSError) as exc:
        reason = ' '.join(str(exc).split())
        return Source(shown, 0, [], f'{type(exc).__name__}: {reason}')
    return Source(shown, text.count(b'\n'), functions, None)


def work(tasks, results):
    """Analyse what comes from tasks until that is None; runs in a worker."""
    while (task := tasks.get()) is not None:
        results.put(analyse(*task))


# What the main interpreter does

def find_sources(root):
    """Return [(path, path from root, bytes)] of all Python files, the biggest
    first: no worker begins with a big one when the others are nearly done.

    Each file is read, or else the first run would wait for the disk, and the
    second would not.
    """
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name != '__pycache__']
        for name in names:
            if name.endswith('.py'):
                path = os.path.join(folder, name)
                try:
                    with open(path, 'rb') as file:
                        size = len(file.read())
                except OSError:
                    size = 0        # the worker will say why
                found.append((-size, os.path.relpath(path, root), path))
    return [(path, shown, -size) for size, shown, path in sorted(found)]


class Summary:
    """What the report needs of all Sources, in whatever order they come."""

    def __init__(self, top):
        self.top = top
        self.files = self.lines = self.functions = self.branches = 0
        self.calls = Counter()
        self.errors = []
        self.longest = []
        self.branchiest = []
        self.deepest = []

    def add(self, source):
        if source.error is not None:
            self.errors.append((source.path, source.error))
            return
        self.files += 1
        self.lines += source.lines
        self.functions += len(source.functions)
        for function in source.functions:
            self.branches += function.branches
            for name, times in function.calls.items():
                self.calls[name] += times
        for ranking, key in self.rankings():
            ranking += source.functions
            ranking.sort(key=key)
            del ranking[self.top:]

    def rankings(self):
        def place(function):
            return function.path, function.line, function.name
        return (
            (self.longest, lambda f: (-f.lines, place(f))),
            (self.branchiest, lambda f: (-f.branches, -f.depth, place(f))),
            (self.deepest, lambda f: (-f.depth, -f.branches, place(f))),
        )

    def report(self):
        """Yield the lines of the report."""
        yield (f'{self.files:,} files, {self.lines:,} lines, '
               f'{self.functions:,} functions, {self.branches:,} branches, '
               f'{self.calls.total():,} calls')
        for title, functions in (('Longest functions', self.longest),
                                 ('Most complex functions', self.branchiest),
                                 ('Deepest nesting', self.deepest)):
            yield ''
            yield f'{title:<44} lines  branches  depth'
            for f in functions:
                yield (f'  {f.name:<42.42} {f.lines:>5}  {f.branches:>8}  '
                       f'{f.depth:>5}  {f.path}:{f.line}')
        yield ''
        yield 'Most called names'
        ranked = sorted(self.calls.items(), key=lambda item: (-item[1], item[0]))
        for name, times in ranked[:self.top]:
            yield f'  {name:<42} {times:>7,}'
        if self.errors:
            yield ''
            yield f'Skipped: {len(self.errors)}'
            for path, error in sorted(self.errors):
                yield f'  {path}: {error}'


class Progress:
    """Says how far a run is: in one line on a terminal, else in four.

    Goes by bytes, since the files come in the order of their size.
    """

    def __init__(self, title, sources, one_line):
        self.title = title
        self.sizes = {shown: size + 1 for _, shown, size in sources}
        self.left = len(sources)
        self.bytes = 0
        self.total = max(sum(self.sizes.values()), 1)
        self.one_line = one_line
        self.began = self.shown = time.monotonic()
        self.quarters = 0

    def update(self, source):
        self.left -= 1
        self.bytes += self.sizes[source.path]
        if self.one_line:
            if time.monotonic() - self.shown >= 0.1 or not self.left:
                self.shown = time.monotonic()
                done = 30 * self.bytes // self.total
                self.say(f'[{"#" * done:<30}] ', '\r', '' if self.left else '\n')
        elif 4 * self.bytes // self.total > self.quarters:
            self.quarters = 4 * self.bytes // self.total
            self.say('', '', '\n')

    def say(self, bar, begin, end):
        print(f'{begin}{self.title:<16}{bar}{100 * self.bytes // self.total:>3}%'
              f'{self.left:>7} files left{time.monotonic() - self.began:>8.1f} s',
              end=end, file=sys.stderr, flush=True)


def run(sources, workers, options):
    """Analyse sources with that many interpreters.

    Return (Summary, seconds, seconds of the main interpreter's own CPU time).
    """
    plural = '' if workers == 1 else 's'
    progress = Progress(f'{workers} interpreter{plural}', sources,
                        options.progress)
    summary = Summary(options.top)
    began, cpu_began = time.perf_counter(), time.thread_time()
    tasks = interpreters.create_queue()
    results = interpreters.create_queue()
    pool = [interpreters.create() for _ in range(workers)]
    threads = [interp.call_in_thread(work, tasks, results) for interp in pool]
    for path, shown, _ in sources:
        tasks.put((path, shown))
    for _ in pool:
        tasks.put(None)
    for _ in sources:
        source = next_result(results, threads)
        summary.add(source)
        progress.update(source)
    for thread in threads:
        thread.join()
    for interp in pool:
        interp.close()
    return (summary, time.perf_counter() - began,
            time.thread_time() - cpu_began)


def next_result(results, threads):
    """Return the next Source.  Exit if there can't be one: all workers died."""
    while True:
        alive = any(thread.is_alive() for thread in threads)
        try:
            return results.get(timeout=1.0 if alive else 0.0)
        except interpreters.QueueEmpty:
            if not alive:
                raise SystemExit('all workers have ended before their time; '
                                 'what they raised is shown above') from None


def print_lock_stats(stats):
    """Print what the lock over all interpreters counted, in all of them."""
    each = [*stats['interpreters'].values(), stats['gone']]
    sections = sum(sum(one['sections'].values()) for one in each)
    stops = sum(one['safepoints'] for one in each)
    print(f"lock ({stats['mode']}): {sections:,} hand-overs under the write "
          f"side, {stops:,} of which stopped an interpreter")
    for key, title in (('write_wait', 'waits for the write side'),
                       ('write_hold', 'time in the write side'),
                       ('read_wait', 'waits to go on reading')):
        count = sum(one[key]['count'] for one in each)
        total = sum(one[key]['total_ns'] for one in each)
        longest = max(one[key]['max_ns'] for one in each)
        print(f'  {title:<25} {count:>7,} times, {total / 1e6:>9.3f} ms, '
              f'{total / 1e3 / max(count, 1):>7.2f} us on average, '
              f'{longest / 1e3:>9.1f} us at most')


def print_timing(runs):
    print()
    base = runs[0][2]
    for workers, _, seconds, own in runs:
        plural = '' if workers == 1 else 's'
        line = (f'{workers} interpreter{plural}: {seconds:.2f} s, of which the '
                f'main interpreter computed {own:.2f} s')
        if workers != runs[0][0]:
            line += f'; speed-up {base / seconds:.2f}'
        print(line)
    print_lock_stats(interpreters.lock_stats())


def parse_args():
    import argparse

    parser = argparse.ArgumentParser(
        description=__doc__.partition('\n\n')[2],
        epilog='The report does not depend on the number of workers; what '
               'comes after it, times and lock statistics, does.')
    parser.add_argument(
        'path', nargs='?', metavar='PATH',
        default=os.path.dirname(os.__file__),
        help='folder to analyse (default: %(default)s)')
    parser.add_argument(
        '--workers', type=int, metavar='N',
        help='run only once, with N interpreters')
    parser.add_argument(
        '--top', type=int, default=10, metavar='N',
        help='how long the lists are (default: %(default)s)')
    parser.add_argument(
        '--report', metavar='FILE',
        help='write the report there too, without the times')
    parser.add_argument(
        '--progress', action=argparse.BooleanOptionalAction,
        default=sys.stderr.isatty(),
        help='show progress in one line (default: if stderr is a terminal)')
    options = parser.parse_args()
    if options.workers is not None and options.workers < 1:
        parser.error('--workers must be at least 1')
    if options.top < 1:
        parser.error('--top must be at least 1')
    if not os.path.isdir(options.path):
        parser.error(f'there is no folder {options.path}')
    return options


def main():
    options = parse_args()
    sources = find_sources(options.path)
    if options.workers is not None:
        numbers = [options.workers]
    else:
        numbers = sorted({1, os.process_cpu_count() or 1})
    runs = []
    for workers in numbers:
        summary, seconds, own = run(sources, workers, options)
        runs.append((workers, '\n'.join(summary.report()), seconds, own))
    report = runs[0][1]
    print(report)
    if options.report:
        with open(options.report, 'w', encoding='utf-8') as file:
            file.write(report + '\n')
    if any(run[1] != report for run in runs):
        raise SystemExit('the runs did not find the same')
    print_timing(runs)


if __name__ == '__main__':
    main()

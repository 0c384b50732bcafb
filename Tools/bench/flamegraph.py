#!/usr/bin/env python3
"""Where does the time of a transfer go, in Python and in C?

Draws a flame graph as SVG: each box is a function, its width the share of samples in
which it was on the stack, what stands on it was called by it.

Usage
    ./python Tools/bench/flamegraph.py --transfer move --out move.svg
    ./python Tools/bench/flamegraph.py --transfer copy --dicts 1000 --seconds 5 --out copy.svg
    ./python Tools/bench/flamegraph.py --out program.svg -- program.py arguments ...
    perf script | ./python Tools/bench/flamegraph.py --stacks - --out any.svg

    --transfer   sends a list of dicts (as graphs.py does) to another interpreter, which
                 sends the number of them back, for --seconds; drawn are
                 the sending, the receiving (queue_get) and, in the other interpreter, the
                 end of what was received (list_dealloc)
    --below      for other programs: only stacks with that function, and from there on
    --stacks     output of "perf script", recorded elsewhere

How.  Runs the program with -X perf_jit under "perf record --call-graph dwarf", which
needs no special build, lets "perf inject" put the names of Python functions in, and
folds what "perf script" prints.  Needs perf (Debian: linux-perf), and the right to use
it: root, or /proc/sys/kernel/perf_event_paranoid at most 1.

How to read the picture.  Width is time; the order from left to right means nothing, it
is alphabetical.  Colours: Python functions; C functions of ours; other C functions; the
kernel.  Pointing at a box shows its name and its share.  A sample is taken every 2 ms of CPU
time, so threads that wait do not show: lock_stats() knows those.  Recording whole stacks slows
the program down by a third or so, alike in all parts.
"""

import argparse
import functools
import glob
import html
import os
import pathlib
import re
import subprocess
import sys
import tempfile

FRAME = re.compile(r'\s+[0-9a-f]+ (.+?)(?:\+0x[0-9a-f]+)? \((.*)\)$')
# Between one Python function and the next.
DROPPED = {'py_trampoline_evaluator', '[unknown]'}
# -X perf_jit knows the Python functions of the main interpreter only: the others have C.
TRANSFER = ['send', 'queue_get', 'list_dealloc']
KINDS = ('python', 'ours', 'other', 'kernel')
WIDTH, ROW, MARGIN = 1200, 18, 10


# --- What is recorded ---------------------------------------------------------

def sending(there, back, objs, moving, seconds):
    import time
    import graphs
    from interpreters import move
    end = time.monotonic() + seconds
    obj = graphs.make(objs)
    while time.monotonic() < end:
        send(there, move(obj) if moving else obj)
        back.get()
        if moving:
            obj = graphs.make(objs)


def send(there, obj):
    there.put(obj)


def receiving(there, back):
    while (obj := there.get()) is not None:
        back.put(len(obj))
        del obj


def transfer(kind, dicts, seconds):
    import flamegraph
    import interpreters
    there, back = interpreters.create_queue(), interpreters.create_queue()
    interp = interpreters.create()
    thread = interp.call_in_thread(flamegraph.receiving, there, back)
    flamegraph.sending(there, back, dicts, kind == 'move', seconds)
    there.put(None)
    thread.join()
    interp.close()


def record(words, folder):
    """The text of perf script for a run of this Python."""
    first, second, pid = (os.path.join(folder, name)
                          for name in ('perf.data', 'jitted.data', 'pid'))
    perf = ['perf', '--buildid-dir', folder]
    try:
        subprocess.run([*perf, 'record', '-q', '-F', '499', '-k', '1',
                        '--call-graph', 'dwarf,16384', '-o', first,
                        'sh', '-c', 'echo $$ >"$0"; exec "$@"', pid,
                        sys.executable, '-X', 'perf_jit', *words], check=True)
        subprocess.run([*perf, 'inject', '-i', first, '--jit', '-o', second], check=True)
        return subprocess.run([*perf, 'script', '-i', second], check=True, text=True,
                              stdout=subprocess.PIPE, errors='replace',
                              stderr=subprocess.DEVNULL).stdout
    except FileNotFoundError:
        sys.exit('perf is not installed; next: apt-get install linux-perf')
    except subprocess.CalledProcessError as exc:
        sys.exit(f'{exc}; next: may you use perf? See /proc/sys/kernel/perf_event_paranoid')
    finally:
        remove_dumps(pid)


def remove_dumps(pid):
    """What the Python and perf leave in /tmp, which neither lets one choose."""
    if os.path.exists(pid):
        number = open(pid, encoding='ascii').read().strip()
        for path in (glob.glob(f'/tmp/jit-{number}.dump')
                     + glob.glob(f'/tmp/jitted-{number}-*.so')):
            os.unlink(path)


# --- Folding ------------------------------------------------------------------

@functools.cache
def own_functions():
    """The names of the C functions in this repository."""
    top = pathlib.Path(__file__).resolve().parents[2]
    return {name for path in (*top.glob('[MOP]*/*.c'), *top.glob('Include/internal/*.h'))
            for name in re.findall(r'^(\w+)\(', path.read_text(encoding='utf-8'), re.M)}


def name_of(symbol, file):
    """(name, kind) of a frame, or None."""
    symbol = symbol.strip()
    if symbol in DROPPED:
        return None
    if symbol.startswith('py::'):
        function, _, path = symbol[4:].partition(':')
        return f'{function} ({os.path.basename(path)})', 'python'
    if 'kernel' in file or file.startswith('[k'):
        return symbol, 'kernel'
    return symbol, 'ours' if symbol.split('.')[0] in own_functions() else 'other'


def stacks(text):
    """The stacks in what perf script prints, from the outermost function inwards."""
    stack, inside = [], False
    for line in text.splitlines():
        if not line.strip():
            if stack:
                yield stack[::-1]
            stack, inside = [], False
        elif not line[0].isspace():
            inside = True
        elif inside and (match := FRAME.match(line)):
            if (frame := name_of(*match.groups())) is not None:
                stack.append(frame)
    if stack:
        yield stack[::-1]


def cut(stack, below):
    """The stack from one of these functions on, or nothing."""
    if not below:
        return stack
    for i, (name, _) in enumerate(stack):
        if name.partition(' ')[0] in below:
            return stack[i:]
    return []


class Box:

    def __init__(self, name, kind):
        self.name, self.kind = name, kind
        self.count = 0
        self.inner = {}

    def depth(self):
        return 1 + max((box.depth() for box in self.inner.values()), default=0)


def fold(all_stacks, below=()):
    root = Box('all', 'other')
    for stack in all_stacks:
        stack = cut(stack, below)
        if not stack:
            continue
        box = root
        box.count += 1
        for name, kind in stack:
            box = box.inner.setdefault(name, Box(name, kind))
            box.count += 1
    return root


# --- Drawing ------------------------------------------------------------------

STYLE = """
svg { background: #fff; font: 11px ui-monospace, monospace; }
text { fill: #1c1e21; pointer-events: none; } rect { stroke: #fff; stroke-width: .6; }
.python { fill: #8fbcf5; } .ours { fill: #f5b26b; } .other { fill: #d6dae1; }
.kernel { fill: #e3a6c0; }
@media (prefers-color-scheme: dark) {
  svg { background: #16181d; } text { fill: #eceef2; } rect { stroke: #16181d; }
  .python { fill: #1f5fae; } .ours { fill: #96540b; } .other { fill: #444a55; }
  .kernel { fill: #85375a; }
}
"""


def boxes(box, x, level, scale, height, total):
    width = box.count * scale
    if width < 0.4:
        return
    y = height - (level + 1) * ROW - MARGIN
    name, share = html.escape(box.name), box.count / total * 100
    yield (f'<g><title>{name}: {share:.1f} %, {box.count} samples</title>'
           f'<rect class="{box.kind}" x="{x:.1f}" y="{y}" width="{width:.1f}"'
           f' height="{ROW - 1}" rx="2"/>')
    letters = int((width - 6) / 6.7)
    if letters >= 3:
        shown = box.name if len(box.name) <= letters else box.name[:letters - 1] + '…'
        yield f'<text x="{x + 3:.1f}" y="{y + 12}">{html.escape(shown)}</text>'
    yield '</g>'
    for inner in sorted(box.inner.values(), key=lambda b: b.name):
        yield from boxes(inner, x, level + 1, scale, height, total)
        x += inner.count * scale


def draw(root, title):
    head = 3 * ROW
    height = root.depth() * ROW + head + 2 * MARGIN
    scale = (WIDTH - 2 * MARGIN) / root.count
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"'
             f' role="img"><title>{html.escape(title)}</title><style>{STYLE}</style>',
             f'<text x="{MARGIN}" y="22" font-size="14" font-weight="bold">{html.escape(title)}:'
             f' {root.count} samples, one every 2 ms of CPU time; width: share of them</text>']
    x = MARGIN
    for kind, text in zip(KINDS, ('Python', 'C, RWPython\'s own', 'C', 'kernel')):
        parts.append(f'<rect class="{kind}" x="{x}" y="32" width="12" height="12" rx="2"/>'
                     f'<text x="{x + 17}" y="42">{html.escape(text)}</text>')
        x += 40 + 7 * len(text)
    parts += boxes(root, MARGIN, 0, scale, height, root.count)
    return '\n'.join([*parts, '</svg>\n'])


def main():
    if sys.argv[1:2] == ['--run']:
        kind, dicts, seconds = sys.argv[2:]
        return transfer(kind, int(dicts), float(seconds))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--transfer', choices=('move', 'copy'))
    what.add_argument('--stacks', type=argparse.FileType(), metavar='FILE')
    parser.add_argument('--dicts', type=int, default=10_000)
    parser.add_argument('--seconds', type=float, default=3)
    parser.add_argument('--below', action='append', metavar='FUNCTION')
    parser.add_argument('--out', required=True, metavar='FILE')
    parser.add_argument('program', nargs='*')
    args = parser.parse_args()
    if args.stacks:
        text, title = args.stacks.read(), args.stacks.name
    else:
        words, below, title = args.program, args.below, ' '.join(args.program)
        if args.transfer:
            words = [os.path.abspath(__file__), '--run', args.transfer, str(args.dicts),
                     str(args.seconds)]
            args.below = below or TRANSFER
            title = f'{args.transfer} of {args.dicts:,} dicts to another interpreter'
        if not words:
            parser.error('what is to be drawn? --transfer, --stacks or a program')
        with tempfile.TemporaryDirectory() as folder:
            text = record(words, folder)
    root = fold(stacks(text), args.below or ())
    if not root.count:
        sys.exit('no samples' + (f' below {", ".join(args.below)}' if args.below else ''))
    with open(args.out, 'w', encoding='utf-8') as file:
        file.write(draw(root, title))
    print(f'{args.out}: {root.count} samples')


if __name__ == '__main__':
    main()

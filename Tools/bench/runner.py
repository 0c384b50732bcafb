"""How a script that compares the ways in ways.py runs, and where its figures go.

Not a script.  A script here has

    measure(way, **arguments)   in a fresh process: a list of times in seconds (or
                                of numbers of bytes)
    cells(args)                 what to measure, as a list of Cell; args.effort is
                                'smoke', 'quick' (make bench) or 'full' (make bench-full)
    main()                      that calls run(__doc__, cells)

Every cell is measured once a round, and the rounds follow each other, so that what
else the machine does hits all of them alike.  The result is a file in pyperf's format:
one benchmark for a cell, one run for each process.  "python -m pyperf stats FILE" and
its siblings read it, and report.py draws it.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import sysconfig
import time

from benchlib import median, print_table, progress, show, spread
from ways import BUILDS, FOLDER, WAYS

TOP = pathlib.Path(FOLDER).parents[1]
RESULTS = TOP / 'build' / 'bench'
BASELINES = {'stock': 'build/stock/obj/python',
             'freethreaded': 'build/stock/obj-freethreaded/python'}
ROUNDS = {'smoke': 1, 'quick': 3, 'full': 9}
TIMEOUT = {'smoke': 30, 'quick': 60, 'full': 300}     # seconds for a process


@dataclasses.dataclass
class Panel:
    """A picture, and a table, of what can be compared with each other."""
    title: str
    x_label: str                # what the columns are, with the unit
    show: str = 'time'          # 'time', 'rate' (1 / time), 'speed' (base / time), 'bytes'
    y_label: str = 'time'       # what a figure is, without the unit
    base: str = ''              # for 'speed': 'WAY' at the same x, or 'WAY|X'
    limit: str = ''             # the name of a figure of limits.py, to draw with it
    per_x: int = 0              # and that is multiplied by this and x


@dataclasses.dataclass
class Cell:
    panel: Panel
    x: object                   # a number or a str
    way: object                 # the name of a Way, or a Way
    arguments: dict             # for measure()
    label: str = ''             # in place of the way's name

    def name(self):
        return self.label or (self.way if isinstance(self.way, str)
                              else self.way.name)


class Failed(Exception):
    pass


# --- The Pythons -------------------------------------------------------------

def clean_environment():
    return {name: value for name, value in os.environ.items()
            if not name.startswith('PYTHON')}


def ask(python):
    """What a Python is, or None."""
    code = ('import json, sys, sysconfig; v = sysconfig.get_config_var;'
            ' print(json.dumps([sys.version, v("CONFIG_ARGS"), v("CC"),'
            ' v("CFLAGS")]))')
    try:
        proc = subprocess.run([python, '-c', code], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, timeout=60,
                              env=clean_environment())
        return json.loads(proc.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def find_builds(args):
    """{name of the build: path} of those that are there; says which are not."""
    places = {'this': sys.executable, 'stock': args.stock,
              'freethreaded': args.freethreaded}
    found = {}
    for name, python in places.items():
        about = ask(python)
        if about is None:
            print(f'missing: {BUILDS[name]} ({os.path.relpath(python)})',
                  file=sys.stderr)
        else:
            found[name] = python, about
    return found


def last_commit():
    """Of the checkout, with + if files have been changed; '' if that can't be told."""
    try:
        proc = subprocess.run(['git', 'describe', '--always', '--dirty=+', '--exclude=*'],
                              cwd=TOP, text=True, timeout=60, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return ''
    return proc.stdout.strip() if proc.returncode == 0 else ''


def about_machine(builds):
    """For the head of a report; only str, as pyperf has it."""
    model = 'unknown'
    try:
        for line in open('/proc/cpuinfo', encoding='utf-8'):
            if line.startswith('model name'):
                model = line.partition(':')[2].strip()
                break
    except OSError:
        pass
    about = {'cpu_model_name': model,
             'cpu_count': os.cpu_count(),
             'usable_cpus': len(os.sched_getaffinity(0)),
             'memory': f'{os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30:.0f} GiB',
             'platform': platform.platform(),
             'load_avg_1min': os.getloadavg()[0]}
    commit = last_commit()
    if commit:
        about['commit'] = commit
    for name, (_, (version, configured, compiler, flags)) in builds.items():
        about[f'build_{name}'] = ' '.join(version.split())
        about[f'flags_{name}'] = f'configure {configured}; {compiler} {flags}'
    return about


# --- Measuring ---------------------------------------------------------------

def measure_here(script, name, way, arguments):
    """Runs in the fresh process: prints what the script's measure() returns."""
    # A worker must be able to import what it is to run.
    module = importlib.import_module(pathlib.Path(script).stem)
    # Processes that are spawned need not import the script before that.
    del sys.modules['__main__'].__file__
    chosen = next((w for w in getattr(module, 'OWN_WAYS', ()) if w.name == way),
                  None) or WAYS[way]
    values = module.measure(chosen, **json.loads(arguments))
    print(json.dumps([float(value) for value in values]))


def measure(cell, builds, timeout):
    way = WAYS[cell.way] if isinstance(cell.way, str) else cell.way
    command = [builds[way.build][0], *way.options, sys.argv[0], '--measure', way.name,
               json.dumps(cell.arguments)]
    # A session of its own: then its workers can be ended with it.
    proc = subprocess.Popen(command, stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            start_new_session=True, env=clean_environment())
    try:
        out, err = proc.communicate(timeout=timeout)
        if proc.returncode:
            raise Failed(f'status {proc.returncode}\n{err[-2000:]}')
        return json.loads(out)
    except subprocess.TimeoutExpired:
        raise Failed(f'no result after {timeout} s') from None
    finally:
        if proc.poll() is None:
            os.killpg(proc.pid, signal.SIGKILL)
            proc.wait()


def measure_all(cells, builds, rounds, timeout, what):
    """[(cell, [values of a process])], and what failed."""
    runs, failed = [[] for _ in cells], []
    for i in range(rounds):
        for cell, found in zip(cells, runs):
            progress(f'{what}: {i + 1}/{rounds}, {cell.panel.title}, {cell.x},'
                     f' {cell.name()}')
            try:
                found.append(measure(cell, builds, timeout))
            except Failed as exc:
                failed.append(f'{cell.panel.title}, {cell.x}, {cell.name()}: {exc}')
    progress('')
    return [(cell, found) for cell, found in zip(cells, runs) if found], failed


# --- Results -----------------------------------------------------------------

def benchmark(panel, x, way, runs, build=''):
    """In pyperf's format; runs: a list of values for each process."""
    about = {'name': f'{panel.title}: {x}: {way}', 'panel': panel.title, 'x': x,
             'way': way, 'x_label': panel.x_label, 'y_label': panel.y_label,
             'show': panel.show, 'base': panel.base, 'limit': panel.limit,
             'per_x': panel.per_x, 'build': build,
             'unit': 'byte' if panel.show == 'bytes' else 'second'}
    return {'metadata': {k: v for k, v in about.items() if v != ''},
            'runs': [{'values': values} for values in runs]}


def write(path, script, benchmarks, builds, seconds):
    now = datetime.datetime.now().isoformat(' ', 'seconds')
    common = {'script': pathlib.Path(script).stem, 'question': question_of(script),
              'command': command_of(script),
              'date': now, 'seconds': round(seconds), **about_machine(builds)}
    data = {'version': '1.0', 'metadata': common, 'benchmarks': benchmarks}
    text = json.dumps(data, indent=1)
    if path == '-':
        print(text)
    else:
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + '\n', encoding='utf-8')


def write_own(path, script, figures, stock=None):
    """For a script that measures in its own manner; figures: [(panel, x, way, runs)].
    With `stock`, ways whose names begin with that word were measured by that Python."""
    if path:
        builds = {'this': sys.executable, **({'stock': stock} if stock else {})}
        write(path, script,
              [benchmark(panel, x, way, runs, 'stock' if way.startswith('stock ') else 'this')
               for panel, x, way, runs in figures],
              {name: (python, ask(python)) for name, python in builds.items()}, time.process_time())


def command_of(script):
    words = sys.argv[1:]
    if '--json' in words:
        at = words.index('--json')
        del words[at:at + 2]
    return ' '.join(['./python', os.path.relpath(script, TOP), *words])


def question_of(script):
    """The first line of the script's docstring."""
    for line in open(script, encoding='utf-8'):
        if line.startswith('"""'):
            return line.strip().strip('"')
    return ''


def show_bytes(value):
    return f'{value / 1e6:.2f} MB' if abs(value) >= 5e5 else f'{value / 1e3:.1f} kB'


def figure(panel, x, way, middle):
    """The text for a cell; middle: {(x, way): median} of the panel."""
    value = middle[x, way]
    if panel.show == 'bytes':
        return show_bytes(value)
    if panel.show == 'rate':
        return f'{1 / value:,.0f}/s' if value < 1 else f'{1 / value:.2f}/s'
    if panel.show == 'speed':
        base, _, at = panel.base.partition('|')
        for key in middle:
            if key[1] == base and str(key[0]) == (at or str(x)):
                return f'{middle[key] / value:.3f}'
        return f'({show(value)})'       # its base is not there
    return show(value)


def print_panel(panel, results):
    middle, noise = {}, {}
    for cell, runs in results:
        values = [value for run in runs for value in run]
        middle[cell.x, cell.name()] = median(values)
        # What differs from process to process is what a repetition would show.
        noise[cell.x, cell.name()] = spread([median(run) for run in runs])
    xs = list(dict.fromkeys(x for x, _ in middle))
    ways = list(dict.fromkeys(way for _, way in middle))
    print(f'{panel.title} ({panel.y_label}; {panel.x_label})')
    head = ['']
    for x in xs:
        head += [f'{x:,}' if isinstance(x, int) else x, '+-']
    rows = []
    for way in ways:
        row = [way]
        for x in xs:
            there = (x, way) in middle
            row += [figure(panel, x, way, middle) if there else '',
                    f'{noise[x, way]:.0f}%' if there else '']
        rows.append(row)
    print_table(head, rows)
    print()


# --- The script --------------------------------------------------------------

def parse(doc, add):
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog='The head of the script says how to read the tables.')
    effort = parser.add_mutually_exclusive_group()
    for name, text in (('smoke', 'sees in seconds that it works; the figures mean nothing'),
                       ('full', 'more of everything')):
        effort.add_argument(f'--{name}', dest='effort', action='store_const',
                            const=name, default='quick', help=text)
    parser.add_argument('--rounds', type=int,
                        help='how many processes for each figure (default: '
                             + ', '.join(f'{n} {k}' for k, n in ROUNDS.items()) + ')')
    parser.add_argument('--only', nargs='+', metavar='WORD',
                        help='only figures with one of these words in their name')
    parser.add_argument('--json', metavar='FILE', help='write all results there (-: stdout)')
    for build, python in BASELINES.items():
        parser.add_argument(f'--{build}', metavar='PYTHON', default=str(TOP / python),
                            help=f'default: {python}')
    if add is not None:
        add(parser)
    args = parser.parse_args()
    if args.rounds is None:
        args.rounds = ROUNDS[args.effort]
    if args.rounds < 1:
        parser.error('--rounds must be positive')
    return args


def run(doc, cells, add=None, check=None):
    """The whole of a script; add(parser) adds options, check(args, results) gives
    texts of what missed its goal."""
    if sys.argv[1:2] == ['--measure']:
        return measure_here(sys.argv[0], *sys.argv[1:])
    args = parse(doc, add)
    builds = find_builds(args)
    wanted = [cell for cell in cells(args)
              if (WAYS[cell.way] if isinstance(cell.way, str) else cell.way).build
              in builds]
    if args.only:
        wanted = [cell for cell in wanted
                  if any(word in f'{cell.panel.title}: {cell.x}: {cell.name()}'
                         for word in args.only)]
    script, began = os.path.abspath(sys.argv[0]), time.monotonic()
    results, failed = measure_all(wanted, builds, args.rounds,
                                  TIMEOUT[args.effort], pathlib.Path(script).stem)
    if args.json != '-':
        for panel in dict.fromkeys(id(cell.panel) for cell, _ in results):
            part = [r for r in results if id(r[0].panel) == panel]
            print_panel(part[0][0].panel, part)
    if args.json:
        write(args.json, script,
              [benchmark(cell.panel, cell.x, cell.name(), runs,
                         (WAYS[cell.way] if isinstance(cell.way, str) else cell.way).build)
               for cell, runs in results],
              builds, time.monotonic() - began)
    missed = check(args, results) if check else []
    for text in failed:
        print(f'failed: {text}', file=sys.stderr)
    for text in missed:
        print(f'missed: {text}')
    sys.exit(1 if failed or missed else 0)

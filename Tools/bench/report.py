#!/usr/bin/env python3
"""Make a page with pictures of what the benchmarks found: make bench-report.

Usage
    make bench && make bench-report             # build/bench/report.html
    python Tools/bench/report.py [--results DIR] [--out FILE]
    python Tools/bench/report.py --rst Doc/internals/report.rst   # for the documentation

Reads the results of run_all.py (DIR/*.json) and of pyperformance_compare.py
(DIR/pyperformance/table.json).  Needs matplotlib: without it, this goes on in
build/bench/venv, which it makes.

--rst writes what the scripts printed (DIR/*.txt), with the machine and the commands, in
place of the page; it needs no matplotlib.

The page is one file.  Each picture is drawn once: its colours are variables of the
page, which has a light and a dark set of them.
"""

import argparse
import ast
import html
import io
import json
import os
import pathlib
import re
import statistics
import sys
import textwrap

from limits import LIMITS as MEASURED

TOP = pathlib.Path(__file__).resolve().parents[2]
RESULTS = TOP / 'build' / 'bench'
PACKAGES = ['matplotlib', 'pyperf']     # pyperf: to look further into the results

# The colours: a variable of the page, then light and dark.
COLOURS = {
    'text': ('#1c1e21', '#e4e6ea'), 'faint': ('#5c6370', '#a0a7b4'),
    'grid': ('#dfe2e7', '#343a44'), 'page': ('#ffffff', '#16181d'),
    'box': ('#f5f6f8', '#1f232a'), 'link': ('#0b5cc0', '#7db7ff'),
    'this': ('#0b62c4', '#5aa9ff'), 'moved': ('#008a9c', '#35cfe0'),
    'stock': ('#c2570c', '#ff9d57'), 'one': ('#2a7d2e', '#6cc96f'),
    'two': ('#8a7400', '#d9c545'), 'three': ('#96533a', '#d8a18a'),
    'threads': ('#6a7078', '#a9b0ba'), 'free': ('#8e3fb0', '#cf8cf0'),
    'other': ('#b0305c', '#ff86ab'),
}
# matplotlib wants colours: each stands for a variable.
STAND_IN = {name: f'#0a0b{i:02x}' for i, name in enumerate(COLOURS)}
# How a way is drawn: by the first of these words in its name.
STYLES = [
    ('this machine', 'this', 'o'),
    ('RWPython, inside', 'moved', 'D'), ('stock, inside', 'two', 'P'),
    ('stock pickle', 'threads', 'd'), ('stock pipe', 'two', 'P'),
    ('put_many', 'other', 'v'), ('moved', 'moved', 'D'), ('without GIL', 'free', '*'),
    ('stock interp', 'stock', 's'), ('spawn', 'two', 'P'), ('fork', 'one', '^'),
    ('shared memory', 'three', 'X'), ('Pipe', 'one', '^'), ('Queue', 'two', 'P'),
    ('nterpreter', 'this', 'o'), ('hreads', 'threads', 'd'), ('hreadPool', 'threads', 'd'),
    ('one thread', 'other', 'v'), ('one after', 'other', 'v'), ('gc.collect', 'threads', 'd'),
    ('RWPython', 'this', 'o'), ('copy there', 'other', 'v'), ('move there', 'free', '*'),
    ('move', 'moved', 'D'), ('open', 'this', 'o'),
    ('queue', 'this', 'o'), ('copy', 'this', 'o'), ('pair', 'this', 'o'), ('put', 'this', 'o'),
    ('pack', 'moved', 'D'), ('pickle', 'stock', 's'), ('loads', 'stock', 's'),
    ('pipe', 'one', '^'), ('global', 'stock', 's'), ('elsewhere', 'one', '^'),
    ('alone', 'threads', 'd'), ('stock', 'stock', 's'),
]
LIMITS = {'futex': 'limit: waking up, there and back',
          'copy': 'limit: copying in memory', 'walk': 'limit: touching each object',
          'thread': 'limit: a bare thread'}
SCRIPTS = ['scaling', 'messages', 'graphs', 'transfer', 'buffers', 'open_flat',
           'small_messages', 'pipeline', 'fan', 'pool_map', 'read_mostly', 'lifecycle',
           'worker_memory', 'bystander', 'write_section', 'one_thread_time', 'limits']


# --- Reading -----------------------------------------------------------------

class Series:
    """The figures of one way in one panel: {x: (low, middle, high)}, as times or bytes."""

    def __init__(self, way):
        self.way = way
        self.points = {}
        colour, self.marker = next(((c, m) for word, c, m in STYLES if word in way),
                                   ('other', 'v'))
        self.colour = STAND_IN[colour]


class Picture:
    """A panel of runner.py."""

    def __init__(self, about):
        for key in 'panel', 'x_label', 'y_label', 'show', 'base', 'limit', 'per_x':
            setattr(self, key, about.get(key, 0 if key == 'per_x' else ''))
        self.series = {}

    def add(self, about, values):
        series = self.series.setdefault(about['way'], Series(about['way']))
        middle = statistics.median(values)
        low, _, high = (statistics.quantiles(values, n=4, method='inclusive')
                        if len(values) > 1 else (middle,) * 3)
        series.points[about['x']] = low, middle, high

    def settle(self):
        """Without the baseline there is no speed, but there are times."""
        base, _, at = self.base.partition('|')
        points = self.series[base].points if base in self.series else {}
        if self.show == 'speed' and not (points if not at else at in map(str, points)):
            self.show, self.y_label = 'time', 'time for one'

    def xs(self):
        return list(dict.fromkeys(x for series in self.series.values()
                                  for x in series.points))

    def numeric(self):
        return len(self.xs()) > 1 and not any(isinstance(x, str) for x in self.xs())

    def ways(self):
        return list(self.series.values())

    def shown(self, series, x):
        """(low, middle, high) as they are drawn, or None."""
        if x not in series.points:
            return None
        low, middle, high = series.points[x]
        if self.show == 'rate':
            return 1 / high, 1 / middle, 1 / low
        if self.show == 'speed':
            base, _, at = self.base.partition('|')
            points = self.series[base].points if base in self.series else {}
            reference = next((p for key, p in points.items()
                              if str(key) == (at or str(x))), None)
            if reference is None:
                return None
            return tuple(reference[1] / value for value in (high, middle, low))
        return low, middle, high

    def text(self, value):
        if self.show == 'rate':
            return quantity(value, (('M/s', 1e6), ('k/s', 1e3), ('/s', 1)))
        if self.show == 'speed':
            return f'{value:.2f}'
        if self.show == 'bytes':
            return quantity(value, (('MB', 1e6), ('kB', 1e3), ('B', 1)))
        return quantity(value, (('s', 1), ('ms', 1e-3), ('us', 1e-6), ('ns', 1e-9)))

    def axis(self):
        better = 'more' if self.show in ('rate', 'speed') else 'less'
        return f'{self.y_label}\n({better} is better)'


def quantity(value, units):
    size = abs(value)
    name, factor = next(((n, f) for n, f in units if size >= f * 0.9995), units[-1])
    value /= factor
    digits = 0 if abs(value) >= 99.95 else 1 if abs(value) >= 9.995 else 2
    text = f'{value:.{digits}f}'
    if '.' in text:
        text = text.rstrip('0').rstrip('.')
    return f'{text} {name}' if not name.startswith('/') else f'{text}{name}'


def number(x):
    if isinstance(x, int):
        for name, factor in ('M', 10**6), ('k', 10**3):
            if x >= 10 * factor or x == factor:
                return f'{x / factor:g} {name}'
    return str(x)


def is_result(path):
    """Not so, for one, if a script writes something of its own."""
    try:
        return 'benchmarks' in json.loads(path.read_text(encoding='utf-8'))
    except ValueError:
        return False


def read(path):
    data = json.loads(path.read_text(encoding='utf-8'))
    pictures = {}
    for benchmark in data['benchmarks']:
        about = {**data['metadata'], **benchmark['metadata']}
        picture = pictures.setdefault(about['panel'], Picture(about))
        picture.add(about, [value for run in benchmark['runs'] for value in run['values']])
    for picture in pictures.values():
        picture.settle()
    return data['metadata'], list(pictures.values())


# --- Drawing -----------------------------------------------------------------

def set_up():
    import matplotlib
    matplotlib.use('svg')
    text, faint, grid = (STAND_IN[name] for name in ('text', 'faint', 'grid'))
    matplotlib.rcParams.update({
        'svg.fonttype': 'path', 'svg.hashsalt': 'rwpython', 'font.size': 8,
        'font.family': 'DejaVu Sans', 'text.color': text, 'axes.labelcolor': text,
        'axes.titlesize': 9, 'axes.edgecolor': faint, 'xtick.color': faint,
        'ytick.color': faint, 'xtick.labelcolor': text, 'ytick.labelcolor': text,
        'grid.color': grid, 'axes.grid': True, 'axes.axisbelow': True,
        'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
        'figure.facecolor': 'none', 'axes.facecolor': 'none', 'savefig.facecolor': 'none',
        'lines.linewidth': 1.4, 'lines.markersize': 5, 'figure.constrained_layout.use': True})


def finish(figure, name, description):
    """The figure as SVG for the page."""
    from matplotlib import pyplot
    out = io.StringIO()
    figure.savefig(out, format='svg', metadata={'Date': None, 'Creator': None})
    pyplot.close(figure)
    text = out.getvalue()
    text = text[text.index('<svg'):]
    for variable, colour in STAND_IN.items():
        text = text.replace(colour, f'var(--{variable})')
    # Names of parts must differ from those of the other pictures.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'"#(?=[\w-])', f'"#{name}-', text)
    text = re.sub(r'url\(#', f'url(#{name}-', text)
    return text.replace('<svg', f'<svg role="img" aria-label="{html.escape(description)}"', 1)


def legend(figure, axes):
    handles = {}
    for part in axes:
        for handle, label in zip(*part.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if len(handles) > 1:
        columns = 4 if max(map(len, handles)) < 25 else 3
        figure.legend(handles.values(), handles.keys(), loc='outside upper left',
                      ncols=columns, fontsize=8, handlelength=2.2, columnspacing=1.4)


def limit_line(picture, limits, xs):
    seconds = limits.get(picture.limit)
    if seconds is None or picture.show != 'time':
        return None
    return [seconds * (x * picture.per_x if picture.per_x else 1) for x in xs]


def draw_lines(axes, picture, limits):
    from matplotlib.ticker import FuncFormatter, NullFormatter
    xs = picture.xs()
    linear = picture.show == 'speed'
    for series in picture.ways():
        points = [(x, *picture.shown(series, x)) for x in xs
                  if picture.shown(series, x)]
        if not points:
            continue
        at, low, middle, high = zip(*points)
        axes.errorbar(at, middle, [[m - l for m, l in zip(middle, low)],
                                   [h - m for m, h in zip(middle, high)]],
                      color=series.colour, marker=series.marker, label=series.way,
                      elinewidth=0.8, capsize=2, markeredgewidth=0)
    line = limit_line(picture, limits, xs)
    if line:
        axes.plot(xs, line, color=STAND_IN['faint'], linestyle=':', label=LIMITS[picture.limit])
    if not linear:
        axes.set_yscale('log')
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: picture.text(v)))
    if max(xs) <= 10:
        axes.set_xlim(min(xs) - 0.25, max(xs) + 0.25)
    else:
        axes.set_xscale('symlog' if 0 in xs else 'log', **({'linthresh': 1} if 0 in xs else {}))
    if min(xs) == 0:
        axes.set_xlim(left=-0.3)
    axes.set_xticks(xs, map(number, xs))
    axes.set_xticks([], minor=True)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.axis())


def draw_dots(axes, picture, limits):
    """Each x is a band of rows, and each way a row of it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter
    xs, ways = picture.xs(), picture.ways()
    band = len(ways) + 1
    values = []
    for j, series in enumerate(ways):
        at, found = [], []
        for i, x in enumerate(xs):
            if (shown := picture.shown(series, x)) is not None:
                at.append(i * band + j)
                found.append(shown)
        if not found:
            continue
        low, middle, high = zip(*found)
        values += [value for value in low + high if value > 0]
        axes.errorbar(middle, at, xerr=[[m - l for m, l in zip(middle, low)],
                                        [h - m for m, h in zip(middle, high)]],
                      color=series.colour, marker=series.marker, linestyle='none',
                      label=series.way, elinewidth=0.8, capsize=2, markeredgewidth=0)
        for y, m, h in zip(at, middle, high):
            axes.annotate(picture.text(m), (max(h, m), y), (6, 0), textcoords='offset points',
                          va='center', fontsize=7,
                          bbox={'facecolor': STAND_IN['page'], 'edgecolor': 'none', 'pad': 0.6})
    line = limit_line(picture, limits, [1])
    if line:
        axes.axvline(line[0], color=STAND_IN['faint'], linestyle=':',
                     label=LIMITS[picture.limit])
        values += line
    linear = picture.show == 'speed' or (
        picture.show == 'bytes' and any(series.points[x][1] <= 0 for series in ways
                                        for x in series.points))
    if picture.show == 'speed':
        axes.axvline(1, color=STAND_IN['faint'], linewidth=0.8)
    if linear:
        axes.set_xlim(left=min(0, *values), right=max(values) * 1.12)
    else:
        axes.set_xscale('log')
        least, most = min(values), max(values)
        room = (most / least) ** 0.16
        axes.set_xlim(least / 1.5, most * max(room, 1.6))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: picture.text(v)))
    axes.set_yticks([i * band + (len(ways) - 1) / 2 for i in range(len(xs))],
                    [wrapped(number(x)) for x in xs])
    for i in range(1, len(xs)):
        axes.axhline(i * band - 1, color=STAND_IN['grid'], linewidth=0.8)
    axes.set_ylim(len(xs) * band - 1, -1)
    axes.tick_params(axis='y', length=0)
    axes.grid(axis='y', visible=False)
    axes.set_xlabel(picture.axis().replace('\n', ' '))
    # Its length is to fit the height.
    axes.set_ylabel(textwrap.fill(picture.x_label, max(16, len(xs) * band * 2)))


def wrapped(text):
    return '\n'.join(textwrap.wrap(text, 26))


def draw(name, pictures, limits):
    """One figure for panels that belong together."""
    from matplotlib import pyplot
    title = pictures[0].panel.partition(': ')[0]
    if pictures[0].numeric():
        columns = min(3, len(pictures))
        rows = -(-len(pictures) // columns)
        figure, grid = pyplot.subplots(
            rows, columns, squeeze=False, sharey=len(pictures) > 1,
            figsize=(7.6, 4.2 if len(pictures) == 1 else 0.7 + 2.5 * rows))
        axes = list(grid.flat)
        for part, picture in zip(axes, pictures):
            draw_lines(part, picture, limits)
        if pictures[0].show == 'speed':
            # For all of them, as they share it.
            most = max(shown[2] for picture in pictures for series in picture.ways()
                       for x in series.points if (shown := picture.shown(series, x)))
            axes[0].set_ylim(0, most * 1.06)
        for part in axes[len(pictures):]:
            part.set_visible(False)
        for part in grid[:, 1:].flat:
            part.set_ylabel('')
    else:
        heights = [0.155 * (len(p.ways()) + 1) * len(p.xs()) + 0.5 for p in pictures]
        figure, grid = pyplot.subplots(
            len(pictures), 1, squeeze=False, figsize=(7.6, sum(heights) + 0.7),
            height_ratios=heights)
        axes = list(grid.flat)
        for part, picture in zip(axes, pictures):
            draw_dots(part, picture, limits)
    if len(pictures) > 1:
        for part, picture in zip(axes, pictures):
            part.set_title(picture.panel.partition(': ')[2], loc='left')
    legend(figure, axes)
    return finish(figure, name, title)


def draw_suite(table):
    """pyperformance: a row for each benchmark."""
    from matplotlib import pyplot
    rows = table['rows']
    figure, axes = pyplot.subplots(figsize=(7.6, 0.13 * len(rows) + 1))
    for i, row in enumerate(rows):
        if 0 < row['low'] and row['high'] < float('inf'):
            axes.plot([row['low'], row['high']], [i, i], color=STAND_IN['this'], linewidth=0.8)
        axes.plot(row['speed'], i, 'o', color=STAND_IN['this'], markersize=3.5)
    axes.axvline(1, color=STAND_IN['faint'], linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row['name'] for row in rows], fontsize=6)
    axes.set_ylim(-1, len(rows))
    axes.grid(axis='y', visible=False)
    axes.set_xlabel('speed, stock = 1; more is better; the lines are 95 % intervals')
    return finish(figure, 'pyperformance', 'pyperformance against stock')


# --- The page ----------------------------------------------------------------

STYLE = """
body { background: var(--page); color: var(--text); margin: 0 auto; max-width: 62rem;
       padding: 1rem 1.2rem 4rem; font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 1rem 0 .2rem; } h2 { margin: 3rem 0 .3rem; } h3 { margin: 1.6rem 0 .3rem; }
a { color: var(--link); } p { margin: .4rem 0; } .faint { color: var(--faint); }
figure { margin: .6rem 0; overflow-x: auto; }
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; }
code, pre { font-family: ui-monospace, monospace; font-size: .86rem; }
pre { background: var(--box); padding: .7rem .9rem; overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; margin: .5rem 0; }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--grid); font-variant-numeric: tabular-nums; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.about th, .about td { text-align: left; white-space: normal; vertical-align: top;
                       overflow-wrap: anywhere; }
.about th { white-space: nowrap; }
summary { cursor: pointer; color: var(--link); }
nav { columns: 22rem; font-size: .92rem; margin: 1rem 0; } nav a { display: block; }
"""


def variables(index):
    return ' '.join(f'--{name}: {pair[index]};' for name, pair in COLOURS.items())


def cell(picture, series, x):
    shown = picture.shown(series, x)
    if shown is None:
        return '<td></td>'
    low, middle, high = shown
    noise = (high - low) / abs(middle) * 100 if middle else 0
    return (f'<td>{html.escape(picture.text(middle))}'
            f' <span class="faint">±{noise / 2:.0f} %</span></td>')


def table(picture):
    xs = picture.xs()
    if len(xs) > 8 > len(picture.series):
        ways = picture.ways()
        head = ''.join(f'<th>{html.escape(series.way)}</th>' for series in ways)
        rows = ''.join(f'<tr><td>{html.escape(number(x))}</td>'
                       + ''.join(cell(picture, series, x) for series in ways) + '</tr>'
                       for x in xs)
        return (f'<div class="scroll"><table><tr><th>{html.escape(picture.x_label)}</th>'
                f'{head}</tr>{rows}</table></div>')
    head = ''.join(f'<th>{html.escape(number(x))}</th>' for x in xs)
    rows = ''.join(f'<tr><td>{html.escape(series.way)}</td>'
                   + ''.join(cell(picture, series, x) for x in xs) + '</tr>'
                   for series in picture.ways())
    return (f'<div class="scroll"><table><tr><th>{html.escape(picture.x_label)}</th>{head}</tr>'
            f'{rows}</table></div>')


def groups(pictures):
    """Panels whose titles begin alike and are drawn alike belong together."""
    found = {}
    for picture in pictures:
        key = picture.panel.partition(': ')[0], picture.numeric(), picture.show
        found.setdefault(key, []).append(picture)
    return list(found.values())


def docstring(script):
    path = pathlib.Path(__file__).with_name(f'{script}.py')
    if not path.exists():
        return ''
    return ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''


def section(script, about, ran, pictures, limits):
    parts = [f'<h2 id="{script}">{html.escape(about["question"])}</h2>',
             f'<p class="faint"><code>{html.escape(about["command"])}</code>;'
             f' {html.escape(ran)}</p>',
             f'<details><summary>How it is measured, and how to read it</summary>'
             f'<pre>{html.escape(docstring(script))}</pre></details>']
    for i, group in enumerate(groups(pictures)):
        title = group[0].panel.partition(': ')[0] if len(group) > 1 else group[0].panel
        if title != about['question']:
            parts.append(f'<h3>{html.escape(title)}</h3>')
        parts.append(f'<figure>{draw(f"{script}{i}", group, limits)}</figure>')
        tables = ''.join((f'<p>{html.escape(p.panel)}</p>' if len(group) > 1 else '') + table(p)
                         for p in group)
        parts.append(f'<details><summary>The figures</summary>{tables}</details>')
    return '\n'.join(parts)


def suite_section(data):
    parts = ['<h2 id="pyperformance">How fast is this Python in pyperformance, against stock?</h2>',
             f'<p class="faint"><code>{html.escape(data["command"])}</code>;'
             f' {html.escape(data["date"])}</p>',
             f'<p>{len(data["rows"])} benchmarks, geometric mean {data["mean"][1]:.4f}'
             f' ({data["mean"][0]:.4f} to {data["mean"][2]:.4f}); memory, of stock\'s:'
             f' {data["memory"]:.4f}.</p>',
             f'<figure>{draw_suite(data)}</figure>']
    rows = ''.join(f'<tr><td>{html.escape(row["name"])}</td><td>{row["speed"]:.3f}</td>'
                   + ''.join(f'<td>{row[end]:.3f}</td>' if 0 < row[end] < float('inf') else '<td>?</td>'
                             for end in ('low', 'high'))
                   + f'<td>{row["clock"]}</td>'
                   f'<td>{row["elapsed"]:.3f}</td><td>{row["memory"]:.3f}</td></tr>'
                   for row in data['rows'])
    parts.append('<details><summary>The figures</summary><div class="scroll"><table><tr><th>benchmark'
                 '</th><th>speed, stock = 1</th><th>at least</th><th>at most</th><th>time is</th>'
                 '<th>by elapsed time</th><th>memory, stock = 1</th></tr>'
                 f'{rows}</table></div></details>')
    return '\n'.join(parts)


def describe(about):
    """[(what, text)]: the machine and the builds."""
    words = [('Processor', f'{about["cpu_model_name"]}, {about["usable_cpus"]} of'
              f' {about["cpu_count"]} cores'), ('Memory', about['memory']),
             ('System', about['platform'])]
    for name, text in (('this', 'RWPython'), ('stock', 'stock'),
                       ('freethreaded', 'stock without GIL')):
        if f'build_{name}' in about:
            words.append((text, f'{about[f"build_{name}"]}; {about[f"flags_{name}"]}'))
        else:
            words.append((text, 'not measured: it was not built'))
    return words


def about_table(about):
    rows = ''.join(f'<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>'
                   for key, value in describe(about))
    return f'<table class="about">{rows}</table>'


def read_all(results):
    """({script: what read() returns}, about the machine, dates)"""
    there = {path.stem: path for path in sorted(results.glob('*.json')) if is_result(path)}
    found = {script: read(there[script])
             for script in [*SCRIPTS, *sorted(there.keys() - set(SCRIPTS))] if script in there}
    if not found:
        sys.exit(f'no results in {results}; next: make bench')
    # The machine and the builds, from the script that knows most of them.
    about = max((about for about, _ in found.values()), key=len)
    return found, about, sorted(about['date'] for about, _ in found.values())


def when(one, found):
    """When a script ran, on what commit, and on which of several builds."""
    text = one['date'] + (f', commit {one["commit"]}' if 'commit' in one else '')
    if len({other.get('build_this') for other, _ in found.values()}) > 1:
        text += f', RWPython {one["build_this"]}'
    return text


def heading(text, underline):
    return [text, underline * len(text), '']


def text_page(results):
    """The same as reStructuredText, without pictures."""
    found, about, dates = read_all(results)
    full = any('--full' in one['command'].split() for one, _ in found.values())
    lines = [*heading('The last full report' if full else 'The last report', '='),
             f'What the benchmarks printed from {dates[0]} to {dates[-1]}.  Times are medians, and ``+-`` is',
             'the interquartile range in percent; the head of each script says how it measures, and',
             ':doc:`measurements` what the figures mean.', '',
             '.. code-block:: shell', '',
             f'   make stock stock-freethreaded && make bench{"-full" if full else ""}',
             '   python3 Tools/bench/report.py --rst Doc/internals/report.rst    # this page', '',
             *(f'* {key}: ``{value}``' for key, value in describe(about)), '']
    for script, (one, _) in found.items():
        printed = results / f'{script}.txt'
        if printed.exists():
            text = printed.read_text(encoding='utf-8')
            lines += [*heading(one['question'], '-'),
                      f'``{one["command"]}``; {when(one, found)}', '',
                      '.. code-block:: text', '',
                      *(f'   {line}'.rstrip() for line in text.strip('\n').splitlines()), '']
    return '\n'.join(lines)


def page(results):
    found, about, dates = read_all(results)
    limits = {}
    if 'limits' in found:
        points = found['limits'][1][0].ways()[0].points
        limits = {name: points[label][1] for name, label in MEASURED.items()
                  if label in points}
    busiest = max(about['load_avg_1min'] for about, _ in found.values())
    body, links = [], []
    suite = results / 'pyperformance' / 'table.json'
    for script, (one, pictures) in found.items():
        links.append(f'<a href="#{script}">{html.escape(one["question"])}</a>')
        body.append(section(script, one, when(one, found), pictures, limits))
    if suite.exists():
        links.append('<a href="#pyperformance">How fast is this Python in pyperformance?</a>')
        body.append(suite_section(json.loads(suite.read_text(encoding='utf-8'))))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>RWPython, measured</title>
<style>
:root {{ {variables(0)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {variables(1)} }} }}
{STYLE}
</style>
</head>
<body>
<h1>RWPython, measured</h1>
<p class="faint">{html.escape(dates[0])} to {html.escape(dates[-1])}; load average when a script
ended: {busiest:.1f} at most</p>
<p>The same work on RWPython and on what you would use instead.  Points are medians over all
values of all processes, bars their quartiles; where a bar is missing it is smaller than the point.
Most axes are logarithmic.  Where the load average was far above what the scripts make
themselves, other programs ran, and show in the figures.</p>
{about_table(about)}
<nav>{''.join(links)}</nav>
{chr(10).join(body)}
</body>
</html>
"""


def in_venv():
    """Go on with a Python that has matplotlib."""
    sys.path.insert(0, str(TOP / 'Tools' / 'upstream'))
    import build
    RESULTS.mkdir(parents=True, exist_ok=True)
    with build.basetar.errors_shown('bench-report'):
        python = build.tool_venv('bench/venv', PACKAGES)
    os.execv(python, [str(python), *sys.argv])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=pathlib.Path, default=RESULTS, metavar='DIR')
    parser.add_argument('--out', type=pathlib.Path, metavar='FILE',
                        help='default: report.html in DIR')
    parser.add_argument('--rst', type=pathlib.Path, metavar='FILE',
                        help='write the tables as reStructuredText')
    args = parser.parse_args()
    if args.rst:
        args.rst.write_text(text_page(args.results), encoding='utf-8')
        return
    try:
        import matplotlib
    except ImportError:
        in_venv()
    set_up()
    out = args.out or args.results / 'report.html'
    out.write_text(page(args.results), encoding='utf-8')
    print(f'{os.path.relpath(out)}: {out.stat().st_size / 1e6:.1f} MB')


if __name__ == '__main__':
    main()

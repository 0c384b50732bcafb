#!/usr/bin/env python3
"""Does memory stay flat when interpreters with extension modules come and go?

Usage
    ./python Tools/bench/extension_cycles.py [PACKAGE ...] [--site DIR] [--cycles N] [--send]
                                             [--smoke] [--json FILE]

How.  For each package in a fresh process, one interpreter after the other is created,
imports the package, computes something with a checked result and is closed.  After each
tenth of the cycles, memory of the process (resident, from /proc) and its allocated blocks
are read.

    --site    the folder with the packages, see tests/test_wheels.py
              (default: $RWPYTHON_SITE)
    --cycles  how many (default 200)
    --send    each interpreter also sends lists of strings here, before the import and
              after it, and numpy an array of 1 MB, moved; they are looked at and
              dropped when it is closed

How to read the table.  Memory of the process in MiB after the first tenth, half and all
of the cycles; then KiB per cycle in the first half (less the first tenth) and in the second
half, and blocks per cycle in the second.  Flat is about 0 in the second half.  The first row
imports nothing more; `_testsinglephase` is a small module with statics of the
standard library's tests.

What grows is what the module's own C or C++ code has from malloc() and never frees.
"""

import gc
import json
import os
import subprocess
import sys

import benchlib

WORK = {
    'nothing': 'pass',
    '_testsinglephase': 'import _testsinglephase as m; assert m.sum(1, 2) == 3',
    'numpy': 'import numpy as np; a = np.arange(1000.0).reshape(10, 100)\n'
             'assert (a @ a.T).shape == (10, 10) and a.sum() == 499500',
    'pandas': 'import pandas as pd; assert pd.DataFrame({"a": [1, 2, 3]}).a.sum() == 6',
    'scipy': 'from scipy import optimize\n'
             'assert abs(optimize.brentq(lambda x: x * x - 2, 0, 2) ** 2 - 2) < 1e-9',
    'pydantic': 'import pydantic\nclass Model(pydantic.BaseModel):\n    x: int\n'
                'assert Model(x="3").x == 3',
    'matplotlib': 'import io, matplotlib; matplotlib.use("Agg")\n'
                  'import matplotlib.pyplot as plt\n'
                  'plt.plot([1, 2]); plt.savefig(io.BytesIO())',
    'lxml': 'from lxml import etree; assert etree.fromstring("<a><b/></a>")[0].tag == "b"',
    'cryptography': 'from cryptography.fernet import Fernet\nf = Fernet(Fernet.generate_key())\n'
                    'assert f.decrypt(f.encrypt(b"x")) == b"x"',
    'pyarrow': 'import pyarrow as pa, pyarrow.compute as pc\n'
               'assert pc.sum(pa.array([1, 2])).as_py() == 3',
    'orjson': 'import orjson; assert orjson.loads(orjson.dumps([1])) == [1]',
    'regex': 'import regex; assert regex.match("a+", "aaa").end() == 3',
    'cffi': 'import cffi; f = cffi.FFI(); f.cdef("int abs(int);")\n'
            'assert f.dlopen(None).abs(-3) == 3',
}
WITHOUT_SITE = ['nothing', '_testsinglephase']
PARTS = 10


def resident():
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE')


SENT = [str(number) * 3 for number in range(100)]
SEND = '\nqueue.put([str(number) * 3 for number in range(100)])'


def cycle(package, code, send):
    import interpreters
    interp, got = interpreters.create(), []
    try:
        if send:
            queue = interpreters.create_queue()
            interp.prepare_main(queue=queue)
            interp.exec(SEND)
            code += SEND
            if package == 'numpy':
                code += ('\nimport interpreters'
                         '\nqueue.put(interpreters.move(np.full(125_000, 7.5)))')
        interp.exec(code)
        while send and queue.qsize() > 0:
            got.append(queue.get())
    finally:
        interp.close()
    if send:
        benchlib.ensure(got[:2] == [SENT, SENT], 'what was sent')
        benchlib.ensure(len(got) == 2 or got[2].sum() == 937_500, 'the array')


def measure(package, site, cycles, send):
    """In a process of its own: prints (bytes, blocks) after each part, as JSON."""
    code = f'import sys; sys.path.insert(0, {site!r})\n' + WORK[package]
    if send and package == 'numpy':
        sys.path.insert(0, site)
        import numpy        # not by the first array that arrives
    found = []
    for _ in range(PARTS):
        for _ in range(cycles // PARTS):
            cycle(package, code, send)
        gc.collect()
        found.append((resident(), sys.getallocatedblocks()))
    print(json.dumps(found))


def run(package, args):
    done = subprocess.run(
        [sys.executable, __file__, package, '--child', '--cycles', str(args.cycles),
         '--site', args.site or '', *['--send'] * args.send],
        stdout=subprocess.PIPE, text=True, check=False)
    benchlib.ensure(done.returncode == 0, f'the process for {package}')
    return json.loads(done.stdout)


def row(package, found, cycles):
    half = cycles // PARTS * (PARTS // 2)
    first = found[0], found[PARTS // 2 - 1]
    second = found[PARTS // 2 - 1], found[-1]
    def growth(pair, what, n):
        return (pair[1][what] - pair[0][what]) / n
    return (package, *(f'{part[0] / 2**20:.1f}' for part in (*first, second[1])),
            f'{growth(first, 0, half - cycles // PARTS) / 1024:.1f}',
            f'{growth(second, 0, half) / 1024:.1f}',
            f'{growth(second, 1, half):.0f}')


def is_there(package, site):
    return package in WITHOUT_SITE or (
        site and os.path.exists(os.path.join(site, package)))


def main():
    def add(parser):
        parser.add_argument('packages', nargs='*', metavar='PACKAGE',
                            help=f'of {", ".join(WORK)} (default: all that are there)')
        parser.add_argument('--site', default=os.environ.get('RWPYTHON_SITE'))
        parser.add_argument('--cycles', type=int, default=200)
        parser.add_argument('--send', action='store_true')
        parser.add_argument('--child', action='store_true', help='for its own use')
    args = benchlib.parse_args(__doc__, 1, add)
    if unknown := set(args.packages) - set(WORK):
        sys.exit(f'not known here: {", ".join(sorted(unknown))}')
    if args.child:
        return measure(args.packages[0], args.site, args.cycles, args.send)
    packages = args.packages or list(WORK)
    if args.smoke:
        args.cycles = 20
        packages = args.packages or WITHOUT_SITE
    rows, all_found = [], {}
    for package in packages:
        if not is_there(package, args.site):
            print(f'{package} is not in the folder of packages ({args.site})')
            continue
        benchlib.progress(package)
        all_found[package] = run(package, args)
        rows.append(row(package, all_found[package], args.cycles))
    benchlib.progress('')
    tenth, half = args.cycles // PARTS, args.cycles // PARTS * (PARTS // 2)
    benchlib.print_table(('package', f'MiB at {tenth}', f'at {half}', f'at {tenth * PARTS}',
                          'KiB per cycle', 'second half', 'blocks per cycle'), rows)
    if args.json:
        with open(args.json, 'w', encoding='utf-8') as file:
            json.dump(all_found, file, indent=1)


if __name__ == '__main__':
    main()

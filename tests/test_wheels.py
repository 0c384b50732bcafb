"""Wheels from PyPI in four interpreters at once: import, a computation with a checked result, close.

They are taken from a folder that $RWPYTHON_SITE names, filled with

    ./python -m pip install --only-binary :all: --target DIR numpy scipy pandas pyarrow pillow lxml cryptography \
        pydantic orjson msgpack regex aiohttp sqlalchemy psutil matplotlib cffi

A package that isn't there is skipped.  With pytest and hypothesis in that folder, modules of NumPy's and pandas' own
tests are run as well, in the main interpreter of stock ($RWPYTHON_STOCK or what `make stock` builds; without it, of
this Python) and in another one of this Python: the second must not fail where the first does not.

`python tests/test_wheels.py` prints the table of the user guide.
"""
import os
import pathlib
import subprocess
import textwrap

import pytest

TOP = pathlib.Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("RWPYTHON") or str(TOP / "python")
STOCK = os.environ.get("RWPYTHON_STOCK") or str(TOP / "build/stock/obj/python")
SITE = os.environ.get("RWPYTHON_SITE")
INTERPRETERS = 4

pytestmark = [
    pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"{PYTHON} is not built"),
    pytest.mark.skipif(not SITE, reason="RWPYTHON_SITE does not name a folder with wheels"),
]

# What each package has to compute.  `k` is different in each interpreter.
WORK = {
    "numpy": """
        import numpy as np
        a = np.random.default_rng(k).random((200, 200)) + 200 * np.eye(200)
        assert np.allclose(a @ np.linalg.inv(a), np.eye(200))
        assert np.allclose(np.fft.ifft(np.fft.fft(a[0])), a[0])
        table = np.array([(i, str(i)) for i in range(k, 100)], dtype=[('n', 'i8'), ('s', 'U5')])
        assert table[table['n'] == 42]['s'][0] == '42'
        assert np.sum(np.arange(k * 1000)) == k * 1000 * (k * 1000 - 1) // 2
        try:
            np.zeros(3) + np.zeros(4)
        except ValueError as exc:
            assert 'broadcast' in str(exc)
    """,
    "scipy": """
        import numpy as np
        from scipy import integrate, interpolate, linalg, optimize, signal, sparse, spatial, special, stats
        assert abs(integrate.quad(lambda x: np.exp(-x * x), -np.inf, np.inf)[0] - np.sqrt(np.pi)) < 1e-8
        assert abs(optimize.brentq(lambda x: x * x - k, 0, k + 1) - np.sqrt(k)) < 1e-9
        assert np.allclose(optimize.minimize(optimize.rosen, [1.3, 0.7, 0.8]).x, 1, atol=1e-3)
        a = np.random.default_rng(k).random((50, 50))
        p, l, u = linalg.lu(a)
        assert np.allclose(p @ l @ u, a)
        m = sparse.diags([1.0, -2.0, 1.0], [-1, 0, 1], shape=(100, 100)).tocsc()
        x = sparse.linalg.spsolve(m, np.ones(100))
        assert np.allclose(m @ x, 1)
        assert abs(special.gamma(k + 0.5) - special.gamma(k - 0.5) * (k - 0.5)) < 1e-9
        assert spatial.KDTree(np.arange(20.0).reshape(10, 2)).query([4.1, 5.1])[1] == 2
        assert abs(stats.norm.cdf(1.96) - 0.975) < 1e-3
        assert abs(interpolate.CubicSpline(range(10), [i * i for i in range(10)])(2.5) - 6.25) < 1e-9
        assert signal.convolve([1, 2, 3], [0, 1, 0.5]).tolist() == [0, 1, 2.5, 4, 1.5]
    """,
    "pandas": """
        import io
        import pandas as pd
        frame = pd.DataFrame({'g': ['a', 'b', 'a', 'b'] * 25, 'v': range(k, 100 + k)})
        assert frame.groupby('g').v.sum().sum() == sum(range(k, 100 + k))
        back = pd.read_csv(io.StringIO(frame.to_csv(index=False)))
        assert back.equals(frame)
        days = pd.date_range('2026-01-01', periods=60, freq='D')
        series = pd.Series(range(60), index=days)
        assert series.resample('MS').sum().tolist() == [465, 1246, 59]
        left = pd.DataFrame({'x': [1, 2, 3], 'y': list('abc')})
        right = pd.DataFrame({'x': [2, 3, 4], 'z': [k, k, k]})
        assert left.merge(right, on='x').z.tolist() == [k, k]
    """,
    "pyarrow": """
        import io
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq
        table = pa.table({'a': list(range(k, k + 1000)), 'b': [str(i) for i in range(1000)]})
        assert pc.sum(table['a']).as_py() == sum(range(k, k + 1000))
        file = io.BytesIO()
        pq.write_table(table, file)
        assert pq.read_table(io.BytesIO(file.getvalue())).equals(table)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        assert pa.ipc.open_stream(sink.getvalue()).read_all().equals(table)
    """,
    "pillow": """
        import io
        from PIL import Image, ImageDraw, ImageFilter
        image = Image.new('RGB', (64, 64), (255, 0, 0))
        ImageDraw.Draw(image).rectangle([16, 16, 47, 47], fill=(0, 0, 255))
        file = io.BytesIO()
        image.resize((32, 32)).save(file, 'PNG')
        again = Image.open(io.BytesIO(file.getvalue()))
        assert again.size == (32, 32) and again.getpixel((16, 16)) == (0, 0, 255)
        image.filter(ImageFilter.GaussianBlur(k)).save(io.BytesIO(), 'JPEG')
    """,
    "lxml": """
        from lxml import etree, html
        root = etree.fromstring('<a>' + ''.join(f'<b n="{i}">{i * k}</b>' for i in range(100)) + '</a>')
        assert root.xpath('//b[@n="7"]/text()') == [str(7 * k)]
        sheet = etree.XSLT(etree.XML('''<xsl:stylesheet version="1.0"
            xmlns:xsl="http://www.w3.org/1999/XSL/Transform"><xsl:template match="/">
            <n><xsl:value-of select="count(//b)"/></n></xsl:template></xsl:stylesheet>'''))
        assert sheet(root).getroot().text == '100'
        assert html.fromstring('<p>one<p>two').xpath('//p')[1].text == 'two'
    """,
    "cryptography": """
        from cryptography.fernet import Fernet
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        box = Fernet(Fernet.generate_key())
        assert box.decrypt(box.encrypt(b'x' * k)) == b'x' * k
        key = ec.generate_private_key(ec.SECP256R1())
        key.public_key().verify(key.sign(b'data', ec.ECDSA(hashes.SHA256())), b'data', ec.ECDSA(hashes.SHA256()))
    """,
    "pydantic": """
        import pydantic
        class Item(pydantic.BaseModel):
            name: str
            sizes: list[int] = []
        item = Item.model_validate_json('{"name": "n", "sizes": ["1", 2]}')
        assert item.sizes == [1, 2] and Item.model_validate(item.model_dump()) == item
        try:
            Item(name=k)
        except pydantic.ValidationError as exc:
            assert exc.error_count() == 1
    """,
    "orjson": """
        import orjson
        data = {'a': [k, 1.5, None, True], 'b': {'c': 'text'}}
        assert orjson.loads(orjson.dumps(data)) == data
    """,
    "msgpack": """
        import msgpack
        data = {'a': [k, 1.5, None, True], 'b': {'c': b'bytes'}}
        assert msgpack.unpackb(msgpack.packb(data)) == data
    """,
    "regex": """
        import regex
        assert regex.findall(r'\\p{Lu}\\w+', 'One two Three') == ['One', 'Three']
        assert regex.fullmatch(r'(?:(\\w)\\d)+', f'a{k}b{k}').captures(1) == ['a', 'b']
    """,
    "aiohttp": """
        import aiohttp, asyncio
        from aiohttp import web
        import aiohttp._http_parser, aiohttp._websocket.mask, multidict._multidict, yarl._quoting_c, frozenlist._frozenlist
        async def handle(request):
            return web.json_response({'k': k, 'path': request.path})
        async def main():
            app = web.Application()
            app.router.add_get('/{tail:.*}', handle)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, '127.0.0.1', 0)
            await site.start()
            port = site._server.sockets[0].getsockname()[1]
            async with aiohttp.ClientSession() as session:
                async with session.get(f'http://127.0.0.1:{port}/some/path') as response:
                    assert await response.json() == {'k': k, 'path': '/some/path'}
            await runner.cleanup()
        asyncio.run(main())
    """,
    "sqlalchemy": """
        import sqlalchemy as sa
        from sqlalchemy import orm
        from sqlalchemy.util import has_compiled_ext
        assert has_compiled_ext()
        class Base(orm.DeclarativeBase): pass
        class Item(Base):
            __tablename__ = 'item'
            id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
            name: orm.Mapped[str]
        engine = sa.create_engine('sqlite://')
        Base.metadata.create_all(engine)
        with orm.Session(engine) as session:
            session.add_all([Item(name=f'n{i}') for i in range(100 * k)])
            session.commit()
            assert session.scalar(sa.select(sa.func.count()).select_from(Item)) == 100 * k
        engine.dispose()
    """,
    "psutil": """
        import os, psutil
        me = psutil.Process()
        assert me.pid == os.getpid() and me.memory_info().rss > 2**20 and psutil.cpu_count() >= 1
    """,
    "matplotlib": """
        import io
        import matplotlib
        matplotlib.use('Agg')
        from matplotlib import pyplot as plt
        figure, axes = plt.subplots()
        axes.plot(range(10), [i ** k for i in range(10)])
        axes.set_title('$x^2$')
        file = io.BytesIO()
        figure.savefig(file, format='png')
        plt.close(figure)
        assert file.getvalue().startswith(b'\\x89PNG') and len(file.getvalue()) > 5000
    """,
    "cffi": """
        import cffi
        ffi = cffi.FFI()
        ffi.cdef('size_t strlen(const char *); void qsort(void *, size_t, size_t, int (*)(const void *, const void *));')
        libc = ffi.dlopen(None)
        assert libc.strlen(b'x' * k) == k
        items = ffi.new('int[]', [3, 1, 2])
        @ffi.callback('int(const void *, const void *)')
        def compare(a, b):
            return ffi.cast('int *', a)[0] - ffi.cast('int *', b)[0]
        libc.qsort(items, 3, 4, compare)
        assert list(items) == [1, 2, 3]
    """,
}

# Arguments: the folder, how many rounds, how many interpreters, the work.
DRIVER = """
import sys, threading
import interpreters
path, rounds, count, work = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
SETUP = 'import sys, warnings; warnings.simplefilter("ignore"); sys.path.insert(0, %r); k = %d'
start = threading.Barrier(count)
done = threading.Barrier(count)
problems = []

def run(k):
    for _ in range(rounds):
        try:
            interp = interpreters.create()
            interp.exec(SETUP % (path, k))
            start.wait(60)
            interp.exec(work)
            done.wait(240)      # all four are open, with the package in use
            if k == 2:
                print(sum(c.nbytes for c in interpreters.extension_copies() if c.interpreter == interp.id))
            interp.close()
        except BaseException as exc:
            problems.append(f'{k}: {exc}')
            start.abort()
            done.abort()
            return

threads = [threading.Thread(target=run, args=(k + 2,)) for k in range(count)]
for t in threads: t.start()
for t in threads: t.join()
sys.exit('\\n'.join(problems) or None)
"""


def run_package(name, rounds=2):
    return subprocess.run([PYTHON, "-X", "faulthandler", "-c", DRIVER, SITE, str(rounds), str(INTERPRETERS),
                           textwrap.dedent(WORK[name])],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True,
                          errors="replace", timeout=600)


def is_there(name):
    module = {"pillow": "PIL"}.get(name, name)
    return os.path.isdir(os.path.join(SITE, module))


@pytest.mark.parametrize("name", WORK)
def test_four_interpreters_at_once(name):
    if not is_there(name):
        pytest.skip(f"{name} is not in $RWPYTHON_SITE")
    done = run_package(name)
    assert done.returncode == 0, done.stdout[-4000:]


CYCLES = """
import gc, os, sys, threading
import interpreters
sys.path.insert(0, sys.argv[1])
import numpy as np
from interpreters import move

CODE = f'''
import sys; sys.path.insert(0, {sys.argv[1]!r})
import numpy as np
from interpreters import move, pack
a = np.arange(1000.0).reshape(10, 100)
assert (a @ a.T).shape == (10, 10)
sent = [str(i) * 20 for i in range(100)], float(a[3, 4])
queue.put(move(sent))
queue.put(a * k)
queue.put(np.array([(k, str(k))], dtype=[('n', 'i8'), ('s', 'U5')]))
queue.put(pack([k + .5, a * k]))
'''

def check(k, sent, array, table, parcel, opened):
    assert sent == ([str(i) * 20 for i in range(100)], 304.0)
    assert (array == np.arange(1000.0).reshape(10, 100) * k).all()
    assert table['n'][0] == k and table['s'][0] == str(k)
    if opened:
        half, again = parcel.open()
        assert half == k + .5 and (again == array).all()

def cycle(k, kept):
    interp, queue = interpreters.create(), interpreters.create_queue()
    interp.prepare_main(queue=queue, k=k)
    interp.exec(CODE)
    # Every third parcel is never opened.
    kept.append((k, *(queue.get(timeout=60) for _ in range(4)), k % 3))
    assert interp.call(np.sqrt, 16.0) == 4
    interp.close()
    if len(kept) > 20:          # they have outlived the next twenty interpreters
        check(*kept.pop(0))

def cycles(n, kept, problems):
    try:
        for k in range(n):
            cycle(k, kept)
    except BaseException as exc:
        problems.append(repr(exc))

def resident():
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE')

problems, kept = [], []
cycles(40, kept, problems)
before = resident()
cycles(60, kept, problems)
print((resident() - before) // 60)
several = [[] for _ in range(4)]
threads = [threading.Thread(target=cycles, args=(10, one, problems)) for one in several]
for t in threads: t.start()
for t in threads: t.join()
for one in kept, *several:
    for given in one:
        check(*given)
left = interpreters.create()    # the exit closes it
left.prepare_main(queue=interpreters.create_queue(), k=1)
left.exec(CODE)
sys.exit('\\n'.join(problems) or None)
"""


def test_numpy_comes_and_goes():
    """Memory stays flat, and what interpreters have given away stays as it was."""
    if not is_there("numpy"):
        pytest.skip("numpy is not in $RWPYTHON_SITE")
    done = subprocess.run([PYTHON, "-X", "faulthandler", "-c", CYCLES, SITE], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    # In bytes: -7,000 to 4,000.  Without giving back it is 730,000.
    assert int(done.stdout) < 30_000


# Modules of the packages' own tests, and those that can't pass in a subinterpreter.
OWN_TESTS = {
    "numpy": ["fft/tests", "linalg/tests/test_linalg.py", "_core/tests/test_dtype.py", "_core/tests/test_numeric.py",
              "_core/tests/test_ufunc.py", "_core/tests/test_umath.py", "_core/tests/test_multiarray.py",
              "random/tests/test_generator_mt19937.py", "lib/tests", "ma/tests"],
    "pandas": ["tests/arithmetic/test_numeric.py", "tests/frame/test_constructors.py", "tests/groupby/test_groupby.py",
               "tests/reshape/merge/test_merge.py", "tests/series/test_constructors.py"],
}
CANT_PASS = {
    "test_xerbla_override",                         # os.fork() is refused there
    "test_subinterpreter_import_fails_cleanly",     # that NumPy can't be imported
}

OWN_TEST = """
import os, sys
sys.path.insert(0, SITE)
import pytest, {package}
class Failed:
    def pytest_runtest_logreport(self, report):
        if report.failed:
            failed.add(report.nodeid.rpartition('/')[2])
failed = set()
folder = os.path.dirname({package}.__file__)
pytest.main(['-q', '--tb=no', '-p', 'no:cacheprovider', '-p', 'no:faulthandler', '-W', 'ignore', '-m', 'not slow',
             os.path.join(folder, MODULE)], plugins=[Failed()])
print('FAILED:', *failed, sep='\\n', flush=True)
"""


def own_test(python, package, module, inside):
    """The names of the tests that fail."""
    source = f"SITE = {SITE!r}; MODULE = {module!r}\n" + OWN_TEST.format(package=package)
    if inside:
        source = f"import interpreters\ninterp = interpreters.create()\ninterp.exec({source!r})\ninterp.close()"
    done = subprocess.run([python, "-X", "faulthandler", "-c", source], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          stdin=subprocess.DEVNULL, text=True, errors="replace", timeout=900,
                          env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout[-4000:]
    output, _, failed = done.stdout.rpartition("FAILED:\n")
    assert " passed" in output, done.stdout[-4000:]
    print(f"{package}/{module}, {'another' if inside else 'main'} interpreter: {output.splitlines()[-1]}")
    return set(failed.split())


@pytest.mark.parametrize("package, module", [(p, module) for p, modules in OWN_TESTS.items() for module in modules])
def test_own_tests(package, module):
    for needed in (package, "pytest", "hypothesis"):
        if not is_there(needed):
            pytest.skip(f"{needed} is not in $RWPYTHON_SITE")
    base = STOCK if os.path.exists(STOCK) else PYTHON
    there, inside = own_test(base, package, module, False), own_test(PYTHON, package, module, True)
    assert not {name for name in inside - there if name.rpartition("::")[2] not in CANT_PASS}


if __name__ == "__main__":
    for package in WORK:
        done = run_package(package) if is_there(package) else None
        lines = done.stdout.split() if done else []
        print(f"{package:14}", "not there" if done is None else f"ok {int(lines[-1]) // 1024} KiB each"
              if done.returncode == 0 else f"FAILED ({done.returncode})\n" + done.stdout[-1500:], flush=True)

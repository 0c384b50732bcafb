"""NumPy arrays, and pandas and pyarrow tables, as messages between interpreters.

They are taken from the package index into a temporary folder, or from the folder that
RWPYTHON_SITE names.  RWPYTHON names the built python, if it is not ./python."""
import os
import pathlib
import subprocess
import textwrap

import pytest
from conftest import run

TOP = pathlib.Path(__file__).resolve().parent.parent
PYTHON = os.environ.get("RWPYTHON") or str(TOP / "python")

pytestmark = pytest.mark.skipif(not os.path.exists(PYTHON), reason=f"no {PYTHON}: run make, or set RWPYTHON")

SETUP = """
import sys, warnings
warnings.simplefilter('ignore')
import interpreters
from interpreters import MovedObject, move, pack
import numpy as np
interp = interpreters.create()
there, back = interpreters.create_queue(), interpreters.create_queue()
interp.prepare_main(there=there, back=back)
def over_there(source):
    interp.exec(source)
    return back.get_nowait() if back.qsize() else None
over_there('''if True:
    import warnings
    warnings.simplefilter('ignore')
    import interpreters
    from interpreters import MovedObject, move, pack
    import numpy as np
    def where(array):
        return array.__array_interface__['data'][0]
    ''')
def where(array):
    return array.__array_interface__['data'][0]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the packages."""
    if os.environ.get("RWPYTHON_SITE"):
        return os.environ["RWPYTHON_SITE"]
    folder = tmp_path_factory.mktemp("site")
    packages = ["numpy", "pandas", "pyarrow"]
    if run(PYTHON, "-m", "ensurepip", "--root", folder / "pip").returncode != 0:
        pytest.skip("no pip in this build")
    paths = list((folder / "pip").rglob("site-packages"))
    result = subprocess.run([PYTHON, "-m", "pip", "install", "-q", "--target", str(folder), "--only-binary", ":all:",
                             *packages], env={**os.environ, "PYTHONPATH": str(paths[0])}, timeout=600,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode != 0:
        pytest.skip(f"the packages can't be had: {result.stdout[-300:]}")
    return str(folder)


@pytest.fixture
def check(site):
    def check(source):
        result = subprocess.run([PYTHON, "-c", SETUP + textwrap.dedent(source)], timeout=300, text=True,
                                env={**os.environ, "PYTHONPATH": site, "OPENBLAS_NUM_THREADS": "1"},
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert result.returncode == 0, result.stdout[-3000:]
    return check


def test_copy(check):
    check("""
        a = np.arange(1e5).reshape(100, 1000)
        there.put(a)
        b = over_there('b = there.get(); assert type(b) is np.ndarray; b[0, 0] = 7; back.put(b); b[0, 1] = 8')
        assert type(b) is np.ndarray and b.flags.writeable and b.dtype == a.dtype
        assert a[0, 0] == 0 and b[0, 0] == 7 and b[0, 1] == 1 and (b[1:] == a[1:]).all()
        """)


def test_move(check):
    check("""
        a = np.arange(1e5).reshape(100, 1000)
        at = where(a)
        there.put(move(a))
        assert isinstance(a, MovedObject)
        result = over_there('b = there.get(); back.put((where(b), b.sum(), b.flags.writeable)); b *= 2')
        assert result == (at, 4999950000.0, True), result
        a = over_there('back.put(move(b)); assert isinstance(b, MovedObject)')
        assert where(a) == at and a.sum() == 2 * 4999950000.0
        """)


def test_temporary(check):
    check("""
        there.put(np.ones(10**6))
        assert over_there('a = there.get(); back.put(a.sum())') == 10**6
        assert pack(np.ones(10**6)).nbytes < 10**6
        assert pack({'x': np.ones(10**6)}).nbytes < 10**6
        """)


def test_what_others_see_is_copied(check):
    check("""
        a = np.arange(1e5)
        view = a[10:]
        there.put(move(a))
        assert isinstance(a, MovedObject)
        over_there('a = there.get(); a[10] = 77')
        assert view[0] == 10
        base = np.arange(1e5)
        assert pack(base[5:]).nbytes > 700_000
        assert pack([base[5:]]).nbytes > 700_000
        assert pack(move(base[5:])).nbytes > 700_000
        assert base.sum() == 4999950000.0
        """)


@pytest.mark.parametrize("expression", [
    "np.arange(12.)", "np.arange(1e5)", "np.asfortranarray(np.arange(1e5).reshape(100, -1))", "np.arange(1e5)[::2]",
    "np.arange(1e5).reshape(100, -1).T", "np.zeros((0, 3))", "np.array(5.5)", "np.array([1, 'a', None], object)",
    "np.array(['a', 'bc'])", "np.array([(1, 2.5)] * 1000, dtype=[('a', 'i4'), ('b', 'f8')])",
    "np.arange(10000, dtype='>i4')", "np.arange(10000).astype('M8[s]')", "np.ma.array(np.arange(1e4), mask=np.arange(1e4) > 5)",
    "np.rec.array([(1, 2.5)] * 1000)", "np.matrix(np.arange(1e4).reshape(100, 100))", "np.float64(1.5)",
    "np.dtype('i4')", "np.array(['a', 'b' * 100], dtype=np.dtypes.StringDType())", "(np.arange(10000) + 1j)",
    "[np.arange(1e4)] * 2", "np.random.default_rng(5)",
])
def test_kinds(check, expression):
    check(f"""
        def same(a, b):
            assert type(a) is type(b), (type(a), type(b))
            if isinstance(a, list):
                assert a[0] is a[1] and b[0] is b[1]
                a, b = a[0], b[0]
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype and a.shape == b.shape
                assert a.flags.f_contiguous == b.flags.f_contiguous or not b.flags.forc
                assert (a == b).all() if a.dtype != object else a.tolist() == b.tolist()
                assert a.flags.writeable == b.flags.writeable
            elif isinstance(a, np.random.Generator):
                assert a.random() == b.random()
            else:
                assert a == b
        obj, expected = {expression}, {expression}
        there.put(obj)
        same(over_there('back.put(there.get())'), obj)
        obj, expected = {expression}, {expression}
        there.put(move(obj))
        same(over_there('back.put(move(there.get()))'), expected)
        """)


def test_read_only(check):
    check("""
        a = np.arange(1e5)
        a.flags.writeable = False
        there.put(a)
        assert over_there('back.put(there.get().flags.writeable)') is False
        there.put(move(a))
        assert over_there('back.put(there.get().flags.writeable)') is False
        """)


def test_sender_closed(check):
    check("""
        for how in 'a', 'move(a)':
            other = interpreters.create()
            other.prepare_main(queue=there)
            other.exec(f'''if True:
                import warnings; warnings.simplefilter('ignore')
                import numpy as np
                from interpreters import move, pack
                a = np.arange(1e5)
                queue.put(pack({how}))
                ''')
            parcel = there.get()
            other.close()
            a = parcel.open()
            a[0] = 5
            assert a.sum() == 4999950005.0
            del a, parcel
        """)


CLOSED_SENDERS = """
import gc, os
del over_there, interp
SIZE = 10**6
def resident():
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGESIZE')
def start(source):
    interp = interpreters.create()
    interp.prepare_main(SIZE=SIZE, there=there, back=back)
    interp.exec('import numpy as np\\nfrom interpreters import move\\n' + source)
    return interp
def check_all(array):
    assert (array == 7.5).all() and array.nbytes > SIZE
def growth(cycle):
    for _ in range(6):
        cycle()
    before = resident()
    for _ in range(10):
        cycle()
    return (resident() - before) / 10
"""


needs_pymalloc = pytest.mark.skipif(
    os.path.exists(PYTHON) and run(PYTHON, "-c", "import sysconfig, sys; "
                                   "sys.exit(not sysconfig.get_config_var('WITH_PYMALLOC'))").returncode != 0,
    reason="a build without pymalloc does not know blocks")


@needs_pymalloc
@pytest.mark.parametrize("source", ["back.put(np.full(SIZE, 7.5))", "a = np.full(SIZE, 7.5); back.put(move(a))",
                                    "a = np.full(SIZE, 7.5)[100:]; back.put(move(a))",
                                    "a = np.full((10, SIZE // 10), 7.5, order='F'); back.put(move(a))",
                                    "a = np.full(SIZE * 4, 7.5).reshape(-1, 4).view(); back.put(move(a))"])
def test_memory_of_closed_senders(check, source):
    check(CLOSED_SENDERS + f"source = {source!r}" + textwrap.dedent("""
        def cycle():
            interp = start(source)
            array = back.get(timeout=60)
            interp.close()
            view = array[1:]
            del array
            start('').close()       # it would get memory that was freed too early
            check_all(view)
        assert growth(cycle) < 10**6, growth(cycle)
        """))


@needs_pymalloc
def test_memory_of_closed_senders_in_a_row(check):
    check(CLOSED_SENDERS + textwrap.dedent("""
        def cycle(first, second):
            one = start('there.put(np.full(SIZE, 7.5))')
            two = start('back.put(move(there.get(timeout=60)))')
            array = back.get(timeout=60)
            (one if first else two).close()
            if second:
                (two if first else one).close()
            check_all(array)
            del array
            if not second:
                # Given back to an interpreter that is still there.
                (two if first else one).exec('for _ in range(1000): pass')
                (two if first else one).close()
        for first in False, True:
            for second in False, True:
                grown = growth(lambda: cycle(first, second))
                assert grown < 10**6, (first, second, grown)
        """))


@pytest.mark.parametrize("options", [("-X", "tracemalloc"), ("-X", "dev")])
def test_memory_of_closed_senders_with_hooks(site, options):
    """It stays, and nothing is freed that malloc doesn't know."""
    source = SETUP + CLOSED_SENDERS + textwrap.dedent("""
        for _ in range(3):
            interp = start('back.put(np.full(SIZE, 7.5))')
            array = back.get(timeout=60)
            interp.close()
            check_all(array)
            del array
        """)
    result = subprocess.run([PYTHON, *options, "-c", source], timeout=300, text=True,
                            env={**os.environ, "PYTHONPATH": site}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout[-3000:]


def test_given_back(check):
    check("""
        import weakref
        a = np.arange(1e5)
        ref = weakref.ref(a)
        there.put(move(a))
        over_there('b = there.get()')
        del a
        assert ref() is not None
        over_there('del b')
        for _ in range(10**6):
            if ref() is None:
                break
        else:
            raise AssertionError
        """)


def test_flat_memory(check):
    check("""
        import resource
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        def send():
            for _ in range(20):
                there.put(move(np.ones(10**6)))
                over_there('a = there.get(); a[0] = 5; del a')
                there.put(np.ones(10**6))
                over_there('a = there.get(); a[0] = 5; del a')
        send()
        before = peak()
        for _ in range(5):
            send()
        assert peak() - before < 40_000, (before, peak())
        """)


def test_pandas(check):
    check("""
        import pandas as pd
        over_there('import pandas as pd')
        def make():
            return pd.DataFrame({'a': np.arange(1e5), 'b': np.arange(10**5), 'c': ['x', 'yy'] * 50000,
                                 'd': pd.Categorical(['u', 'v'] * 50000)})
        df, expected = make(), make()
        there.put(df)
        pd.testing.assert_frame_equal(over_there('d = there.get(); back.put(d); d["a"] = 0'), expected)
        pd.testing.assert_frame_equal(df, expected)
        there.put(move(df))
        assert isinstance(df, MovedObject)
        got = over_there('d = there.get(); back.put(move(d)); assert isinstance(d, MovedObject)')
        pd.testing.assert_frame_equal(got, expected)
        numbers = pd.DataFrame(np.ones((10**5, 4)))
        assert pack(move(numbers)).nbytes < 10**6
        """)


def test_pyarrow(check):
    check("""
        import pyarrow as pa
        over_there('import pyarrow as pa')
        table = pa.table({'x': np.arange(1e5), 's': ['a', 'b'] * 50000, 'l': [[1, 2], None] * 50000})
        there.put(table)
        assert over_there('t = there.get(); back.put(t)').equals(table)
        expected = pa.table(table.to_pydict())
        there.put(move(table))
        assert isinstance(table, MovedObject)
        assert over_there('t = there.get(); back.put(move(t))').equals(expected)
        # Arrow's builders leave buffers that can be written to, and may be seen by others.
        assert pack(move(pa.table({'x': pa.array(range(10**6))}))).nbytes > 8 * 10**6
        # As read from a file: nobody can write to them.
        sink = pa.BufferOutputStream()
        table = pa.table({'x': range(10**6)})
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        table = pa.ipc.open_stream(sink.getvalue()).read_all()
        assert pack(move(table)).nbytes < 10**6
        """)

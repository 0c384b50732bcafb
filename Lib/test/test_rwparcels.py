"""Tests of _parcels: messages, queues between interpreters, calls into them.

The package `interpreters` has tests of its own.  These here put a stub in its
place, so that they test the C code alone.
"""

import collections
import contextlib
import gc
import io
import os
import pickle
import queue
import signal
import sys
import textwrap
import threading
import time
import types
import unittest
import warnings
import weakref
from test import support
from test.support import import_helper
from test.support import os_helper
from test.support import script_helper
from test.support import threading_helper

_parcels = import_helper.import_module('_parcels')
_interpreters = import_helper.import_module('_interpreters')
_testparcel = import_helper.import_module('_testparcel')

# What every interpreter of these tests starts with.
SETUP = """
import pickle, sys, types
import _parcels

def make_stub():
    package = types.ModuleType('interpreters')
    for name in dir(_parcels):
        if not name.startswith('_'):
            setattr(package, name, getattr(_parcels, name))
    entry = types.ModuleType('interpreters._entry')
    package._entry = entry
    entry.echo = lambda x: x
    def call(x):
        source, arg = x
        ns = {'arg': arg, '_parcels': _parcels}
        exec(source, ns)
        return ns.get('result')
    entry.call = call
    return {'interpreters': package, 'interpreters._entry': entry}

def use_stub():
    sys.modules.update(make_stub())
"""
exec(SETUP)


requires_processors = unittest.skipIf(
    hasattr(os, 'sched_getaffinity') and len(os.sched_getaffinity(0)) < 2,
    'nobody spins on one processor')


def setUpModule():
    global saved
    saved = {name: mod for name, mod in sys.modules.items()
             if name.partition('.')[0] == 'interpreters'}
    for name in saved:
        del sys.modules[name]
    use_stub()
    unittest.addModuleCleanup(restore)


def restore():
    for name in 'interpreters', 'interpreters._entry':
        sys.modules.pop(name, None)
    sys.modules.update(saved)
    codec = sys.modules.get('interpreters._codec')
    if codec is not None:
        import importlib
        importlib.reload(codec)


def create(config='isolated'):
    id = _interpreters.create(config)
    excinfo = _interpreters.run_string(id, SETUP + 'use_stub()')
    assert excinfo is None, excinfo
    return id


def run(id, source, arg=None):
    """Run source in an interpreter, return its variable `result`."""
    return _parcels.run(id, ('call', (textwrap.dedent(source), arg)))


class TestBase(unittest.TestCase):

    def create(self, config='isolated'):
        id = create(config)
        def close():
            with contextlib.suppress(_interpreters.InterpreterNotFoundError):
                _parcels.close(id)
        self.addCleanup(close)
        return id

    @contextlib.contextmanager
    def thread(self, target, *args, **kwargs):
        thread = threading.Thread(target=target, args=args, kwargs=kwargs)
        with threading_helper.start_threads([thread]):
            yield thread

    def wait_for(self, condition):
        for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
            if condition():
                break


    def check_script(self, source):
        """Run it in a process of its own, which is to end well."""
        setup = SETUP + 'use_stub()\n'
        script = setup + textwrap.dedent(f"""
            import textwrap, threading, _interpreters
            def create(config='isolated'):
                id = _interpreters.create(config)
                _interpreters.run_string(id, {setup!r})
                return id
            def run(id, source, arg=None):
                source = textwrap.dedent(source)
                return _parcels.run(id, ('call', (source, arg)))
            """) + textwrap.dedent(source)
        with os_helper.temp_dir() as folder:
            name = script_helper.make_script(folder, 'script', script)
            proc = script_helper.spawn_python(name)
            try:
                out, _ = proc.communicate(timeout=support.LONG_TIMEOUT)
            finally:
                proc.kill()
        self.assertEqual((proc.returncode, out.decode()), (0, 'done\n'))


class Weird:
    def __init__(self, what):
        self.what = what
    def __reduce__(self):
        raise self.what
    def __eq__(self, other):
        return False


def fail_to_load():
    raise LookupError('not here')


class CantLoad:
    def __reduce__(self):
        return fail_to_load, ()


NATIVE = [
    None, True, False, ..., NotImplemented,
    0, 1, -1, 256, 2**30 - 1, 2**30, -2**30, 2**60, 2**63, -2**63, 2**64,
    10**4000, -10**4000,
    0.0, -0.0, 1.5, float('inf'), 1j, complex(-0.0, 2),
    '', 'a', '\x00', '\xe9', '\xff' * 100, 'abc', '\u0100', '\u65e5\u672c',
    '\U0001f600', 'x' * 100_000, '\udc80', 'a\ud800b', '\U0010ffff\x00',
    b'', b'a', b'\x00\xff', b'x' * 100_000,
    (), (1,), ((),), (1, ('a', (b'b', (None, ()), 2**100)), ()),
    tuple(range(1000)),
    [], [1, [2]], {}, {'a': [1]}, {1, 2}, frozenset([1]), range(3),
    bytearray(b'x'), ([],), int,
]

# Their classes have a say.
FOREIGN = [len, types.SimpleNamespace(a=1)]


class MessageTests(TestBase):

    def check_equal(self, got, expected):
        self.assertIs(type(got), type(expected))
        self.assertEqual(got, expected)
        self.assertEqual(repr(got), repr(expected))

    def test_native(self):
        for obj in NATIVE:
            with self.subTest(repr(obj)[:40]):
                self.assertTrue(_parcels.is_shareable(obj))
                self.check_equal(_parcels.pack(obj).open(), obj)

    def test_foreign(self):
        for obj in FOREIGN:
            with self.subTest(repr(obj)[:40]):
                self.assertFalse(_parcels.is_shareable(obj))
                self.check_equal(_parcels.pack(obj).open(), obj)

    def test_through_another_interpreter(self):
        id = self.create()
        for obj in NATIVE + FOREIGN:
            with self.subTest(repr(obj)[:40]):
                self.check_equal(_parcels.run(id, ('echo', obj)), obj)

    def test_singletons(self):
        for obj in None, True, ..., NotImplemented, (), '', 'a', b'', 5:
            self.assertIs(_parcels.pack(obj).open(), obj)

    def test_subclasses_keep_their_type(self):
        for obj in signal.SIGINT, time.struct_time(range(9)), collections.Counter('aab'):
            self.assertFalse(_parcels.is_shareable(obj))
            self.check_equal(_parcels.pack(obj).open(), obj)

    def test_copies(self):
        obj = [1, 2]
        for copy in _parcels.pack(obj).open(), _parcels.pack((obj,)).open()[0]:
            copy.append(3)
            self.assertEqual(obj, [1, 2])

    def test_identity_inside(self):
        obj = []
        first, second = _parcels.pack((obj, obj)).open()
        self.assertIs(first, second)

    def test_deep_tuples(self):
        depth = 200_000
        obj = ()
        for _ in range(depth):
            obj = (obj,)
        self.assertTrue(_parcels.is_shareable(obj))
        got = _parcels.pack(obj).open()
        for _ in range(depth):
            got, = got
        self.assertEqual(got, ())

    def test_recursive(self):
        obj = []
        obj.append(obj)
        got = _parcels.pack(obj).open()
        self.assertIs(got[0], got)
        deep = []
        for _ in range(200_000):
            deep = [deep]
        got = _parcels.pack(deep).open()
        for _ in range(200_000):
            got, = got
        self.assertEqual(got, [])

    def test_mixed_tuple(self):
        q = _parcels.create_queue()
        obj = [1], memoryview(b'abc'), (q, {'a': 1}), _parcels.pack(2)
        self.assertTrue(_parcels.is_shareable(obj))
        got = _parcels.pack(obj).open()
        self.assertEqual(got[:3], obj[:3])
        self.assertEqual(got[3].open(), 2)
        with self.assertRaises(_parcels.NotShareableError) as cm:
            _parcels.pack((memoryview(b''), threading.Lock()))
        self.assertIn("_thread.lock", str(cm.exception))

    def test_not_shareable(self):
        q = _parcels.create_queue()
        with open(os.devnull) as file:
            for obj in (lambda: None, (x for x in ()), threading.Lock(),
                        sys._getframe(), file, (1, (lambda: None,)),
                        Weird(ValueError('no'))):
                with self.subTest(obj):
                    with self.assertRaises(_parcels.NotShareableError) as cm:
                        q.put(obj)
                    self.assertIn("can't be sent", str(cm.exception))
                    self.assertIsNotNone(cm.exception.__cause__)
                    self.assertEqual(q.qsize(), 0)
        self.assertTrue(issubclass(_parcels.NotShareableError, TypeError))

    def test_other_exceptions_pass(self):
        q = _parcels.create_queue()
        for exc in MemoryError, KeyboardInterrupt, SystemExit:
            with self.assertRaises(exc):
                q.put(Weird(exc()))
        self.assertTrue(q.empty())

    def test_sentinels(self):
        names = 'UNBOUND', 'UNBOUND_ERROR', 'UNBOUND_REMOVE'
        for name in names:
            obj = getattr(_parcels, name)
            self.assertEqual(repr(obj), f'interpreters.{name}')
            self.assertTrue(_parcels.is_shareable(obj))
            self.assertIs(_parcels.pack(obj).open(), obj)
            self.assertIs(_parcels.pack([obj]).open()[0], obj)
            self.assertIs(pickle.loads(pickle.dumps(obj)), obj)
        id = self.create()
        self.assertTrue(run(id, """
            result = arg is _parcels.UNBOUND_ERROR
            """, _parcels.UNBOUND_ERROR))

    def test_cant_open(self):
        q = _parcels.create_queue()
        q.put(CantLoad())
        with self.assertRaises(_parcels.TransferError) as cm:
            q.get()
        self.assertIsInstance(cm.exception.__cause__, LookupError)
        self.assertTrue(q.empty())
        parcel = cm.exception.parcel
        self.assertIsInstance(parcel, _parcels.Parcel)
        for _ in range(2):
            with self.assertRaises(_parcels.TransferError) as cm:
                parcel.open()
            self.assertIs(cm.exception.parcel, parcel)
            self.assertIsInstance(cm.exception.__cause__, LookupError)

    def test_interpreter_handles(self):
        class Handle:
            __slots__ = '_id',
            def __init__(self, id):
                self._id = id
        self.addCleanup(use_stub)
        _parcels.register_interpreter_type(Handle)
        self.assertTrue(_parcels.is_shareable(Handle(1)))
        got = _parcels.pack((Handle(7),)).open()[0]
        self.assertIs(type(got), Handle)
        self.assertEqual(got._id, 7)
        with self.assertRaises(TypeError):
            _parcels.pack(Handle('x'))
        handle = Handle(1)
        del handle._id
        with self.assertRaises((TypeError, AttributeError)):
            _parcels.pack(handle)

    def test_interpreter_on_its_way(self):
        # The message counts as a handle.
        class Handle:
            __slots__ = '_id',
            def __init__(self, id):
                self._id = id
                _interpreters.incref(id)
            def __del__(self, decref=_interpreters.decref):
                decref(self._id)
        def exists(id):
            return id in [other for other, _ in _interpreters.list_all()]
        self.addCleanup(use_stub)
        _parcels.register_interpreter_type(Handle)
        id = _interpreters.create(reqrefs=True)
        parcel = _parcels.pack((1, Handle(id)))
        support.gc_collect()
        self.assertTrue(exists(id))
        handle = parcel.open()[1]
        del parcel
        support.gc_collect()
        self.assertTrue(exists(id))
        q = _parcels.create_queue()
        q.put(handle)
        del handle
        support.gc_collect()
        self.assertTrue(exists(id))
        del q
        support.gc_collect()
        self.assertFalse(exists(id))

    def test_cross_interpreter_data_of_others(self):
        channels = import_helper.import_module('_interpchannels')
        cid = channels.create(3)
        self.addCleanup(channels.destroy, cid)
        self.assertTrue(_parcels.is_shareable(cid))
        self.assertEqual(_parcels.pack((cid, 1)).open(), (cid, 1))

    def test_no_memory(self):
        _testcapi = import_helper.import_module('_testcapi')
        q = _parcels.create_queue()
        view = memoryview(b'abc')
        tuples = (((((((((((1,),),),),),),),),),),)
        def send():
            q.put(('x' * 1000, 2**100, view, q, tuples, b'y' * 5000))
        def receive():
            return q.get()
        send()
        receive()
        @support.disable_gc()   # it would fail, too, and says so as unraisable
        def attempts(call):
            for n in range(200):
                _testcapi.set_nomemory(n, n + 1)
                try:
                    call()
                except MemoryError:
                    continue
                finally:
                    _testcapi.remove_mem_hooks()
                return n
            self.fail('still fails')
        failures = attempts(send)
        self.assertGreater(failures, 3)
        # What failed has left nothing in the queue.
        self.assertEqual(q.qsize(), 1)
        q.get()
        parcel = _parcels.pack(('x' * 1000, 2**100, view, tuples, b'y' * 5000))
        def open():
            nonlocal got
            got = parcel.open()
        got = None
        self.assertGreater(attempts(open), 0)
        self.assertEqual(got, ('x' * 1000, 2**100, view, tuples, b'y' * 5000))


class ParcelTests(TestBase):

    def test_parcel(self):
        parcel = _parcels.pack((1, 'a'))
        self.assertEqual(parcel.open(), (1, 'a'))
        with self.assertRaises(_parcels.TransferError):
            parcel.open()
        self.assertGreater(parcel.nbytes, 10)
        self.assertIn('Parcel', repr(parcel))
        self.assertEqual(type(parcel).__module__, 'interpreters')
        with self.assertRaises(TypeError):
            _parcels.Parcel()
        with self.assertRaises(AttributeError):
            parcel.nbytes = 3

    def test_send_parcel(self):
        parcel = _parcels.pack([1])
        self.assertTrue(_parcels.is_shareable(parcel))
        id = self.create()
        got = run(id, """
            result = arg[0], arg[0].open()
            """, (parcel, 1))
        # They are handles for the same parcel.
        with self.assertRaises(_parcels.TransferError):
            got[0].open()
        with self.assertRaises(_parcels.TransferError):
            parcel.open()
        self.assertEqual(got[1], [1])
        inner = _parcels.pack([2])
        self.assertEqual(_parcels.pack([inner]).open()[0].open(), [2])
        with self.assertRaises(TypeError):
            pickle.dumps(parcel)

    def test_outlives_its_interpreter(self):
        id = self.create()
        parcel = run(id, "result = _parcels.pack(('from', [id(arg)]))", None)
        _parcels.close(id)
        self.assertEqual(parcel.open()[0], 'from')

    def test_deep_nesting(self):
        parcel = _parcels.pack(1)
        for _ in range(100_000):
            parcel = _parcels.pack(parcel)
        del parcel      # must not overflow the C stack
        first = q = _parcels.create_queue()
        for _ in range(10_000):
            following = _parcels.create_queue()
            q.put(following)
            q = following
        before = len(_parcels.list_queues())
        del first, q, following
        self.assertEqual(before - len(_parcels.list_queues()), 10_001)

    def test_weakref(self):
        parcel = _parcels.pack(1)
        ref = weakref.ref(parcel)
        del parcel
        support.gc_collect()
        self.assertIsNone(ref())


class LentBufferTests(TestBase):

    def test_same_bytes(self):
        id = self.create()
        data = bytearray(b'hello')
        self.assertTrue(_parcels.is_shareable(memoryview(data)))
        run(id, """
            arg[0] = ord('J')
            """, memoryview(data))
        self.assertEqual(data, b'Jello')

    def test_shapes(self):
        import array
        view = memoryview(array.array('i', range(12)))
        for sent in (view, view[::2], view[::-1],
                     view.cast('B').cast('i', (3, 4)), memoryview(b'')):
            got = _parcels.pack(sent).open()
            self.assertEqual(got, sent)
            self.assertEqual(got.tolist(), sent.tolist())
            self.assertEqual((got.format, got.shape, got.strides, got.readonly),
                             (sent.format, sent.shape, sent.strides,
                              sent.readonly))

    def test_exporter(self):
        exporter = _parcels.pack(memoryview(b'abc')).open().obj
        self.assertEqual(bytes(exporter), b'abc')
        self.assertEqual(memoryview(exporter).format, 'B')
        with self.assertRaises((BufferError, TypeError)):
            io.BytesIO(b'defg').readinto(exporter)      # it is read-only
        strided = _parcels.pack(memoryview(b'abcd')[::2]).open().obj
        self.assertEqual(bytes(memoryview(strided)), b'ac')

    def test_released_in_lender(self):
        id = self.create()
        data = bytearray(b'hello')
        with self.assertRaises(BufferError):
            parcel = _parcels.pack(memoryview(data))
            data.append(0)
        del parcel
        data.append(0)

        q = _parcels.create_queue()
        q.put(memoryview(data))
        run(id, "view = arg.get(); assert view[0] == ord('h')", q)
        # Given back by a pending call in this interpreter.
        data.append(0)

    def test_released_by_receiver_later(self):
        id = self.create()
        data = bytearray(b'hello')
        run(id, """
            import builtins
            builtins.view = arg
            """, memoryview(data))
        with self.assertRaises(BufferError):
            data.append(0)
        run(id, "import builtins; del builtins.view")
        data.append(0)

    def test_lender_gone(self):
        # The exporter stays for ever, which a hunt for leaks would count.
        self.check_script("""
            import gc
            id = create()
            view = run(id, "result = memoryview(bytearray(b'0123' * 1000))[1:]")
            _interpreters.destroy(id)
            gc.collect()
            others = [create() for _ in range(2)]
            assert bytes(view) == (b'0123' * 1000)[1:]
            view[0] = 0
            del view
            gc.collect()
            print('done', flush=True)
            """)

    def test_unbound_buffer_is_released(self):
        id = self.create()
        q = _parcels.create_queue()
        run(id, """
            import builtins
            builtins.data = bytearray(b'abc')
            arg.put((1, memoryview(data)))
            """, q)
        _parcels.close(id)      # -R finds it if it is not
        self.assertIs(q.get(), _parcels.UNBOUND)


class QueueTests(TestBase):

    def test_basics(self):
        q = _parcels.create_queue()
        self.assertIs(type(q), _parcels.Queue)
        self.assertEqual(type(q).__module__, 'interpreters')
        self.assertIsInstance(q.id, int)
        self.assertEqual(q.maxsize, 0)
        self.assertIs(q.unbounditems, _parcels.UNBOUND)
        self.assertEqual((q.qsize(), q.empty(), q.full()), (0, True, False))
        for i in range(3):
            self.assertIsNone(q.put(i))
        self.assertEqual((q.qsize(), q.empty(), q.full()), (3, False, False))
        self.assertEqual([q.get() for _ in range(3)], [0, 1, 2])
        self.assertIn(q.id, _parcels.list_queues())
        self.assertIn(str(q.id), repr(q))
        for name in 'id', 'maxsize', 'unbounditems', 'other':
            with self.assertRaises(AttributeError):
                setattr(q, name, 1)

    def test_create(self):
        self.assertEqual(_parcels.create_queue(-3).maxsize, -3)
        self.assertEqual(_parcels.create_queue(maxsize=3).maxsize, 3)
        q = _parcels.create_queue(unbounditems=_parcels.UNBOUND_REMOVE)
        self.assertIs(q.unbounditems, _parcels.UNBOUND_REMOVE)
        for bad in 'x', None, 1.5:
            with self.assertRaises(TypeError):
                _parcels.create_queue(bad)
        with self.assertRaises(OverflowError):
            _parcels.create_queue(10**30)
        for bad in 1, 'UNBOUND', object():
            with self.assertRaises(NotImplementedError):
                _parcels.create_queue(unbounditems=bad)
        with self.assertRaises(TypeError):
            _parcels.create_queue(0, _parcels.UNBOUND)

    def test_one_instance(self):
        q = _parcels.create_queue()
        self.assertIs(_parcels.Queue(q.id), q)
        self.assertIs(_parcels.pack(q).open(), q)
        self.assertIs(_parcels.pack(('x', q)).open()[1], q)
        self.assertIs(pickle.loads(pickle.dumps(q)), q)
        self.assertEqual(hash(q), hash(_parcels.Queue(q.id)))
        self.assertEqual(q, q)
        self.assertNotEqual(q, _parcels.create_queue())
        self.assertNotEqual(q, q.id)
        self.assertTrue(_parcels.is_shareable(q))

    def test_same_queue_in_another(self):
        id = self.create()
        q = _parcels.create_queue(5)
        q.put('there')
        got, same, back = run(id, """
            q = _parcels.Queue(arg.id)
            result = q.get(), q is arg and q.maxsize == 5, q
            q.put('back')
            """, q)
        self.assertEqual((got, same), ('there', True))
        self.assertIs(back, q)
        self.assertEqual(q.get(), 'back')

    def test_lifetime(self):
        q = _parcels.create_queue()
        id = q.id
        ref = weakref.ref(q)
        q.put([q.id])
        del q
        support.gc_collect()
        self.assertIsNone(ref())
        self.assertNotIn(id, _parcels.list_queues())
        with self.assertRaises(_parcels.QueueNotFoundError):
            _parcels.Queue(id)
        self.assertGreater(_parcels.create_queue().id, id)

    def test_lifetime_in_transit(self):
        carrier = _parcels.create_queue()
        for wrap, unwrap in [(lambda x: x, lambda x: x),
                             (lambda x: (1, x), lambda x: x[1]),
                             (lambda x: [x], lambda x: x[0])]:
            q = _parcels.create_queue()
            id = q.id
            q.put('inside')
            carrier.put(wrap(q))
            del q
            support.gc_collect()
            self.assertIn(id, _parcels.list_queues())
            q = unwrap(carrier.get())
            self.assertEqual((q.id, q.get()), (id, 'inside'))
            carrier.put(wrap(q))
            del q
            _parcels.create_queue()
            carrier.get_nowait()
            support.gc_collect()
            self.assertNotIn(id, _parcels.list_queues())

    def test_queue_outlives_creator(self):
        id = self.create()
        q = run(id, "result = _parcels.create_queue(7)")
        _parcels.close(id)
        q.put(1)
        self.assertEqual((q.get(), q.maxsize), (1, 7))

    def test_bad_ids(self):
        with self.assertRaises(_parcels.QueueNotFoundError):
            _parcels.Queue(1_000_000)
        with self.assertRaises(_parcels.QueueNotFoundError):
            _parcels.Queue(-1)
        with self.assertRaises(_parcels.QueueNotFoundError):
            _parcels.Queue(10**30)
        for bad in '1', 1.0, None:
            with self.assertRaises(TypeError):
                _parcels.Queue(bad)
        with self.assertRaises(TypeError):
            _parcels.Queue()
        with self.assertRaises(TypeError):
            _parcels.Queue(id=1)

    def test_exceptions(self):
        self.assertTrue(issubclass(_parcels.QueueEmpty, queue.Empty))
        self.assertTrue(issubclass(_parcels.QueueFull, queue.Full))
        for name in ('QueueNotFoundError', 'QueueEmpty', 'QueueFull',
                     'ItemInterpreterDestroyed'):
            exc = getattr(_parcels, name)
            self.assertTrue(issubclass(exc, _parcels.QueueError))
            self.assertEqual(exc.__module__, 'interpreters')

    def test_arguments(self):
        q = _parcels.create_queue(1)
        q.put(1, True, None)
        self.assertEqual(q.get(True, None), 1)
        q.put(obj=1, block=False, timeout=3, unbounditems=None)
        self.assertEqual(q.get(block=False, timeout=-1), 1)
        q.put_nowait(1, unbounditems=_parcels.UNBOUND)
        self.assertEqual(q.get(timeout=0), 1)
        for call in [
            lambda: q.put(),
            lambda: q.put(1, True, None, None),
            lambda: q.put(1, obj=1),
            lambda: q.put(1, foo=1),
            lambda: q.put(1, timeout='1'),
            lambda: q.put(1, timeout=1j),
            lambda: q.put_nowait(1, True),
            lambda: q.get(True, None, 1),
            lambda: q.get(timeout=[]),
            lambda: q.get(True, block=True),
            lambda: q.get_nowait(1),
        ]:
            with self.assertRaises(TypeError):
                call()
        for timeout in -1, -0.001, float('nan'), float('-inf'), -10**30:
            with self.assertRaises(ValueError):
                q.put(1, timeout=timeout)
            with self.assertRaises(ValueError):
                q.get(timeout=timeout)
        for bad in 1, 'UNBOUND':
            with self.assertRaises(NotImplementedError):
                q.put(1, unbounditems=bad)
        self.assertTrue(q.empty())
        for timeout in 1e300, float('inf'), 2**62, True:
            q.put(1, timeout=timeout)
            q.get(timeout=timeout)

    def test_full_and_empty(self):
        q = _parcels.create_queue(2)
        with self.assertRaises(_parcels.QueueEmpty):
            q.get_nowait()
        with self.assertRaises(_parcels.QueueEmpty):
            q.get(block=False)
        with self.assertRaises(_parcels.QueueEmpty):
            q.get(timeout=0)
        q.put(1)
        q.put(2)
        self.assertTrue(q.full())
        with self.assertRaises(_parcels.QueueFull):
            q.put_nowait(3)
        with self.assertRaises(_parcels.QueueFull):
            q.put(3, False)
        with self.assertRaises(_parcels.QueueFull):
            q.put(3, timeout=0.0)
        self.assertEqual((q.get(), q.get()), (1, 2))

    def test_timeout(self):
        q = _parcels.create_queue(1)
        for timeout in 0.001, 0.05, 0.2:
            start = time.monotonic()
            with self.assertRaises(_parcels.QueueEmpty):
                q.get(timeout=timeout)
            self.assertGreaterEqual(time.monotonic() - start, timeout)
        q.put(1)
        start = time.monotonic()
        with self.assertRaises(_parcels.QueueFull):
            q.put(1, timeout=0.1)
        took = time.monotonic() - start
        self.assertGreaterEqual(took, 0.1)
        self.assertLess(took, support.SHORT_TIMEOUT)
        self.assertEqual(q.qsize(), 1)

    def test_gc(self):
        # Cycles through handles are collected.
        class Holder(dict):
            pass
        for make in (_parcels.create_queue, lambda: _parcels.pack(1)):
            obj = make()
            self.assertTrue(gc.is_tracked(obj))
        id = self.create()
        run(id, """
            import sys
            q = _parcels.create_queue()
            mod = sys.modules.pop('_parcels')
            mod.cycle = [mod, q, _parcels.pack(q), q.get]
            del mod, _parcels
            """)
        run(id, "import gc; gc.collect()")


class UnboundTests(TestBase):

    def send_and_close(self, q, **kwargs):
        id = self.create()
        run(id, """
            q, kind = arg
            q.put('a')
            q.put(('b', [1]), unbounditems=kind)
            """, (q, kwargs.get('unbounditems')))
        _parcels.close(id)

    def test_replace(self):
        q = _parcels.create_queue()
        q.put('mine')
        self.send_and_close(q)
        self.assertEqual(q.qsize(), 3)
        self.assertEqual(q.get(), 'mine')
        self.assertIs(q.get(), _parcels.UNBOUND)
        self.assertIs(q.get(), _parcels.UNBOUND)

    def test_error(self):
        q = _parcels.create_queue()
        self.send_and_close(q, unbounditems=_parcels.UNBOUND_ERROR)
        q.put('mine')
        self.assertIs(q.get(), _parcels.UNBOUND)
        with self.assertRaises(_parcels.ItemInterpreterDestroyed):
            q.get()
        self.assertEqual(q.get(), 'mine')

    def test_remove(self):
        q = _parcels.create_queue(4, unbounditems=_parcels.UNBOUND_REMOVE)
        q.put('first')
        self.send_and_close(q, unbounditems=_parcels.UNBOUND_ERROR)
        q.put('last')
        self.assertEqual(q.qsize(), 3)
        self.assertEqual(q.get(), 'first')
        with self.assertRaises(_parcels.ItemInterpreterDestroyed):
            q.get()
        self.assertEqual(q.get(), 'last')
        self.assertTrue(q.empty())

    def test_remove_all(self):
        q = _parcels.create_queue(unbounditems=_parcels.UNBOUND_REMOVE)
        self.send_and_close(q)
        self.assertEqual(q.qsize(), 0)
        q.put(1)
        self.assertEqual(q.get(), 1)

    def test_removal_makes_room(self):
        q = _parcels.create_queue(2, unbounditems=_parcels.UNBOUND_REMOVE)
        id = self.create()
        run(id, "arg.put(1); arg.put(2)", q)
        results = []
        def put():
            results.append(q.put('x', timeout=support.LONG_TIMEOUT))
        with self.thread(put), self.thread(put):
            _parcels.close(id)
        self.assertEqual(results, [None, None])
        self.assertEqual(q.qsize(), 2)


class WaitingTests(TestBase):

    @contextlib.contextmanager
    def answering(self, answer):
        """An interpreter that answers each item, by the queues (there, back)."""
        id = self.create()
        there, back = _parcels.create_queue(), _parcels.create_queue()
        def serve():
            run(id, f"""
                there, back = arg
                while (item := there.get()) is not None:
                    back.put({answer})
                """, (there, back))
        with self.thread(serve):
            try:
                yield there, back
            finally:
                there.put(None)

    def test_get_waits(self):
        with self.answering('item') as (there, back):
            for i in range(1000):
                there.put(i)
                self.assertEqual(back.get(timeout=support.LONG_TIMEOUT), i)

    def test_put_waits(self):
        id = self.create()
        q = _parcels.create_queue(1)
        def produce():
            run(id, "for i in range(1000): arg.put(i)", q)
        with self.thread(produce):
            got = [q.get(timeout=support.LONG_TIMEOUT) for _ in range(1000)]
        self.assertEqual(got, list(range(1000)))

    def test_wait_ends_late(self):
        # Long enough that the waiter sleeps.
        q = _parcels.create_queue()
        got = []
        def get():
            got.append(q.get(timeout=support.LONG_TIMEOUT))
        with self.thread(get) as thread:
            thread.join(0.2)
            self.assertEqual(got, [])
            q.put(1)
        self.assertEqual(got, [1])

    def test_no_polling(self):
        resource = import_helper.import_module('resource')
        if not hasattr(resource, 'RUSAGE_THREAD'):
            self.skipTest('needs RUSAGE_THREAD')
        q = _parcels.create_queue(1)
        def check():
            for wait in (lambda: q.get(timeout=0.5),
                         lambda: q.put(1, timeout=0.5)):
                before = resource.getrusage(resource.RUSAGE_THREAD)
                with self.assertRaises(_parcels.QueueError):
                    wait()
                after = resource.getrusage(resource.RUSAGE_THREAD)
                self.assertLess(after.ru_nvcsw - before.ru_nvcsw, 15)
                self.assertLess(after.ru_utime - before.ru_utime, 0.05)
                with contextlib.suppress(_parcels.QueueFull):
                    q.put_nowait(1)
        check()
        errors = []
        def in_thread():
            try:
                check()
            except BaseException as exc:
                errors.append(exc)
        q.get()
        with self.thread(in_thread):
            pass
        self.assertEqual(errors, [])

    def test_others_run_meanwhile(self):
        # A wait gives up the interpreter's lock, also while it spins.
        q = _parcels.create_queue()
        with self.thread(lambda: q.get(timeout=support.LONG_TIMEOUT)):
            total = sum(range(100_000))
            q.put(total)

    def test_many(self):
        ids = [self.create() for _ in range(3)]
        q = _parcels.create_queue(3)
        results = _parcels.create_queue()
        count = 400
        def produce(id):
            run(id, """
                q, name, count = arg
                for i in range(count):
                    q.put((name, i))
                """, (q, id, count))
        def consume_here():
            got = []
            while (item := q.get()) is not None:
                got.append(item)
            results.put(got)
        def consume_there(id):
            run(id, """
                q, results = arg
                got = []
                while (item := q.get()) is not None:
                    got.append(item)
                results.put(got)
                """, (q, results))
        extra = self.create()
        consumers = [threading.Thread(target=consume_here) for _ in range(3)]
        consumers.append(threading.Thread(target=consume_there, args=(extra,)))
        producers = [threading.Thread(target=produce, args=(id,))
                     for id in ids]
        with threading_helper.start_threads(consumers):
            with threading_helper.start_threads(producers):
                pass
            for _ in consumers:
                q.put(None)
        lists = [results.get(timeout=support.LONG_TIMEOUT) for _ in consumers]
        everything = sorted(item for got in lists for item in got)
        self.assertEqual(everything,
                         [(id, i) for id in ids for i in range(count)])
        for got in lists:       # each sender's items in their order
            for id in ids:
                mine = [i for name, i in got if name == id]
                self.assertEqual(mine, sorted(mine))

    def test_nobody_starves(self):
        # One thread takes again and again what it has just put.
        q = _parcels.create_queue()
        got = []
        def get():
            got.append(q.get(timeout=support.LONG_TIMEOUT))
        with self.thread(get) as thread:
            deadline = time.monotonic() + support.LONG_TIMEOUT
            while not got and time.monotonic() < deadline:
                q.put(1)
                try:
                    q.get_nowait()
                except _parcels.QueueEmpty:
                    pass
            self.assertTrue(got)
        self.assertLessEqual(q.qsize(), 1)

    def test_timeouts_and_items_race(self):
        q = _parcels.create_queue()
        count = 2000
        got = []
        def get():
            while True:
                try:
                    item = q.get(timeout=0.0001)
                except _parcels.QueueEmpty:
                    continue
                if item is None:
                    break
                got.append(item)
        threads = [threading.Thread(target=get) for _ in range(3)]
        with threading_helper.start_threads(threads):
            for i in range(count):
                q.put(i)
                if i % 10 == 0:
                    time.sleep(0.0001)
            for _ in threads:
                q.put(None)
        self.assertEqual(sorted(got), list(range(count)))

    def rouse(self, q):
        """Whoever waits for q, as soon as it sleeps."""
        for _ in support.sleeping_retry(support.LONG_TIMEOUT, init_delay=0.0001):
            if _testparcel.expect(q):
                break

    @requires_processors
    def test_roused(self):
        # Who is told that something comes goes on waiting when it does not.
        q = _parcels.create_queue()
        self.assertFalse(_testparcel.expect(q))
        got = []
        def get():
            got.append(q.get(timeout=support.LONG_TIMEOUT))
        with self.thread(get):
            for _ in range(5):
                self.rouse(q)
            self.assertEqual(got, [])
            q.put(1)
        self.assertEqual(got, [1])
        self.assertFalse(_testparcel.expect(q))

    @requires_processors
    def test_roused_until_timeout(self):
        q = _parcels.create_queue()
        waited = []
        def get():
            start = time.monotonic()
            with contextlib.suppress(_parcels.QueueEmpty):
                q.get(timeout=0.2)
            waited.append(time.monotonic() - start)
        with self.thread(get) as thread:
            while thread.is_alive():
                _testparcel.expect(q)
        self.assertGreaterEqual(waited[0], 0.19)
        self.assertLess(waited[0], support.SHORT_TIMEOUT)

    @requires_processors
    def test_one_of_several_is_not_roused(self):
        # It can't be known which of them will be faster.
        q = _parcels.create_queue()
        got = []
        def get():
            got.append(q.get(timeout=support.LONG_TIMEOUT))
        def look():
            time.sleep(0.01)        # it sleeps again
            return _testparcel.expect(q)
        with self.thread(get):
            self.rouse(q)
            with self.thread(get):
                # When both sleep, it is in vain from then on.
                for _ in support.sleeping_retry(support.LONG_TIMEOUT):
                    if not any(look() for _ in range(10)):
                        break
                q.put(1)
                q.put(2)
        self.assertEqual(sorted(got), [1, 2])

    @requires_processors
    def test_long_message_rouses(self):
        def make():
            return [{'a': i + 1000, 'b': str(i)} for i in range(20_000)]
        with self.answering('len(item)') as (there, back):
            for wrap in lambda rows: rows, _parcels.move:
                with self.subTest(wrap):
                    for _ in support.sleeping_retry(support.LONG_TIMEOUT):
                        before = _testparcel.count_roused()
                        there.put(wrap(make()))
                        self.assertEqual(back.get(timeout=support.LONG_TIMEOUT),
                                         20_000)
                        if _testparcel.count_roused() > before:
                            break
            # A short one comes at once.
            before = _testparcel.count_roused()
            for message in (1, 'x'), [1] * 10, [{'a': 1}] * 10:
                self.rouse(there)
                time.sleep(0.01)
                there.put(message)
                self.assertEqual(back.get(timeout=support.LONG_TIMEOUT),
                                 len(message))
            self.assertEqual(_testparcel.count_roused(), before + 3)

    def test_rousing_timeouts_and_items_race(self):
        q = _parcels.create_queue()
        count = 2000
        got = []
        def get():
            while len(got) < count:
                got.append(q.get(timeout=support.LONG_TIMEOUT))
                if len(got) < count:
                    with contextlib.suppress(_parcels.QueueEmpty):
                        got.append(q.get(timeout=0.00005))
        with self.thread(get) as getter:
            def rouse():
                while getter.is_alive():
                    _testparcel.expect(q)
            with self.thread(rouse):
                for i in range(count):
                    if i % 3 == 0:
                        time.sleep(0.00005)
                    q.put(i)
        self.assertEqual(got, list(range(count)))

    def test_unreferenced_while_waiting(self):
        # The waiting call keeps the queue.
        errors = []
        def wait():
            try:
                _parcels.create_queue().get(timeout=0.05)
            except _parcels.QueueEmpty as exc:
                errors.append(exc)
        with self.thread(wait):
            support.gc_collect()
        self.assertEqual(len(errors), 1)


@unittest.skipUnless(threading.current_thread() is threading.main_thread(),
                     'signals are for the main thread')
class SignalTests(TestBase):

    def setUp(self):
        super().setUp()
        # A shell's background job ignores it.
        old = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, old)

    def interrupted(self, wait):
        import _thread
        # Before, while or after it goes to sleep: whenever.
        for delay in 0, 0.00002, 0.0001, 0.1:
            def interrupt():
                event.wait()
                if delay:
                    time.sleep(delay)
                _thread.interrupt_main()
            event = threading.Event()
            start = time.monotonic()
            with self.assertRaises(KeyboardInterrupt):
                with self.thread(interrupt):
                    event.set()
                    wait()
                    time.sleep(support.SHORT_TIMEOUT)
            self.assertLess(time.monotonic() - start, support.SHORT_TIMEOUT)

    def test_get(self):
        q = _parcels.create_queue()
        self.interrupted(lambda: q.get(timeout=support.LONG_TIMEOUT))
        q.put(1)
        self.assertEqual(q.get(), 1)

    def test_put(self):
        q = _parcels.create_queue(1)
        q.put(1)
        self.interrupted(lambda: q.put(2, timeout=support.LONG_TIMEOUT))
        self.assertEqual((q.qsize(), q.get()), (1, 1))

    def test_roused(self):
        q = _parcels.create_queue()
        over = threading.Event()
        def rouse():
            while not over.is_set():
                _testparcel.expect(q)
        with self.thread(rouse):
            try:
                self.interrupted(lambda: q.get(timeout=support.LONG_TIMEOUT))
            finally:
                over.set()

    def test_subinterpreter(self):
        id = self.create()
        q = _parcels.create_queue()
        self.interrupted(lambda: run(
            id, f"arg.get(timeout={support.LONG_TIMEOUT})", q))

    @unittest.skipUnless(hasattr(signal, 'setitimer'), 'needs setitimer()')
    def test_handler_that_returns(self):
        # The wait goes on, and the handler may use the queue itself.
        q = _parcels.create_queue()
        inner = _parcels.create_queue()
        calls = []
        def handler(signum, frame):
            # It can be interrupted by itself.
            calls.append(signum)
            with contextlib.suppress(_parcels.QueueEmpty):
                inner.get(timeout=0.01)
            if len(calls) >= 5:
                signal.setitimer(signal.ITIMER_REAL, 0)
                q.put('done')
        old = signal.signal(signal.SIGALRM, handler)
        self.addCleanup(signal.signal, signal.SIGALRM, old)
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)
        try:
            self.assertEqual(q.get(timeout=support.LONG_TIMEOUT), 'done')
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.assertGreaterEqual(len(calls), 5)


class ClosingTests(TestBase):

    def test_waiting_thread(self):
        for wait in 'empty.get()', 'full.put(2)', 'empty.get(timeout=1e6)':
            with self.subTest(wait):
                self.check_waiting_thread(wait)

    def test_roused_thread(self):
        over = threading.Event()
        def rouse():
            while not over.is_set():
                _testparcel.expect(empty)
        empty = _parcels.create_queue()
        with self.thread(rouse):
            try:
                for _ in range(5):
                    self.check_waiting_thread('empty.get()', empty)
            finally:
                over.set()

    def check_waiting_thread(self, wait, empty=None):
        id = self.create()
        report = _parcels.create_queue(unbounditems=_parcels.UNBOUND_REMOVE)
        started = _parcels.create_queue()
        full = _parcels.create_queue(1)
        full.put(1)
        run(id, f"""
            import threading
            report, started, empty, full = arg
            def wait():
                started.put(1)
                try:
                    {wait}
                except BaseException as exc:
                    report.put(type(exc).__name__)
            threading.Thread(target=wait).start()
            """, (report, started, empty or _parcels.create_queue(), full))
        started.get(timeout=support.LONG_TIMEOUT)
        # Wherever it is now, this comes to an end.
        _parcels.close(id)
        self.assertTrue(report.empty())
        # It is in nobody's way.
        self.assertEqual(full.get_nowait(), 1)
        full.put(2, timeout=support.SHORT_TIMEOUT)
        self.assertEqual(full.get(timeout=support.SHORT_TIMEOUT), 2)

    def test_exception_of_waiting_thread(self):
        id = self.create()
        outcome = _parcels.create_queue()
        started = _parcels.create_queue()
        received = []
        def receive():
            received.append(outcome.get(timeout=support.LONG_TIMEOUT))
        run(id, """
            import threading
            outcome, started, stay, empty = arg
            def wait():
                started.put(1)
                try:
                    empty.get()
                except Exception as exc:
                    outcome.put(type(exc).__name__)
                while stay.qsize():     # until that has been received
                    pass
            threading.Thread(target=wait).start()
            """, (outcome, started, stay := _parcels.create_queue(),
                  _parcels.create_queue()))
        stay.put(1)
        started.get(timeout=support.LONG_TIMEOUT)
        with self.thread(_parcels.close, id):
            with self.thread(receive):
                pass
            stay.get()
        self.assertEqual(received, ['InterpreterError'])

    def test_waiting_daemon_thread(self):
        # It is given up with all that its frames refer to, which a hunt for
        # leaks would count.
        self.check_script("""
            full = _parcels.create_queue(1)
            full.put(1)
            for wait in 'empty.get()', 'full.put(2)':
                id = create('legacy')
                started = _parcels.create_queue()
                run(id, f'''
            import threading
            started, empty, full = arg
            def wait():
                started.put(1)
                try:
                    {wait}
                except BaseException:
                    pass
            threading.Thread(target=wait, daemon=True).start()
            ''', (started, _parcels.create_queue(), full))
                started.get()
                _interpreters.destroy(id)
            assert full.get_nowait() == 1
            full.put(2, timeout=10)
            assert full.get(timeout=10) == 2
            print('done', flush=True)
            """)

    def test_receiver_gone(self):
        # Its wake-up goes to somebody else.
        q = _parcels.create_queue()
        id = self.create()
        started = _parcels.create_queue()
        run(id, """
            import threading
            q, started = arg
            def wait():
                started.put(1)
                try:
                    q.get()
                except Exception:
                    pass
            for _ in range(3):
                threading.Thread(target=wait).start()
            """, (q, started))
        for _ in range(3):
            started.get(timeout=support.LONG_TIMEOUT)
        got = []
        def get():
            got.append(q.get(timeout=support.LONG_TIMEOUT))
        with self.thread(get):
            _parcels.close(id)
            q.put('x')
        self.assertEqual(got, ['x'])

    def test_exit_while_daemon_waits(self):
        self.check_script("""
            started = threading.Event()
            q = _parcels.create_queue()
            def wait():
                started.set()
                q.get()
            threading.Thread(target=wait, daemon=True).start()
            started.wait()
            print('done', flush=True)
            """)

    def test_exit_while_subinterpreter_thread_waits(self):
        for config, daemon in ('isolated', False), ('legacy', True):
            self.check_script(f"""
                started = _parcels.create_queue()
                id = create({config!r})
                run(id, '''
                import threading
                q, started = arg
                def wait():
                    started.put(1)
                    try:
                        q.get()
                    except Exception:
                        pass
                threading.Thread(target=wait, daemon={daemon}).start()
                ''', (_parcels.create_queue(), started))
                started.get()
                print('done', flush=True)
                """)

    def test_exit_while_running_subinterpreter_waits(self):
        self.check_script("""
            started = _parcels.create_queue()
            id = create()
            def wait():
                run(id, '''
            q, started = arg
            started.put(1)
            q.get()
            ''', (_parcels.create_queue(), started))
            threading.Thread(target=wait, daemon=True).start()
            started.get()
            print('done', flush=True)
            """)

    def test_exit_with_items(self):
        self.check_script("""
            q = _parcels.create_queue()
            q.put((q, memoryview(b'abc'), 1, _parcels.pack([1])))
            kept = q.get()
            q.put((q, memoryview(b'abc'), 1, _parcels.pack([1])))
            id = create()
            run(id, 'arg.put(memoryview(bytearray(3)))', q)
            print('done', flush=True)
            """)


class ForkTests(TestBase):

    def setUp(self):
        if not support.has_fork_support:
            self.skipTest('needs fork()')

    def in_child(self, check):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                check()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        support.wait_process(pid, exitcode=0)

    def test_fork_while_others_wait(self):
        q = _parcels.create_queue()
        full = _parcels.create_queue(1)
        full.put(1)
        started = threading.Semaphore(0)
        def get():
            started.release()
            q.get()
        def put():
            started.release()
            full.put(2)
        def check():
            # In the child nobody waits.
            q.put('x')
            self.assertEqual(q.get_nowait(), 'x')
            self.assertEqual(full.get_nowait(), 1)
            with self.assertRaises(_parcels.QueueEmpty):
                full.get(timeout=0.05)
            with self.assertRaises(_parcels.QueueEmpty):
                q.get(timeout=0.05)
            full.put(3)
            self.assertEqual(full.get(), 3)
        with self.thread(get), self.thread(put):
            try:
                started.acquire()
                started.acquire()
                for _ in range(5):
                    self.in_child(check)
            finally:
                q.put(None)
                full.get()

    def test_fork_while_others_exchange(self):
        id = self.create()
        there, back = _parcels.create_queue(), _parcels.create_queue()
        stop = threading.Event()
        def serve():
            run(id, """
                there, back = arg
                while (item := there.get()) is not None:
                    back.put(item)
                """, (there, back))
        def drive():
            while not stop.is_set():
                there.put(1)
                back.get()
            there.put(None)
        def check():
            q = _parcels.create_queue()
            q.put(1)
            self.assertEqual(q.get(), 1)
            there.put(1)
            _parcels.list_queues()
        with self.thread(serve), self.thread(drive):
            try:
                for _ in range(10):
                    self.in_child(check)
            finally:
                stop.set()


class RunTests(TestBase):

    def test_run(self):
        id = self.create()
        self.assertEqual(_parcels.run(id, ('echo', (1, [2]))), (1, [2]))
        parcel = _parcels.pack(('echo', 5))
        self.assertEqual(_parcels.run(id, parcel), 5)
        with self.assertRaises(_interpreters.InterpreterError):
            _parcels.run(id, parcel)
        main = _interpreters.get_main()[0]
        self.assertEqual(_parcels.run(main, ('echo', 5)), 5)
        here, running = run(id, """
            import _interpreters
            id = _interpreters.get_current()[0]
            result = id, _interpreters.is_running(id)
            """)
        self.assertEqual((here, running), (id, True))
        self.assertFalse(_interpreters.is_running(id))

    def test_nested(self):
        first, second = self.create(), self.create()
        self.assertEqual(run(first, """
            result = _parcels.run(arg, ('echo', 'deep')), _parcels.run(
                arg, ('call', ('result = arg * 2', 4)))
            """, second), ('deep', 8))

    def test_failures(self):
        id = self.create()
        InterpreterError = _interpreters.InterpreterError
        with self.assertRaisesRegex(InterpreterError, 'ZeroDivisionError: div'):
            run(id, '1/0')
        with self.assertRaisesRegex(_parcels.NotShareableError, 'function'):
            run(id, 'result = lambda: None')
        with self.assertRaises(MemoryError):
            run(id, 'raise MemoryError')
        with self.assertRaises(KeyboardInterrupt):
            run(id, 'raise KeyboardInterrupt')
        with self.assertRaisesRegex(InterpreterError, 'nothing'):
            _parcels.run(id, ('nothing', 1))
        for bad in 1, ('echo',), (1, 2), ('echo', 1, 2):
            with self.assertRaises(InterpreterError):
                _parcels.run(id, bad)
        with self.assertRaises(_parcels.NotShareableError):
            _parcels.run(id, ('echo', lambda: None))
        with self.assertRaisesRegex(InterpreterError, 'LookupError'):
            _interpreters.run_string(id, """if True:
                import sys, types
                mod = types.ModuleType('test.test_rwparcels')
                def fail_to_load():
                    raise LookupError
                mod.fail_to_load = fail_to_load
                sys.modules['test.test_rwparcels'] = mod
                """)
            _parcels.run(id, ('echo', CantLoad()))
        long = '\u20ac' * 1000
        with self.assertRaisesRegex(InterpreterError, '\u20ac\u20ac'):
            run(id, 'raise ValueError(arg)', long)
        with self.assertRaises(InterpreterError):
            run(id, 'raise ValueError("\\udc80")')
        # It still works.
        self.assertEqual(_parcels.run(id, ('echo', 1)), 1)

    def test_unknown(self):
        id = self.create()
        _parcels.close(id)
        for bad in id, 10**6:
            with self.assertRaises(_interpreters.InterpreterNotFoundError):
                _parcels.run(bad, ('echo', 1))
            with self.assertRaises(_interpreters.InterpreterNotFoundError):
                _parcels.close(bad)
        for bad in 'x', None, 1.5:
            with self.assertRaises(TypeError):
                _parcels.run(bad, ('echo', 1))
        with self.assertRaises(ValueError):
            _parcels.run(-1, ('echo', 1))
        with self.assertRaises(TypeError):
            _parcels.run(1)
        with self.assertRaises(_interpreters.InterpreterError):
            _parcels.close(_interpreters.get_current()[0])

    def test_running_already(self):
        id = self.create()
        inside, leave = _parcels.create_queue(), _parcels.create_queue()
        def stay():
            run(id, "arg[0].put(1); arg[1].get()", (inside, leave))
        with self.thread(stay):
            inside.get(timeout=support.LONG_TIMEOUT)
            with self.assertRaisesRegex(_interpreters.InterpreterError,
                                        'already running'):
                _parcels.run(id, ('echo', 1))
            with self.assertRaisesRegex(_interpreters.InterpreterError,
                                        'running'):
                _parcels.close(id)
            leave.put(1)
        self.assertEqual(_parcels.run(id, ('echo', 1)), 1)

    def test_run_against_close(self):
        for _ in range(5):
            id = create()
            outcomes = []
            barrier = threading.Barrier(3)
            def use():
                barrier.wait()
                while True:
                    try:
                        self.assertEqual(_parcels.run(id, ('echo', 1)), 1)
                    except _interpreters.InterpreterNotFoundError:
                        break
                    except _interpreters.InterpreterError:
                        pass
                outcomes.append(True)
            with self.thread(use), self.thread(use):
                barrier.wait()
                while True:
                    try:
                        _parcels.close(id)
                    except _interpreters.InterpreterError:
                        continue
                    break
            self.assertEqual(outcomes, [True, True])


class LockTests(TestBase):

    def sections(self, id, kind):
        return _parcels.lock_stats()['interpreters'][id]['sections'][kind]

    def test_stats(self):
        stats = _parcels.lock_stats()
        self.assertIn(stats['mode'], ('pair', 'global'))
        mine = stats['interpreters'][_interpreters.get_current()[0]]
        for one in mine, stats['gone']:
            self.assertEqual(set(one['sections']), {'own', 'pair', 'all'})
            for name in 'read_wait', 'write_wait', 'write_hold':
                h = one[name]
                self.assertEqual(sum(h['buckets']), h['count'])
                self.assertLessEqual(h['max_ns'], h['total_ns'])
            ns, whose = one['longest_wait']

    def test_each_hand_over_counts(self):
        kind = 'all' if _parcels.lock_stats()['mode'] == 'global' else 'own'
        here = _interpreters.get_current()[0]
        q = _parcels.create_queue(1)
        for call in lambda: q.put(1), q.get:
            before = self.sections(here, kind)
            call()
            self.assertGreater(self.sections(here, kind), before)
        # What does not happen does not count.
        before = self.sections(here, kind)
        with self.assertRaises(_parcels.QueueEmpty):
            q.get_nowait()
        self.assertEqual(self.sections(here, kind), before)

    def test_run_counts(self):
        kind = 'all' if _parcels.lock_stats()['mode'] == 'global' else 'pair'
        here = _interpreters.get_current()[0]
        id = self.create()
        before = self.sections(here, kind)
        _parcels.run(id, ('echo', 1))
        self.assertEqual(self.sections(here, kind) - before, 2)

    def test_global_mode(self):
        code = textwrap.dedent("""
            import _parcels
            q = _parcels.create_queue()
            q.put(1)
            assert q.get() == 1
            stats = _parcels.lock_stats()
            assert stats['mode'] == 'global'
            assert stats['interpreters'][0]['sections']['all'] >= 2
            """)
        script_helper.assert_python_ok('-X', 'rwgil=global', '-c', code)


class StressTests(unittest.TestCase):

    def test_stress(self):
        out = script_helper.assert_python_ok(
            '-m', 'test.rwparcels_stress', '--seconds', '2').out
        self.assertIn(b'\nok: ', out)


class ModuleTests(TestBase):

    def test_in_many_interpreters(self):
        for _ in range(3):
            id = self.create()
            self.assertEqual(_parcels.run(id, ('echo', 1)), 1)
            _parcels.close(id)

    def test_import_twice(self):
        id = self.create()
        run(id, """
            import sys, gc
            for _ in range(3):
                del sys.modules['_parcels']
                import _parcels as again
                q = again.create_queue()
                q.put(1)
                assert q.get() == 1
                assert again.Queue is not _parcels.Queue
                del again, q
                gc.collect()
            """)

    def test_no_codec(self):
        # Without the package, functions of a script can't be sent.
        code = textwrap.dedent("""
            import sys, _parcels
            sys.modules['interpreters'] = None
            q = _parcels.create_queue()
            q.put((1, 'a'))
            try:
                q.put(lambda: 1)
            except _parcels.NotShareableError as exc:
                assert isinstance(exc.__cause__, ImportError), exc.__cause__
            else:
                raise AssertionError
            assert q.get() == (1, 'a')
            assert q.empty()
            """)
        script_helper.assert_python_ok('-c', code)


if __name__ == '__main__':
    unittest.main()

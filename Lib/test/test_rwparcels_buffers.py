"""Tests of the memory that objects hand out in PickleBuffers (PEP 574), on its way to
another interpreter: copied once, or lent if nobody who stays can see it."""

import array
import contextlib
import gc
import itertools
import mmap
import os
import pickle
import sys
import threading
import unittest
import weakref
from pickle import PickleBuffer
from test import support
from test.support import import_helper, threading_helper

_testparcel = import_helper.import_module('_testparcel')
interpreters = import_helper.import_module('interpreters')
ctypes = import_helper.import_module('ctypes')

from interpreters import (
    MovedError, MovedObject, NotShareableError, TransferError, move, pack)

SIZE = 100_000          # large enough to be worth lending

SETUP = """
import gc
import interpreters
from interpreters import MovedObject, TransferError, move, pack
from test import test_rwparcels_buffers as here
from test.test_rwparcels_buffers import *
"""


class Holder:
    """Has its bytes in another object."""

    def __init__(self, data, *more):
        self.data = data
        self.more = more

    def __reduce_ex__(self, protocol):
        return Holder, (PickleBuffer(self.data), *self.more)


class Twice(Holder):
    """Hands out one PickleBuffer twice, and another one of the same bytes."""

    def __reduce_ex__(self, protocol):
        buffer = PickleBuffer(self.data)
        return Twice, (buffer, buffer, PickleBuffer(self.data))


class Bytes(bytearray):
    """Has its bytes itself."""

    def __reduce_ex__(self, protocol):
        return Bytes, (PickleBuffer(self),)


class Refusing:
    def __buffer__(self, flags):
        raise BufferError('not today')


class Exporting:
    """Exports by Python code."""

    def __init__(self):
        self.data = bytearray(SIZE)

    def __buffer__(self, flags):
        return memoryview(self.data)


class Keeping(Holder):
    """Keeps and changes what it is made with, and fails as often as is wanted."""

    kept = []
    failures = 0

    def __reduce_ex__(self, protocol):
        return Keeping.make, (PickleBuffer(self.data),)

    @classmethod
    def make(cls, buffer):
        if cls.failures > 0:
            cls.failures -= 1
            cls.kept.append(buffer)
            raise ZeroDivisionError
        return cls(buffer)


def pattern(n=SIZE):
    return (bytes(range(256)) * (n // 256 + 1))[:n]


def address(buffer):
    """Where its bytes are."""
    with memoryview(buffer) as view:
        if not view.readonly:
            return ctypes.addressof(ctypes.c_char.from_buffer(view))
        return ctypes.cast(ctypes.py_object(view.obj), ctypes.c_void_p).value


def make_mmap():
    m = mmap.mmap(-1, SIZE)
    m[:] = pattern()
    return m


def make_view():
    return memoryview(bytearray(pattern()))


def make_ctypes():
    return (ctypes.c_char * SIZE).from_buffer_copy(pattern())


def resident():
    """Memory of the process, in bytes."""
    with open('/proc/self/statm', encoding='ascii') as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


EXPORTERS = {
    'bytearray': lambda: bytearray(pattern()),
    'array': lambda: array.array('B', pattern()),
    'mmap': make_mmap,
    'ctypes': make_ctypes,
    'memoryview': make_view,
    'bytes': lambda: bytes(bytearray(pattern())),
}


class BufferTestCase(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.interp = interpreters.create()
        cls.addClassCleanup(cls.interp.close)
        cls.there = interpreters.create_queue()
        cls.back = interpreters.create_queue()
        cls.interp.prepare_main(there=cls.there, back=cls.back)
        cls.interp.exec(SETUP)

    def setUp(self):
        self.addCleanup(self.check_heaps)
        self.addCleanup(self.interp.exec, 'obj = None')

    def check_heaps(self):
        self.assertEqual(_testparcel.check_ownership(), [])
        self.assertEqual(_testparcel.check_heap(), [])

    def run_there(self, source):
        self.interp.exec(source)
        if self.back.qsize():
            return self.back.get(timeout=support.SHORT_TIMEOUT)


class CopyTests(BufferTestCase):

    def test_exporters(self):
        for name, make in EXPORTERS.items():
            for size in SIZE, 10:
                with self.subTest(name, size=size):
                    obj = Holder(memoryview(make())[:size])
                    self.there.put(obj)
                    new = self.run_there('obj = there.get(); '
                                         'back.put((bytes(obj.data), '
                                         'obj.data.readonly, type(obj.data)))')
                    self.assertEqual(new, (pattern(size), name == 'bytes',
                                           memoryview))
                    self.assertEqual(obj.data.tobytes(), pattern(size))

    def test_nobody_sees_the_changes_of_others(self):
        obj = Holder(bytearray(pattern()))
        self.there.put(obj)
        self.run_there('obj = there.get(); obj.data[5] = 99')
        self.assertEqual(obj.data, pattern())
        obj.data[6] = 98
        self.assertEqual(self.run_there('back.put(list(obj.data[4:8]))'),
                         [4, 99, 6, 7])

    def test_there_and_back(self):
        self.there.put(Holder(bytearray(pattern())))
        self.run_there('obj = there.get(); back.put(obj); obj.data[0] = 77')
        self.there.put(Holder(bytearray(pattern())))
        new = self.run_there('obj = there.get(); back.put(obj); obj.data[0] = 77')
        self.assertEqual(new.data, pattern())

    def test_by_itself(self):
        for content in b'abc', bytearray(b'abc'), b'', bytearray(pattern()):
            with self.subTest(content[:10]):
                self.there.put(PickleBuffer(content))
                new, readonly = self.run_there(
                    'obj = there.get(); back.put((bytes(obj), obj.readonly))')
                self.assertEqual(new, bytes(content))
                self.assertEqual(readonly, isinstance(content, bytes))

    def test_plain_bytes(self):
        # As PickleBuffer.raw() shows it.
        data = array.array('i', range(10))
        self.there.put(PickleBuffer(memoryview(data).cast('B').cast('i', [2, 5])))
        self.assertEqual(
            self.run_there('obj = there.get(); back.put((obj.format, obj.shape, '
                           'obj.itemsize, bytes(obj)))'),
            ('B', (40,), 1, data.tobytes()))

    def test_fortran(self):
        _testbuffer = import_helper.import_module('_testbuffer')
        data = _testbuffer.ndarray(list(range(6)), shape=[2, 3], format='B',
                                   flags=_testbuffer.ND_FORTRAN)
        self.there.put(PickleBuffer(data))
        self.assertEqual(self.run_there('back.put(bytes(there.get()))'),
                         PickleBuffer(data).raw().tobytes())

    def test_identity(self):
        self.there.put(Twice(bytearray(pattern()), None, None))
        self.assertEqual(
            self.run_there('obj = there.get(); '
                           'back.put((obj.data is obj.more[0], '
                           'obj.data is obj.more[1], obj.data == obj.more[1]))'),
            (True, False, True))

    def test_code_that_exports(self):
        obj = Holder(Exporting())
        self.there.put(obj)
        self.assertEqual(self.run_there('back.put(len(there.get().data))'), SIZE)
        self.there.put(move(obj))
        self.assertEqual(self.run_there('back.put(len(there.get().data))'), SIZE)

    def test_nbytes(self):
        obj = Holder(bytearray(SIZE))
        self.assertGreaterEqual(pack(obj).nbytes, SIZE)

    def test_shareable(self):
        self.assertTrue(interpreters.is_shareable(PickleBuffer(b'')))


class RefusalTests(BufferTestCase):

    def check_refused(self, make, cause):
        with self.assertRaises(NotShareableError) as caught:
            pack([make()])
        self.assertIsInstance(caught.exception.__cause__, cause)
        obj = [make()]
        with self.assertRaises(NotShareableError) as caught:
            pack(move(obj))
        self.assertIsInstance(caught.exception.__cause__, cause)
        self.assertEqual(caught.exception.path, 'obj[0]')
        self.assertIs(type(obj), list)

    def test_not_in_one_piece(self):
        self.check_refused(lambda: PickleBuffer(memoryview(pattern())[::2]),
                           BufferError)

    def test_released(self):
        def make():
            buffer = PickleBuffer(b'abc')
            buffer.release()
            return buffer
        self.check_refused(make, ValueError)

    def test_exporter_refuses(self):
        self.check_refused(lambda: Holder(Refusing()), BufferError)

    def test_nothing_has_happened(self):
        part = bytearray(pattern())
        obj = [Holder(part), Holder(memoryview(part)[::2])]
        del part
        with self.assertRaises(NotShareableError):
            pack(move(obj))
        self.assertEqual(obj[0].data, pattern())
        obj[0].data[0] = 1
        # Nothing is exported.
        del obj[1]
        gc.collect()
        obj[0].data.append(1)


class MoveTests(BufferTestCase):

    def moves(self, marker):
        """Is no byte copied?"""
        parcel = pack(marker)
        return parcel.nbytes < SIZE, parcel.open()

    def test_exporters(self):
        for name, make in EXPORTERS.items():
            with self.subTest(name):
                obj = Holder(make())
                self.there.put(move(obj))
                self.assertIsInstance(obj, MovedObject)
                self.assertEqual(
                    self.run_there('obj = there.get(); back.put((bytes(obj.data), '
                                   'obj.data.readonly))'),
                    (pattern(), name == 'bytes'))
                obj = Holder(make())
                moved, new = self.moves(move(obj))
                self.assertTrue(moved)
                self.assertEqual(bytes(new.data), pattern())

    def test_same_memory(self):
        obj = Holder(bytearray(pattern()))
        where = address(obj.data)
        self.there.put(move(obj))
        self.assertEqual(self.run_there('obj = there.get(); '
                                        'back.put(address(obj.data))'), where)

    def test_temporary(self):
        for parcel in (pack(Holder(bytearray(pattern()))),
                       pack([Holder(bytearray(pattern()))]),
                       pack(Bytes(pattern())),
                       pack(PickleBuffer(bytearray(pattern())))):
            self.assertLess(parcel.nbytes, SIZE)

    def test_it_is_the_exporter(self):
        obj = Bytes(pattern())
        other = obj
        moved, new = self.moves(move(obj))
        self.assertTrue(moved)
        self.assertIsInstance(obj, MovedObject)
        with self.assertRaises(MovedError):
            other[0]
        with self.assertRaises(MovedError):
            memoryview(obj)
        with support.catch_unraisable_exception() as caught:
            del obj, other, new
            self.assertIsNone(caught.unraisable)

    def test_by_itself(self):
        obj = PickleBuffer(bytearray(pattern()))
        moved, new = self.moves(move(obj))
        self.assertTrue(moved)
        self.assertIsInstance(obj, MovedObject)
        self.assertEqual(new, pattern())

    def test_small_ones_are_copied(self):
        obj = Holder(bytearray(b'abc'))
        new = pack(move(obj)).open()
        self.assertEqual(new.data, b'abc')
        self.assertIsInstance(obj, MovedObject)

    def test_identity(self):
        obj = Twice(bytearray(pattern()), None, None)
        moved, new = self.moves(move(obj))
        self.assertTrue(moved)
        self.assertIs(new.data, new.more[0])
        self.assertIsNot(new.data, new.more[1])
        new.data[0] = 55
        self.assertEqual(new.more[1][0], 55)

    def test_seen_by_others(self):
        # Copied: those who stay see no changes, and make none that are seen.
        data = bytearray(pattern())
        view = memoryview(data)
        listed = [Bytes(pattern())]
        slice_of = Holder(memoryview(bytearray(pattern())))
        part = slice_of.data[10:]
        buffer = PickleBuffer(bytearray(pattern()))
        cases = {
            'variable': (Holder(data), data),
            'view': (Holder(view), view),
            'in a list': (listed[0], None),
            'another view': (slice_of, part),
            'the PickleBuffer': (HandsOut(buffer), buffer),
        }
        for name, (obj, seen) in list(cases.items()):
            with self.subTest(name):
                content = None if seen is None else bytes(seen)
                cases.clear()
                moved, new = self.moves(move(obj))
                self.assertFalse(moved)
                self.assertIsInstance(obj, MovedObject)
                with memoryview(getattr(new, 'data', new)) as new_view:
                    new_view[20] = 0
                    new_view[21] = 0
                if seen is not None:
                    self.assertEqual(bytes(seen), content)

    def test_view_of_what_stays(self):
        data = bytearray(pattern())
        size = SIZE - 10
        for parcel in (
                pack(Holder(memoryview(data)[10:])),
                pack([Holder(memoryview(data)[10:])]),
                pack(move(Holder(memoryview(data)[10:]))),
                pack(PickleBuffer(data)),
                pack(Holder((ctypes.c_char * size).from_buffer(data)))):
            self.assertGreaterEqual(parcel.nbytes, size)
        # Small ones are copied in any case.
        parcel = pack(Holder(memoryview(data)[5:15]))
        parcel.open().data[0] = 0
        self.assertEqual(data, pattern())

    def test_held_by_what_stays(self):
        # Through a part of the graph that others have, too.
        obj = [Holder(bytearray(pattern()))]
        inner = Holder(obj[0].data)
        moved, new = self.moves(move(obj))
        self.assertFalse(moved)
        self.assertEqual(inner.data, pattern())
        new[0].data[0] = 9
        self.assertEqual(inner.data, pattern())

    def test_next_to_what_stays(self):
        shared = Holder(bytearray(pattern()))
        parcel = pack([move(Holder(bytearray(pattern()))), shared])
        self.assertGreaterEqual(parcel.nbytes, SIZE)
        self.assertLess(parcel.nbytes, 2 * SIZE)

    def test_on_and_on(self):
        # From one to the next, none of which copies.
        obj = Holder(bytearray(pattern()))
        where = address(obj.data)
        for _ in range(3):
            self.there.put(move(obj))
            obj = self.run_there('obj = there.get(); back.put(move(obj))')
        self.assertEqual(address(obj.data), where)
        obj.data[0] = 0
        self.assertEqual(obj.data, pattern())

    def test_queue_of_temporaries(self):
        for i in range(50):
            self.there.put(Holder(bytearray([i]) * SIZE))
        for i in range(50):
            self.assertEqual(
                self.run_there('back.put(set(there.get().data))'), {i})


class HandsOut(Holder):
    """Always the same PickleBuffer."""

    def __reduce_ex__(self, protocol):
        return Holder, (self.data,)


class LifeTests(BufferTestCase):

    def lend(self):
        """Something moved into `there`, and a reference to who lent it."""
        obj = Holder(Bytes(pattern()))
        ref = weakref.ref(obj.data)
        self.there.put(move(obj))
        return ref

    def wait_for(self, condition):
        for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
            if condition():
                break

    def test_given_back(self):
        ref = self.lend()
        self.run_there('obj = there.get()')
        self.assertIsNotNone(ref())
        self.run_there('del obj')
        # By a pending call.
        self.wait_for(lambda: ref() is None)

    def test_given_back_when_a_view_goes(self):
        ref = self.lend()
        self.there.put(move(Holder(bytearray(pattern()))))
        self.run_there('there.get(); obj = there.get(); '
                       'view = obj.data[5:10]; obj = None; gc.collect()')
        self.assertEqual(self.run_there('back.put(list(view))'), [5, 6, 7, 8, 9])
        self.run_there('del view')
        self.wait_for(lambda: ref() is None)

    def pass_on(self, how):
        """What another interpreter has moved on here, or shows, and is closed."""
        interp = interpreters.create()
        interp.prepare_main(there=self.there, back=self.back)
        interp.exec(SETUP)
        ref = self.lend()
        interp.exec(f'obj = there.get(); back.put({how})')
        got = self.back.get(timeout=support.SHORT_TIMEOUT)
        interp.close()
        return got, ref

    def test_given_back_by_a_closed_interpreter(self):
        # It has come from here, so it is released here.
        for how in 'move(obj)', 'memoryview(obj.data)[1:]':
            with self.subTest(how):
                got, ref = self.pass_on(how)
                view = got if isinstance(got, memoryview) else got.data
                self.assertEqual(bytes(view), pattern()[-len(view):])
                self.assertIsNotNone(ref())
                del got, view
                self.wait_for(lambda: ref() is None)

    def test_lent_on_and_back_again(self):
        got, ref = self.pass_on('move(obj)')
        self.there.put(move(got))
        del got
        self.assertEqual(self.run_there('obj = there.get(); back.put(bytes(obj.data))'),
                         pattern())
        self.assertIsNotNone(ref())
        self.run_there('del obj')
        self.wait_for(lambda: ref() is None)

    def test_discarded(self):
        obj = Bytes(pattern())
        ref = weakref.ref(obj)
        parcel = pack(move(obj))
        del obj
        self.assertIsNotNone(ref())
        del parcel
        self.assertIsNone(ref())

    def test_discarded_elsewhere(self):
        obj = Bytes(pattern())
        ref = weakref.ref(obj)
        parcel = pack(move(obj))
        del obj
        self.there.put(parcel)
        del parcel
        self.run_there('obj = there.get(); del obj')
        self.wait_for(lambda: ref() is None)

    def test_opened_parcel_keeps_nothing(self):
        obj = Bytes(pattern())
        ref = weakref.ref(obj)
        parcel = pack(move(obj))
        del obj
        parcel.open()
        self.assertIsNone(ref())

    def closed_sender(self, how):
        interp = interpreters.create()
        interp.prepare_main(there=self.there)
        interp.exec(SETUP)
        interp.exec(f'obj = Holder(bytearray(pattern())); there.put(pack({how}))')
        parcel = self.there.get()
        interp.close()
        return parcel

    def test_sender_closed_before(self):
        for how in 'move(obj)', 'obj':
            with self.subTest(how):
                self.there.put(self.closed_sender(how))
                self.assertEqual(
                    self.run_there('obj = there.get().open(); obj.data[0] = 0; '
                                   'back.put(bytes(obj.data))'), pattern())
                self.run_there('del obj; gc.collect()')

    def test_sender_closed_in_between(self):
        interp = interpreters.create()
        interp.prepare_main(there=self.there)
        interp.exec(SETUP)
        interp.exec('there.put(move(Holder(bytearray(pattern()))))')
        self.run_there('obj = there.get()')
        interp.close()
        self.assertEqual(self.run_there('obj.data[0] = 0; '
                                        'back.put(bytes(obj.data))'), pattern())
        self.run_there('del obj')

    def test_discarded_after_its_sender(self):
        parcel = self.closed_sender('move(obj)')
        del parcel
        self.assertEqual(self.closed_sender('move(obj)').open().data, pattern())

    # What an interpreter shows, and keeps itself, until it is closed.
    SHOWN = {
        'bytearray': 'memoryview(bytearray(pattern(SIZE)))',
        'part': 'memoryview(bytearray(pattern(SIZE)))[70_000:]',
        'nothing of it': 'memoryview(bytearray(pattern(SIZE)))[SIZE:]',
        'view of a view': 'memoryview(memoryview(bytearray(pattern(SIZE))))',
        'array': 'memoryview(array.array("i", pattern(SIZE)))',
        'bytes': 'memoryview(bytes(bytearray(pattern(SIZE))))',
        'table': 'memoryview(bytearray(pattern(SIZE))).cast("i", (2, SIZE // 8))[::-1]',
        'a global': 'memoryview(kept := bytearray(pattern(SIZE)))',
        'in a cycle': 'memoryview((lambda c: (c.append(c), c)[1][0])([bytearray(pattern(SIZE))]))',
        'small': 'memoryview(bytearray(b"small"))',
        'mmap': 'memoryview(make_mmap())',
        'ctypes': 'memoryview(make_ctypes())',
        'own class': 'memoryview(Bytes(pattern(SIZE)))',
        'taken back': 'memoryview(here.pack(memoryview(bytearray(pattern(SIZE)))).open())',
    }

    def shown(self, what):
        """What a closed interpreter has shown, and what that was."""
        interp = interpreters.create()
        interp.prepare_main(back=self.back)
        interp.exec(SETUP)
        interp.exec('import array; from test.test_rwparcels_buffers import make_mmap, make_ctypes')
        interp.exec(f'back.put(view := {what}); about = view.tobytes(), view.format, view.shape\n'
                    'back.put(about)')
        got, about = self.back.get(timeout=10), self.back.get(timeout=10)
        interp.close()
        return got, about

    # Whose exporters nobody can release any more.  Once in a process: that is a leak.
    NOT_FREED = {'mmap', 'ctypes', 'own class'}
    seen = set()

    def test_shown_by_a_closed_interpreter(self):
        for name, what in self.SHOWN.items():
            if name in self.seen:
                continue
            if name in self.NOT_FREED:
                self.seen.add(name)
            with self.subTest(name):
                got, about = self.shown(what.replace('SIZE', '80_000'))
                # What it was allocated from is used again, if it has been freed.
                other = [bytearray(b'x' * 80_000) for _ in range(20)]
                self.assertEqual((got.tobytes(), got.format, got.shape), about)
                view, part = memoryview(got), got[:1]
                del got
                self.assertEqual((view.tobytes(), view.format, view.shape), about)
                self.assertEqual(part.tobytes(), about[0][:part.nbytes])
                del view, part, other
                self.check_heaps()

    def test_shown_twice_by_a_closed_interpreter(self):
        # The same view, other parts of it, and what has been given back by then.
        # What an interpreter with copies of extensions leaves behind is freed: not this.
        import_helper.import_module('_testsinglephase')
        for name, extension in itertools.product(
                ('bytearray', 'array', 'bytes', 'table'), ('', 'import _testsinglephase')):
            with self.subTest(name, extension=extension):
                interp = interpreters.create()
                interp.exec(extension)
                interp.prepare_main(back=self.back)
                interp.exec(SETUP)
                interp.exec('from test.test_rwparcels_buffers import *\n'
                            f'view = {self.SHOWN[name].replace("SIZE", "80_000")}\n'
                            'for part in view, view, view[1:], view[:1]: back.put(part)\n'
                            'back.put(view.tobytes()); del view, part')
                first, *parts = [self.back.get(timeout=10) for _ in range(4)]
                data = self.back.get(timeout=10)
                del first
                interp.close()
                other = [bytearray(b'x' * 80_000) for _ in range(20)]
                n = parts[2].nbytes
                pairs = list(zip(parts, (data, data[n:], data[:n])))
                del parts
                while pairs:
                    for part, expected in pairs:
                        self.assertEqual(part.tobytes(), expected)
                    del part
                    pairs.pop(0)
                del other
                self.check_heaps()

    def test_closed_while_views_go(self):
        # Two receivers drop what the lender is just leaving to them.
        import_helper.import_module('_testsinglephase')
        for i in range(10):
            interp = interpreters.create()
            if i % 2:
                interp.exec('import _testsinglephase')
            interp.prepare_main(there=self.there, back=self.back)
            interp.exec(SETUP)
            interp.exec('import array\n'
                        'for make in bytearray, lambda data: array.array("B", data), bytes:\n'
                        '    data = make(bytearray(pattern()))\n'
                        '    view = memoryview(data)\n'
                        '    for part in view, view, view[1:]: there.put(part); back.put(part)\n'
                        'del make, data, view, part')
            views = [self.back.get(timeout=10) for _ in range(9)]
            self.interp.exec('views = [there.get(timeout=10) for _ in range(9)]')
            threads = [threading.Thread(target=func, args=args) for func, args in (
                (interp.close, ()), (self.interp.exec, ('while views: views.pop()[-1]',)))]
            with threading_helper.start_threads(threads):
                while views:
                    views.pop()[-1]
            self.assertEqual(interpreters.list_all().count(interp), 0)

    def test_shown_on_by_a_closed_interpreter(self):
        for name in 'bytearray', 'table', 'bytes':
            with self.subTest(name):
                got, about = self.shown(self.SHOWN[name].replace('SIZE', '80_000'))
                interp = interpreters.create()
                interp.prepare_main(there=self.there, back=self.back)
                self.there.put(got)
                interp.exec('back.put(there.get())')
                got = self.back.get(timeout=10)
                interp.close()
                self.assertEqual((got.tobytes(), got.format, got.shape), about)

    @unittest.skipIf(support.check_sanitizer(address=True, thread=True),
                     'the sanitizer keeps what is freed')
    @unittest.skipUnless(os.path.exists('/proc/self/statm'), 'needs /proc')
    def test_memory_of_a_closed_lender_is_freed(self):
        size = 16 << 20
        for name, times in itertools.product(
                ('bytearray', 'part', 'array', 'bytes', 'table', 'a global', 'in a cycle', 'taken back'), (1, 3)):
            with self.subTest(name, times=times):
                for i in range(5):
                    if i == 1:          # the first one fills what free() keeps
                        before = resident()
                    interp = interpreters.create()
                    interp.prepare_main(back=self.back)
                    interp.exec(SETUP)
                    what = self.SHOWN[name].replace('SIZE', str(size))
                    interp.exec(f'import array\nfor view in [{what}] * {times}: back.put(view[0:])\n'
                                'del view')
                    got = [self.back.get(timeout=10) for _ in range(times)]
                    self.assertGreater(got[0].nbytes, size // 2)
                    interp.close()
                    got = None
                self.assertLess(resident() - before, 2 * size)

    def test_receiver_closed(self):
        ref = self.lend()
        interp = interpreters.create()
        interp.prepare_main(there=self.there)
        interp.exec('import interpreters; obj = there.get()')
        interp.close()
        self.wait_for(lambda: ref() is None)


class OpeningTests(BufferTestCase):

    def setUp(self):
        super().setUp()
        self.addCleanup(Keeping.kept.clear)

    def check(self, parcel):
        Keeping.failures = 2
        for _ in range(2):
            with self.assertRaises(TransferError):
                parcel.open()
        # They have kept it: the next one gets its own.
        for view in Keeping.kept:
            view[0] = 99
        new = parcel.open()
        self.assertEqual(new.data, pattern())
        new.data[1] = 98
        self.assertEqual([view[1] for view in Keeping.kept], [1, 1])

    def test_copied(self):
        obj = Keeping(bytearray(pattern()))
        self.check(pack(obj))
        self.assertEqual(obj.data, pattern())

    def test_moved(self):
        self.check(pack(move(Keeping(bytearray(pattern())))))


@support.cpython_only
class MemoryTests(BufferTestCase):

    @support.disable_gc()       # it would fail, too, and says so as unraisable
    def attempts(self, call, after=lambda: None):
        _testcapi = import_helper.import_module('_testcapi')
        for n in range(1, 10_000):
            error = None
            _testcapi.set_nomemory(n, n + 1)
            try:
                result = call()
            except BaseException as exc:
                error = exc
            finally:
                _testcapi.remove_mem_hooks()
            if error is None:
                return result
            self.assertIsInstance(
                error, (MemoryError, NotShareableError, TransferError))
            error = None
            after()
        self.fail('it still fails')

    def test_pack_and_open(self):
        for make in (lambda: Holder(bytearray(pattern())),
                     lambda: [Holder(bytearray(pattern())), Bytes(pattern())],
                     lambda: Bytes(pattern()),
                     lambda: PickleBuffer(bytearray(pattern()))):
            for moved in False, True:
                with self.subTest(make, moved=moved):
                    obj = make()
                    pack(make()).open()         # warm up
                    def after():
                        self.assertNotIsInstance(obj, MovedObject)
                        if isinstance(obj, Holder):
                            obj.data.append(1)  # nothing is exported
                            obj.data.pop()
                    if moved:
                        parcel = self.attempts(lambda: pack(move(obj)), after)
                    else:
                        parcel = self.attempts(lambda: pack(obj), after)
                    new = self.attempts(parcel.open)
                    new = new[0] if isinstance(new, list) else new
                    self.assertEqual(getattr(new, 'data', new), pattern())

    def test_nothing_leaks(self):
        def once():
            parcel = pack(move(Holder(bytearray(SIZE))))
            parcel.open()
            pack(Holder(bytearray(SIZE))).open()
            pack(move(Bytes(SIZE)))
            pack([Bytes(SIZE)])
        for _ in range(10):
            once()
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(200):
            once()
        gc.collect()
        self.assertLess(sys.getallocatedblocks() - before, 100)


if __name__ == '__main__':
    unittest.main()

"""move(), MovedObject, and parcels that are opened once."""

import copy
import gc
import operator
import pickle
import unittest
import weakref
from concurrent.futures import InterpreterPoolExecutor
from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import (
    MovedError, MovedObject, NotShareableError, QueueEmpty, QueueFull,
    TransferError, move,
)
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase

TIMEOUT = support.SHORT_TIMEOUT


class Plain:
    pass


class Slotted:
    __slots__ = 'x', '__weakref__'


class MyList(list):
    pass


class Tracer:
    """Says when it is finalized."""

    finalized = []

    def __init__(self, name):
        self.name = name

    def __del__(self):
        self.finalized.append(self.name)


def moved(obj):
    """Move obj away, and return it."""
    queue = interpreters.create_queue()
    queue.put(move(obj))
    queue.get()
    return obj


USES = {
    'attribute': lambda x: x.append,
    'special attribute': lambda x: x.__dict__,
    'hasattr': lambda x: hasattr(x, 'a'),
    'set attribute': lambda x: setattr(x, 'a', 1),
    'delete attribute': lambda x: delattr(x, 'a'),
    'call': lambda x: x(),
    'iter': iter,
    'next': next,
    'len': len,
    'truth': bool,
    'item': lambda x: x[0],
    'set item': lambda x: operator.setitem(x, 0, 1),
    'delete item': lambda x: operator.delitem(x, 0),
    'contains': lambda x: 1 in x,
    'equal': lambda x: x == x,
    'equal, reflected': lambda x: 1 == x,
    'less': lambda x: x < 1,
    'hash': hash,
    'add': lambda x: x + 1,
    'add, reflected': lambda x: [] + x,
    'in place': lambda x: operator.iadd(x, [1]),
    'multiply': lambda x: 2 * x,
    'power': lambda x: pow(2, x, 3),
    'negative': lambda x: -x,
    'int': int,
    'float': float,
    'index': operator.index,
    'buffer': memoryview,
    'join': ''.join,
    'unpack': lambda x: [*x],
    'unpack keywords': lambda x: dict(**x),
    'extend': lambda x: [].extend(x),
    'sorted': sorted,
    'vars': vars,
    'dir': dir,
    'copy': copy.copy,
    'deepcopy': copy.deepcopy,
    'pickle': pickle.dumps,
    'move again': move,
    'pack': lambda x: interpreters.pack(move(x)),
}


class MovedObjectTests(TestCase):

    def kinds(self):
        plain = Plain()
        plain.x = [1]
        slotted = Slotted()
        slotted.x = [1]
        return [[1, [2]], {'a': [1]}, {1, 2}, bytearray(b'abc'), [1][:] * 3,
                ([1], 2), plain, slotted, MyList([1])]

    def test_every_use(self):
        for obj in self.kinds():
            name = type(obj).__name__
            moved(obj)
            for what, use in USES.items():
                with self.subTest(what, obj=name):
                    with self.assertRaisesRegex(MovedError, f'{name}.*moved'):
                        use(obj)

    def test_await(self):
        async def main():
            await obj
        obj = moved([1])
        with self.assertRaises(MovedError):
            main().send(None)

    def test_what_works(self):
        for obj in self.kinds():
            name = type(obj).__name__
            before = id(obj)
            other = obj
            moved(obj)
            with self.subTest(name):
                self.assertEqual(id(obj), before)
                self.assertIs(obj, other)
                self.assertIsInstance(obj, MovedObject)
                self.assertNotIsInstance(obj, (list, dict, int))
                self.assertIs(obj.__class__, type(obj))
                self.assertTrue(issubclass(type(obj), MovedObject))
                self.assertRegex(repr(obj), f'MovedObject.*{name}')
                self.assertIn('MovedObject', f'{obj}')

    def test_no_instances_by_hand(self):
        with self.assertRaises(TypeError):
            MovedObject()
        with self.assertRaises(TypeError):
            type('Sub', (MovedObject,), {})
        with self.assertRaises(TypeError):
            type(moved([1]))()

    def test_arrives(self):
        queue = interpreters.create_queue()
        for obj in self.kinds():
            # What has no __eq__ is compared by what is in it.
            expected = getattr(obj, 'x', obj)
            expected = copy.deepcopy(expected)
            kind = type(obj)
            queue.put(move(obj))
            got = queue.get()
            with self.subTest(kind):
                self.assertIs(type(got), kind)
                self.assertEqual(getattr(got, 'x', got), expected)

    def test_is_a_move(self):
        inner = [1]
        address = id(inner)
        obj = [inner]
        del inner
        queue = interpreters.create_queue()
        queue.put(move(obj))
        self.assertEqual(id(queue.get()[0]), address)

    def test_collected(self):
        kinds = self.kinds()
        while kinds:
            obj = kinds.pop()
            try:
                ref = weakref.ref(obj)
            except TypeError:
                continue
            moved(obj)
            gc.collect()
            self.assertIs(ref(), obj)
            del obj
            gc.collect()
            self.assertIsNone(ref())

    def test_many(self):
        objs = [[i] for i in range(5000)]
        queue = interpreters.create_queue()
        for obj in objs:
            queue.put(move(obj))
        for obj in objs:
            self.assertIs(type(obj), type(objs[0]))
        del objs[::2]
        gc.collect()
        self.assertEqual(queue.get_many(6000), [[i] for i in range(5000)])
        for obj in objs:
            with self.assertRaises(MovedError):
                len(obj)

    def test_finalized_once(self):
        Tracer.finalized.clear()
        queue = interpreters.create_queue()
        obj = Tracer('one')
        queue.put(move(obj))
        del obj
        gc.collect()
        self.assertEqual(Tracer.finalized, [])
        got = queue.get()
        self.assertEqual(got.name, 'one')
        del got
        gc.collect()
        self.assertEqual(Tracer.finalized, ['one'])

    def test_end_of_interpreter(self):
        # They are there until the very end, in either interpreter.
        code = """if True:
            import interpreters, sys
            keep = [[1], {2: 3}, {4}, bytearray(b'5')]
            queue = interpreters.create_queue()
            for obj in keep:
                queue.put(interpreters.move(obj))
            marker = interpreters.move([])
            sys.kept = keep
            class Late:
                def __del__(self):
                    repr(sys.kept)
                    try:
                        len(sys.kept[0])
                    except (interpreters.MovedError, RuntimeError):
                        pass
            sys.late = Late()
            """
        script_helper.assert_python_ok('-c', code)
        interp = self.create()
        interp.exec(code)
        interp.close()


module_data = None


class VariableTests(TestCase):
    """The content of bytes and str is a part of the object: they can go if all
    that refers to them are variables, which get a MovedObject."""

    def setUp(self):
        self.queue = interpreters.create_queue()

    def send(self, marker):
        self.queue.put(marker)
        return self.queue.get()

    def make(self):
        for kind in b'x', 'x', '\xe9', '\u1234':
            yield kind * 100_000

    def test_locals(self):
        for data in self.make():
            with self.subTest(kind=data[:1]):
                place, other = id(data), data
                got = self.send(move(data))
                self.assertEqual(id(got), place)
                self.assertIsInstance(data, MovedObject)
                self.assertIs(data, other)
                with self.assertRaises(MovedError):
                    len(data)

    def test_cell(self):
        data = b'x' * 100_000
        place = id(data)
        def read():
            return data
        self.assertEqual(id(self.send(move(data))), place)
        self.assertIsInstance(read(), MovedObject)

    def test_global(self):
        global module_data
        module_data = b'x' * 100_000
        place = id(module_data)
        try:
            self.assertEqual(id(self.send(move(module_data))), place)
            self.assertIsInstance(module_data, MovedObject)
        finally:
            module_data = None

    def test_referred_to_from_elsewhere(self):
        # Nobody can tell a copy from it.
        data = b'x' * 100_000
        kept = [data]
        got = self.send(move(data))
        self.assertEqual(got, data)
        self.assertIsNot(got, data)
        self.assertIs(kept[0], data)

    def test_small(self):
        data = bytes(range(10))
        self.assertEqual(self.send(move(data)), data)

    def test_fails(self):
        queue = interpreters.create_queue(maxsize=1)
        queue.put(None)
        data = b'x' * 100_000
        with self.assertRaises(interpreters.QueueFull):
            queue.put(move(data), timeout=0)
        self.assertEqual(len(data), 100_000)


class MarkerTests(TestCase):

    def test_marker(self):
        obj = [1]
        marker = move(obj)
        self.assertIs(type(marker), move)
        self.assertIs(marker.obj, obj)
        self.assertIs(move(marker), marker)
        self.assertIn('list', repr(marker))
        self.assertEqual(obj, [1])
        for bad in (), (1, 2):
            with self.assertRaises(TypeError):
                move(*bad)
        with self.assertRaises(TypeError):
            move(obj=obj)
        with self.assertRaisesRegex(TypeError, 'for sending'):
            pickle.dumps(marker)
        with self.assertRaises(TypeError):
            copy.copy(marker)

    def test_only_once(self):
        obj = [1]
        marker = move(obj)
        queue = interpreters.create_queue()
        queue.put(marker)
        with self.assertRaises(MovedError):
            queue.put(marker)
        self.assertEqual(queue.get(), [1])
        self.assertTrue(queue.empty())

    def test_not_isolated(self):
        jobs = [0, [1]]
        obj = {'jobs': jobs}
        queue = interpreters.create_queue()
        with self.assertRaises(TransferError) as caught:
            queue.put(move(obj))
        error = caught.exception
        self.assertEqual(error.path, "obj['jobs']")
        self.assertRegex(error.reason, '1 reference')
        self.assertIsNone(error.parcel)
        self.assertIn(error.path, str(error))
        self.assertNotIsInstance(error, NotShareableError)
        self.assertTrue(queue.empty())
        self.assertEqual(obj, {'jobs': [0, [1]]})
        self.assertIs(obj['jobs'], jobs)
        # By the name of the argument's place, wherever that is.
        interp = self.create()
        with self.assertRaises(TransferError) as caught:
            interp.call(len, 1, move(obj))
        self.assertEqual(caught.exception.path, "obj['jobs']")
        del jobs
        queue.put(move(obj))
        self.assertEqual(queue.get(), {'jobs': [0, [1]]})

    def test_not_shareable(self):
        obj = [[1], (x for x in 'a')]
        queue = interpreters.create_queue()
        with self.assertRaises(NotShareableError) as caught:
            queue.put(move(obj))
        self.assertEqual(caught.exception.path, 'obj[1]')
        self.assertEqual(obj[0], [1])
        self.assertEqual(next(obj[1]), 'a')

    def test_no_place(self):
        queue = interpreters.create_queue(1)
        queue.put('first')
        obj = [[1]]
        for put in (
            lambda: queue.put_nowait(move(obj)),
            lambda: queue.put(move(obj), timeout=0.01),
            lambda: queue.put_many([move(obj)], timeout=0.01),
            lambda: queue.put_many([move(obj)], block=False),
        ):
            with self.assertRaises(QueueFull):
                put()
            self.assertEqual(obj, [[1]])
        self.assertEqual(queue.get(), 'first')
        queue.put(move(obj))
        self.assertIsInstance(obj, MovedObject)
        self.assertEqual(queue.get(), [[1]])

    def test_waits_for_place(self):
        queue = interpreters.create_queue(1)
        queue.put('first')
        interp = self.create()
        thread = interp.call_in_thread(helpers.put_moved, queue, 3)
        got = [queue.get(timeout=TIMEOUT) for _ in range(4)]
        thread.join()
        self.assertEqual(got, ['first', [0], [1], [2]])


class SendingTests(TestCase):

    def test_call(self):
        interp = self.create()
        obj, other = [1, 2], {'a': [3]}
        self.assertEqual(
            interp.call(helpers.echo, move(obj), 5, k=move(other)),
            (([1, 2], 5), {'k': {'a': [3]}}))
        self.assertIsInstance(obj, MovedObject)
        self.assertIsInstance(other, MovedObject)

    def test_call_in_thread(self):
        interp = self.create()
        queue = interpreters.create_queue()
        obj = [1]
        copied = [2]
        thread = interp.call_in_thread(queue.put, (move(obj), copied))
        # It has been taken already.
        self.assertIsInstance(obj, MovedObject)
        copied.append(3)
        self.assertEqual(queue.get(timeout=TIMEOUT), ([1], [2]))
        thread.join()

    def test_prepare_main(self):
        interp = self.create()
        obj = [[1]]
        interp.prepare_main({'a': move(obj)}, b=[2])
        self.assertIsInstance(obj, MovedObject)
        interp.exec('assert (a, b) == ([[1]], [2])')

    def test_executor(self):
        obj = [[1]]
        later = [2]
        with InterpreterPoolExecutor(1) as pool:
            future = pool.submit(helpers.identity, move(obj))
            self.assertIsInstance(obj, MovedObject)
            copied = pool.submit(helpers.identity, later)
            later.append(3)
            self.assertEqual(future.result(TIMEOUT), [[1]])
            self.assertEqual(copied.result(TIMEOUT), [2])
            refused = pool.submit(helpers.identity, move(obj := [later]))
            with self.assertRaises(TransferError):
                refused.result(TIMEOUT)
            self.assertEqual(obj, [[2, 3]])
        with self.assertRaises(RuntimeError):
            pool.submit(helpers.identity, move(obj))
        self.assertEqual(obj, [[2, 3]])

    def test_message_that_cannot_be_opened(self):
        interp = self.create()
        obj = [1]
        with self.assertRaises(TransferError) as caught:
            interp.call(helpers.echo, move(obj), helpers.OpensNowhere())
        self.assertIsInstance(obj, MovedObject)
        self.assertIsInstance(caught.exception.parcel, interpreters.Parcel)

    def test_call_that_cannot_begin(self):
        interp = self.create()
        started = interpreters.create_queue()
        go_on = interpreters.create_queue()
        thread = interp.call_in_thread(helpers.signal_and_wait, started, go_on)
        started.get(timeout=TIMEOUT)
        obj = [1]
        try:
            with self.assertRaises(interpreters.InterpreterError) as caught:
                interp.call(helpers.echo, move(obj))
        finally:
            go_on.put(None)
            thread.join()
        names, values = caught.exception.parcel.open()
        self.assertEqual(values[-1], [1])

    def test_take(self):
        interp = self.create()
        interp.exec('a = [[1], 2]; b = a; n = 1')
        self.assertEqual(interp.take('a'), [[1], 2])
        interp.exec('''if True:
            import interpreters
            assert isinstance(b, interpreters.MovedObject)
            assert 'a' not in vars()
            ''')
        self.assertEqual(interp.take('n'), 1)
        with self.assertRaisesRegex(NameError, "'n'"):
            interp.take('n')
        with self.assertRaises(TypeError):
            interp.take(1)

    def test_take_refused(self):
        interp = self.create()
        interp.exec('inner = [1]; a = [inner]; b = (x for x in "ab")')
        with self.assertRaises(TransferError) as caught:
            interp.take('a')
        self.assertEqual(caught.exception.path, 'obj[0]')
        with self.assertRaises(NotShareableError):
            interp.take('b')
        interp.exec('assert a == [[1]] and next(b) == "a"')
        with self.assertRaises(interpreters.InterpreterError):
            interpreters.get_main().take('x')

    def test_does_not_wait_for_the_switch_interval(self):
        # It is a minute there, so this would take many of them.
        interp = self.create()
        interp.exec('''if True:
            import sys
            sys.setswitchinterval(60)
            stop = False
            rounds = 0
            def spin():
                global rounds
                while not stop:
                    rounds += 1
            ''')
        thread = interp.call_in_thread(
            exec, 'import __main__; __main__.spin()')
        while not interp.is_running():
            pass
        try:
            for i in range(20):
                obj = [i]
                interp.prepare_main(x=move(obj))
                self.assertEqual(interp.take('x'), [i])
            self.assertTrue(interp.is_running())
        finally:
            interp.prepare_main(stop=True)
        thread.join(TIMEOUT)
        self.assertFalse(thread.is_alive())


class ParcelTests(TestCase):

    def test_opened_once(self):
        parcel = interpreters.pack([1, [2]])
        self.assertEqual(parcel.open(), [1, [2]])
        with self.assertRaises(TransferError):
            parcel.open()

    def test_stats(self):
        inner = [1, 2]
        class_ = helpers.Point
        obj = [inner, None, class_(1, 'ab')]
        stats = interpreters.pack(obj).stats
        self.assertEqual(stats, (stats.shared, stats.moved, stats.copied,
                                 stats.rebuilt, stats.reduced))
        self.assertGreaterEqual(stats.copied, 3)
        self.assertEqual(stats.rebuilt, 0)
        point = class_(3, 'cd')
        self.assertEqual(interpreters.pack(move(point)).stats.rebuilt, 1)
        self.assertGreaterEqual(stats.shared, 1)
        inner = None
        self.assertGreaterEqual(
            interpreters.pack(move([[], [], []])).stats.moved, 4)

    def test_temporary_is_moved(self):
        def build():
            return [[i] for i in range(1000, 1010)]
        stats = interpreters.pack(build()).stats
        self.assertEqual(stats.moved - 10, 11)      # the numbers, too
        self.assertEqual(stats.copied, 0)
        kept = build()
        self.assertEqual(interpreters.pack(kept).stats.moved, 0)

    def test_survives_its_sender(self):
        interp = interpreters.create()
        parcel = interp.call(interpreters.pack, [[1], {'a': 2.5}])
        interp.close()
        self.assertEqual(parcel.open(), [[1], {'a': 2.5}])


class ManyTests(TestCase):

    def test_all(self):
        queue = interpreters.create_queue()
        self.assertEqual(queue.put_many(iter('abcde')), 5)
        self.assertEqual(queue.put_many([]), 0)
        self.assertEqual(queue.get_many(3), ['a', 'b', 'c'])
        self.assertEqual(queue.get(), 'd')
        self.assertEqual(queue.get_many(100, timeout=TIMEOUT), ['e'])
        with self.assertRaises(QueueEmpty):
            queue.get_many(1, block=False)
        with self.assertRaises(QueueEmpty):
            queue.get_many(1, timeout=0.01)

    def test_temporaries_are_moved(self):
        addresses = []
        def build():
            for i in range(3):
                item = [[i]]
                addresses.append(id(item[0]))
                yield item
        queue = interpreters.create_queue()
        queue.put_many(build())
        self.assertEqual([id(item[0]) for item in queue.get_many(9)], addresses)
        kept = [[1]], [[2]]
        for source in kept, list(kept):
            queue.put_many(source)
            self.assertEqual(source[0], [[1]])
            self.assertIsNot(queue.get_many(9)[0][0], kept[0][0])

    def test_more_than_one_round(self):
        queue = interpreters.create_queue()
        self.assertEqual(queue.put_many(range(5000)), 5000)
        self.assertEqual(queue.get_many(4000), list(range(4000)))
        self.assertEqual(queue.get_many(4000), list(range(4000, 5000)))

    def test_bad_arguments(self):
        queue = interpreters.create_queue()
        for bad in 0, -1:
            with self.assertRaises(ValueError):
                queue.get_many(bad)
        for bad in 'x', None, 1.5:
            with self.assertRaises(TypeError):
                queue.get_many(bad)
        with self.assertRaises(TypeError):
            queue.put_many(1)
        with self.assertRaises(TypeError):
            queue.get_many()

    def test_full(self):
        queue = interpreters.create_queue(3)
        self.assertEqual(queue.put_many('abcde', timeout=0.01), 3)
        with self.assertRaises(QueueFull):
            queue.put_many('x', timeout=0)
        self.assertEqual(queue.get_many(9), ['a', 'b', 'c'])

    def test_waits(self):
        queue = interpreters.create_queue(2)
        interp = self.create()
        thread = interp.call_in_thread(queue.put_many, range(50))
        got = []
        while len(got) < 50:
            got += queue.get_many(7, timeout=TIMEOUT)
        thread.join()
        self.assertEqual(got, list(range(50)))

    def test_one_that_cannot_be_sent(self):
        queue = interpreters.create_queue()
        with self.assertRaises(NotShareableError):
            queue.put_many([1, 2, helpers.Unpicklable(), 3])
        self.assertEqual(queue.get_many(9), [1, 2])

    def test_one_that_cannot_be_moved(self):
        queue = interpreters.create_queue()
        inner = [1]
        objs = [[1], [inner], [3]]
        with self.assertRaises(TransferError):
            queue.put_many(map(move, objs))
        self.assertIsInstance(objs[0], MovedObject)
        self.assertEqual(objs[1:], [[[1]], [3]])
        self.assertEqual(queue.get_many(9), [[1]])

    def test_one_that_cannot_be_opened(self):
        queue = interpreters.create_queue()
        queue.put_many([1, 2, helpers.OpensNowhere(), 3])
        self.assertEqual(queue.get_many(9), [1, 2])
        self.assertEqual(queue.qsize(), 2)
        with self.assertRaises(TransferError) as caught:
            queue.get_many(9)
        self.assertIsInstance(caught.exception.parcel, interpreters.Parcel)
        self.assertIs(type(caught.exception.__cause__), LookupError)
        self.assertEqual(queue.get_many(9), [3])

    def test_unbound(self):
        queue = interpreters.create_queue(
            unbounditems=interpreters.UNBOUND_ERROR)
        interp = interpreters.create()
        queue.put('mine')
        interp.call(queue.put_many, ['a', 'b'])
        interp.close()
        self.assertEqual(queue.get_many(9), ['mine'])
        for _ in range(2):
            with self.assertRaises(interpreters.ItemInterpreterDestroyed):
                queue.get_many(9)
        self.assertTrue(queue.empty())


if __name__ == '__main__':
    unittest.main()

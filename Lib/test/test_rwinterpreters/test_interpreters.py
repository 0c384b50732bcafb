"""Interpreter objects: creating, finding, closing; exec() and prepare_main()."""

import os
import pickle
import sys
import unittest
from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import (
    ExecutionFailed, Interpreter, InterpreterError, InterpreterNotFoundError,
)
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase


class NamesTests(unittest.TestCase):

    def test_as_in_3_14(self):
        from concurrent import interpreters as other
        for name in interpreters.__all__:
            with self.subTest(name):
                self.assertIs(getattr(other, name), getattr(interpreters, name))
        self.assertEqual(sorted(other.__all__), sorted(interpreters.__all__))

    def test_exceptions(self):
        import queue
        for error, *bases in [
            (interpreters.InterpreterError, Exception),
            (interpreters.InterpreterNotFoundError, InterpreterError),
            (interpreters.ExecutionFailed, InterpreterError),
            (interpreters.NotShareableError, TypeError),
            (interpreters.QueueError, Exception),
            (interpreters.QueueNotFoundError, interpreters.QueueError),
            (interpreters.QueueEmpty, interpreters.QueueError, queue.Empty),
            (interpreters.QueueFull, interpreters.QueueError, queue.Full),
            (interpreters.ItemInterpreterDestroyed, interpreters.QueueError),
        ]:
            with self.subTest(error):
                for base in bases:
                    self.assertTrue(issubclass(error, base))
                self.assertEqual(error.__module__, 'interpreters')

    def test_import_is_light(self):
        script_helper.assert_python_ok('-c', '''if True:
            import sys
            before = set(sys.modules)
            import interpreters
            heavy = {'asyncio', 'inspect', 'logging', 'typing', 'pickle', 're',
                     'concurrent.futures', 'multiprocessing', 'dataclasses'}
            assert not heavy & (set(sys.modules) - before), sys.modules
            ''')

    def test_lock_stats(self):
        self.assertIsInstance(interpreters.lock_stats(), dict)


class CreateTests(TestCase):

    def test_create(self):
        interp = self.create()
        self.assertIsInstance(interp, Interpreter)
        self.assertGreater(interp.id, 0)
        self.assertEqual(interp.whence, '_interpreters module')
        self.assertIn(interp, interpreters.list_all())
        self.assertEqual(repr(interp), f'Interpreter({interp.id})')

    def test_create_from_another(self):
        interp = self.create()
        id = interp.call(lambda: helpers_create())
        self.assertNotIn(id, [0, interp.id])

    def test_path(self):
        sys.path.append('somewhere/else')
        try:
            interp = self.create()
        finally:
            sys.path.remove('somewhere/else')
        self.assertEqual(interp.call(lambda: __import__('sys').path[-1]),
                         'somewhere/else')

    def test_main_and_current(self):
        main = interpreters.get_main()
        self.assertEqual(main.id, 0)
        self.assertEqual(main.whence, 'runtime init')
        self.assertTrue(main.is_running())
        current = interpreters.get_current()
        self.assertIn(current, interpreters.list_all())
        interp = self.create()
        self.assertEqual(interp.call(helpers.current_id), interp.id)
        self.assertIs(interp.call(interpreters.get_main), main)
        self.assertIs(interp.call(interpreters.get_current), interp)

    def test_one_instance_for_each_id(self):
        interp = self.create()
        self.assertIs(Interpreter(interp.id), interp)
        self.assertIs(pickle.loads(pickle.dumps(interp)), interp)
        self.assertIs(interp.call(lambda i: i, interp), interp)
        self.assertEqual(len({interp, Interpreter(interp.id)}), 1)

    def test_read_only(self):
        interp = self.create()
        for name in 'id', 'whence':
            with self.assertRaises(AttributeError):
                setattr(interp, name, 1)

    def test_ends_with_its_last_handle(self):
        interp = interpreters.create()
        id = interp.id
        del interp
        support.gc_collect()
        with self.assertRaises(InterpreterNotFoundError):
            Interpreter(id)


def helpers_create():
    import interpreters
    interp = interpreters.create()
    id = interp.id
    interp.close()
    return id


class CloseTests(TestCase):

    def test_close(self):
        interp = interpreters.create()
        interp.close()
        self.assertNotIn(interp.id, [i.id for i in interpreters.list_all()])

    def test_closed(self):
        interp = interpreters.create()
        interp.close()
        for what in [
            interp.close,
            interp.is_running,
            lambda: interp.exec('pass'),
            lambda: interp.call(len, ''),
            lambda: interp.prepare_main(x=1),
            lambda: pickle.loads(pickle.dumps(Interpreter))(interp.id).close(),
        ]:
            with self.subTest(what), \
                 self.assertRaises(InterpreterNotFoundError):
                what()

    def test_main(self):
        with self.assertRaisesRegex(InterpreterError, 'main interpreter'):
            interpreters.get_main().close()

    def test_current(self):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            interp.exec('import interpreters\n'
                        'interpreters.get_current().close()')
        self.assertRegex(str(caught.exception.__cause__), 'current interpreter')
        self.assertIs(type(caught.exception.__cause__), InterpreterError)
        interp.exec('pass')

    def test_by_another(self):
        one, two = self.create(), self.create()
        one.call(Interpreter.close, two)
        with self.assertRaises(InterpreterNotFoundError):
            two.exec('pass')

    def test_running(self):
        interp = self.create()
        started, go_on = interpreters.create_queue(), interpreters.create_queue()
        thread = interp.call_in_thread(helpers.signal_and_wait, started, go_on)
        started.get(timeout=support.SHORT_TIMEOUT)
        try:
            self.assertTrue(interp.is_running())
            with self.assertRaisesRegex(InterpreterError, 'running'):
                interp.close()
            with self.assertRaisesRegex(InterpreterError, 'running'):
                interp.call(len, '')
            with self.assertRaisesRegex(InterpreterError, 'running'):
                interp.exec('pass')
        finally:
            go_on.put(None)
            self.finish(thread)
        self.assertFalse(interp.is_running())
        interp.close()

    def test_frees_what_main_has(self):
        interp = self.create()
        fd_r, fd_w = os.pipe()
        self.addCleanup(os.close, fd_r)
        interp.prepare_main(fd=fd_w)
        interp.exec("""if True:
            import os
            class Tell:
                def __init__(self, write=os.write, close=os.close, fd=fd):
                    self.what = write, close, fd
                def __del__(self):
                    write, close, fd = self.what
                    write(fd, b'gone')
                    close(fd)
            tell = Tell()
            """)
        interp.close()
        self.assertEqual(os.read(fd_r, 10), b'gone')


class ExecTests(TestCase):

    def test_main_namespace(self):
        interp = self.create()
        interp.exec('spam = 1')
        interp.exec('spam += 1; name = __name__')
        interp.exec('assert (spam, name) == (2, "__main__")')

    def test_code_object(self):
        interp = self.create()
        interp.exec(compile('spam = 3', 'x', 'exec'))
        interp.exec('assert spam == 3')

    def test_function(self):
        def func():
            global eggs
            eggs = 4
        interp = self.create()
        interp.exec(func)
        interp.exec('assert eggs == 4')
        self.assertNotIn('eggs', globals())

    def test_bad_function(self):
        interp = self.create()
        for func in (lambda x: x, lambda *a: 1, lambda **k: 1, lambda *, k: 1,
                     lambda: interp):
            with self.subTest(func), self.assertRaises(ValueError):
                interp.exec(func)

    def test_bad_type(self):
        interp = self.create()
        for code in 10, b'pass', None:
            with self.subTest(code), self.assertRaises(TypeError):
                interp.exec(code)

    def test_in_the_main_interpreter(self):
        with self.assertRaises(InterpreterError):
            interpreters.get_main().exec('pass')

    def test_does_not_touch_the_caller(self):
        interp = self.create()
        interp.exec('import sys; sys.rw_mark = 1')
        self.assertFalse(hasattr(sys, 'rw_mark'))


class PrepareMainTests(TestCase):

    def test_values(self):
        interp = self.create()
        values = {'a': None, 'b': 'text', 'c': [1, {2: 3}],
                  'd': helpers.Point(1, 2), 'e': helpers.current_id}
        interp.prepare_main(values)
        for name, value in values.items():
            self.assertEqual(
                interp.call(lambda n: vars(__import__('__main__'))[n], name),
                value)

    def test_keywords(self):
        interp = self.create()
        interp.prepare_main({'a': 1, 'b': 1}, b=2, ns=3)
        interp.exec('assert (a, b, ns) == (1, 2, 3)')

    def test_native_only(self):
        interp = self.create()
        buffer = bytearray(b'abc')
        interp.prepare_main(view=memoryview(buffer), also=[1])
        interp.exec('assert bytes(view) == b"abc" and also == [1]; del view')

    def test_all_or_nothing(self):
        interp = self.create()
        interp.exec('x = 0')
        with self.assertRaises(interpreters.NotShareableError):
            interp.prepare_main(x=1, y=helpers.Unpicklable())
        with self.assertRaises(interpreters.TransferError):
            interp.prepare_main(x=1, y=helpers.OpensNowhere())
        interp.exec('assert x == 0 and "y" not in vars()')

    def test_bad_names(self):
        interp = self.create()
        with self.assertRaises(TypeError):
            interp.prepare_main({1: 2})
        with self.assertRaises(TypeError):
            interp.prepare_main(3)
        with self.assertRaises(ValueError):
            interp.prepare_main()

    def test_main_interpreter(self):
        with self.assertRaises(InterpreterError):
            interpreters.get_main().prepare_main(x=1)


if __name__ == '__main__':
    unittest.main()

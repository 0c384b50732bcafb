"""Each misuse is a clear error: no crash, no hang."""

import threading
import unittest
from test.support import import_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import (
    Interpreter, InterpreterNotFoundError, NotShareableError, Queue,
    QueueNotFoundError, TransferError,
)
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase

UNKNOWN = 1 << 40


class InterpreterTests(TestCase):

    def test_unknown_id(self):
        with self.assertRaisesRegex(InterpreterNotFoundError, str(UNKNOWN)):
            Interpreter(UNKNOWN)

    def test_no_id(self):
        for bad in '1', 1.0, None, [], Interpreter:
            with self.subTest(bad), self.assertRaises(TypeError):
                Interpreter(bad)

    def test_impossible_id(self):
        with self.assertRaises(ValueError):
            Interpreter(-1)
        with self.assertRaises(OverflowError):
            Interpreter(1 << 64)

    def test_handle_of_a_closed_one(self):
        interp = interpreters.create()
        queue = interpreters.create_queue()
        queue.put(interp)
        queue.put([interp])
        interp.close()
        id = interp.id
        del interp
        for _ in range(2):
            with self.assertRaisesRegex(TransferError, str(id)) as caught:
                queue.get(timeout=0)
            self.assertIs(type(caught.exception.__cause__),
                          InterpreterNotFoundError)

    def test_not_callable(self):
        interp = self.create()
        with self.assertRaisesRegex(TypeError, "'int' object is not callable"):
            interp.call(1)
        with self.assertRaises(TypeError):
            interp.call()


class QueueTests(TestCase):

    def test_unknown_id(self):
        with self.assertRaisesRegex(QueueNotFoundError, str(UNKNOWN)):
            Queue(UNKNOWN)

    def test_no_id(self):
        for bad in '1', 1.0, None, []:
            with self.subTest(bad), self.assertRaises(TypeError):
                Queue(bad)

    def test_gone(self):
        queue = interpreters.create_queue()
        id = queue.id
        del queue
        with self.assertRaises(QueueNotFoundError):
            Queue(id)

    def test_not_shareable(self):
        queue = interpreters.create_queue()
        for bad in (threading.Lock(), [threading.Lock()], (x for x in 'abc'),
                    helpers.Unpicklable(), threading.local()):
            with self.subTest(bad), self.assertRaises(NotShareableError):
                queue.put(bad)
            self.assertEqual(queue.qsize(), 0)

    def test_bad_timeout(self):
        queue = interpreters.create_queue(1)
        for what in (lambda t: queue.get(timeout=t),
                     lambda t: queue.put(1, timeout=t)):
            with self.assertRaises(ValueError):
                what(-1)
            with self.assertRaises(ValueError):
                what(-0.001)
            with self.assertRaises(TypeError):
                what('1')
        self.assertEqual(queue.qsize(), 0)

    def test_bad_unbounditems(self):
        for bad in 'x', 9, object():
            with self.subTest(bad):
                with self.assertRaisesRegex(NotImplementedError, 'UNBOUND'):
                    interpreters.create_queue(unbounditems=bad)
                with self.assertRaisesRegex(NotImplementedError, 'UNBOUND'):
                    interpreters.create_queue().put(1, unbounditems=bad)


class WhatCannotGoTests(TestCase):

    def check(self, pattern, *args):
        interp = self.create()
        with self.assertRaisesRegex(NotShareableError, pattern) as caught:
            interp.call(helpers.echo, *args)
        return caught.exception

    def test_names_type_and_path(self):
        lock = threading.Lock()
        error = self.check(r"^obj\['jobs'\]\[1\]\.x: .*_thread\.lock",
                           {'jobs': [0, helpers.Point(lock, 1)]})
        self.assertEqual(error.path, "obj['jobs'][1].x")
        self.assertRegex(error.reason, r'^a .*_thread\.lock')
        self.assertIn('cannot pickle', str(error.__cause__))

    def test_the_object_itself(self):
        self.check(r"^a 'generator' object can't be sent", (x for x in 'abc'))

    def test_chains_the_error(self):
        error = self.check(r'helpers\.Unpicklable', [helpers.Unpicklable()])
        self.assertIs(type(error.__cause__), OSError)

    def test_local_class(self):
        class Local:
            pass
        self.check('Local', Local())

    def test_closure(self):
        lock = threading.Lock()
        def func():
            return lock
        self.check(r'obj.<closure>.lock: .*_thread\.lock', func)

    def test_result(self):
        interp = self.create()
        with self.assertRaisesRegex(NotShareableError, 'result.*lock'):
            interp.call(threading.Lock)
        self.assertEqual(interp.call(len, 'ab'), 2)

    def test_cannot_be_opened(self):
        interp = self.create()
        with self.assertRaisesRegex(TransferError, 'it is not here') as caught:
            interp.call(helpers.echo, helpers.OpensNowhere())
        self.assertIs(type(caught.exception.__cause__), LookupError)
        self.assertIsInstance(caught.exception.parcel, interpreters.Parcel)
        self.assertEqual(interp.call(len, 'ab'), 2)

    def test_not_importable_there(self):
        interp = self.create()
        module = type(unittest)('rw_not_importable')
        module.__spec__ = unittest.__spec__
        exec('class C: pass', vars(module))
        import sys
        sys.modules['rw_not_importable'] = module
        try:
            with self.assertRaisesRegex(TransferError, 'rw_not_importable'):
                interp.call(helpers.echo, module.C())
        finally:
            del sys.modules['rw_not_importable']


if __name__ == '__main__':
    unittest.main()

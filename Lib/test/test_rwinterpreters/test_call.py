"""Interpreter.call() and call_in_thread()."""

import functools
import operator
import os
import threading
import unittest
from test import support
from test.support import import_helper, threading_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import ExecutionFailed, InterpreterError
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase


class CallTests(TestCase):

    def test_runs_there(self):
        interp = self.create()
        self.assertEqual(interp.call(helpers.current_id), interp.id)

    def test_arguments_and_result(self):
        interp = self.create()
        for args, kwargs in [
            ((), {}),
            ((1, 'two', b'three', 4.0, None, True, (5,)), {}),
            ((), {'a': 1, 'b': (2,)}),
            (([1, [2]], {3: 4}, {5}, frozenset([6]), 7j), {'x': [8]}),
            ((bytearray(b'9'), range(10), slice(1, 2), ...), {}),
            ((10 ** 1000, '\ud800', '\U0001f40d'), {}),
            ((helpers.Point(1, [2]), helpers.Point, len), {'f': helpers.echo}),
            ((UnicodeError, int, type, operator, os.path), {}),
        ]:
            with self.subTest(args=args, kwargs=kwargs):
                self.assertEqual(interp.call(helpers.echo, *args, **kwargs),
                                 (args, kwargs))

    def test_names_of_keywords(self):
        interp = self.create()
        kwargs = {'self': 1, 'callable': 2, 'func': 3, 'args': 4, 'id': 5}
        self.assertEqual(interp.call(helpers.echo, **kwargs), ((), kwargs))

    def test_parcel_like_arguments(self):
        interp = self.create()
        queue = interpreters.create_queue()
        (q, i, u), _ = interp.call(helpers.echo, queue, interp,
                                   interpreters.UNBOUND)
        self.assertIs(q, queue)
        self.assertIs(i, interp)
        self.assertIs(u, interpreters.UNBOUND)

    def test_native_only_beside_pickled(self):
        interp = self.create()
        view = memoryview(bytearray(b'abc'))
        self.assertEqual(
            interp.call(lambda v, l, *, w: (bytes(v), l, bytes(w)), view, [1],
                        w=view), (b'abc', [1], b'abc'))

    def test_sharing_among_arguments(self):
        interp = self.create()
        one = [1]
        self.assertTrue(interp.call(lambda a, b, *, c: a is b is c,
                                    one, one, c=one))

    def test_copies(self):
        interp = self.create()
        mine = [1]
        interp.call(list.append, mine, 2)
        self.assertEqual(mine, [1])

    def test_kinds_of_callables(self):
        interp = self.create()
        point = helpers.Point(1, 2)
        for func, args, expected in [
            (len, ('abc',), 3),
            (str.upper, ('abc',), 'ABC'),
            ('abc'.upper, (), 'ABC'),
            (int, ('12',), 12),
            (helpers.Point, (1, 2), point),
            (helpers.Point.moved, (point, 1), helpers.Point(2, 2)),
            (point.moved, (1, 1), helpers.Point(2, 3)),
            (helpers.Point.origin, (), helpers.Point(0, 0)),
            (helpers.Callable(3), (4,), 12),
            (functools.partial(pow, 2), (5,), 32),
            (operator.itemgetter(1), ('ab',), 'b'),
            (lambda x: x + 1, (1,), 2),
        ]:
            with self.subTest(func):
                self.assertEqual(interp.call(func, *args), expected)

    def test_state_stays(self):
        interp = self.create()
        interp.call(helpers.set_state, 'there')
        self.assertEqual(interp.call(helpers.get_state), 'there')
        self.assertIsNone(helpers.state)

    def test_in_the_current_interpreter(self):
        interp = self.create()
        result = interp.call(call_own)
        self.assertIn(result, ('called', 'already running'))

    def test_from_one_to_another(self):
        one, two = self.create(), self.create()
        self.assertEqual(one.call(two.call, helpers.current_id), two.id)

    def test_in_the_main_interpreter(self):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            interp.call(interpreters.get_main().call, len, 'a')
        self.assertIs(type(caught.exception.__cause__), InterpreterError)

    def test_many_times(self):
        interp = self.create()
        self.assertEqual(sum(interp.call(abs, -i) for i in range(200)), 19900)


def call_own():
    import interpreters
    try:
        return interpreters.get_current().call(str, 'called')
    except interpreters.InterpreterError:
        return 'already running'


class CallInThreadTests(TestCase):

    def test_returns_a_thread(self):
        interp = self.create()
        answers = interpreters.create_queue()
        thread = interp.call_in_thread(helpers.signal_and_wait, answers, answers)
        self.assertIsInstance(thread, threading.Thread)
        self.assertIsNot(thread, threading.current_thread())
        self.finish(thread)

    def test_side_by_side(self):
        # Each waits for the other: they can't run one after the other.
        one, two = self.create(), self.create()
        a, b = interpreters.create_queue(), interpreters.create_queue()
        threads = [one.call_in_thread(helpers.signal_and_wait, a, b),
                   two.call_in_thread(helpers.signal_and_wait, b, a)]
        for thread in threads:
            self.finish(thread)
        self.assertTrue(a.empty() and b.empty())

    def test_worker(self):
        interp = self.create()
        requests = interpreters.create_queue()
        answers = interpreters.create_queue()
        thread = interp.call_in_thread(
            helpers.take_and_answer, requests, answers=answers)
        for i in range(100):
            requests.put(i)
            self.assertEqual(answers.get(timeout=support.SHORT_TIMEOUT), i + 1)
        requests.put(None)
        self.finish(thread)

    def test_exception(self):
        interp = self.create()
        with threading_helper.catch_threading_exception() as caught:
            self.finish(interp.call_in_thread(helpers.raise_custom))
            self.assertIs(caught.exc_type, ExecutionFailed)
            self.assertIs(type(caught.exc_value.__cause__), helpers.CustomError)
            # It is part of a cycle otherwise.
            caught.exc_value = None

    def test_not_callable(self):
        interp = self.create()
        with self.assertRaises(TypeError):
            interp.call_in_thread(1)


if __name__ == '__main__':
    unittest.main()

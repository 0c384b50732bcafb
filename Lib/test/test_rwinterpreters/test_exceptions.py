"""How an exception gets from an interpreter to its caller."""

import pickle
import signal
import sys
import traceback
import unittest
from test import support
from test.support import import_helper, script_helper

_interpreters = import_helper.import_module('_interpreters')

import interpreters
from interpreters import ExecutionFailed
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase


class ExecutionFailedTests(TestCase):

    def failure(self, func, *args):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            interp.call(func, *args)
        return caught.exception

    def test_excinfo(self):
        excinfo = self.failure(helpers.raise_custom).excinfo
        self.assertEqual(excinfo.type.__name__, 'CustomError')
        self.assertEqual(excinfo.type.__qualname__, 'CustomError')
        self.assertEqual(excinfo.type.__module__, helpers.__name__)
        self.assertEqual(excinfo.msg, '7')
        self.assertRegex(excinfo.formatted, r'CustomError: 7$')
        self.assertIn('in raise_custom\n', excinfo.errdisplay)
        self.assertTrue(excinfo.errdisplay.startswith('Traceback'))

    def test_cause(self):
        cause = self.failure(helpers.raise_custom).__cause__
        self.assertIs(type(cause), helpers.CustomError)
        self.assertEqual((cause.args, cause.code, cause.detail),
                         ((7,), 7, 'seven'))

    def test_chain_and_notes(self):
        error = self.failure(helpers.raise_chain).__cause__
        self.assertIs(type(error), RuntimeError)
        self.assertEqual(error.__notes__, ['a note'])
        middle = error.__context__
        self.assertEqual(repr(middle), "ValueError('middle')")
        self.assertEqual(repr(middle.__cause__), "KeyError('inner')")
        self.assertTrue(middle.__suppress_context__)
        self.assertFalse(error.__suppress_context__)

    def test_both_tracebacks_print(self):
        interp = self.create()
        try:
            interp.call(helpers.raise_chain)
        except ExecutionFailed as exc:
            text = ''.join(traceback.format_exception(exc))
        for part in ('in raise_chain', "KeyError: 'inner'", 'ValueError: middle',
                     'RuntimeError: outer', 'a note',
                     'in test_both_tracebacks_print'):
            with self.subTest(part):
                self.assertIn(part, text)

    def test_own_frames_are_left_out(self):
        display = self.failure(helpers.raise_custom).excinfo.errdisplay
        self.assertNotIn('_entry', display)

    def test_not_picklable(self):
        error = self.failure(helpers.raise_unpicklable)
        self.assertIsNone(error.__cause__)
        self.assertEqual(error.excinfo.type.__name__, 'ValueError')
        self.assertIn('in raise_unpicklable', error.excinfo.errdisplay)

    def test_not_to_be_recreated(self):
        error = self.failure(helpers.raise_picky)
        self.assertIsNone(error.__cause__)
        self.assertRegex(error.excinfo.formatted, 'PickyError: just one')

    def test_local_class_and_bad_str(self):
        error = self.failure(helpers.raise_bad_str)
        self.assertIsNone(error.__cause__)
        self.assertEqual(error.excinfo.type.__name__, 'BadStr')
        self.assertIn('BadStr', str(error))

    def test_group(self):
        def func():
            raise ExceptionGroup('both', [ValueError(1), TypeError(2)])
        cause = self.failure(func).__cause__
        self.assertEqual(repr(cause.exceptions),
                         '(ValueError(1), TypeError(2))')

    def test_system_exit(self):
        error = self.failure(exit_with, 3)
        self.assertEqual(repr(error.__cause__), 'SystemExit(3)')

    def test_keyboard_interrupt(self):
        interp = self.create()
        with self.assertRaisesRegex(KeyboardInterrupt, 'from afar') as caught:
            interp.call(helpers.interrupt)
        self.assertIs(type(caught.exception.__cause__), ExecutionFailed)

    @unittest.skipIf(sys.platform == 'win32', 'needs SIGINT')
    def test_ctrl_c(self):
        # It reaches the code that the main thread runs elsewhere, and comes
        # back to the caller as what it is.
        process = script_helper.spawn_python('-c', '''if True:
            import interpreters, signal
            signal.signal(signal.SIGINT, signal.default_int_handler)
            def spin():
                print('spins', flush=True)
                while True:
                    pass
            try:
                interpreters.create().call(spin)
            except KeyboardInterrupt as exc:
                print('interrupted', type(exc.__cause__).__name__, flush=True)
            ''')
        with process:
            self.assertEqual(process.stdout.readline().strip(), b'spins')
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=support.SHORT_TIMEOUT)
        self.assertEqual((out.strip(), process.returncode),
                         (b'interrupted ExecutionFailed', 0))

    def test_through_two_interpreters(self):
        outer = self.create()
        inner = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            outer.call(inner.call, helpers.raise_custom)
        first = caught.exception.__cause__
        self.assertIs(type(first), ExecutionFailed)
        self.assertEqual(first.excinfo.type.__name__, 'CustomError')
        self.assertIs(type(first.__cause__), helpers.CustomError)

    def test_pickle(self):
        error = self.failure(helpers.raise_custom)
        other = pickle.loads(pickle.dumps(error))
        self.assertEqual(str(other), str(error))
        self.assertEqual(other.excinfo, error.excinfo)

    def test_goes_on_after_it(self):
        interp = self.create()
        for _ in range(3):
            with self.assertRaises(ExecutionFailed):
                interp.call(helpers.raise_custom)
            self.assertEqual(interp.call(len, 'abc'), 3)

    def test_exec(self):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            interp.exec('def f():\n    1/0\nf()')
        self.assertIs(type(caught.exception.__cause__), ZeroDivisionError)
        self.assertIn('line 2, in f', caught.exception.excinfo.errdisplay)

    def test_syntax_error(self):
        interp = self.create()
        with self.assertRaises(ExecutionFailed) as caught:
            interp.exec('1 1')
        self.assertIs(type(caught.exception.__cause__), SyntaxError)
        with self.assertRaises((ExecutionFailed, ValueError)):
            interp.exec('a\0b')

    def test_deep_recursion(self):
        def func(n):
            return func(n + 1)
        error = self.failure(func, 0)
        self.assertIs(type(error.__cause__), RecursionError)


def exit_with(status):
    raise SystemExit(status)


if __name__ == '__main__':
    unittest.main()

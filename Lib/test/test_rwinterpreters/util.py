import _interpreters
import unittest
from textwrap import dedent

import interpreters
from test.support import SHORT_TIMEOUT, os_helper, script_helper
from test.support import threading_helper


def list_ids():
    return sorted(id for id, _ in _interpreters.list_all())


class TestCase(unittest.TestCase):
    """Closes the interpreters that a test makes, and sees that none is left."""

    def setUp(self):
        self.enterContext(threading_helper.wait_threads_exit(SHORT_TIMEOUT))
        # Cleanups are called last first: what create() adds comes before it.
        self.addCleanup(self.check_interpreters, list_ids())

    def check_interpreters(self, before):
        self.assertEqual(list_ids(), before, 'interpreters are left')

    def create(self):
        interp = interpreters.create()
        self.addCleanup(self.close, interp.id)
        return interp

    @staticmethod
    def close(id):
        try:
            interpreters.Interpreter(id).close()
        except interpreters.InterpreterNotFoundError:
            pass

    def finish(self, thread):
        thread.join(SHORT_TIMEOUT)
        self.assertFalse(thread.is_alive(), 'a thread has not ended')

    def run_script(self, source, *, name='script.py', fails=False):
        """Run source as a script and return what it printed, stripped."""
        folder = self.enterContext(os_helper.temp_dir())
        path = script_helper.make_script(folder, name.removesuffix('.py'),
                                         dedent(source))
        run = (script_helper.assert_python_failure if fails
               else script_helper.assert_python_ok)
        result = run(path)
        stream = result.err if fails else result.out
        return stream.decode().strip().replace('\r\n', '\n')

"""The standard library in a subinterpreter: what works, what is refused.

Each class is a row of the table in Doc/guide/standard_library.rst.  In CPython
3.13.5 what is marked (+) there is refused.
"""

import contextlib
import os
import pkgutil
import signal
import sys
import textwrap
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from test import support
from test.support import (
    import_helper, os_helper, script_helper, threading_helper)

interpreters = import_helper.import_module('interpreters')
threading_helper.requires_working_threading(module=True)

needs_subprocess = support.requires_subprocess()


class Row(unittest.TestCase):

    def setUp(self):
        self.interp = self.create()
        self.timeout = support.SHORT_TIMEOUT

    def create(self):
        interp = interpreters.create()
        self.addCleanup(self.close, interp)
        return interp

    def close(self, interp):
        with contextlib.suppress(interpreters.InterpreterNotFoundError):
            interp.close()

    def run_in(self, interp, code):
        """Run code, return the value of its variable `result`."""
        answers = interpreters.create_queue()
        interp.prepare_main(answers=answers, result=None, timeout=self.timeout)
        interp.exec(textwrap.dedent(code) + '\nanswers.put(result)')
        return answers.get(timeout=self.timeout)

    def run_code(self, code):
        return self.run_in(self.interp, code)

    def run_in_many(self, code, count=3):
        """The same in several interpreters at the same time."""
        interps = [self.create() for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda interp: self.run_in(interp, code), interps))

    def check_refused(self, code, exc_type, message):
        """Refused with that; and the interpreter works on."""
        with self.assertRaises(interpreters.ExecutionFailed) as cm:
            self.interp.exec(textwrap.dedent(code))
        self.assertEqual(cm.exception.excinfo.type.__name__, exc_type)
        self.assertRegex(cm.exception.excinfo.msg, message)
        self.interp.exec('1 + 1')


class DaemonThreads(Row):

    BUSY = '''
        import threading
        begun = threading.Event()
        def loop():
            while True:
                begun.set()
        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        assert begun.wait(timeout)
        result = thread.daemon
        '''

    def test_close(self):
        # The thread ends with its interpreter.
        self.assertIs(self.run_code(self.BUSY), True)
        self.interp.close()

    def test_not_by_default(self):
        # Whoever calls into the interpreter, its threads are joined.
        q = interpreters.create_queue()
        self.interp.prepare_main(q=q)
        self.interp.exec('import threading')
        def call():
            self.interp.exec(textwrap.dedent("""
                import time
                def work():
                    time.sleep(0.1)
                    q.put('done')
                thread = threading.Thread(target=work)
                thread.start()
                q.put(thread.daemon)
                """))
        with threading_helper.start_threads([threading.Thread(target=call)]):
            self.assertIs(q.get(timeout=support.SHORT_TIMEOUT), False)
        self.interp.close()
        # It is what is left of 'done'.
        self.assertIs(q.get(timeout=support.SHORT_TIMEOUT), interpreters.UNBOUND)

    def test_exit(self):
        script = ('import interpreters\n'
                  'interp = interpreters.create()\n'
                  'interp.prepare_main(timeout=10.0)\n'
                  f'interp.exec({textwrap.dedent(self.BUSY)!r})\n'
                  'print("end")\n')
        rc, out, err = script_helper.assert_python_ok('-c', script)
        self.assertEqual((out.strip(), err), (b'end', b''))


@unittest.skipUnless(hasattr(os, 'fork'), 'needs fork')
class Fork(Row):

    def test_fork(self):
        self.check_refused('import os; os.fork()', 'RuntimeError', 'fork')

    def test_forkpty(self):
        self.check_refused('import os; os.forkpty()', 'RuntimeError', 'fork')

    def test_exec(self):
        self.check_refused("import os; os.execv('/bin/true', ['true'])",
                           'RuntimeError', 'exec')


@needs_subprocess
class Subprocess(Row):

    def test_run(self):
        code = '''
            import subprocess, sys
            result = subprocess.run([sys.executable, '-c', 'print(6 * 7)'],
                                    capture_output=True, timeout=timeout).stdout
            '''
        self.assertEqual([int(out) for out in self.run_in_many(code)], [42] * 3)

    def test_posix_spawn(self):
        code = '''
            import os, sys
            pid = os.posix_spawn(sys.executable,
                                 [sys.executable, '-c', 'raise SystemExit(3)'],
                                 os.environ)
            result = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            '''
        self.assertEqual(self.run_code(code), 3)

    def test_preexec_fn(self):
        self.check_refused('''
            import subprocess, sys
            subprocess.run([sys.executable, '-c', ''], preexec_fn=print)
            ''', 'RuntimeError', 'preexec_fn not supported within subinterpreters')


@needs_subprocess
class Multiprocessing(Row):

    def setUp(self):
        import_helper.import_module('_multiprocessing')
        super().setUp()

    def test_start_method(self):
        # fork, the default elsewhere, can't be.
        self.assertEqual(self.run_code('''
            import multiprocessing
            result = multiprocessing.get_start_method()
            '''), 'spawn')

    def test_main_interpreter_is_as_before(self):
        script = ('import multiprocessing as m, test.support\n'
                  'print(m.get_start_method(), m.get_all_start_methods()[0])')
        rc, out, err = script_helper.assert_python_ok('-c', script)
        default, first = out.split()
        self.assertEqual(default, first)

    def test_pool(self):
        code = '''
            import math, multiprocessing
            with multiprocessing.Pool(2) as pool:
                result = pool.map_async(math.factorial, range(6)).get(timeout)
            '''
        self.assertEqual(self.run_code(code), [1, 1, 2, 6, 24, 120])

    def test_pool_of_forkserver(self):
        code = '''
            import math, multiprocessing
            context = multiprocessing.get_context('forkserver')
            with context.Pool(2) as pool:
                result = pool.map_async(math.factorial, range(6)).get(timeout)
            '''
        self.assertEqual(self.run_code(code), [1, 1, 2, 6, 24, 120])

    def test_thread_pool(self):
        code = '''
            import math
            from multiprocessing.pool import ThreadPool
            with ThreadPool(2) as pool:
                result = pool.map_async(math.factorial, range(6)).get(timeout)
            '''
        self.assertEqual(self.run_code(code), [1, 1, 2, 6, 24, 120])

    def test_process_and_queue(self):
        code = '''
            import multiprocessing
            queue = multiprocessing.Queue()
            process = multiprocessing.Process(target=queue.put, args=('there',))
            process.start()
            result = queue.get(timeout=timeout)
            process.join(timeout)
            assert process.exitcode == 0
            queue.close()
            queue.join_thread()
            '''
        self.assertEqual(self.run_code(code), 'there')

    def test_executor(self):
        code = '''
            import math
            from concurrent.futures import ProcessPoolExecutor
            with ProcessPoolExecutor(2) as executor:
                result = list(executor.map(math.factorial, range(6),
                                           timeout=timeout))
            '''
        self.assertEqual(self.run_code(code), [1, 1, 2, 6, 24, 120])

    @unittest.skipUnless(hasattr(os, 'fork'), 'needs fork')
    def test_fork(self):
        self.check_refused('''
            import multiprocessing
            multiprocessing.get_context('fork').Process(target=print).start()
            ''', 'RuntimeError', 'fork not supported')


class Asyncio(Row):

    def test_run(self):
        # A server and its clients, in a loop per interpreter.
        code = '''
            import asyncio
            async def serve(reader, writer):
                writer.write((await reader.readline()).upper())
                await writer.drain()
                writer.close()
            async def ask(port, text):
                reader, writer = await asyncio.open_connection('127.0.0.1', port)
                writer.write(text)
                answer = await reader.readline()
                writer.close()
                return answer
            async def main():
                server = await asyncio.start_server(serve, '127.0.0.1', 0)
                async with server:
                    port = server.sockets[0].getsockname()[1]
                    return await asyncio.gather(
                        *[ask(port, b'text %d\\n' % i) for i in range(10)],
                        asyncio.to_thread(sum, [1, 2]))
            result = asyncio.run(main())
            '''
        expected = [b'TEXT %d\n' % i for i in range(10)] + [3]
        self.assertEqual(self.run_in_many(code), [expected] * 3)

    @needs_subprocess
    def test_subprocess(self):
        code = '''
            import asyncio, sys
            async def main():
                process = await asyncio.create_subprocess_exec(
                    sys.executable, '-c', 'print(6 * 7)',
                    stdout=asyncio.subprocess.PIPE)
                return (await process.communicate())[0], process.returncode
            out, status = asyncio.run(main())
            result = int(out), status
            '''
        self.assertEqual(self.run_code(code), (42, 0))

    @unittest.skipUnless(hasattr(os, 'fork'), 'needs Unix')
    def test_signal_handler(self):
        self.check_refused('''
            import asyncio, signal
            async def main():
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGUSR1, print)
            asyncio.run(main())
            ''', 'RuntimeError', 'main thread of the main interpreter')


class SSL(Row):

    def test_handshake(self):
        import_helper.import_module('ssl')
        certificate = os.path.join(os.path.dirname(__file__), 'certdata',
                                   'keycert.pem')
        code = f'''
            import ssl
            certificate = {certificate!r}
            server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            server_context.load_cert_chain(certificate)
            client_context = ssl.create_default_context(cafile=certificate)
            keys = []
            server_context.sni_callback = lambda *args: keys.append(args[1])
            a, b = ssl.MemoryBIO(), ssl.MemoryBIO()
            client = client_context.wrap_bio(a, b, server_hostname='localhost')
            server = server_context.wrap_bio(b, a, server_side=True)
            def step(func, *args):
                try:
                    return func(*args)
                except ssl.SSLWantReadError:
                    return None
            for _ in range(10):
                step(client.do_handshake)
                step(server.do_handshake)
            client.write(b'secret')
            result = server.read(), keys, client.version()
            '''
        self.assertEqual(self.run_in_many(code),
                         [(b'secret', ['localhost'], 'TLSv1.3')] * 3)


class SQLite(Row):

    def test_functions(self):
        import_helper.import_module('sqlite3')
        code = '''
            import sqlite3
            connection = sqlite3.connect(':memory:')
            connection.create_function('twice', 1, lambda x: 2 * x)
            class Product:
                def __init__(self): self.value = 1
                def step(self, x): self.value *= x
                def finalize(self): return self.value
            connection.create_aggregate('product', 1, Product)
            connection.create_collation('back', lambda a, b: (a < b) - (a > b))
            ticks, statements = [], []
            connection.set_progress_handler(lambda: ticks.append(1), 5)
            connection.set_trace_callback(statements.append)
            connection.execute('create table t(x)')
            connection.executemany('insert into t values(?)', [(1,), (2,), (3,)])
            result = [
                connection.execute('select product(twice(x)) from t').fetchone(),
                connection.execute(
                    'select x from t order by cast(x as text) collate back').fetchall(),
                bool(ticks), bool(statements)]
            connection.close()
            '''
        self.assertEqual(self.run_in_many(code),
                         [[(48,), [(3,), (2,), (1,)], True, True]] * 3)

    def test_one_file(self):
        # Interpreters that write to one database wait for each other.
        import_helper.import_module('sqlite3')
        path = os_helper.TESTFN + '.db'
        self.addCleanup(os_helper.unlink, path)
        code = f'''
            import sqlite3
            connection = sqlite3.connect({path!r}, timeout=timeout)
            connection.execute('create table if not exists t(x)')
            for i in range(20):
                with connection:
                    connection.execute('insert into t values(?)', (i,))
            connection.close()
            '''
        self.run_in_many(code)
        self.assertEqual(self.run_code(f'''
            import sqlite3
            connection = sqlite3.connect({path!r})
            result = connection.execute('select count(*), sum(x) from t').fetchone()
            connection.close()
            '''), (60, 3 * 190))


class Logging(Row):

    def test_one_file(self):
        # Lines of interpreters that append to one file stay whole.
        path = os_helper.TESTFN + '.log'
        self.addCleanup(os_helper.unlink, path)
        code = f'''
            import interpreters, logging, threading
            logging.basicConfig(filename={path!r}, level=logging.INFO,
                                format='%(threadName)s %(message)s')
            me = interpreters.get_current().id
            def work():
                for i in range(50):
                    logging.info('%d %d %s', me, i, 'x' * 100)
            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads: thread.start()
            for thread in threads: thread.join(timeout)
            logging.shutdown()
            '''
        self.run_in_many(code)
        with open(path) as file:
            lines = file.read().splitlines()
        self.assertEqual(len(lines), 300)
        self.assertEqual(len(set(lines)), 300)
        self.assertEqual({line.split()[-1] for line in lines}, {'x' * 100})

    def test_configuration_is_own(self):
        self.run_code('import logging\nlogging.getLogger().setLevel(logging.ERROR)')
        self.assertEqual(self.run_in(self.create(), '''
            import logging
            result = logging.getLogger().level
            '''), 30)


class Signal(Row):

    def test_handlers(self):
        for call in 'signal.signal(signal.SIGINT, print)', 'signal.set_wakeup_fd(-1)':
            with self.subTest(call):
                self.check_refused(f'import signal; {call}', 'ValueError',
                                   'only works in main thread of the main interpreter')

    def test_the_rest(self):
        # Background jobs of a shell ignore SIGINT.
        self.addCleanup(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.assertEqual(self.run_code('''
            import signal
            result = [signal.getsignal(signal.SIGINT),
                      signal.strsignal(signal.SIGINT),
                      signal.SIGINT in signal.valid_signals()]
            '''), [None, 'Interrupt', True])


class Ctypes(Row):

    def test_calls(self):
        import_helper.import_module('ctypes')
        code = '''
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            Numbers = ctypes.c_int * 5
            compare_type = ctypes.CFUNCTYPE(
                ctypes.c_int, ctypes.POINTER(ctypes.c_int),
                ctypes.POINTER(ctypes.c_int))
            numbers = Numbers(5, 3, 1, 4, 2)
            libc.qsort(numbers, 5, ctypes.sizeof(ctypes.c_int),
                       compare_type(lambda a, b: a[0] - b[0]))
            libc.close(-1)
            class Pair(ctypes.Structure):
                _fields_ = [('a', ctypes.c_int), ('b', ctypes.c_double)]
            result = [list(numbers), ctypes.get_errno(), Pair(1, 2.5).b]
            '''
        import errno
        self.assertEqual(self.run_in_many(code),
                         [[[1, 2, 3, 4, 5], errno.EBADF, 2.5]] * 3)


class Curses(Row):

    TERMINAL = """if True:
        import os, pty, sys
        # The reader gets what is drawn; nobody looks at it.
        leader, follower = pty.openpty()
        os.dup2(follower, 0)
        out = os.dup(1)
        os.dup2(follower, 1)
        import interpreters
        interp = interpreters.create()
        interp.exec(code)
        os.dup2(out, 1)
        print(*interp.take('result'))
        interp.close()
        """

    def run_in_terminal(self, code):
        script = f'code = {textwrap.dedent(code)!r}\n' + self.TERMINAL
        rc, out, err = script_helper.assert_python_ok(
            '-c', textwrap.dedent(script), TERM='xterm')
        return out.decode().split()

    def test_window(self):
        import_helper.import_module('_curses')
        self.assertEqual(self.run_in_terminal('''
            import curses
            screen = curses.initscr()
            window = curses.newwin(5, 20, 2, 2)
            window.addstr(1, 1, 'text')
            window.refresh()
            result = window.getmaxyx() + (window.instr(1, 1, 4),)
            curses.endwin()
            '''), ['5', '20', "b'text'"])

    def test_panel(self):
        import_helper.import_module('_curses_panel')
        self.assertEqual(self.run_in_terminal('''
            import curses, curses.panel
            curses.initscr()
            low = curses.panel.new_panel(curses.newwin(5, 20, 2, 2))
            high = curses.panel.new_panel(curses.newwin(5, 20, 3, 3))
            low.top()
            curses.panel.update_panels()
            result = curses.panel.top_panel() is low, low.above() is None
            curses.endwin()
            '''), ['True', 'True'])

    def test_error_is_own(self):
        # What was a static type of one interpreter is one of each.
        import_helper.import_module('_curses')
        code = '''
            import curses
            try:
                curses.tigetnum('cols')
            except curses.error as exc:
                result = str(exc)
            '''
        self.assertEqual(self.run_in_many(code),
                         ['must call (at least) setupterm() first'] * 3)


class Readline(Row):

    def test_history(self):
        # Modules are own, the library is the process's: so is its history.
        import_helper.import_module('readline')
        script = textwrap.dedent("""
            import interpreters
            a, b = interpreters.create(), interpreters.create()
            a.exec("import readline")
            b.exec("import readline")           # makes the library ready again
            a.exec("readline.add_history('first')")
            b.exec("readline.add_history('second')")
            a.exec("result = [readline.get_history_item(i) for i in (1, 2)]")
            print(*a.take('result'))
            a.exec("readline.set_completer(len)")
            b.exec("result = [readline.get_completer() is None]")
            print(*b.take('result'))
            a.close()
            b.close()
            """)
        rc, out, err = script_helper.assert_python_ok('-c', script)
        self.assertEqual((out.split(), err), ([b'first', b'second', b'True'], b''))


class Tkinter(Row):

    def test_tcl(self):
        import_helper.import_module('_tkinter')
        code = '''
            import tkinter
            tcl = tkinter.Tcl()
            calls = []
            tcl.createcommand('note', lambda *args: calls.append(args))
            tcl.eval('note a b')
            result = tcl.eval('expr {6 * 7}'), calls
            '''
        self.assertEqual(self.run_in_many(code), [('42', [('a', 'b')])] * 3)


class Tracemalloc(Row):

    def test_snapshot(self):
        # There is one for the process: started here, it sees allocations there.
        script = textwrap.dedent('''
            import interpreters, tracemalloc
            interp = interpreters.create()
            interp.exec("""if True:
                import tracemalloc
                assert not tracemalloc.is_tracing()
                tracemalloc.start(3)
                """)
            assert tracemalloc.is_tracing()
            kept = [bytes(1000) for _ in range(100)]
            interp.exec("""if True:
                kept = [bytes(1000) for _ in range(200)]
                snapshot = tracemalloc.take_snapshot()
                sizes = {}
                for trace in snapshot.traces:
                    if trace.size >= 1000 and trace.size < 1100:
                        name = trace.traceback[-1].filename
                        sizes[name] = sizes.get(name, 0) + 1
                """)
            interp.exec('assert set(map(type, sizes)) == {str}')
            print(max(interp.take('sizes').values()) >= 200)
            print(len(tracemalloc.take_snapshot().traces) > 300)
            interp.close()
            tracemalloc.take_snapshot().statistics('lineno')
            tracemalloc.stop()
            ''')
        rc, out, err = script_helper.assert_python_ok('-c', script)
        self.assertEqual((out.split(), err), ([b'True', b'True'], b''))


class Suggestions(Row):

    def test_name_error(self):
        self.assertEqual(self.run_code('''
            import _suggestions
            result = _suggestions._generate_suggestions(['first', 'last'], 'lst')
            '''), 'last')


class ExtensionModules(Row):
    """All of the standard library's modules that are written in C."""

    def test_import(self):
        names = set(sys.builtin_module_names)
        for finder, name, ispkg in pkgutil.iter_modules():
            spec = finder.find_spec(name)
            if isinstance(spec.loader, ExtensionFileLoader):
                names.add(name)
        names &= sys.stdlib_module_names
        script = textwrap.dedent("""
            import importlib, interpreters
            def importable(names):
                found = []
                for name in names:
                    try:
                        importlib.import_module(name)
                    except ImportError:
                        pass
                    else:
                        found.append(name)
                return found
            interp = interpreters.create()
            there = interp.call(importable, names)
            here = importable(names)
            print(*sorted(set(here) - set(there)))
            """)
        rc, out, err = script_helper.assert_python_ok(
            '-c', f'names = {sorted(names)!r}\n' + script)
        self.assertEqual((out.decode().split(), err), (['faulthandler'], b''))


class Faulthandler(Row):

    def test_import(self):
        self.check_refused('import faulthandler', 'ImportError',
                           'faulthandler does not support loading in subinterpreters')


if __name__ == '__main__':
    unittest.main()

"""What goes by name, what goes by code, and what comes out."""

import functools
import math
import os
import sys
import types
import unittest
import xml.dom.minidom
from test.support import import_helper

_interpreters = import_helper.import_module('_interpreters')
from _parcels import pack

import interpreters
from interpreters import NotShareableError, _codec
from test.test_rwinterpreters import helpers
from test.test_rwinterpreters.util import TestCase


def copy(obj):
    return pack(obj).open()


FACTOR = 3

def times_factor(x):
    return x * FACTOR

def outer_counter():
    count = 0
    def increment():
        nonlocal count
        count += 1
        return count
    def read():
        return count
    return increment, read


class ByNameTests(unittest.TestCase):

    def test_importable_functions(self):
        for func in times_factor, helpers.echo, functools.wraps, os.path.join:
            with self.subTest(func):
                self.assertIs(copy(func), func)
                self.assertIs(_codec.find(_codec.name_of(func)), func)

    def test_methods(self):
        self.assertIs(copy(helpers.Point.moved), helpers.Point.moved)
        self.assertEqual(copy(helpers.Point(1, 2).moved)(1),
                         helpers.Point(2, 2))
        self.assertEqual(copy(helpers.Point.origin)(), helpers.Point(0, 0))

    def test_modules(self):
        for module in os, os.path, xml.dom.minidom, math:
            self.assertIs(copy(module), module)

    def test_shadowed_name(self):
        # The module has another function of that name: not by name, then.
        def times_factor(x):
            return x
        times_factor.__qualname__ = 'times_factor'
        self.assertIsNone(_codec.name_of(times_factor))
        self.assertEqual(copy(times_factor)(5), 5)


class ByCodeTests(unittest.TestCase):

    def test_everything_about_a_function(self):
        marker = 'closed over'
        def func(a, b=[2], /, c: 'x' = 3, *, d: int = 4) -> None:
            "Its docstring."
            return a, b, c, d, marker
        func.attribute = {'some': 'thing'}
        other = copy(func)
        self.assertIsNot(other, func)
        self.assertEqual(other(1), (1, [2], 3, 4, marker))
        for name in ('__name__', '__qualname__', '__doc__', '__defaults__',
                     '__kwdefaults__', '__annotations__', '__dict__',
                     '__module__', '__code__'):
            with self.subTest(name):
                self.assertEqual(getattr(other, name), getattr(func, name))

    def test_kinds(self):
        import asyncio
        def generator(n):
            yield from range(n)
        async def coroutine():
            return 5
        self.assertEqual(list(copy(generator)(3)), [0, 1, 2])
        with self.assertRaises(StopIteration) as caught:
            copy(coroutine)().send(None)
        self.assertEqual(caught.exception.value, 5)
        self.assertEqual(copy(lambda *a, **k: (a, k))(1, x=2), ((1,), {'x': 2}))

    def test_globals_of_an_importable_module(self):
        self.assertEqual(copy(lambda x: times_factor(x))(2), 6)
        self.assertIs(copy(lambda: None).__globals__, globals())

    def test_recursion(self):
        def factorial(n):
            return 1 if n < 2 else n * factorial(n - 1)
        self.assertEqual(copy(factorial)(10), math.factorial(10))

    def test_mutual_recursion(self):
        def even(n):
            return n == 0 or odd(n - 1)
        def odd(n):
            return n != 0 and even(n - 1)
        other = copy(even)
        self.assertTrue(other(10))
        self.assertFalse(other(7))

    def test_shared_cells(self):
        increment, read = copy(outer_counter())
        increment()
        increment()
        self.assertEqual(read(), 2)

    def test_empty_cell(self):
        def func():
            return later
        other = copy(func)
        with self.assertRaises(NameError):
            other()
        later = 1

    def test_class_cell(self):
        class Base:
            def name(self):
                return 'base'
        Base.__qualname__ = 'Base'
        def wrapped(func):
            @functools.wraps(func)
            def wrapper(*args):
                return func(*args) + 1
            return wrapper
        other = copy(wrapped(lambda x: x * 2))
        self.assertEqual(other(5), 11)
        self.assertEqual(other.__wrapped__(5), 10)

    def test_same_function_twice(self):
        func = lambda: 1
        a, b = copy([func, func])
        self.assertIs(a, b)

    def test_code_is_kept(self):
        # A function that comes again runs the code that is specialised already.
        func = lambda x: x + 1
        self.assertIs(copy(func).__code__, copy(func).__code__)

    def test_code_objects(self):
        code = compile('x = [y for y in range(3)]', '<here>', 'exec')
        self.assertEqual(copy(code), code)

    def test_annotations_do_no_harm(self):
        class Local:
            pass
        def func(a: Local, b: lambda: 0, c: list[int]) -> 'Local':
            return a
        annotations = copy(func).__annotations__
        self.assertEqual(annotations['a'], Local.__qualname__)
        self.assertEqual(annotations['c'], list[int])
        self.assertEqual(annotations['return'], 'Local')

    def test_cannot_pickle_a_class_that_is_not_to_be_found(self):
        class Local:
            pass
        with self.assertRaises(NotShareableError):
            copy(Local)


class FreshSpaceTests(unittest.TestCase):
    """Functions whose globals are no module's: all that they name goes along."""

    def run_source(self, source, **names):
        namespace = dict(names, __name__='not_a_module')
        exec(source, namespace)
        return namespace

    def test_globals(self):
        ns = self.run_source('''if True:
            import math
            base = 10
            unused = (x for x in 'ab')
            def helper(x): return x + base
            def func(x): return helper(x) + math.floor(1.5) + len('ab')
            ''')
        other = copy(ns['func'])
        self.assertEqual(other(1), 14)
        self.assertNotIn('unused', other.__globals__)
        self.assertIsNot(other.__globals__, ns)

    def test_recursion_through_globals(self):
        ns = self.run_source('''if True:
            def even(n): return n == 0 or odd(n - 1)
            def odd(n): return n != 0 and even(n - 1)
            ''')
        other = copy(ns['even'])
        self.assertTrue(other(10))
        self.assertIs(other.__globals__['odd'].__globals__, other.__globals__)

    def test_names_in_nested_code(self):
        ns = self.run_source('''if True:
            one, two, three = 1, 2, 3
            def func():
                class C:
                    a = one
                    b = [two for _ in range(2)]
                return C.a, C.b, (lambda: three)()
            ''')
        self.assertEqual(copy(ns['func'])(), (1, [2, 2], 3))

    def test_many_names(self):
        # Needs EXTENDED_ARG.
        names = [f'n{i}' for i in range(600)]
        ns = self.run_source(f'def func(): return sum([{", ".join(names)}])',
                             **dict.fromkeys(names, 1))
        self.assertEqual(copy(ns['func'])(), 600)

    def test_only_globals_that_are_named(self):
        # .lock is an attribute: the global of that name stays at home.
        ns = self.run_source('''if True:
            import threading
            lock = threading.Lock()
            def func(x): return x.lock
            ''')
        self.assertEqual(copy(ns['func'])(types.SimpleNamespace(lock=5)), 5)

    def test_global_that_cannot_go(self):
        ns = self.run_source('''if True:
            import threading
            lock = threading.Lock()
            def func(): return lock
            ''')
        with self.assertRaisesRegex(NotShareableError, 'lock'):
            copy(ns['func'])

    def test_submodules(self):
        ns = self.run_source('''if True:
            import xml.dom.minidom
            def func():
                return xml.dom.minidom.parseString('<a/>').documentElement.tagName
            ''')
        interp = interpreters.create()
        try:
            self.assertEqual(interp.call(ns['func']), 'a')
        finally:
            interp.close()


class MainTests(TestCase):
    """Functions and classes of a script."""

    PRELUDE = '''if True:
        import interpreters
        if __name__ == '__main__':
            interp = interpreters.create()
        '''

    def test_function_and_what_it_names(self):
        self.assertEqual(self.run_script('''
            import interpreters, math
            def helper(x):
                return x * FACTOR
            def func(x, *, more=0):
                return helper(x) + math.floor(1.5) + more
            FACTOR = 10
            interp = interpreters.create()
            print(interp.call(func, 4), interp.call(func, 4, more=1))
            print(interp.call(lambda: func(1)))
            '''), '41 42\n11')

    def test_script_without_guard_is_not_loaded_for_functions(self):
        self.assertEqual(self.run_script('''
            import interpreters
            def func(x):
                return x + 1
            interp = interpreters.create()
            print('once', interp.call(func, 1))
            '''), 'once 2')

    def test_changed_global(self):
        # (S1)
        self.assertEqual(self.run_script('''
            import interpreters
            LIMIT = 1
            SEEN = []
            def func():
                SEEN.append(LIMIT)
                return SEEN
            interp = interpreters.create()
            interp.call(func)
            LIMIT = 2
            print(interp.call(func), SEEN)
            SEEN = ['new']
            print(interp.call(func), SEEN)
            '''), "[1, 2] []\n['new', 2] ['new']")

    def test_global_statement(self):
        self.assertEqual(self.run_script('''
            import interpreters
            MODEL = None
            def init(value):
                global MODEL
                MODEL = value
            def task():
                return MODEL
            interp = interpreters.create()
            interp.call(init, 'loaded')
            print(interp.call(task), MODEL)
            '''), 'loaded None')

    def test_comes_home(self):
        # (S2)
        self.assertEqual(self.run_script('''
            import interpreters
            results = []
            def func(x):
                results.append(x)
            interp = interpreters.create()
            before = results
            interp.call(lambda f: f, func)(5)
            queue = interpreters.create_queue()
            queue.put(func)
            queue.get()(6)
            print(results, results is before)
            '''), '[5, 6] True')

    def test_closed_senders_are_forgotten(self):
        self.assertEqual(self.run_script('''
            import interpreters
            from interpreters import _codec
            queue = interpreters.create_queue()
            for n in range(3):
                interp = interpreters.create()
                interp.prepare_main(queue=queue, n=n)
                interp.exec('queue.put(lambda: n)')
                func = queue.get()
                interp.close()
            print(func(), len(_codec._spaces), len(_codec._values))
            '''), '2 1 1')

    def test_name_that_only_the_receiver_has(self):
        # (S3)
        self.assertEqual(self.run_script('''
            import interpreters
            interp = interpreters.create()
            interp.prepare_main(spam=1)
            print(interp.call(lambda: spam + 1))
            interp.prepare_main(spam=2)
            print(interp.call(lambda: spam + 1))
            '''), '2\n3')

    def test_passed_on(self):
        self.assertEqual(self.run_script('''
            import interpreters
            BASE = 5
            def func(x):
                return BASE + x
            def pass_on(other, f, x):
                return other.call(f, x)
            one, two = interpreters.create(), interpreters.create()
            print(one.call(pass_on, two, func, 1))
            '''), '6')

    def test_receivers_main_is_not_touched(self):
        self.assertEqual(self.run_script('''
            import interpreters
            x = 'sender'
            interp = interpreters.create()
            interp.exec('x = "receiver"')
            print(interp.call(lambda: x))
            interp.exec('print(x)')
            '''), 'sender\nreceiver')

    def test_classes(self):
        self.assertEqual(self.run_script('''
            import interpreters
            from dataclasses import dataclass
            from enum import Enum

            @dataclass
            class Point:
                x: int
                class Inner(Exception):
                    pass
                def twice(self):
                    return Point(2 * self.x)

            class Color(Enum):
                RED = 1

            def work(p):
                assert type(p) is Point
                return p.twice(), Color.RED, Point.Inner(5)

            if __name__ == '__main__':
                interp = interpreters.create()
                point, color, error = interp.call(work, Point(4))
                print(point, point == Point(8), color is Color.RED, repr(error),
                      type(error) is Point.Inner)
                print(interp.call(Point(1).twice), interp.call(Point, 3))
            '''), 'Point(x=8) True True Inner(5) True\nPoint(x=2) Point(x=3)')

    def test_passed_on_from_the_loaded_script(self):
        self.assertEqual(self.run_script('''
            import interpreters
            class C:
                def pass_on(self, other):
                    return other.call(inner, self)
            def inner(c):
                return __name__, type(c).__module__
            if __name__ == '__main__':
                one, two = interpreters.create(), interpreters.create()
                print(*one.call(C().pass_on, two))
            '''), '__interp_main__ __interp_main__')

    def test_in_a_spawned_process(self):
        self.assertEqual(self.run_script('''
            import interpreters
            import multiprocessing
            class C:
                pass
            def func(c):
                return [c]
            def task():
                interp = interpreters.create()
                print(type(interp.call(func, C())[0]) is C)
                print(interp.call(lambda: 5))
            if __name__ == '__main__':
                context = multiprocessing.get_context('spawn')
                process = context.Process(target=task)
                process.start()
                process.join()
            '''), 'True\n5')

    def test_script_is_loaded_once(self):
        self.assertEqual(self.run_script('''
            import interpreters
            print(__name__)
            class C:
                pass
            if __name__ == '__main__':
                one, two = interpreters.create(), interpreters.create()
                queue = interpreters.create_queue()
                for interp in one, two, one, two:
                    interp.call(id, C())
            '''), '__main__\n__interp_main__\n__interp_main__')

    def test_global_that_cannot_be_pickled(self):
        # Each interpreter gets its own, from the script.
        self.assertEqual(self.run_script('''
            import interpreters, threading
            lock = threading.Lock()
            def func():
                with lock:
                    return 'locked'
            if __name__ == '__main__':
                with lock:
                    print(interpreters.create().call(func))
            '''), 'locked')

    def test_global_that_cannot_go_at_all(self):
        error = self.run_script('''
            import interpreters, threading
            def func():
                return lock
            if __name__ == '__main__':
                lock = threading.Lock()
                interpreters.create().call(func)
            ''', fails=True)
        self.assertIn("NotShareableError", error)
        self.assertIn("the global 'lock'", error)

    def test_class_defined_by_the_receiver(self):
        self.assertEqual(self.run_script('''
            import interpreters
            class C:
                def name(self):
                    return 'script'
            interp = interpreters.create()
            interp.exec('class C:\\n  def name(self): return "receiver"')
            print(interp.call(lambda c: c.name(), C()))
            '''), 'receiver')

    def test_script_without_guard_that_creates(self):
        error = self.run_script('''
            import interpreters
            class C:
                pass
            interp = interpreters.create()
            interp.call(id, C())
            ''', fails=True)
        self.assertIn("__name__ == '__main__'", error)

    def test_run_as_module(self):
        from test.support import os_helper, script_helper
        with os_helper.temp_dir() as folder:
            os.mkdir(os.path.join(folder, 'pack'))
            script_helper.make_script(folder, 'pack/__init__', '')
            script_helper.make_script(folder, 'pack/mod', '''if True:
                import interpreters
                from . import __name__ as parent
                class C:
                    pass
                if __name__ == '__main__':
                    interp = interpreters.create()
                    print(type(interp.call(lambda c: [c], C())[0]) is C, parent)
                ''')
            result = script_helper.assert_python_ok(
                '-m', 'pack.mod', PYTHONPATH=folder, __isolated=False)
        self.assertEqual(result.out.split(), [b'True', b'pack'])

    def test_no_script(self):
        from test.support import script_helper
        result = script_helper.assert_python_ok('-c', '''if True:
            import interpreters
            interp = interpreters.create()
            def helper(x): return x + 1
            print(interp.call(lambda x: helper(x), 1))
            class C: pass
            try:
                interp.call(id, C())
            except interpreters.NotShareableError as exc:
                print('refused', '__main__' in str(exc))
            print(interp.call(helper, 2))
            ''')
        self.assertEqual(result.out.split(), [b'2', b'refused', b'True', b'3'])

    def test_module_beside_the_script(self):
        from test.support import os_helper, script_helper
        with os_helper.temp_dir() as folder:
            script_helper.make_script(folder, 'rw_beside', 'def f(): return 5')
            path = script_helper.make_script(folder, 'script', '''if True:
                import interpreters, rw_beside
                print(interpreters.create().call(rw_beside.f))
                ''')
            result = script_helper.assert_python_ok(path, __isolated=False)
        self.assertEqual(result.out.split(), [b'5'])


if __name__ == '__main__':
    unittest.main()

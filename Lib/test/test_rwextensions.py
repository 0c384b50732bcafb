"""Extension modules in every interpreter, from private copies."""
import gc
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import unittest
import weakref

from test import support
from test.support import import_helper, script_helper, threading_helper

interpreters = import_helper.import_module('interpreters')
_interpreters = import_helper.import_module('_interpreters')
_rwextensions = import_helper.import_module('_rwextensions')
_testsinglephase = import_helper.import_module('_testsinglephase')
_testmultiphase = import_helper.import_module('_testmultiphase')


def works():
    """Whether this platform has private copies."""
    interp = interpreters.create()
    try:
        interp.exec('import _testsinglephase')
    except interpreters.ExecutionFailed:
        return False
    finally:
        interp.close()
    return True


if not works():
    raise unittest.SkipTest('no private copies on this platform')

LOAD = textwrap.dedent('''
    def load(name, file):
        from importlib.machinery import ExtensionFileLoader
        from importlib.util import module_from_spec, spec_from_loader
        loader = ExtensionFileLoader(name, file)
        module = module_from_spec(spec_from_loader(name, loader))
        loader.exec_module(module)
        return module
    ''')


def setUpModule():
    threads = threading_helper.threading_setup()
    unittest.addModuleCleanup(threading_helper.threading_cleanup, *threads)


class Base(unittest.TestCase):

    def create(self):
        interp = interpreters.create()
        self.addCleanup(self.close, interp)
        return interp

    def close(self, interp):
        try:
            interp.close()
        except interpreters.InterpreterNotFoundError:
            pass

    def copies(self, name, interp=None):
        return [copy for copy in interpreters.extension_copies()
                if copy.name == name
                and (interp is None or copy.interpreter == interp.id)]

    def answer(self, interp, code, result):
        """What an expression is, over there, after some code."""
        queue = interpreters.create_queue()
        interp.prepare_main(queue=queue)
        interp.exec(f'{LOAD}\n{textwrap.dedent(code)}\nqueue.put({result})')
        return queue.get(timeout=support.SHORT_TIMEOUT)


class CompilingTests(Base):
    """With extension modules of its own, in `folder`."""

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp()
        cls.addClassCleanup(shutil.rmtree, cls.folder)

    @classmethod
    def compile_module(cls, name, source, variable, *options):
        """variable: what sysconfig calls the compiler, CC or CXX."""
        language, suffix, usual = {'CC': ('C', '.c', 'cc'),
                                   'CXX': ('C++', '.cpp', 'c++')}[variable]
        compiler = (sysconfig.get_config_var(variable) or usual).split()
        if shutil.which(compiler[0]) is None:
            raise unittest.SkipTest(f'no {language} compiler: {compiler[0]}')
        path = os.path.join(cls.folder, name + suffix)
        with open(path, 'w') as file:
            file.write(source)
        include = [sysconfig.get_path('include'), sysconfig.get_path('platinclude'),
                   os.path.dirname(sysconfig.get_config_h_filename()),
                   os.path.join(sysconfig.get_config_var('srcdir') or '.', 'Include')]
        done = subprocess.run(
            [*compiler, '-shared', '-fPIC', '-w', *options, path,
             *(f'-I{folder}' for folder in include),
             '-o', os.path.join(cls.folder, name + '.so')],
            capture_output=True, text=True, timeout=support.LONG_TIMEOUT)
        if done.returncode != 0:
            raise unittest.SkipTest(f'can\'t compile {language}: {done.stderr[-500:]}')


class CopyTests(Base):

    def test_single_phase(self):
        interp = self.create()
        code = 'import _testsinglephase as m'
        self.assertEqual(self.answer(interp, code, 'm.sum(1, 2)'), 3)
        copy, = self.copies('_testsinglephase', interp)
        self.assertEqual(os.path.realpath(copy.file),
                         os.path.realpath(_testsinglephase.__file__))
        self.assertGreater(copy.nbytes, 0)
        self.assertEqual(self.answer(interp, code, 'm.__file__'),
                         _testsinglephase.__file__)

    def test_statics_are_separate(self):
        # The count is a C static that the init function increments.
        code = ('import _testsinglephase as m, time\n'
                'before = m.initialized_count()')
        counts = [self.answer(self.create(), code, 'before') for _ in range(3)]
        self.assertEqual(counts, [1, 1, 1])

    def test_init_runs_here(self):
        # Stock runs it in the main interpreter and copies the dict.
        interp = self.create()
        code = '''
            import _testsinglephase as m, sys
            error = m.error
            '''
        self.assertEqual(
            self.answer(interp, code, 'm.look_up_self() is m'), True)
        self.assertEqual(
            self.answer(interp, code, 'error.__subclasses__()'), [])
        main = self.answer(interp, code, 'id(error)')
        self.assertNotEqual(main, id(_testsinglephase.error))

    def test_same_module_again(self):
        # m_size == -1: the init function can't run twice.
        code = '''
            import sys
            import _testsinglephase as m
            m.spam = 1
            del sys.modules['_testsinglephase']
            import _testsinglephase as again
            '''
        interp = self.create()
        self.assertEqual(
            self.answer(interp, code,
                        '(again is m, hasattr(again, "spam"), again.sum(2, 2))'),
            (False, False, 4))
        self.assertEqual(self.answer(interp, code, 'again.initialized_count()'), 1)
        self.assertEqual(len(self.copies('_testsinglephase', interp)), 1)

    def test_several_modules_of_one_file(self):
        interp = self.create()
        names = ['_testsinglephase', '_testsinglephase_with_reinit',
                 '_testsinglephase_with_state']
        code = f'''
            modules = [load(name, {_testsinglephase.__file__!r})
                       for name in {names!r}]
            '''
        self.assertEqual(self.answer(interp, code, '[m.__name__ for m in modules]'),
                         names)
        self.assertEqual(len(self.copies('_testsinglephase', interp)), 1)

    def test_multi_phase_without_support(self):
        for name in ('_test_shared_gil_only', '_test_non_isolated'):
            with self.subTest(name):
                interp = self.create()
                code = f'm = load({name!r}, {_testmultiphase.__file__!r})'
                self.assertEqual(self.answer(interp, code, 'm.__name__'), name)
                self.assertEqual(len(self.copies('_testmultiphase', interp)), 1)

    def test_declared_support_is_not_copied(self):
        interp = self.create()
        interp.exec('import _testmultiphase, _queue')
        self.assertEqual(self.copies('_testmultiphase'), [])
        self.assertEqual(self.copies('_queue'), [])

    def test_main_and_legacy_are_as_ever(self):
        main = interpreters.get_main()
        self.assertEqual(self.copies('_testsinglephase', main), [])
        for config in 'isolated', 'legacy':
            with self.subTest(config):
                id = _interpreters.create(config)
                self.addCleanup(_interpreters.destroy, id)
                failed = _interpreters.run_string(id, 'import _testsinglephase')
                if config == 'isolated':
                    self.assertIn('does not support', failed.msg)
                else:
                    self.assertIsNone(failed)
                self.assertEqual([c for c in interpreters.extension_copies()
                                  if c.interpreter == id], [])

    def test_not_in_the_process_wide_cache(self):
        # A legacy interpreter that comes later must not find what a copy made.
        script = textwrap.dedent('''
            import interpreters, _interpreters
            a = interpreters.create()
            a.exec('import _testsinglephase')
            b = interpreters.create()
            b.exec('import _testsinglephase; print(_testsinglephase.sum(1, 1))')
            a.close()
            import _testsinglephase
            print(_testsinglephase.initialized_count())
            ''')
        out = script_helper.assert_python_ok('-c', script).out.split()
        self.assertEqual(out, [b'2', b'1'])

    def test_address_belongs_to_interpreter(self):
        interp = self.create()
        code = '''
            import _testsinglephase as m, ctypes
            # A module object begins with its head, its dict and its definition.
            address = ctypes.c_void_p.from_address(id(m) + 24).value
            '''
        try:
            address = self.answer(interp, code, 'address')
        except interpreters.ExecutionFailed as exc:
            self.skipTest(str(exc))
        if not support.Py_DEBUG:
            self.assertEqual(_rwextensions.owner(address), interp.id)
        self.assertEqual(_rwextensions.owner(id(None)), -1)


class SwitchTests(unittest.TestCase):

    SCRIPT = textwrap.dedent('''
        import interpreters, sys
        interp = interpreters.create()
        for name in sys.argv[1:]:
            try:
                interp.exec('import ' + name)
            except interpreters.ExecutionFailed as exc:
                print('refused', end=' ')
            else:
                print(any(c.name == name for c in interpreters.extension_copies()),
                      end=' ')
        ''')

    def run_with(self, *options, **env):
        done = script_helper.assert_python_ok(
            *options, '-c', self.SCRIPT, '_testsinglephase', '_testmultiphase',
            '_queue', **env)
        return done.out.decode().split()

    def test_option(self):
        for value, expected in {
            'auto': ['True', 'False', 'False'],
            'off': ['refused', 'False', 'False'],
            'all': ['True', 'True', 'False'],
            'off,+_testsinglephase': ['True', 'False', 'False'],
            'auto,-_testsinglephase,+_queue': ['refused', 'False', 'True'],
            'all,-_testmultiphase': ['True', 'False', 'False'],
        }.items():
            with self.subTest(value):
                self.assertEqual(self.run_with('-X', f'extcopy={value}'), expected)

    def test_environment(self):
        self.assertEqual(self.run_with('-X', 'dev', PYTHON_EXTCOPY='off'),
                         ['refused', 'False', 'False'])
        self.assertEqual(self.run_with('-X', 'extcopy=auto', PYTHON_EXTCOPY='off'),
                         ['True', 'False', 'False'])

    def test_bad_values(self):
        for value in 'extcopy', 'extcopy=sometimes', 'extcopy=auto,spam':
            with self.subTest(value):
                done = script_helper.assert_python_failure('-X', value, '-c', '')
                self.assertIn(b'extcopy', done.err)


class ModuleTests(unittest.TestCase):

    def test_type_goes_with_the_module(self):
        # Also if the collector has not cleared the module.
        module = import_helper.import_fresh_module('_rwextensions')
        ref = weakref.ref(module.ExtensionCopy)
        vars(module).clear()
        del module
        gc.collect()
        self.assertIsNone(ref())


class ReuseTests(Base):

    def test_closed_interpreters_copies_are_used_again(self):
        def cycle():
            interp = interpreters.create()
            interp.exec('import _testsinglephase as m\n'
                        'assert m.initialized_count() == 1')
            interp.close()
        cycle()
        before = len(interpreters.extension_copies())
        for _ in range(20):
            cycle()
        self.assertEqual(len(interpreters.extension_copies()), before)
        self.assertIn(None, {c.interpreter for c in self.copies('_testsinglephase')})

    def test_open_ones_have_their_own(self):
        interps = [self.create() for _ in range(4)]
        for interp in interps:
            interp.exec('import _testsinglephase')
        owners = [c.interpreter for c in self.copies('_testsinglephase')
                  if c.interpreter is not None]
        self.assertEqual(sorted(owners), [interp.id for interp in interps])

    def test_blocks_are_bounded(self):
        def cycle():
            interp = interpreters.create()
            interp.exec('import _testsinglephase, _testmultiphase')
            interp.close()
            del interp
            gc.collect()
        for _ in range(3):
            cycle()
        before = sys.getallocatedblocks()
        for _ in range(20):
            cycle()
        # The module's statics hold a few objects.
        self.assertLess(sys.getallocatedblocks() - before, 20 * 60)

    @threading_helper.requires_working_threading()
    def test_many_at_once(self):
        errors = []
        def work():
            try:
                for _ in range(5):
                    interp = interpreters.create()
                    interp.exec('import _testsinglephase as m\n'
                                'assert m.initialized_count() == 1')
                    interp.close()
            except BaseException as exc:
                errors.append(exc)
        with threading_helper.start_threads(
                threading.Thread(target=work) for _ in range(4)):
            pass
        self.assertEqual(errors, [])

    def test_exit_with_open_interpreters(self):
        script = textwrap.dedent('''
            import interpreters
            kept = [interpreters.create() for _ in range(3)]
            for interp in kept:
                interp.exec('import _testsinglephase, _curses')
            print('end')
            ''')
        done = script_helper.assert_python_ok('-c', script)
        self.assertEqual((done.out.strip(), done.err), (b'end', b''))

    def test_lent_memory_stays_valid(self):
        script = textwrap.dedent("""
            import interpreters
            interp = interpreters.create()
            queue = interpreters.create_queue()
            interp.prepare_main(queue=queue)
            interp.exec('import _testsinglephase, array\\n'
                        'data = array.array("i", range(1000))\\n'
                        'queue.put(memoryview(data))')
            view = queue.get(timeout=30)
            interp.close()
            print(sum(view.cast('B').cast('i')))
            """)
        out = script_helper.assert_python_ok('-c', script, PYTHONMALLOC='debug').out
        self.assertEqual(out.strip(), b'499500')

    @support.requires_fork()
    def test_fork(self):
        script = textwrap.dedent('''
            import interpreters, os
            interp = interpreters.create()
            interp.exec('import _testsinglephase')
            pid = os.fork()
            if pid == 0:
                other = interpreters.create()
                other.exec('import _testsinglephase as m\\n'
                           'assert m.initialized_count() == 1')
                other.close()
                os._exit(0)
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            interp.exec('assert _testsinglephase.sum(1, 2) == 3')
            ''')
        self.assertEqual(script_helper.assert_python_ok('-c', script).out.strip(),
                         b'0')


CXX_SOURCE = r'''
#include <Python.h>
#include <cstdlib>
#include <string>
#include <vector>

struct __attribute__((visibility("default"))) Shared {
    static std::vector<int> &items()
    {
        static std::vector<int> all;    // STB_GNU_UNIQUE
        return all;
    }
};

static std::string constructed("a text that is too long for the short form");
static thread_local int local;          // trivially destructible

struct Noisy {
    ~Noisy() { abort(); }
};

static PyObject *
add(PyObject *, PyObject *)
{
    static Noisy noisy;                 // would abort at exit
    Shared::items().push_back(1);
    constructed += "!";
    local++;
    return Py_BuildValue("iii", (int)Shared::items().size(),
                         (int)constructed.size(), local);
}

static PyObject *index(PyObject *, PyObject *);

static PyMethodDef methods[] = {
    {"add", add, METH_NOARGS, 0}, {"index", index, METH_NOARGS, 0}, {0}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, NAME, 0, -1, methods};

static PyObject *
index(PyObject *, PyObject *)
{
    return PyLong_FromSsize_t(module.m_base.m_index);
}

#define GLUE(a, b) a##b
#define INIT(name) GLUE(PyInit_, name)
PyMODINIT_FUNC INIT(BARE)(void) { return PyModule_Create(&module); }
'''


@support.requires_subprocess()
class CxxTests(CompilingTests):

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for name in 'rwcxx_one', 'rwcxx_two':
            cls.compile_module(name, CXX_SOURCE, 'CXX', '-std=c++17',
                               f'-DNAME="{name}"', f'-DBARE={name}')

    def code(self, *names):
        return f'import sys; sys.path.insert(0, {self.folder!r})\n' + '\n'.join(
            f'import {name}' for name in names)

    def test_unique_statics_are_unique_per_interpreter(self):
        a, b = self.create(), self.create()
        code = self.code('rwcxx_one', 'rwcxx_two')
        for n in 1, 3:
            for interp in a, b:
                counts = self.answer(
                    interp, code, '(rwcxx_one.add()[0], rwcxx_two.add()[0])')
                # Two files of one interpreter share the instance.
                self.assertEqual(counts, (n, n + 1))

    def test_constructors_run_for_each_owner(self):
        code = self.code('rwcxx_one')
        results = []
        for _ in range(3):
            interp = interpreters.create()
            results.append(self.answer(interp, code, 'rwcxx_one.add()'))
            interp.close()
        self.assertEqual(results, [(1, 43, 1)] * 3)

    def test_module_indexes_are_bounded(self):
        # Each interpreter's list of modules is as long as the highest index.
        code = self.code('rwcxx_one')
        interps = [self.create() for _ in range(3)]
        indexes = {self.answer(interp, code, 'rwcxx_one.index()')
                   for interp in interps}
        for interp in interps:
            interp.close()
        indexes.add(self.answer(self.create(), code, 'rwcxx_one.index()'))
        self.assertEqual(len(indexes), 1)

    def test_exit_functions_are_forgotten(self):
        script = textwrap.dedent(f'''
            import interpreters
            for _ in range(2):
                interp = interpreters.create()
                interp.exec({self.code('rwcxx_one')!r} + '; rwcxx_one.add()')
                interp.close()
            ''')
        script_helper.assert_python_ok('-c', script)


KEEPER_SOURCE = r"""
#include <Python.h>
#include <pthread.h>

/* Never freed, as most modules have it. */
static PyObject *kept[20000];
static char *memory, *large_memory;

static PyObject *
keep(PyObject *self, PyObject *list)
{
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        kept[i] = Py_NewRef(PyList_GetItem(list, i));
    }
    memory = PyMem_Malloc(100);
    large_memory = PyMem_Malloc(5000);
    return Py_NewRef(Py_None);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void *
wait_for_ever(void *arg)
{
    pthread_mutex_lock(&mutex);
    return arg;
}

static PyObject *
make_thread(PyObject *self, PyObject *unused)
{
    pthread_t thread;
    pthread_mutex_lock(&mutex);
    return PyLong_FromLong(pthread_create(&thread, NULL, wait_for_ever, NULL));
}

static int exits;
static _Thread_local PyObject *mine;

extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);

static void
at_thread_exit(void *arg)
{
    // Of a dead interpreter that is an address of nothing.
    exits += ((PyObject *)arg)->ob_type == &PyFloat_Type ? 1 : 1000;
}

static PyObject *
leave_for_exit(PyObject *self, PyObject *obj)
{
    int had = mine != NULL;
    mine = Py_NewRef(obj);
    if (__cxa_thread_atexit_impl(at_thread_exit, mine, &exits) != 0) {
        return PyErr_NoMemory();
    }
    return PyBool_FromLong(had);
}

static PyObject *
count_exits(PyObject *self, PyObject *unused)
{
    return PyLong_FromLong(exits);
}

static char statics[1000];

static PyObject *
show(PyObject *self, PyObject *unused)
{
    return PyMemoryView_FromMemory(statics, sizeof(statics), PyBUF_WRITE);
}

static PyMethodDef methods[] = {
    {"keep", keep, METH_O}, {"show", show, METH_NOARGS}, {"make_thread", make_thread, METH_NOARGS},
    {"leave_for_exit", leave_for_exit, METH_O},
    {"count_exits", count_exits, METH_NOARGS}, {0}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "rwkeeper", 0, -1, methods};

PyMODINIT_FUNC PyInit_rwkeeper(void) { return PyModule_Create(&module); }
"""


needs_heaps = unittest.skipIf(
    not support.with_pymalloc()
    or os.environ.get('PYTHONMALLOC', '').startswith(('malloc', 'mimalloc')),
    'only what pymalloc manages is given back')


def allocated_blocks():
    gc.collect()
    return sys.getallocatedblocks()


@support.requires_subprocess()
class RemainsTests(CompilingTests):
    """What is left of an interpreter is given back, and nothing else is."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.compile_module('rwkeeper', KEEPER_SOURCE, 'CC')
        # The first interpreter that imports it leaves what the process keeps.
        cls.load_twice(cls)

    def load_twice(self):
        for _ in range(2):
            interp = interpreters.create()
            interp.exec(f'import sys; sys.path.insert(0, {self.folder!r})\n'
                        'import rwkeeper')
            interp.close()

    def start(self, before=''):
        interp = self.create()
        self.queue = interpreters.create_queue()
        interp.prepare_main(queue=self.queue)
        interp.exec(before)
        interp.exec(f'import sys; sys.path.insert(0, {self.folder!r})\n'
                    'import rwkeeper')
        return interp

    KEEP = textwrap.dedent("""
        rwkeeper.keep([str(i) * 3 for i in range(10_000)]
                      + ['x' * 1000 + str(i) for i in range(1000)])
        """)

    def keep_and_close(self, more=''):
        interp = self.start()
        interp.exec(self.KEEP + textwrap.dedent(more))
        interp.close()

    def growth(self, cycle, n=5):
        """Blocks for each cycle.  The median, because the first interpreter in a
        heap leaves its interned strings there."""
        cycle()
        counts = [allocated_blocks()]
        for _ in range(n):
            cycle()
            counts.append(allocated_blocks())
        return statistics.median(b - a for a, b in zip(counts, counts[1:]))

    @needs_heaps
    def test_what_statics_hold_is_given_back(self):
        self.assertLess(self.growth(self.keep_and_close), 100)

    @needs_heaps
    def test_it_is_counted(self):
        _testmemheap = import_helper.import_module('_testmemheap')
        before = _testmemheap.stats()['remains']
        self.keep_and_close()
        self.assertGreater(_testmemheap.stats()['remains'] - before, 10_900)
        self.assertLess(_testmemheap.stats()['remains'] - before, 15_000)

    @needs_heaps
    def test_memory_is_given_back(self):
        # In bytes, malloc's blocks included: 2 MB are kept each time.
        script = textwrap.dedent(f"""
            import interpreters
            def cycle():
                interp = interpreters.create()
                interp.exec({f'import sys; sys.path.insert(0, {self.folder!r})'!r}
                            + '\\nimport rwkeeper\\n' + {self.KEEP!r})
                interp.close()
            def resident():
                with open('/proc/self/statm') as file:
                    return int(file.read().split()[1]) * 4096
            for _ in range(5):
                cycle()
            before = resident()
            for _ in range(20):
                cycle()
            print((resident() - before) // 20)
            """)
        out = script_helper.assert_python_ok('-c', script).out
        self.assertLess(int(out), 100_000)

    # What goes to another interpreter, and what it has to be there.
    GIVEN = [
        ('12345678901234567890123', '12345678901234567890123'),
        ('1.5', '1.5'),
        ('"ascii" * 200', '"ascii" * 200'),
        ('"\\xe4\\u20ac" + str(7)', '"\\xe4\\u20ac7"'),
        ('bytes(range(256)) * 10', 'bytes(range(256)) * 10'),
        ('bytearray(b"abc" * 300)', 'bytearray(b"abc" * 300)'),
        ('range(10**20, 10**20 + 5)', 'range(10**20, 10**20 + 5)'),
        ('[str(i) for i in range(1000)]', '[str(i) for i in range(1000)]'),
        ('{str(i): i + 1000 for i in range(500)}',
         '{str(i): i + 1000 for i in range(500)}'),
        ('{i + 1000: (i + .5, [i + 2000]) for i in range(500)}',
         '{i + 1000: (i + .5, [i + 2000]) for i in range(500)}'),
        ('{str(i) for i in range(500)}', '{str(i) for i in range(500)}'),
        ('frozenset({"a1", (2.5, "b1")})', 'frozenset({"a1", (2.5, "b1")})'),
        ('slice(1000, 2000, 3000)', 'slice(1000, 2000, 3000)'),
        ('3.5 + 4j', '3.5 + 4j'),
        ('__import__("array").array("d", range(1000))',
         '__import__("array").array("d", range(1000))'),
        ('__import__("fractions").Fraction(1000, 1001)',
         '__import__("fractions").Fraction(1000, 1001)'),
        ('[__import__("types").SimpleNamespace(a=i + .5) for i in range(300)]',
         '[__import__("types").SimpleNamespace(a=i + .5) for i in range(300)]'),
    ]

    def check_given(self, send):
        import array, fractions, types       # not by the first that arrives
        got = []
        interp = self.start()
        for made, _ in self.GIVEN:
            interp.exec(self.KEEP + send.format(made))
            got.append(self.queue.get(timeout=support.SHORT_TIMEOUT))
        interp.close()
        for _ in range(20):
            self.keep_and_close()
        for obj, (_, expected) in zip(got, self.GIVEN, strict=True):
            with self.subTest(expected):
                self.assertEqual(obj, eval(expected))
        del got, obj

    def test_copies_that_were_given_stay(self):
        self.check_given('\nobj = {}\nqueue.put(obj)')

    def test_moved_objects_stay(self):
        self.check_given('\nfrom interpreters import move\nqueue.put(move({}))')

    def test_instances_of_python_classes_stay(self):
        from test import rwparcels_random as graphs
        for kind in 'queue.put(graph)', 'queue.put(move(graph))':
            interp = self.start()
            got = []
            for i in range(30):
                interp.exec(self.KEEP + textwrap.dedent(f"""
                    from interpreters import move
                    from test import rwparcels_random as graphs
                    graph = graphs.make_graph(7, {i})
                    {kind}
                    del graph
                    """))
                got.append(self.queue.get(timeout=support.SHORT_TIMEOUT))
            interp.close()
            for _ in range(5):
                self.keep_and_close()
            for i, graph in enumerate(got):
                self.assertEqual(graphs.describe(graph),
                                 graphs.describe(graphs.make_graph(7, i)))
            del graph, got

    def test_results_of_calls_stay(self):
        interp = self.start()
        interp.exec(self.KEEP)
        got = [interp.call(float, '2.5'), interp.call(list, 'abc'),
               interp.call(dict, a='b' * 600)]
        interp.close()
        for _ in range(20):
            self.keep_and_close()
        self.assertEqual(got, [2.5, ['a', 'b', 'c'], {'a': 'b' * 600}])

    def test_given_before_the_first_copy(self):
        # Block by block if it is not much, else with all that is there.
        given = self.GIVEN + [('[str(i) for i in range(20_000)]',) * 2]
        import array, fractions, types
        got = []
        for made, _ in given:
            interp = self.start(before=f'queue.put({made})')
            got.append(self.queue.get(timeout=support.SHORT_TIMEOUT))
            interp.exec(self.KEEP)
            interp.close()
        for _ in range(5):
            self.keep_and_close()
        for obj, (_, expected) in zip(got, given, strict=True):
            with self.subTest(expected):
                self.assertEqual(obj, eval(expected))
        del got, obj

    def test_unopened_parcels_stay(self):
        # In a queue they would go with their sender.
        from test import rwparcels_random as graphs
        interp = self.start()
        interp.exec(self.KEEP + textwrap.dedent("""
            from interpreters import move, pack
            from test import rwparcels_random as graphs
            for i in range(100):
                graph = graphs.make_graph(8, i)
                queue.put(pack(move(graph) if i % 2 else graph))
            del graph
            """))
        parcels = [self.queue.get(timeout=support.SHORT_TIMEOUT)
                   for _ in range(100)]
        interp.close()
        for _ in range(10):
            self.keep_and_close()
        for i, parcel in enumerate(parcels):
            self.assertEqual(graphs.describe(parcel.open()),
                             graphs.describe(graphs.make_graph(8, i)))

    def test_parcels_can_be_dropped_later(self):
        # That frees blocks of the heap of an interpreter that has ended.
        interp = self.start()
        interp.exec(self.KEEP + textwrap.dedent("""
            from interpreters import move, pack
            from test import rwparcels_random as graphs
            for i in range(100):
                graph = graphs.make_graph(9, i)
                queue.put(pack(move(graph) if i % 2 else graph))
                queue.put(graphs.make_graph(9, i))
            del graph
            """))
        parcels = [self.queue.get(timeout=support.SHORT_TIMEOUT)
                   for _ in range(100)]     # the others are left there
        interp.close()
        self.keep_and_close()
        del parcels
        self.queue = None
        for _ in range(5):
            self.keep_and_close()

    def test_lent_memory_stays(self):
        interp = self.start()
        interp.exec(self.KEEP + textwrap.dedent("""
            import array
            queue.put(memoryview(bytearray(range(100))))
            queue.put(memoryview(bytes(range(256)) * 10)[7:])
            queue.put(memoryview(array.array('i', range(1000))))
            """))
        views = [self.queue.get(timeout=support.SHORT_TIMEOUT) for _ in range(3)]
        interp.close()
        for _ in range(20):
            self.keep_and_close()
        self.assertEqual(views[0].tolist(), list(range(100)))
        self.assertEqual(views[1].tobytes(), (bytes(range(256)) * 10)[7:])
        self.assertEqual(views[2].tolist(), list(range(1000)))

    def test_lent_statics_stay(self):
        # The copy waits until they come back; then it is used again.
        before = len(self.copies('rwkeeper'))
        views = []
        for k in range(1, 4):
            interp = self.start()
            interp.exec(textwrap.dedent(f"""
                view = rwkeeper.show()
                assert not any(view)
                view[:] = bytes([{k}]) * len(view)
                queue.put(view)
                """))
            views.append(self.queue.get(timeout=support.SHORT_TIMEOUT))
            interp.close()
        self.assertEqual([set(view) for view in views], [{1}, {2}, {3}])
        self.assertLessEqual(len(self.copies('rwkeeper')), before + 3)
        del views[0]
        after = len(self.copies('rwkeeper'))
        for _ in range(5):
            self.keep_and_close()
        self.assertEqual(len(self.copies('rwkeeper')), after)
        self.assertEqual([set(view) for view in views[:2]], [{2}, {3}])

    def test_statics_of_others_stay(self):
        # The interpreter that first imports _datetime makes the tuples of its
        # types' bases, which the process then has.
        script = textwrap.dedent(f"""
            import interpreters, sys
            assert '_datetime' not in sys.modules
            def cycle():
                interp = interpreters.create()
                interp.exec({f'import sys; sys.path.insert(0, {self.folder!r})'!r}
                            + '\\nimport rwkeeper, datetime\\n' + {self.KEEP!r})
                interp.close()
            for _ in range(5):
                cycle()
            import datetime
            print(datetime.datetime.__mro__, datetime.timezone.__bases__)
            """)
        out = script_helper.assert_python_ok('-c', script).out.decode()
        self.assertEqual(out.strip(),
                         "(<class 'datetime.datetime'>, <class 'datetime.date'>, "
                         "<class 'object'>) (<class 'datetime.tzinfo'>,)")

    @needs_heaps
    def test_nothing_is_given_back_while_a_thread_of_its_code_runs(self):
        # It can't be known what the thread has.
        grown = self.growth(lambda: self.keep_and_close('rwkeeper.make_thread()'), 3)
        self.assertGreater(grown, 10_000)

    def test_thread_exit_after_the_interpreter_s_end(self):
        results = []
        def work():
            for _ in range(2):
                interp = self.start()
                interp.exec(self.KEEP + 'queue.put(rwkeeper.leave_for_exit(2.5))')
                # The second time it is a new variable again.
                results.append(self.queue.get(timeout=support.SHORT_TIMEOUT))
                interp.close()
        with threading_helper.start_threads([threading.Thread(target=work)]):
            pass
        self.assertEqual(results, [False, False])
        interp = self.start()
        interp.exec('queue.put(rwkeeper.count_exits())')
        self.assertEqual(self.queue.get(timeout=support.SHORT_TIMEOUT), 0)

    def test_thread_exit_before_the_interpreter_s_end(self):
        interp = self.start()
        thread = interp.call_in_thread(exec, 'import rwkeeper; '
                                             'rwkeeper.leave_for_exit(2.5)')
        thread.join()
        # join() may be back before the thread has run its destructors.
        for _ in support.sleeping_retry(support.SHORT_TIMEOUT):
            interp.exec('queue.put(rwkeeper.count_exits())')
            if self.queue.get(timeout=support.SHORT_TIMEOUT) == 1:
                break

    @needs_heaps
    def test_given_back_and_forth(self):
        # What comes back by the remote list is no longer given.
        def cycle():
            interp = self.start()
            interp.exec(self.KEEP + 'queue.put([str(i) for i in range(3000)])')
            got = self.queue.get(timeout=support.SHORT_TIMEOUT)
            interp.close()
            self.assertEqual(got[2999], '2999')
        self.assertLess(self.growth(cycle), 100)

    @needs_heaps
    def test_given_before_the_first_copy_and_freed(self):
        # That is no reason to keep what is in the same blocks later.
        def cycle():
            interp = self.start(before='own = [str(i) * 3 for i in range(5000)]\n'
                                       'queue.put([str(i) * 3 for i in range(1000)])')
            got = self.queue.get(timeout=support.SHORT_TIMEOUT)
            self.assertEqual(got[999], '999999999')
            del got
            interp.exec('del own')
            interp.exec(self.KEEP)
            interp.close()
        self.assertLess(self.growth(cycle), 100)

    @needs_heaps
    def test_given_and_freed_after_the_end(self):
        def cycle():
            interp = self.start(before='own = [str(i) * 3 for i in range(5000)]')
            interp.exec('queue.put([str(i) * 3 for i in range(2000)])')
            got = self.queue.get(timeout=support.SHORT_TIMEOUT)
            interp.exec('del own')
            interp.exec(self.KEEP)
            interp.close()
            self.assertEqual(got[1999], '1999' * 3)
        self.assertLess(self.growth(cycle), 100)

    def test_tracemalloc(self):
        # It has names of files that are in the interpreter's heap.
        script = textwrap.dedent(f"""
            import interpreters, tracemalloc
            tracemalloc.start()
            for _ in range(5):
                interp = interpreters.create()
                interp.exec({f'import sys; sys.path.insert(0, {self.folder!r})'!r}
                            + '\\nimport rwkeeper\\n' + {self.KEEP!r})
                interp.close()
            top = tracemalloc.take_snapshot().statistics('filename')
            assert all(isinstance(one.traceback[0].filename, str) for one in top)
            """)
        script_helper.assert_python_ok('-c', script)

    @threading_helper.requires_working_threading()
    def test_many_at_once(self):
        errors = []
        def work():
            try:
                for i in range(5):
                    interp = interpreters.create()
                    queue = interpreters.create_queue()
                    interp.prepare_main(queue=queue)
                    interp.exec(f'import sys; sys.path.insert(0, {self.folder!r})\n'
                                'import rwkeeper\n' + self.KEEP
                                + 'queue.put([str(i) for i in range(2000)])')
                    got = queue.get(timeout=support.LONG_TIMEOUT)
                    interp.close()
                    self.assertEqual(got, [str(i) for i in range(2000)])
            except BaseException as exc:
                errors.append(exc)
        with threading_helper.start_threads(
                threading.Thread(target=work) for _ in range(4)):
            pass
        self.assertEqual(errors, [])

    @support.requires_fork()
    def test_fork(self):
        script = textwrap.dedent(f"""
            import interpreters, os
            code = ({f'import sys; sys.path.insert(0, {self.folder!r})'!r}
                    + '\\nimport rwkeeper\\n' + {self.KEEP!r})
            interp = interpreters.create()
            interp.exec(code)
            got = interp.call(eval, '[str(i) for i in range(1000)]')
            pid = os.fork()
            if pid == 0:
                for _ in range(3):
                    other = interpreters.create()
                    other.exec(code)
                    other.close()
                os._exit(got != [str(i) for i in range(1000)])
            print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            """)
        self.assertEqual(script_helper.assert_python_ok('-c', script).out.strip(),
                         b'0')

    def test_exit_with_open_interpreters(self):
        script = textwrap.dedent(f"""
            import interpreters
            kept = [interpreters.create() for _ in range(3)]
            for interp in kept:
                interp.exec({f'import sys; sys.path.insert(0, {self.folder!r})'!r}
                            + '\\nimport rwkeeper\\n' + {self.KEEP!r})
            got = kept[0].call(eval, '[str(i) for i in range(1000)]')
            print('end')
            """)
        done = script_helper.assert_python_ok('-c', script)
        self.assertEqual((done.out.strip(), done.err), (b'end', b''))


if __name__ == '__main__':
    unittest.main()

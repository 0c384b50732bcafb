/* A program that embeds Python, with threads of its own and several interpreters.
   test_rwembed.py compiles and runs it.

       rwembed_host PYTHON INTERPRETERS THREADS LOOPS

   Each thread calls back into each interpreter in every way that there is, all
   threads at the same time, while the main interpreter is at work too.  A call that
   lands in the wrong interpreter is noted there; threads that wait for each other
   are found because joining has a time limit.  Prints what went wrong; the exit
   status is 0 if nothing did. */

#define _GNU_SOURCE               // pthread_timedjoin_np()
#include "Python.h"

#include <pthread.h>
#include <time.h>

#define MAX 16
#define TIME_LIMIT 120            // seconds, for all threads

typedef void (*callback)(void);

static struct {
    PyThreadState *tstate;        // with which the interpreter was made
    callback by_ctypes;           // a callback made in it
    callback by_copy;             // one in its private copy of a C module
    callback across;              // one that calls the next interpreter's, too
} interps[MAX];

static int ninterps, nthreads, nloops;
static int failed;


/* --- The module `host`, in each interpreter ------------------------------- */

static PyObject *
host_publish(PyObject *Py_UNUSED(module), PyObject *args)
{
    int i;
    unsigned long long by_ctypes, by_copy, across;
    if (!PyArg_ParseTuple(args, "iKKK", &i, &by_ctypes, &by_copy, &across)) {
        return NULL;
    }
    interps[i].by_ctypes = (callback)(uintptr_t)by_ctypes;
    interps[i].by_copy = (callback)(uintptr_t)by_copy;
    interps[i].across = (callback)(uintptr_t)across;
    Py_RETURN_NONE;
}

static PyObject *
host_neighbour(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long i = PyLong_AsLong(arg);
    return PyLong_FromVoidPtr((void *)interps[(i + 1) % ninterps].by_ctypes);
}

/* Call a function as a library does that takes the lock for its callbacks, once
   with the lock held already and once without. */
static PyObject *
host_call(PyObject *Py_UNUSED(module), PyObject *func)
{
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *first = PyObject_CallNoArgs(func), *second;
    PyGILState_Release(state);
    Py_BEGIN_ALLOW_THREADS
    state = PyGILState_Ensure();
    second = first ? PyObject_CallNoArgs(func) : NULL;
    PyGILState_Release(state);
    Py_END_ALLOW_THREADS
    Py_XDECREF(first);
    return second;
}

static PyMethodDef host_functions[] = {
    {"publish", host_publish, METH_VARARGS, NULL},
    {"neighbour", host_neighbour, METH_O, NULL},
    {"call", host_call, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot host_slots[] = {
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL},
};

static struct PyModuleDef host_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "host",
    .m_methods = host_functions,
    .m_slots = host_slots,
};

static PyObject *
init_host(void)
{
    return PyModuleDef_Init(&host_module);
}


/* --- Interpreters --------------------------------------------------------- */

static const char script[] =
    "import _interpreters, _testrwgilstate, ctypes, host\n"
    "me = _interpreters.get_current()[0]\n"
    "seen = []\n"
    "VOID = ctypes.CFUNCTYPE(None)\n"
    "def note():\n"
    "    seen.append(_interpreters.get_current()[0])\n"
    "def across():\n"
    "    note()\n"
    "    VOID(host.neighbour(index))()\n"
    "callbacks = VOID(note), VOID(across)\n"
    "addresses = [ctypes.cast(c, ctypes.c_void_p).value for c in callbacks]\n"
    "host.publish(index, addresses[0],\n"
    "             _testrwgilstate.set_target(note, 'nesting'), addresses[1])\n";

static void
run(const char *code)
{
    if (PyRun_SimpleString(code) < 0) {
        failed = 1;
    }
}

static void
make_interpreter(int i)
{
    PyInterpreterConfig config = {
        .check_multi_interp_extensions = 1,
        .allow_threads = 1,
        .allow_daemon_threads = 1,
        .gil = PyInterpreterConfig_OWN_GIL,
    };
    PyStatus status = Py_NewInterpreterFromConfig(&interps[i].tstate, &config);
    if (PyStatus_Exception(status)) {
        Py_ExitStatusException(status);
    }
    char assignment[40];
    snprintf(assignment, sizeof(assignment), "index = %d", i);
    run(assignment);
    run(script);
}

static void
end_interpreter(int i)
{
    // By ctypes once, by the copy five times, by host.call() twice, and twice
    // because of across(): its own and its neighbour's.
    char check[200];
    snprintf(check, sizeof(check),
             "assert set(seen) == {me}, (me, set(seen))\n"
             "assert len(seen) == %d, len(seen)\n"
             "assert _testrwgilstate.disorder() == 0\n",
             nthreads * nloops * (1 + 5 + 2 + 2));
    PyEval_RestoreThread(interps[i].tstate);
    run(check);
    Py_EndInterpreter(interps[i].tstate);
}


/* --- Threads -------------------------------------------------------------- */

/* As a host does that knows which interpreter it wants. */
static void
visit(int i)
{
    PyThreadState *tstate = PyThreadState_New(interps[i].tstate->interp);
    PyEval_RestoreThread(tstate);
    run("host.call(note)");
    PyThreadState_Clear(tstate);
    PyThreadState_DeleteCurrent();
}

static void *
work(void *arg)
{
    int first = (int)(intptr_t)arg;
    for (int n = 0; n < nloops; n++) {
        for (int k = 0; k < ninterps; k++) {
            int i = (first + k) % ninterps;
            interps[i].by_ctypes();
            visit(i);
            interps[i].by_copy();
            interps[i].across();
        }
    }
    return NULL;
}

/* In the main thread, with no lock held. */
static void
join_all(pthread_t *threads)
{
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += TIME_LIMIT;
    for (int t = 0; t < nthreads; t++) {
        if (pthread_timedjoin_np(threads[t], NULL, &limit) != 0) {
            fprintf(stderr, "thread %d hangs\n", t);
            _exit(2);
        }
    }
}

int
main(int argc, char **argv)
{
    if (argc != 5) {
        return 64;
    }
    ninterps = atoi(argv[2]);
    nthreads = atoi(argv[3]);
    nloops = atoi(argv[4]);
    if (ninterps > MAX || nthreads > MAX) {
        return 64;
    }
    PyImport_AppendInittab("host", init_host);
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.parse_argv = 0;
    PyStatus status = PyConfig_SetBytesString(&config, &config.program_name, argv[1]);
    if (!PyStatus_Exception(status)) {
        status = Py_InitializeFromConfig(&config);
    }
    if (PyStatus_Exception(status)) {
        Py_ExitStatusException(status);
    }
    PyConfig_Clear(&config);

    PyThreadState *main_tstate = PyThreadState_Get();
    for (int i = 0; i < ninterps; i++) {
        (void)PyEval_SaveThread();
        make_interpreter(i);
        (void)PyEval_SaveThread();
        PyEval_RestoreThread(main_tstate);
    }

    run("import threading\n"
        "stop = False\n"
        "def busy():\n"
        "    while not stop:\n"
        "        pass\n"
        "thread = threading.Thread(target=busy)\n"
        "thread.start()\n");
    (void)PyEval_SaveThread();
    pthread_t threads[MAX];
    for (int t = 0; t < nthreads; t++) {
        if (pthread_create(&threads[t], NULL, work, (void *)(intptr_t)t) != 0) {
            return 1;
        }
    }
    join_all(threads);
    PyEval_RestoreThread(main_tstate);
    run("stop = True\n"
        "thread.join()\n");
    (void)PyEval_SaveThread();

    for (int i = 0; i < ninterps; i++) {
        end_interpreter(i);
    }
    PyEval_RestoreThread(main_tstate);
    return Py_FinalizeEx() < 0 || failed;
}

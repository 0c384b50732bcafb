/* Threads made by C code, and callbacks from them.  For tests only.

   The module does not say that it supports interpreters with a lock of their own,
   so each of them has a private copy, with statics of its own.  Callbacks are
   plain C functions without arguments, known by address, so that one interpreter
   can have another one's called. */

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_lock.h"          // PyEvent
#include "pycore_pythread.h"      // PyThread_start_new_thread()

#include <pthread.h>              // pthread_key_create()

typedef void (*callback)(void);


/* --- Threads ------------------------------------------------------------- */

/* Threads that call one function over and over, and never were in Python before.
   Nobody frees a crowd: it is small, and whoever joins it may have timed out. */
typedef struct {
    callback func;
    long calls;                 // per thread; -1: until told to stop
    int stop;                   // atomic
    int64_t made;               // atomic: calls that have returned
    int64_t running;            // atomic: threads
    int64_t unwound;            // atomic: frames with a clean-up that were
    PyEvent done;
} crowd;

/* The module is compiled with -fexceptions.  A function that is to have no clean-up must
   not get one from ThreadSanitizer, either. */
#define NO_CLEANUP __attribute__((no_sanitize("thread")))

/* Has a destructor, which is no function's clean-up: it is called as well when the thread
   is made to exit in a callback. */
static pthread_key_t in_crowd;

static void
thread_ends(void *arg)
{
    crowd *c = arg;
    if (_Py_atomic_add_int64(&c->running, -1) == 1) {
        _PyEvent_Notify(&c->done);
    }
}

NO_CLEANUP static void
run_thread(void *arg)
{
    crowd *c = arg;
    (void)pthread_setspecific(in_crowd, c);
    for (long i = 0; i != c->calls && !_Py_atomic_load_int(&c->stop); i++) {
        c->func();
        _Py_atomic_add_int64(&c->made, 1);
    }
}

static void
count_unwound(crowd **c)
{
    if (*c != NULL) {
        _Py_atomic_add_int64(&(*c)->unwound, 1);
    }
}

/* The same with a frame such as C++ has. */
NO_CLEANUP static void
run_guarded(void *arg)
{
    crowd *guard __attribute__((cleanup(count_unwound))) = arg;
    run_thread(arg);
    guard = NULL;
}

static crowd *
crowd_arg(PyObject *arg)
{
    return PyLong_AsVoidPtr(arg);
}

static PyObject *
start(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *address;
    long calls, threads;
    int guarded = 0;
    if (!PyArg_ParseTuple(args, "Oll|p", &address, &calls, &threads, &guarded)) {
        return NULL;
    }
    callback func = (callback)PyLong_AsVoidPtr(address);
    if (func == NULL) {
        return NULL;
    }
    crowd *c = PyMem_RawCalloc(1, sizeof(crowd));
    if (c == NULL) {
        return PyErr_NoMemory();
    }
    c->func = func;
    c->calls = calls;
    c->running = threads;
    for (long i = 0; i < threads; i++) {
        if (PyThread_start_new_thread(guarded ? run_guarded : run_thread, c)
            == PYTHREAD_INVALID_THREAD_ID)
        {
            return PyErr_Format(PyExc_RuntimeError, "can't start a thread");
        }
    }
    return PyLong_FromVoidPtr(c);
}

static PyObject *
stop(PyObject *Py_UNUSED(module), PyObject *arg)
{
    crowd *c = crowd_arg(arg);
    if (c == NULL) {
        return NULL;
    }
    _Py_atomic_store_int(&c->stop, 1);
    Py_RETURN_NONE;
}

static PyObject *
made(PyObject *Py_UNUSED(module), PyObject *arg)
{
    crowd *c = crowd_arg(arg);
    if (c == NULL) {
        return NULL;
    }
    return PyLong_FromLongLong(_Py_atomic_load_int64(&c->made));
}

static PyObject *
unwound(PyObject *Py_UNUSED(module), PyObject *arg)
{
    crowd *c = crowd_arg(arg);
    if (c == NULL) {
        return NULL;
    }
    return PyLong_FromLongLong(_Py_atomic_load_int64(&c->unwound));
}

static PyObject *
join(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *handle;
    double timeout;
    if (!PyArg_ParseTuple(args, "Od", &handle, &timeout)) {
        return NULL;
    }
    crowd *c = crowd_arg(handle);
    if (c == NULL) {
        return NULL;
    }
    if (!PyEvent_WaitTimed(&c->done, (PyTime_t)(timeout * 1e9), /*detach=*/1)) {
        return PyErr_Format(PyExc_TimeoutError, "%lld threads still run",
                            _Py_atomic_load_int64(&c->running));
    }
    Py_RETURN_NONE;
}


/* --- A callback that makes an interpreter, and ends it -------------------- */

NO_CLEANUP static void
make_interpreter(void)
{
    const PyInterpreterConfig config = {
        .check_multi_interp_extensions = 1,
        .gil = PyInterpreterConfig_OWN_GIL,
    };
    PyThreadState *tstate;
    PyStatus status = Py_NewInterpreterFromConfig(&tstate, &config);
    if (!PyStatus_Exception(status)) {
        Py_EndInterpreter(tstate);
    }
}

static PyObject *
get_maker(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyLong_FromVoidPtr((void *)make_interpreter);
}


/* --- A callback of this copy --------------------------------------------- */

static PyObject *target;        // what it calls
static int disorder;            // times that the thread's state was not as promised

NO_CLEANUP static void
call_target(void)
{
    if (!PyGILState_Check()
        || PyGILState_GetThisThreadState() != PyThreadState_GetUnchecked())
    {
        disorder++;
    }
    PyObject *res = PyObject_CallNoArgs(target);
    if (res == NULL) {
        PyErr_WriteUnraisable(target);
    }
    Py_XDECREF(res);
    if (!PyGILState_Check()) {
        disorder++;
    }
}

NO_CLEANUP static void
plain_callback(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    call_target();
    PyGILState_Release(state);
}

/* The way of cffi: a state that this made is kept, and used without Ensure. */
NO_CLEANUP static void
keeping_callback(void)
{
    PyGILState_STATE state = PyGILState_LOCKED;
    PyThreadState *ts = PyGILState_GetThisThreadState();
    if (ts == NULL) {
        state = PyGILState_Ensure();
        PyThreadState_GetUnchecked()->gilstate_counter++;
    }
    else {
        ts->gilstate_counter++;
        if (ts != PyThreadState_GetUnchecked()) {
            PyEval_RestoreThread(ts);
            state = PyGILState_UNLOCKED;
        }
    }
    call_target();
    PyGILState_Release(state);
}

/* The ways of destructors that may come late. */
NO_CLEANUP static void
careful_callback(void)
{
    if (Py_IsInitialized()) {
        plain_callback();
    }
}

NO_CLEANUP static void
considerate_callback(void)
{
    if (!Py_IsFinalizing()) {
        plain_callback();
    }
}

/* Within itself, attached and detached. */
NO_CLEANUP static void
nesting_callback(void)
{
    PyGILState_STATE state = PyGILState_Ensure();
    plain_callback();
    Py_BEGIN_ALLOW_THREADS
    plain_callback();
    keeping_callback();
    Py_END_ALLOW_THREADS
    keeping_callback();
    call_target();
    PyGILState_Release(state);
}

static PyObject *
set_target(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *func;
    const char *how;
    if (!PyArg_ParseTuple(args, "Os", &func, &how)) {
        return NULL;
    }
    callback cb = strcmp(how, "plain") == 0 ? plain_callback
        : strcmp(how, "keeping") == 0 ? keeping_callback
        : strcmp(how, "careful") == 0 ? careful_callback
        : strcmp(how, "considerate") == 0 ? considerate_callback : nesting_callback;
    Py_XSETREF(target, Py_NewRef(func));
    return PyLong_FromVoidPtr((void *)cb);
}

static PyObject *
get_disorder(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyLong_FromLong(disorder);
}

static PyObject *
count_states(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    long count = 0;
    for (PyThreadState *p = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
         p != NULL; p = PyThreadState_Next(p))
    {
        count++;
    }
    return PyLong_FromLong(count);
}


/* --- The module ---------------------------------------------------------- */

static PyMethodDef functions[] = {
    {"start", start, METH_VARARGS,
     PyDoc_STR("start(address, calls, threads, guarded=False) -> handle")},
    {"stop", stop, METH_O, PyDoc_STR("Let its threads end after the next call.")},
    {"made", made, METH_O, PyDoc_STR("How many calls have returned.")},
    {"unwound", unwound, METH_O,
     PyDoc_STR("How many of its guarded threads were ended in a call.")},
    {"join", join, METH_VARARGS,
     PyDoc_STR("join(handle, timeout): wait for its threads; TimeoutError")},
    {"set_target", set_target, METH_VARARGS,
     PyDoc_STR("set_target(callable, how) -> address of a C function")},
    {"maker", get_maker, METH_NOARGS,
     PyDoc_STR("Address of a C function that makes and ends an interpreter.")},
    {"disorder", get_disorder, METH_NOARGS, NULL},
    {"count_states", count_states, METH_NOARGS, NULL},
    {NULL, NULL},
};

static int
module_clear(PyObject *Py_UNUSED(module))
{
    Py_CLEAR(target);
    return 0;
}

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testrwgilstate",
    .m_methods = functions,
    .m_clear = module_clear,
    .m_slots = (PyModuleDef_Slot[]) {{0, NULL}},
};

PyMODINIT_FUNC
PyInit__testrwgilstate(void)
{
    if (pthread_key_create(&in_crowd, thread_ends) != 0) {
        return PyErr_NoMemory();
    }
    return PyModuleDef_Init(&module_def);
}

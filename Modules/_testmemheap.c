/* Drives the memory heaps from Python: raw blocks, told apart by address, that
   any interpreter can allocate, check, resize and free.  For test_rwmemory.

   Every block is filled with a pattern that follows from its size and a seed in
   its first bytes, so that whoever gets it can tell whether it is whole. */

// Need limited C API off and Py_BUILD_CORE for pycore_memheap.h
#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include <stdbool.h>              // for pycore_obmalloc.h
#include "pycore_memheap.h"
#include "pycore_obmalloc.h"      // SMALL_REQUEST_THRESHOLD

struct block {
    uint32_t size;              // of the whole block, this struct included
    uint32_t seed;
    unsigned char data[];
};

#define MIN_SIZE    ((uint32_t)sizeof(struct block))
#define MAX_SIZE    4096

static inline unsigned char
pattern(uint32_t seed, uint32_t i)
{
    return (unsigned char)(seed * 31 + i);
}

static void
fill(struct block *b, uint32_t size, uint32_t seed)
{
    b->size = size;
    b->seed = seed;
    for (uint32_t i = 0; i < size - MIN_SIZE; i++) {
        b->data[i] = pattern(seed, i);
    }
}

/* Is the pattern of a block of b->size bytes there in its first `upto`? */
static int
is_whole(const struct block *b, uint32_t upto)
{
    uint32_t size = Py_MIN(b->size, upto);
    for (uint32_t i = 0; i < size - MIN_SIZE; i++) {
        if (b->data[i] != pattern(b->seed, i)) {
            return 0;
        }
    }
    return 1;
}

static struct block *
as_block(PyObject *address)
{
    struct block *b = PyLong_AsVoidPtr(address);
    if (b == NULL && !PyErr_Occurred()) {
        PyErr_SetString(PyExc_ValueError, "no block");
    }
    return b;
}

static int
size_converter(PyObject *obj, void *result)
{
    long size = PyLong_AsLong(obj);
    if (size == -1 && PyErr_Occurred()) {
        return 0;
    }
    if (size < (long)MIN_SIZE || size > MAX_SIZE) {
        PyErr_Format(PyExc_ValueError, "size must be in %u..%u",
                     MIN_SIZE, MAX_SIZE);
        return 0;
    }
    *(uint32_t *)result = (uint32_t)size;
    return 1;
}

PyDoc_STRVAR(alloc_doc, "alloc(size, seed=1, /) -> address");

static PyObject *
alloc(PyObject *Py_UNUSED(module), PyObject *args)
{
    uint32_t size;
    unsigned int seed = 1;
    if (!PyArg_ParseTuple(args, "O&|I", size_converter, &size, &seed)) {
        return NULL;
    }
    struct block *b = PyObject_Malloc(size);
    if (b == NULL) {
        return PyErr_NoMemory();
    }
    fill(b, size, seed);
    return PyLong_FromVoidPtr(b);
}

PyDoc_STRVAR(check_doc, "check(address, /) -> is the block's pattern whole");

static PyObject *
check(PyObject *Py_UNUSED(module), PyObject *arg)
{
    struct block *b = as_block(arg);
    if (b == NULL) {
        return NULL;
    }
    return PyBool_FromLong(is_whole(b, b->size));
}

PyDoc_STRVAR(free_doc, "free(address, /)");

static PyObject *
free_block(PyObject *Py_UNUSED(module), PyObject *arg)
{
    struct block *b = as_block(arg);
    if (b == NULL) {
        return NULL;
    }
    PyObject_Free(b);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(realloc_doc,
"realloc(address, size, /) -> address\n\
\n\
Raise RuntimeError if the contents didn't come along.");

static PyObject *
realloc_block(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *address;
    uint32_t size;
    if (!PyArg_ParseTuple(args, "OO&", &address, size_converter, &size)) {
        return NULL;
    }
    struct block *b = as_block(address);
    if (b == NULL) {
        return NULL;
    }
    b = PyObject_Realloc(b, size);
    if (b == NULL) {
        return PyErr_NoMemory();
    }
    if (!is_whole(b, size)) {
        PyErr_SetString(PyExc_RuntimeError, "realloc lost contents");
        return NULL;
    }
    fill(b, size, b->seed);
    return PyLong_FromVoidPtr(b);
}

PyDoc_STRVAR(heap_doc,
"heap(address=None, /) -> a number that stands for the block's heap\n\
\n\
0 if no heap of pymalloc holds it; without address the current one.");

static PyObject *
heap(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *address = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &address)) {
        return NULL;
    }
    if (address == Py_None) {
        return PyLong_FromVoidPtr(_PyMemHeap_Current());
    }
    void *p = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyLong_FromVoidPtr(_PyMemHeap_Find(p));
}

PyDoc_STRVAR(pending_doc,
"pending(heap, /) -> blocks that wait for the owner to take them back");

static PyObject *
pending(PyObject *Py_UNUSED(module), PyObject *arg)
{
    _PyMemHeap *h = PyLong_AsVoidPtr(arg);
    if (PyErr_Occurred()) {
        return NULL;
    }
    return PyLong_FromSsize_t(_PyMemHeap_Pending(h));
}

PyDoc_STRVAR(stats_doc, "stats() -> dict of what pycore_memheap.h counts");

static PyObject *
stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    _PyMemHeap_Stats s;
    _PyMemHeap_GetStats(&s);
    return Py_BuildValue("{sn sn sn sn sn sn sn sn sn}", "opened", s.opened,
                         "adopted", s.adopted, "released", s.released,
                         "orphans", s.orphans, "remote", s.remote,
                         "remains", s.remains,
                         "arenas", s.arenas, "spare", s.spare,
                         "yielded", s.yielded);
}


/* give and take: a whole object changes hands. */

PyDoc_STRVAR(give_doc,
"give(obj, /) -> address\n\
\n\
The caller gives up its reference, which take() gets.  Only bytes and float,\n\
which refer to nothing and are known to no collector.");

static PyObject *
give(PyObject *Py_UNUSED(module), PyObject *obj)
{
    if (!PyBytes_CheckExact(obj) && !PyFloat_CheckExact(obj)) {
        PyErr_SetString(PyExc_TypeError, "bytes or float expected");
        return NULL;
    }
    return PyLong_FromVoidPtr(Py_NewRef(obj));
}

PyDoc_STRVAR(take_doc, "take(address, /) -> the object that was given");

static PyObject *
take(PyObject *Py_UNUSED(module), PyObject *arg)
{
    return (PyObject *)as_block(arg);
}


/* free_in_thread: a thread that no interpreter knows attaches through
   PyGILState_Ensure() and frees. */

struct thread_args {
    void **blocks;
    Py_ssize_t n;
    PyThread_type_lock done;
};

static void
thread_main(void *p)
{
    struct thread_args *args = p;
    PyGILState_STATE state = PyGILState_Ensure();
    for (Py_ssize_t i = 0; i < args->n; i++) {
        PyObject_Free(args->blocks[i]);
    }
    PyGILState_Release(state);
    PyThread_release_lock(args->done);
}

PyDoc_STRVAR(free_in_thread_doc,
"free_in_thread(addresses, timeout, /)\n\
\n\
Free a tuple of blocks in a thread that C code makes.");

static PyObject *
free_in_thread(PyObject *Py_UNUSED(module), PyObject *py_args)
{
    PyObject *addresses;
    double timeout;
    if (!PyArg_ParseTuple(py_args, "O!d", &PyTuple_Type, &addresses, &timeout)) {
        return NULL;
    }
    // Not freed on a timeout: the thread may still come to it.
    struct thread_args *args = PyMem_RawCalloc(1, sizeof(*args));
    if (args == NULL) {
        return PyErr_NoMemory();
    }
    args->n = PyTuple_GET_SIZE(addresses);
    args->blocks = PyMem_RawCalloc(args->n + 1, sizeof(void *));
    args->done = PyThread_allocate_lock();
    if (args->blocks == NULL || args->done == NULL) {
        PyErr_NoMemory();
        goto error;
    }
    for (Py_ssize_t i = 0; i < args->n; i++) {
        args->blocks[i] = as_block(PyTuple_GET_ITEM(addresses, i));
        if (args->blocks[i] == NULL) {
            goto error;
        }
    }
    PyThread_acquire_lock(args->done, WAIT_LOCK);
    if (PyThread_start_new_thread(thread_main, args) == PYTHREAD_INVALID_THREAD_ID) {
        PyThread_release_lock(args->done);
        PyErr_SetString(PyExc_RuntimeError, "can't start a thread");
        goto error;
    }
    PyLockStatus status;
    Py_BEGIN_ALLOW_THREADS
    status = PyThread_acquire_lock_timed(args->done, (long long)(timeout * 1e6), 0);
    Py_END_ALLOW_THREADS
    if (status != PY_LOCK_ACQUIRED) {
        PyErr_SetString(PyExc_TimeoutError, "the thread didn't come to its end");
        return NULL;
    }
    PyThread_release_lock(args->done);
    PyThread_free_lock(args->done);
    PyMem_RawFree(args->blocks);
    PyMem_RawFree(args);
    Py_RETURN_NONE;

error:
    if (args->done != NULL) {
        PyThread_free_lock(args->done);
    }
    PyMem_RawFree(args->blocks);
    PyMem_RawFree(args);
    return NULL;
}


/* exchange: blocks go from hand to hand through a board that all interpreters
   share.  Each thread makes blocks, swaps them with what others left, checks what
   it got, and frees, resizes or passes it on. */

#define BOARD 256
static void *board[BOARD];

static inline uint32_t
next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

PyDoc_STRVAR(exchange_doc,
"exchange(seed, rounds, /) -> number of blocks that came from another heap\n\
\n\
Raise RuntimeError if one of them was damaged.");

static PyObject *
exchange(PyObject *Py_UNUSED(module), PyObject *args)
{
    unsigned long long seed;
    Py_ssize_t rounds;
    if (!PyArg_ParseTuple(args, "Kn", &seed, &rounds)) {
        return NULL;
    }
    uint64_t random = seed;
    _PyMemHeap *own = _PyMemHeap_Current();
    Py_ssize_t foreign = 0;
    for (Py_ssize_t i = 0; i < rounds; i++) {
        // Mostly small, sometimes malloc's.
        uint32_t limit = next_random(&random) % 16 ? 128 : 1024;
        uint32_t size = MIN_SIZE + next_random(&random) % limit;
        struct block *b = PyObject_Malloc(size);
        if (b == NULL) {
            return PyErr_NoMemory();
        }
        fill(b, size, next_random(&random));
        b = _Py_atomic_exchange_ptr(&board[next_random(&random) % BOARD], b);
        if (b == NULL) {
            continue;
        }
        _PyMemHeap *from = _PyMemHeap_Find(b);
        foreign += (from != NULL && from != own);
        if (!is_whole(b, b->size)) {
            PyErr_Format(PyExc_RuntimeError,
                         "round %zd: a block of %u bytes is damaged", i, b->size);
            return NULL;
        }
        if (next_random(&random) % 4 == 0) {
            size = MIN_SIZE + next_random(&random) % limit;
            struct block *resized = PyObject_Realloc(b, size);
            if (resized == NULL) {
                PyObject_Free(b);
                return PyErr_NoMemory();
            }
            b = resized;
            if (!is_whole(b, size)) {
                PyErr_Format(PyExc_RuntimeError,
                             "round %zd: realloc to %u bytes lost contents",
                             i, size);
                return NULL;
            }
        }
        PyObject_Free(b);
        // Now and then a safepoint, so that threads of one interpreter mix.
        if (i % 1024 == 0 && PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
    return PyLong_FromSsize_t(foreign);
}

PyDoc_STRVAR(clear_board_doc, "clear_board(): free what exchange() left");

static PyObject *
clear_board(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    for (int i = 0; i < BOARD; i++) {
        PyObject_Free(_Py_atomic_exchange_ptr(&board[i], NULL));
    }
    Py_RETURN_NONE;
}


static PyMethodDef methods[] = {
    {"alloc", alloc, METH_VARARGS, alloc_doc},
    {"check", check, METH_O, check_doc},
    {"free", free_block, METH_O, free_doc},
    {"realloc", realloc_block, METH_VARARGS, realloc_doc},
    {"heap", heap, METH_VARARGS, heap_doc},
    {"pending", pending, METH_O, pending_doc},
    {"stats", stats, METH_NOARGS, stats_doc},
    {"give", give, METH_O, give_doc},
    {"take", take, METH_O, take_doc},
    {"free_in_thread", free_in_thread, METH_VARARGS, free_in_thread_doc},
    {"exchange", exchange, METH_VARARGS, exchange_doc},
    {"clear_board", clear_board, METH_NOARGS, clear_board_doc},
    {NULL, NULL, 0, NULL}
};

static int
module_exec(PyObject *module)
{
    return PyModule_AddIntConstant(module, "SMALL_REQUEST_THRESHOLD",
                                   SMALL_REQUEST_THRESHOLD);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
    {0, NULL}
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testmemheap",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__testmemheap(void)
{
    return PyModuleDef_Init(&module_def);
}

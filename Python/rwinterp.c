// Who is using an interpreter.  The contract is in pycore_rwinterp.h.
//
// Invariants
//   USE-1  an interpreter that is being closed has no visitors, and has no
//          glances either once _PyRWInterp_BeginClose() has returned
//   USE-2  a record exists only while there is something to say in it
//
// Lock order: nothing is taken while uses_mutex is held, but it allocates raw
// memory.  Waiting for it detaches, holding it never does, so that neither a
// write section nor a fork meets a holder.

#include "Python.h"
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_interp.h"        // _PyInterpreterState_ObjectToID()
#include "pycore_rwinterp.h"

#ifdef HAVE_SCHED_H
#  include <sched.h>              // sched_yield()
#endif

typedef struct use_record {
    struct use_record *next;
    int64_t id;
    Py_ssize_t uses[2];         // by _PyRWInterp_Use
    int closing;
} use_record;

static PyMutex uses_mutex;
static use_record *records;     // guarded by uses_mutex

/* The place where the record is linked in, or would be. */
static use_record **
find(int64_t id)
{
    use_record **p = &records;
    while (*p != NULL && (*p)->id != id) {
        p = &(*p)->next;
    }
    return p;
}

static use_record *
find_or_add(int64_t id)
{
    use_record **p = find(id);
    if (*p == NULL) {
        *p = PyMem_RawCalloc(1, sizeof(use_record));
        if (*p != NULL) {
            (*p)->id = id;
        }
    }
    return *p;
}

static void
drop_if_empty(int64_t id)
{
    use_record **p = find(id);
    use_record *r = *p;
    if (r != NULL && !r->closing && r->uses[0] == 0 && r->uses[1] == 0) {
        *p = r->next;
        PyMem_RawFree(r);
    }
}

static int
raise_closing(int64_t id)
{
    PyErr_Format(PyExc_InterpreterNotFoundError,
                 "interpreter %lld is being closed", (long long)id);
    return -1;
}

int
_PyRWInterp_Enter(int64_t id, _PyRWInterp_Use use)
{
    PyMutex_Lock(&uses_mutex);
    use_record *r = find_or_add(id);
    int closing = r != NULL && r->closing;
    if (r != NULL && !closing) {
        r->uses[use]++;
    }
    PyMutex_Unlock(&uses_mutex);
    if (r == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    return closing ? raise_closing(id) : 0;
}

void
_PyRWInterp_Leave(int64_t id, _PyRWInterp_Use use)
{
    PyMutex_Lock(&uses_mutex);
    use_record *r = *find(id);
    assert(r != NULL && r->uses[use] > 0);
    r->uses[use]--;
    drop_if_empty(id);
    PyMutex_Unlock(&uses_mutex);
}

/* The record can't go away: it says that the caller is closing. */
static void
wait_for_glances(use_record *r)
{
    for (;;) {
        PyMutex_Lock(&uses_mutex);
        Py_ssize_t glances = r->uses[_PyRWInterp_GLANCE];
        PyMutex_Unlock(&uses_mutex);
        if (glances == 0) {
            return;
        }
        Py_BEGIN_ALLOW_THREADS
#ifdef HAVE_SCHED_H
        sched_yield();
#endif
        Py_END_ALLOW_THREADS
    }
}

_PyRWInterp_Claim
_PyRWInterp_TryClose(int64_t id)
{
    PyMutex_Lock(&uses_mutex);
    use_record *r = find_or_add(id);
    int closing = r != NULL && r->closing;
    int visited = r != NULL && r->uses[_PyRWInterp_VISIT] > 0;
    if (r != NULL && !closing && !visited) {
        r->closing = 1;
    }
    PyMutex_Unlock(&uses_mutex);
    if (r == NULL || closing || visited) {
        return r == NULL ? _PyRWInterp_NO_MEMORY
            : closing ? _PyRWInterp_CLOSING : _PyRWInterp_VISITED;
    }
    wait_for_glances(r);
    return _PyRWInterp_CLAIMED;
}

int
_PyRWInterp_BeginClose(int64_t id)
{
    switch (_PyRWInterp_TryClose(id)) {
    case _PyRWInterp_CLAIMED:
        return 0;
    case _PyRWInterp_CLOSING:
        return raise_closing(id);
    case _PyRWInterp_VISITED:
        PyErr_SetString(PyExc_InterpreterError, "interpreter running");
        return -1;
    default:
        PyErr_NoMemory();
        return -1;
    }
}

void
_PyRWInterp_EndClose(int64_t id)
{
    PyMutex_Lock(&uses_mutex);
    use_record *r = *find(id);
    assert(r != NULL && r->closing);
    r->closing = 0;
    drop_if_empty(id);
    PyMutex_Unlock(&uses_mutex);
}

/* The id among the arguments of a call, or -1 if the function has something to
   say about them itself, or means the interpreter that it is called in. */
static int64_t
id_argument(PyObject *args, PyObject *kwargs)
{
    PyObject *obj = NULL;
    if (PyTuple_GET_SIZE(args) > 0) {
        obj = PyTuple_GET_ITEM(args, 0);
    }
    else if (kwargs != NULL) {
        obj = PyDict_GetItemString(kwargs, "id");   // borrowed
    }
    if (obj == NULL || !PyIndex_Check(obj)) {
        return -1;
    }
    int64_t id = _PyInterpreterState_ObjectToID(obj);
    if (id < 0) {
        PyErr_Clear();
        return -1;
    }
    int64_t current = PyInterpreterState_GetID(_PyInterpreterState_GET());
    return id == current ? -1 : id;
}

PyObject *
_PyRWInterp_Call(PyCFunctionWithKeywords func, PyObject *self,
                 PyObject *args, PyObject *kwargs,
                 _PyRWInterp_Use use, int closing)
{
    int64_t id = id_argument(args, kwargs);
    if (id < 0) {
        return func(self, args, kwargs);
    }
    int begun = closing ? _PyRWInterp_BeginClose(id)
                        : _PyRWInterp_Enter(id, use);
    if (begun < 0) {
        return NULL;
    }
    PyObject *res = func(self, args, kwargs);
    if (closing) {
        _PyRWInterp_EndClose(id);
    }
    else {
        _PyRWInterp_Leave(id, use);
    }
    return res;
}

PyObject *
_PyRWInterp_IsCall(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyThreadState *tstate = _PyThreadState_GET();
    return PyBool_FromLong(tstate->_whence == _PyThreadState_WHENCE_EXEC);
}

// Process-wide type state for interpreters that run in parallel.
// The contract is in pycore_rwtypes.h.
//
// Static types of extension modules
//
//   Such a type is one object that all interpreters share, as builtin types
//   are.  The first interpreter that imports the module makes it ready; each
//   one keeps its own tp_dict and tp_subclasses for it; the last one to go
//   clears it.  There are two things to see to:
//
//   Races.  Which interpreter is first, and which is last, is decided and acted
//   upon under ext_mutex.  The index of a type in the per-interpreter arrays is
//   the same in all interpreters, so it is picked from the process-wide table.
//
//   Ownership.  tp_bases and tp_mro are tuples on the heap of the interpreter
//   that was first.  Only the main interpreter outlives all others.  If it was
//   not the first one, whoever is last would free blocks of a heap that isn't
//   its own, or that is long gone; the type is then kept for the rest of the
//   process, by counting one interpreter more than there are.
//
// Lock order: nothing is taken while ext_mutex is held but the mutex of
// interp->types.  Waiting for it detaches; holding it never does, so that no
// write section and no fork can find it held by a thread that is parked.

#include "Python.h"
#include "pycore_pystate.h"       // _Py_IsMainInterpreter()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwtypes.h"

static PyMutex ext_mutex;

#define EXT_ENTRY(INDEX) \
    (&_PyRuntime.types.managed_static.types[ \
        _Py_MAX_MANAGED_STATIC_BUILTIN_TYPES + (INDEX)])


unsigned int
_PyRWTypes_NextStaticTag(void)
{
    unsigned int *next = &_PyRuntime.types.next_version_tag;
    unsigned int tag = _Py_atomic_load_uint_relaxed(next);
    do {
        if (tag > _Py_MAX_GLOBAL_TYPE_VERSION_TAG) {
            return 0;
        }
    } while (!_Py_atomic_compare_exchange_uint(next, &tag, tag + 1));
    return tag;
}


void
_PyRWTypes_LockExt(void)
{
    PyMutex_Lock(&ext_mutex);
}

void
_PyRWTypes_UnlockExt(void)
{
    PyMutex_Unlock(&ext_mutex);
}

/* The place of a type that has been made ready: see managed_static_type_state
   in pycore_typeobject.h for what tp_subclasses is used for here. */
static size_t
ext_index(PyTypeObject *type)
{
    assert(type->tp_subclasses != NULL);
    return (size_t)type->tp_subclasses - 1;
}

size_t
_PyRWTypes_FreeExtIndex(void)
{
    for (size_t i = 0; i < _Py_MAX_MANAGED_STATIC_EXT_TYPES; i++) {
        if (EXT_ENTRY(i)->type == NULL) {
            return i;
        }
    }
    Py_FatalError("too many static types in extension modules");
}

int
_PyRWTypes_BeginExt(PyTypeObject *type)
{
    _PyRWTypes_LockExt();
    if (!(type->tp_flags & Py_TPFLAGS_READY)) {
        return 1;
    }
    // A type that was kept outlives Py_Finalize(), the runtime's tables don't.
    if (EXT_ENTRY(ext_index(type))->type == NULL) {
        EXT_ENTRY(ext_index(type))->type = type;
        EXT_ENTRY(ext_index(type))->interp_count = 1;
        type->tp_version_tag = _PyRWTypes_NextStaticTag();
    }
    return 0;
}

void
_PyRWTypes_EndExt(PyInterpreterState *interp, PyTypeObject *type,
                  int initial, int result)
{
    if (initial && result == 0 && !_Py_IsMainInterpreter(interp)) {
        _Py_atomic_add_int64(&EXT_ENTRY(ext_index(type))->interp_count, 1);
    }
    _PyRWTypes_UnlockExt();
}

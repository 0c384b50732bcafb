// Strings that belong to no interpreter.  The contract is in pycore_rwstr.h.
//
// The table of strings only grows.  It is small: a name per source file that
// ever allocated while tracemalloc was on, and the keywords of C functions that
// were first called in a subinterpreter.  Since its strings stay where they are,
// a traceback of tracemalloc can be read while another interpreter clears the
// tables that it came from.
//
// Lock order: own_mutex is the last one; it is taken with tracemalloc's tables
// locked.  It is held for a lookup or an insertion, without detaching.

#include "Python.h"
#include "pycore_gc.h"            // PyGC_Head
#include "pycore_hashtable.h"     // _Py_hashtable_t
#include "pycore_lock.h"          // _Py_LOCK_DONT_DETACH
#include "pycore_object.h"        // _Py_IMMORTAL_REFCNT
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwstr.h"
#include "pycore_unicodeobject.h" // _PyUnicode_InternMortal()

#include <stdlib.h>               // malloc()

static PyMutex own_mutex;
static _Py_hashtable_t *own_strings;    // guarded by own_mutex

static Py_uhash_t
hash_string(const void *key)
{
    return (Py_uhash_t)PyObject_Hash((PyObject *)key);
}

static int
equal_strings(const void *a, const void *b)
{
    return PyUnicode_Compare((PyObject *)a, (PyObject *)b) == 0;
}

/* The hash of `str` has been computed; it is copied along. */
static PyObject *
copy_string(PyObject *str)
{
    size_t size = ((size_t)PyUnicode_GET_LENGTH(str) + 1) * PyUnicode_KIND(str);
    size_t header = PyUnicode_IS_ASCII(str)
        ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
    PyObject *copy = malloc(header + size);
    if (copy == NULL) {
        return NULL;
    }
    memcpy(copy, str, header);
    memcpy((char *)copy + header, PyUnicode_DATA(str), size);

    // What immortal strings on a heap are; no interpreter's table has this one.
    _PyASCIIObject_CAST(copy)->state.interned = SSTATE_INTERNED_IMMORTAL;
    _PyASCIIObject_CAST(copy)->state.compact = 1;
    _PyASCIIObject_CAST(copy)->state.statically_allocated = 0;
    if (!PyUnicode_IS_ASCII(str)) {
        ((PyCompactUnicodeObject *)copy)->utf8 = NULL;
        ((PyCompactUnicodeObject *)copy)->utf8_length = 0;
    }
    // Instances of a subclass can be file names too.
    copy->ob_type = &PyUnicode_Type;
    copy->ob_refcnt = _Py_IMMORTAL_REFCNT;
    return copy;
}

static PyObject *
own_locked(PyObject *str)
{
    if (own_strings == NULL) {
        _Py_hashtable_allocator_t alloc = {malloc, free};
        own_strings = _Py_hashtable_new_full(hash_string, equal_strings,
                                             NULL, NULL, &alloc);
        if (own_strings == NULL) {
            return NULL;
        }
    }
    _Py_hashtable_entry_t *entry = _Py_hashtable_get_entry(own_strings, str);
    if (entry != NULL) {
        return (PyObject *)entry->key;
    }
    PyObject *own = copy_string(str);
    if (own != NULL && _Py_hashtable_set(own_strings, own, NULL) < 0) {
        free(own);
        return NULL;
    }
    return own;
}

PyObject *
_PyRWStr_Own(PyObject *str)
{
    PyMutex_LockFlags(&own_mutex, _Py_LOCK_DONT_DETACH);
    PyObject *own = own_locked(str);
    PyMutex_Unlock(&own_mutex);
    return own;
}

PyObject *
_PyRWStr_Expose(PyObject *own)
{
    PyObject *str = PyUnicode_FromKindAndData(PyUnicode_KIND(own),
                                              PyUnicode_DATA(own),
                                              PyUnicode_GET_LENGTH(own));
    if (str != NULL) {
        // A snapshot has the same few names over and over.
        _PyUnicode_InternMortal(_PyInterpreterState_GET(), &str);
    }
    return str;
}

static PyObject *
static_or_own(const char *s)
{
    PyObject *str = PyUnicode_FromString(s);
    if (str == NULL || PyObject_Hash(str) == -1) {
        Py_XDECREF(str);
        return NULL;
    }
    // Read-only once the runtime is initialised.
    PyObject *shared = _Py_hashtable_get(
        _PyRuntime.cached_objects.interned_strings, str);
    if (shared == NULL) {
        shared = _PyRWStr_Own(str);
        if (shared == NULL) {
            PyErr_NoMemory();
        }
    }
    Py_DECREF(str);
    return shared;
}

PyObject *
_PyRWStr_Tuple(const char * const *strings, Py_ssize_t n)
{
    // The collector never sees it, but code may look at the head of a tuple.
    PyGC_Head *head = calloc(1, sizeof(PyGC_Head) + sizeof(PyTupleObject)
                                + (size_t)n * sizeof(PyObject *));
    if (head == NULL) {
        return PyErr_NoMemory();
    }
    PyTupleObject *tuple = (PyTupleObject *)(head + 1);
    tuple->ob_base.ob_base.ob_type = &PyTuple_Type;
    tuple->ob_base.ob_base.ob_refcnt = _Py_IMMORTAL_REFCNT;
    Py_SET_SIZE(tuple, n);
    for (Py_ssize_t i = 0; i < n; i++) {
        tuple->ob_item[i] = static_or_own(strings[i]);
        if (tuple->ob_item[i] == NULL) {
            free(head);
            return NULL;
        }
    }
    return (PyObject *)tuple;
}

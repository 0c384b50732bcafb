// File names in tracemalloc's tables.  The contract is in pycore_rwtrace.h.
//
// The table of names only grows.  It is small, a name per source file that ever
// allocated while tracemalloc was on, and since names stay where they are, a
// traceback can be read while another interpreter clears the base's tables.

#include "Python.h"
#include "pycore_hashtable.h"     // _Py_hashtable_t
#include "pycore_object.h"        // _Py_SetImmortalUntracked()
#include "pycore_rwtrace.h"
#include "pycore_unicodeobject.h" // _PyUnicode_InternMortal()

#include <stdlib.h>               // malloc()

// Guarded by tracemalloc's tables_lock.
static _Py_hashtable_t *names;

static Py_uhash_t
hash_name(const void *key)
{
    return (Py_uhash_t)PyObject_Hash((PyObject *)key);
}

static int
equal_names(const void *a, const void *b)
{
    return PyUnicode_Compare((PyObject *)a, (PyObject *)b) == 0;
}

static PyObject *
copy_name(PyObject *name)
{
    size_t chars = (size_t)PyUnicode_GET_LENGTH(name) + 1;
    size_t header = PyUnicode_IS_ASCII(name)
        ? sizeof(PyASCIIObject) : sizeof(PyCompactUnicodeObject);
    PyObject *copy = malloc(header + chars * PyUnicode_KIND(name));
    if (copy == NULL) {
        return NULL;
    }
    memcpy(copy, name, header);
    memcpy((char *)copy + header, PyUnicode_DATA(name),
           chars * PyUnicode_KIND(name));

    _PyASCIIObject_CAST(copy)->state.interned = SSTATE_NOT_INTERNED;
    _PyASCIIObject_CAST(copy)->state.compact = 1;
    _PyASCIIObject_CAST(copy)->state.statically_allocated = 0;
    if (!PyUnicode_IS_ASCII(name)) {
        ((PyCompactUnicodeObject *)copy)->utf8 = NULL;
        ((PyCompactUnicodeObject *)copy)->utf8_length = 0;
    }
    // Instances of a subclass can be file names too.
    copy->ob_type = &PyUnicode_Type;
    _Py_SetImmortalUntracked(copy);
    return copy;
}

PyObject *
_PyRWTrace_Own(PyObject *filename)
{
    if (names == NULL) {
        _Py_hashtable_allocator_t alloc = {malloc, free};
        names = _Py_hashtable_new_full(hash_name, equal_names,
                                       NULL, NULL, &alloc);
        if (names == NULL) {
            return NULL;
        }
    }
    _Py_hashtable_entry_t *entry = _Py_hashtable_get_entry(names, filename);
    if (entry != NULL) {
        return (PyObject *)entry->key;
    }
    PyObject *own = copy_name(filename);
    if (own != NULL && _Py_hashtable_set(names, own, NULL) < 0) {
        free(own);
        return NULL;
    }
    return own;
}

PyObject *
_PyRWTrace_Expose(PyObject *own)
{
    PyObject *name = PyUnicode_FromKindAndData(PyUnicode_KIND(own),
                                               PyUnicode_DATA(own),
                                               PyUnicode_GET_LENGTH(own));
    if (name != NULL) {
        // A snapshot has the same few names over and over.
        _PyUnicode_InternMortal(_PyInterpreterState_GET(), &name);
    }
    return name;
}

// Packing values: what refers to nothing else.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


int
_PyParcel_IsProcessWide(PyObject *obj)
{
    if (_PyParcel_InRuntime(obj) || obj == Py_None || obj == Py_True
        || obj == Py_False || obj == Py_Ellipsis || obj == Py_NotImplemented)
    {
        return 1;
    }
    return (PyType_Check(obj)
            && (((PyTypeObject *)obj)->tp_flags & _Py_TPFLAGS_STATIC_BUILTIN));
}


/* start, stop and step are ints: attributes of C, no code. */
static PyObject *
copy_range(PyObject *obj)
{
    static const char *const names[] = {"start", "stop", "step"};
    PyObject *parts[3] = {NULL, NULL, NULL};
    PyObject *range = NULL;
    for (int i = 0; i < 3; i++) {
        // The cache for types keeps what is looked up: interned, it is one object.
        PyObject *name = PyUnicode_InternFromString(names[i]);
        PyObject *part = name != NULL ? PyObject_GetAttr(obj, name) : NULL;
        Py_XDECREF(name);
        if (part == NULL) {
            goto exit;
        }
        parts[i] = _PyLong_Copy((PyLongObject *)part);
        Py_DECREF(part);
        if (parts[i] == NULL) {
            goto exit;
        }
    }
    range = PyObject_Vectorcall((PyObject *)&PyRange_Type, parts, 3, NULL);

exit:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(parts[i]);
    }
    return range;
}

static PyObject *
copy_bytes(packer *p, PyObject *obj)
{
    Py_ssize_t n = PyBytes_GET_SIZE(obj);
    if (n <= 1) {
        // There is one of each.
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(obj), n);
    }
    PyObject *copy = PyBytes_FromStringAndSize(NULL, n);
    if (copy != NULL) {
        memcpy(note_filled(p, PyBytes_AS_STRING(copy), n), PyBytes_AS_STRING(obj), n);
    }
    return copy;
}

/* In two steps: without memory for its bytes, the base would drop one that has not been
   filled in, and complain of its exports. */
static PyObject *
copy_bytearray(packer *p, PyObject *obj)
{
    Py_ssize_t n = PyByteArray_GET_SIZE(obj);
    PyObject *copy = PyByteArray_FromStringAndSize(NULL, 0);
    if (copy != NULL && PyByteArray_Resize(copy, n) < 0) {
        Py_CLEAR(copy);
    }
    if (copy != NULL) {
        char *to = PyByteArray_AS_STRING(copy);
        memcpy(note_filled(p, to, n), PyByteArray_AS_STRING(obj), n);
    }
    return copy;
}

/* A fresh one that is equal. */
PyObject *
_PyPacker_CopyAtom(packer *p, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyUnicode_Type) {
        return copy_str(p, obj);
    }
    if (type == &PyLong_Type) {
        return copy_int(p, obj);
    }
    if (type == &PyFloat_Type) {
        return copy_float(p, obj);
    }
    if (type == &PyBytes_Type) {
        return copy_bytes(p, obj);
    }
    if (type == &PyComplex_Type) {
        return PyComplex_FromCComplex(((PyComplexObject *)obj)->cval);
    }
    if (type == &PyByteArray_Type) {
        return copy_bytearray(p, obj);
    }
    assert(type == &PyRange_Type);
    return copy_range(obj);
}

/* `obj`, which has to be moved, has references from elsewhere.  Saying so runs code
   that looks at the graph: that waits until the walk has been undone. */
int
_PyPacker_NotIsolated(packer *p, PyObject *obj, Py_ssize_t outside)
{
    p->refused = obj;
    p->outside = outside;
    return -1;
}

int
_PyPacker_TakeAtom(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    // Others refer to it, or it is interned, or not owned.
    int several = (Py_REFCNT(obj) > 1);
    if (several) {
        known *k = find_known(p, obj);
        if (k != NULL && k->to != 0) {
            *word = (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to));
            return 0;
        }
        if (k != NULL && k->given != 0 && !k->taking) {
            return _PyPacker_TakeGiven(p, k->given - 1, word);
        }
        if (owned && atom_can_move(obj) && !_Py_IsImmortal(obj)) {
            if (k != NULL && k->counted && !k->outside) {
                count_moved_atom(p, obj);
#ifdef Py_REF_DEBUG
                p->moved_reftotal += Py_REFCNT(obj) - 1;
#endif
                k->to = (_PyParcel_Word)obj;
                // Each reference to it stays where it is.
                *word = (_PyParcel_Word)Py_NewRef(obj);
                return 0;
            }
            if (!p->isolated && is_large(obj)) {
                p->needs_isolation = 1;
                return -1;
            }
        }
        if (owned == MUST_MOVE && PyByteArray_CheckExact(obj)) {
            if (k == NULL || k->elsewhere > 0) {
                return _PyPacker_NotIsolated(p, obj, k == NULL ? 1 : k->elsewhere);
            }
        }
    }
    else if (owned == MUST_MOVE && PyByteArray_CheckExact(obj)) {
        // It has exports.
        return _PyPacker_NotIsolated(p, obj, 1);
    }
    PyObject *copy = _PyPacker_CopyAtom(p, obj);
    if (copy == NULL) {
        return -1;
    }
    p->parcel->stats.copied++;
    *word = (_PyParcel_Word)copy;
    if (several && remember(p, obj, *word) < 0) {
        Py_DECREF(copy);
        return -1;
    }
    return 0;
}

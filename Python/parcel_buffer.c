// Packing: the memory that PickleBuffers hand out.  See pycore_parcel_pack.h.
//
// A copy of it is made at once, the only one there will be.  But a moved object whose reduction has a PickleBuffer in it gives up its memory: the
// receiver gets it as it is, without a copy.  That is right only if nobody who stays
// can see this memory.  So all that refers to it has to be known: the object that
// exports it, and, if that is a view, what it is a view of, down to the one that
// has allocated it.  The packer knows who refers to an object; this file, how to get
// from a view to the next object.
//
// For types that are not known here nothing is said, and their memory is copied.
// What is said of a known type rests on this: whoever sees its memory has a reference
// to the object.
//
// NumPy's arrays have no tp_traverse: their base is a hidden reference.

#include "Python.h"
#include "pycore_parcel_pack.h"
#include "pycore_rwextcopy.h"     // _PyRWExt_LARGE

// Less is copied: that takes less time than to find out who refers to it, and the
// memory then is nobody's but the receivers'.
#define LENT_FROM ((Py_ssize_t)_PyRWExt_LARGE)

typedef enum {
    MEMORY_UNKNOWN,                 // somebody else could have it, too
    MEMORY_OWN,                     // who has a reference to the object has it
    MEMORY_OF_BASE,                 // it belongs to another object,
    MEMORY_OF_HIDDEN,               // which tp_traverse does not show
} memory_kind;

/* An attribute that `type` itself implements in C, whatever subclasses make of it.
   NULL without an exception if there is none. */
static PyObject *
own_attribute(PyTypeObject *type, PyObject *obj, const char *name)
{
    PyObject *value = NULL;
    PyObject *dict = PyType_GetDict(type);
    PyObject *descr = dict != NULL ? PyDict_GetItemString(dict, name) : NULL;
    if (descr != NULL
        && (Py_IS_TYPE(descr, &PyGetSetDescr_Type)
            || Py_IS_TYPE(descr, &PyMemberDescr_Type)))
    {
        value = Py_TYPE(descr)->tp_descr_get(descr, obj, (PyObject *)type);
    }
    Py_XDECREF(dict);
    PyErr_Clear();
    return value;
}

static int
is_true(PyTypeObject *type, PyObject *obj, const char *name)
{
    PyObject *value = own_attribute(type, obj, name);
    int res = (value == Py_True
               || (value != NULL && PyLong_CheckExact(value)
                   && !_PyLong_IsZero((PyLongObject *)value)));
    Py_XDECREF(value);
    return res;
}

/* The type itself or the one that it is derived from, by the name that it gives
   itself and is found by. */
static PyTypeObject *
find_base_type(_PyParcel_Home *home, PyTypeObject *type, const char *name)
{
    while (type != NULL && strcmp(type->tp_name, name) != 0) {
        type = type->tp_base;
    }
    if (type != NULL) {
        PyObject *where = _PyParcel_QuickName(home, (PyObject *)type);
        if (where == NULL) {
            PyErr_Clear();
            return NULL;
        }
        Py_DECREF(where);
    }
    return type;
}

static memory_kind
memory_of_ndarray(PyTypeObject *type, PyObject *array, PyObject **base)
{
    PyObject *under = own_attribute(type, array, "base");
    if (under == NULL) {
        return MEMORY_UNKNOWN;
    }
    // The array keeps it.
    Py_DECREF(under);
    if (under != Py_None) {
        *base = under;
        return MEMORY_OF_HIDDEN;
    }
    PyObject *flags = own_attribute(type, array, "flags");
    int own = flags != NULL && is_true(Py_TYPE(flags), flags, "owndata");
    Py_XDECREF(flags);
    return own ? MEMORY_OWN : MEMORY_UNKNOWN;
}

static memory_kind
memory_of_memoryview(PyMemoryViewObject *view, PyObject **base)
{
    _PyManagedBufferObject *buffer = view->mbuf;
    if ((view->flags & _Py_MEMORYVIEW_RELEASED) || buffer->exports != 1
        || Py_REFCNT(buffer) != 1 || buffer->master.obj == NULL)
    {
        return MEMORY_UNKNOWN;
    }
    *base = buffer->master.obj;
    return MEMORY_OF_BASE;
}

/* Runs no Python code.  *base is borrowed from obj; NULL if there is none. */
static memory_kind
whose_memory(_PyParcel_Home *home, PyObject *obj, PyObject **base)
{
    PyTypeObject *type = Py_TYPE(obj);
    *base = NULL;
    if (PyBytes_Check(obj) || PyByteArray_Check(obj)
        || _PyParcel_IsArray(home, obj))
    {
        return MEMORY_OWN;
    }
    if (type == home->lent_type) {
        return (_PyParcel_LentIsSingle(((_PyParcel_HandleObject *)obj)->what)
                ? MEMORY_OWN : MEMORY_UNKNOWN);
    }
    if (type == &PyMemoryView_Type) {
        return memory_of_memoryview((PyMemoryViewObject *)obj, base);
    }
    if (type->tp_as_buffer == NULL
        || type->tp_as_buffer->bf_getbuffer == NULL)
    {
        return MEMORY_UNKNOWN;
    }
    PyTypeObject *known = find_base_type(home, type, "numpy.ndarray");
    if (known != NULL) {
        return memory_of_ndarray(known, obj, base);
    }
    known = find_base_type(home, type, "_ctypes.Array");
    if (known != NULL) {
        // Not a part of another object, and not made over somebody's memory.
        return (is_true(known->tp_base, obj, "_b_needsfree_")
                ? MEMORY_OWN : MEMORY_UNKNOWN);
    }
    return (find_base_type(home, type, "mmap.mmap") != NULL
            ? MEMORY_OWN : MEMORY_UNKNOWN);
}

PyObject *
_PyPacker_HiddenBase(packer *p, PyObject *obj)
{
    PyObject *base;
    return whose_memory(p->home, obj, &base) == MEMORY_OF_HIDDEN ? base : NULL;
}

/* Does nobody but the graph refer to this?  _PyPacker_Isolate() has been done. */
static int
is_alone(packer *p, PyObject *obj)
{
    known *k = find_known(p, obj);
    if (k == NULL || k->foreign) {
        // With one reference it is as its owner is.
        return k == NULL && Py_REFCNT(obj) == 1;
    }
    if (k->given == 0) {
        return k->counted || Py_REFCNT(obj) == 1;
    }
    // Variables get a MovedObject.  What else refers to it could be a view.
    const given *g = &p->givens[k->given - 1];
    Py_ssize_t seen = 1 + g->logged + k->inside;
    if (g->slot == NULL) {
        _PyParcel_Place places[MAX_PLACES];
        int n = _PyParcel_FindPlaces(obj, places, MAX_PLACES);
        if (n > MAX_PLACES) {
            return 0;
        }
        seen += n;
    }
    return seen == Py_REFCNT(obj);
}

/* Does nobody who stays see the memory that this PickleBuffer hands out, as a view
   of `obj`?  *owner is set to the object that it belongs to. */
static int
has_memory_alone(packer *p, PyObject *buffer, PyObject *obj, PyObject **owner)
{
    memory_kind kind = MEMORY_OF_BASE;
    if (!is_alone(p, buffer)) {
        return 0;
    }
    while (kind != MEMORY_OWN) {
        if (obj == NULL || !is_alone(p, obj)) {
            return 0;
        }
        *owner = obj;
        kind = whose_memory(p->home, obj, &obj);
        if (kind == MEMORY_UNKNOWN) {
            return 0;
        }
    }
    return 1;
}

/* Does nobody change it, whoever sees it?  Arrow's buffers are made so, unless they
   can be written to. */
static int
is_immutable(packer *p, const Py_buffer *view)
{
    PyObject *obj = view->obj;
    return (view->readonly && obj != NULL
            && (PyBytes_CheckExact(obj)
                || find_base_type(p->home, Py_TYPE(obj), "pyarrow.lib.Buffer")));
}

/* The memory of a NumPy array that has allocated it; NULL: it is no such array. */
static void *
block_of_ndarray(packer *p, PyObject *owner)
{
    Py_buffer whole;
    if (find_base_type(p->home, Py_TYPE(owner), "numpy.ndarray") == NULL) {
        return NULL;
    }
    if (PyObject_GetBuffer(owner, &whole, PyBUF_FULL_RO) < 0) {
        PyErr_Clear();
        return NULL;
    }
    void *block = whole.buf;
    PyBuffer_Release(&whole);
    return block;
}

/* Lends it with what is to be done if it comes back when the owner's interpreter
   has ended. */
static _PyParcel_Lent *
lend_alone(packer *p, PyObject *buffer, PyObject *owner)
{
    if (Py_TYPE(owner) == p->home->lent_type) {
        return _PyParcel_LendBuffer(p->home, buffer, NULL,
                                    ((_PyParcel_HandleObject *)owner)->what);
    }
    return _PyParcel_LendBuffer(p->home, buffer, block_of_ndarray(p, owner), NULL);
}

int
_PyPacker_TakeBuffer(packer *p, PyObject *obj, _PyParcel_Resource *resource)
{
    const Py_buffer *view = PyPickleBuffer_GetBuffer(obj);
    if (view == NULL) {
        return -1;
    }
    if (view->suboffsets != NULL || !PyBuffer_IsContiguous(view, 'A')) {
        PyErr_SetString(PyExc_BufferError, "its memory is not in one piece");
        return -1;
    }
    _PyParcel_Lent *lent;
    int large = (view->len >= LENT_FROM && p->ngivens > 0);
    int immutable = large && is_immutable(p, view);
    if (large && !immutable && !p->isolated) {
        p->needs_isolation = 1;
        return -1;
    }
    PyObject *owner;
    if (immutable) {
        lent = _PyParcel_LendBuffer(p->home, obj, NULL, NULL);
        p->parcel->stats.moved++;
    }
    else if (large && has_memory_alone(p, obj, view->obj, &owner)) {
        lent = lend_alone(p, obj, owner);
        p->parcel->stats.moved++;
    }
    else {
        lent = _PyParcel_CopyBuffer(view);
        p->parcel->stats.copied++;
        p->parcel->nbytes += view->len;
    }
    *resource = (_PyParcel_Resource){RESOURCE_BUFFER, lent};
    return lent == NULL ? -1 : 0;
}

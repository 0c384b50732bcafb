// array.array in parcels: the memory of one goes as it is.
//
// The type belongs to a module that each interpreter has for itself, so the object
// is made anew.  Its memory is a block of PyMem_Malloc(), which any interpreter
// can free: that is what moves, in no time, whatever its size.
//
// The module has no header.  What is known of its objects is below; if the size of
// the type differs, arrays are reduced like other objects.

#include "Python.h"
#include "pycore_memheap.h"       // _PyMemHeap_WillFill()
#include "pycore_parcel_graph.h"
#include "pycore_parcel_reduce.h" // _PyParcel_IsArrayType()

/* The part of the module's arraydescr that matters here. */
typedef struct {
    char typecode;
    int itemsize;
} item_kind;

typedef struct {
    PyObject_VAR_HEAD
    char *items;
    Py_ssize_t allocated;
    const item_kind *kind;
    PyObject *weakrefs;
    Py_ssize_t exports;
} array_object;

struct _PyParcel_Array {
    array_object *from;             // borrowed: whose memory it gets at commit
    char *items;                    // or NULL
    Py_ssize_t n;
    int itemsize;
    char typecode;
};

int
_PyParcel_HasArrayMemory(_PyParcel_Home *home, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    return (type->tp_basicsize == sizeof(array_object)
            && (type->tp_flags & Py_TPFLAGS_HEAPTYPE)
            && _PyParcel_IsArrayType(home, type));
}

int
_PyParcel_IsArray(_PyParcel_Home *home, PyObject *obj)
{
    // The constructor warns of 'u': arrays of that go the way of pickle.
    return (_PyParcel_HasArrayMemory(home, obj)
            && ((array_object *)obj)->kind->typecode != 'u');
}

int
_PyParcel_ArrayIsExported(PyObject *obj)
{
    return ((array_object *)obj)->exports > 0;
}

void
_PyParcel_FreeArray(_PyParcel_Array *array)
{
    PyMem_Free(array->items);
    PyMem_RawFree(array);
}

size_t
_PyParcel_ArraySize(const _PyParcel_Array *array)
{
    return (size_t)array->n * array->itemsize;
}

_PyParcel_Array *
_PyParcel_TakeArray(PyObject *obj, int move)
{
    array_object *from = (array_object *)obj;
    _PyParcel_Array *array = PyMem_RawCalloc(1, sizeof(*array));
    if (array == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    array->n = Py_SIZE(from);
    array->itemsize = from->kind->itemsize;
    array->typecode = from->kind->typecode;
    if (move) {
        array->from = from;
        return array;
    }
    size_t size = _PyParcel_ArraySize(array);
    if (size > 0) {
        array->items = PyMem_Malloc(size);
        if (array->items == NULL) {
            _PyParcel_FreeArray(array);
            PyErr_NoMemory();
            return NULL;
        }
        _PyMemHeap_WillFill(array->items, size);
        memcpy(array->items, from->items, size);
    }
    return array;
}

void *
_PyParcel_EmptyArray(PyObject *obj)
{
    array_object *from = (array_object *)obj;
    void *items = from->items;
    from->items = NULL;
    from->allocated = 0;
    Py_SET_SIZE(from, 0);
    return items;
}

void
_PyParcel_StealArray(_PyParcel_Array *array)
{
    array_object *from = array->from;
    if (from != NULL) {
        array->items = _PyParcel_EmptyArray((PyObject *)from);
        array->from = NULL;
    }
}

const void *
_PyParcel_ArrayMemory(const _PyParcel_Array *array)
{
    return array->items;
}

_PyParcel_Array *
_PyParcel_CopyArray(const _PyParcel_Array *array)
{
    _PyParcel_Array *copy = PyMem_RawMalloc(sizeof(*copy));
    if (copy == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *copy = *array;
    size_t size = _PyParcel_ArraySize(array);
    copy->items = size > 0 ? PyMem_Malloc(size) : NULL;
    if (copy->items == NULL && size > 0) {
        PyMem_RawFree(copy);
        PyErr_NoMemory();
        return NULL;
    }
    if (size > 0) {
        _PyMemHeap_WillFill(copy->items, size);
        memcpy(copy->items, array->items, size);
    }
    return copy;
}

PyObject *
_PyParcel_GiveArray(_PyParcel_Home *home, PyObject *type, _PyParcel_Array *array)
{
    PyObject *typecode = PyUnicode_FromOrdinal((unsigned char)array->typecode);
    if (typecode == NULL) {
        return NULL;
    }
    PyObject *obj = PyObject_CallOneArg(type, typecode);
    Py_DECREF(typecode);
    if (obj == NULL) {
        return NULL;
    }
    if (!_PyParcel_IsArray(home, obj)
        || ((array_object *)obj)->kind->itemsize != array->itemsize)
    {
        PyErr_Format(PyExc_TypeError, "%R does not make arrays here", type);
        Py_DECREF(obj);
        return NULL;
    }
    array_object *to = (array_object *)obj;
    assert(to->items == NULL && Py_SIZE(to) == 0);
    to->items = array->items;
    to->allocated = array->n;
    Py_SET_SIZE(to, array->n);
    array->items = NULL;
    return obj;
}

void
_PyParcel_TakeBackArray(PyObject *obj, _PyParcel_Array *array)
{
    array->from = (array_object *)obj;
    _PyParcel_StealArray(array);
}

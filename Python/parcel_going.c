// Packing: saying which memory goes.  See pycore_memheap.h, "Remains".
//
// When an interpreter with private copies of extension modules has ended, what is left
// in its heap is given back.  What a parcel has is not: so every block of it is
// named, once it is packed.  That is another walk over it; interpreters without
// copies are spared it, but for their first messages.
//
// All of it is in the parcel's lists (see pycore_parcel_graph.h): a container stands
// in one itself, so what has to be looked into is only what is no container, and the
// tuples that _PyParcel_CopyName() makes.

#include "Python.h"
#include "pycore_memheap.h"       // _PyMemHeap_Goes()
#include "pycore_parcel_pack.h"

static void object_goes(PyObject *obj);

/* The memory that a value has besides its own block. */
static void
parts_go(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyUnicode_Type) {
        if (!PyUnicode_IS_COMPACT_ASCII(obj)) {
            _PyMemHeap_Goes(((PyCompactUnicodeObject *)obj)->utf8);
        }
        if (!PyUnicode_IS_COMPACT(obj)) {
            _PyMemHeap_Goes(PyUnicode_DATA(obj));
        }
    }
    else if (type == &PyByteArray_Type) {
        _PyMemHeap_Goes(((PyByteArrayObject *)obj)->ob_bytes);
    }
    else if (type == &PyRange_Type) {
        // It has no header.  Four ints: start, stop, step, length.
        PyObject **ints = (PyObject **)(obj + 1);
        assert(type->tp_basicsize == (Py_ssize_t)(sizeof(PyObject) + 4 * sizeof(*ints)));
        for (int i = 0; i < 4; i++) {
            _PyMemHeap_Goes(ints[i]);
        }
    }
    else if (type == &PyTuple_Type && !_PyObject_GC_IS_TRACKED(obj)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(obj); i++) {
            object_goes(PyTuple_GET_ITEM(obj, i));
        }
    }
}

static void
object_goes(PyObject *obj)
{
    if (obj != NULL && !is_common(obj)) {
        _PyMemHeap_Goes(obj);
        parts_go(obj);
    }
}

static void
objects_go(PyObject **items, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        object_goes(items[i]);
    }
}

static void
dict_goes(PyDictObject *dict)
{
    PyDictKeysObject *keys = dict->ma_keys;
    _PyMemHeap_Goes(keys);
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
        if (DK_IS_UNICODE(keys)) {
            object_goes(DK_UNICODE_ENTRIES(keys)[i].me_key);
            object_goes(DK_UNICODE_ENTRIES(keys)[i].me_value);
        }
        else {
            object_goes(DK_ENTRIES(keys)[i].me_key);
            object_goes(DK_ENTRIES(keys)[i].me_value);
        }
    }
    if (dict->ma_values != NULL) {
        _PyMemHeap_Goes(dict->ma_values);
        objects_go(dict->ma_values->values, dict->ma_values->capacity);
    }
}

static void
set_goes(PySetObject *set)
{
    _PyMemHeap_Goes(set->table);
    for (Py_ssize_t i = 0; i <= set->mask; i++) {
        object_goes(set->table[i].key);
    }
}

static void
container_goes(PyObject *obj)
{
    _PyMemHeap_Goes(obj);
    if (PyList_CheckExact(obj)) {
        PyListObject *list = (PyListObject *)obj;
        _PyMemHeap_Goes(list->ob_item);
        objects_go(list->ob_item, Py_SIZE(list));
    }
    else if (PyTuple_CheckExact(obj)) {
        objects_go(((PyTupleObject *)obj)->ob_item, Py_SIZE(obj));
    }
    else if (PyDict_CheckExact(obj)) {
        dict_goes((PyDictObject *)obj);
    }
    else if (PyAnySet_CheckExact(obj)) {
        set_goes((PySetObject *)obj);
    }
    else if (PySlice_Check(obj)) {
        PySliceObject *slice = (PySliceObject *)obj;
        object_goes(slice->start);
        object_goes(slice->stop);
        object_goes(slice->step);
    }
    else {
        Py_UNREACHABLE();           // pycore_parcel_graph.h has all of them
    }
}

static void
family_goes(_PyParcel_Family *family)
{
    PyGC_Head *gc = _PyGCHead_NEXT(&family->list);
    for (; gc != &family->list; gc = _PyGCHead_NEXT(gc)) {
        PyObject *obj = _Py_FROM_GC(gc);
        PyDictValues *values = _PyObject_InlineValues(obj);
        _PyMemHeap_Goes(obj);
        objects_go(values->values, values->capacity);
    }
}

/* The base's way of sending objects: what is sent refers to the sender's memory.
   In the end that is bytes or str; of other types it is not known. */
void
_PyParcel_NoteXIData(PyObject *obj)
{
    if (obj != Py_None && !PyBool_Check(obj) && !PyLong_CheckExact(obj)
        && !PyFloat_CheckExact(obj) && _PyMemHeap_MustSayWhatGoes(1))
    {
        if (PyBytes_CheckExact(obj) || PyUnicode_CheckExact(obj)) {
            object_goes(obj);
        }
        else {
            _PyMemHeap_SharesUnknown();
        }
    }
}

void
_PyParcel_SayWhatGoes(_PyParcel *parcel)
{
    const _PyParcel_Stats *stats = &parcel->stats;
    Py_ssize_t nobjects = stats->moved + stats->copied + stats->rebuilt + stats->reduced;
    if (!_PyMemHeap_MustSayWhatGoes(2 * nobjects)) {    // most have one part, or none
        return;
    }
    if (!WORD_IS_RECORD(parcel->root)) {
        object_goes(WORD_OBJECT(parcel->root));
    }
    PyGC_Head *gc = _PyGCHead_NEXT(&parcel->plain);
    for (; gc != &parcel->plain; gc = _PyGCHead_NEXT(gc)) {
        container_goes(_Py_FROM_GC(gc));
    }
    _PyParcel_Graph *g = &parcel->graph;
    for (_PyParcel_Family *f = g->families; f != NULL; f = f->next) {
        family_goes(f);
    }
    for (Py_ssize_t i = 0; i < g->nwords; i++) {
        if (!WORD_IS_RECORD(g->words[i])) {
            object_goes(WORD_OBJECT(g->words[i]));
        }
    }
    for (Py_ssize_t i = 0; i < g->nresources; i++) {
        if (g->resources[i].kind == RESOURCE_ARRAY) {
            _PyMemHeap_Goes(_PyParcel_ArrayMemory(g->resources[i].what));
        }
    }
}

// Packing: the objects leave the heap, or everything is as before the walk.
// See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


/* What a given object has becomes its shell's. */
static void
fill_shell(PyObject *obj, PyObject *shell)
{
    if (PyList_CheckExact(obj)) {
        PyListObject *from = (PyListObject *)obj;
        PyListObject *to = (PyListObject *)shell;
        to->ob_item = from->ob_item;
        Py_SET_SIZE(to, Py_SIZE(from));
        to->allocated = from->allocated;
        from->ob_item = NULL;
        Py_SET_SIZE(from, 0);
        from->allocated = 0;
    }
    else if (PyDict_CheckExact(obj)) {
        PyDictObject *from = (PyDictObject *)obj;
        PyDictObject *to = (PyDictObject *)shell;
        // The keys of an empty dict are nobody's.
        PyDictKeysObject *empty = to->ma_keys;
        to->ma_keys = from->ma_keys;
        to->ma_used = from->ma_used;
        from->ma_keys = empty;
        from->ma_used = 0;
    }
    else if (PyAnySet_CheckExact(obj)) {
        PySetObject *from = (PySetObject *)obj;
        PySetObject *to = (PySetObject *)shell;
        if (from->table == from->smalltable) {
            memcpy(to->smalltable, from->smalltable, sizeof(to->smalltable));
        }
        else {
            to->table = from->table;
            from->table = from->smalltable;
        }
        memset(from->smalltable, 0, sizeof(from->smalltable));
        to->mask = from->mask;
        to->fill = from->fill;
        to->used = from->used;
        to->hash = from->hash;
        from->mask = PySet_MINSIZE - 1;
        from->fill = from->used = 0;
        from->hash = -1;
    }
    else {
        PyByteArrayObject *from = (PyByteArrayObject *)obj;
        PyByteArrayObject *to = (PyByteArrayObject *)shell;
        assert(to->ob_bytes == NULL);
        to->ob_bytes = from->ob_bytes;
        to->ob_start = from->ob_start;
        to->ob_alloc = from->ob_alloc;
        Py_SET_SIZE(to, Py_SIZE(from));
        from->ob_bytes = from->ob_start = NULL;
        from->ob_alloc = 0;
        Py_SET_SIZE(from, 0);
    }
}

/* Items that have references from the parcel. */
static void
clear_items(PyObject *obj)
{
    if (PyTuple_CheckExact(obj)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(obj); i++) {
            PyObject *item = PyTuple_GET_ITEM(obj, i);
            PyTuple_SET_ITEM(obj, i, Py_None);
            Py_DECREF(item);
        }
    }
    else if (PySlice_Check(obj)) {
        PySliceObject *slice = (PySliceObject *)obj;
        Py_SETREF(slice->start, Py_None);
        Py_SETREF(slice->stop, Py_None);
        Py_SETREF(slice->step, Py_None);
    }
    else {
        PySetObject *set = (PySetObject *)obj;
        for (Py_ssize_t i = 0; i <= set->mask; i++) {
            PyObject *key = set->table[i].key;
            if (key != NULL && set->table[i].hash != -1) {
                set->table[i].key = NULL;
                set->table[i].hash = 0;
                Py_DECREF(key);
            }
        }
        set->fill = set->used = 0;
        for (Py_ssize_t i = 0; i <= set->mask; i++) {
            set->fill += (set->table[i].key != NULL);
        }
    }
}

/* The objects leave the heap: in a write section. */
void
_PyPacker_Commit(packer *p)
{
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        given *g = &p->givens[i];
        if (g->slot != NULL) {
            PyObject *obj = *g->slot;
            *g->slot = Py_None;
            // Not the last: if it does not go itself, the undo log has it.
            Py_DECREF(obj);
        }
        else if (g->shell != NULL) {
            fill_shell(g->obj, g->shell);
            Py_CLEAR(g->shell);
        }
    }
    _PyParcel_Graph *graph = &p->parcel->graph;
    for (Py_ssize_t i = 0; i < graph->nresources; i++) {
        if (graph->resources[i].kind == RESOURCE_ARRAY) {
            _PyParcel_StealArray(graph->resources[i].what);
        }
    }
    _PyPacker_CommitFamilies(p);
    p->parcel->nplain += p->nmoved;
    p->parcel->stats.moved += p->nmoved;
    _PyParcel_ListMerge(&p->moved, &p->parcel->plain);
    p->nmoved = 0;
}

/* What is left of them lets go of what has left.  Nothing runs code: what is not
   in the parcel is in the undo log as well. */
void
_PyPacker_ClearRemains(packer *p)
{
    _PyPacker_LeaveFamilies(p);
    for (Py_ssize_t i = 0; i < p->ndissolved; i++) {
        _PyPacker_Dissolve(p, p->dissolved[i]);
    }
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        given *g = &p->givens[i];
        if (g->cleared) {
            clear_items(g->obj);
        }
        if (g->prepared) {
            _PyParcel_MovedCommit(p->home, g->obj);
            g->prepared = 0;
        }
        if (g->instead != NULL) {
            _PyParcel_MovedCommit(p->home, g->instead);
            _PyParcel_ReplacePlaces(g->places, g->nplaces, g->instead);
            Py_SETREF(*g->marker, g->instead);
            g->instead = NULL;
        }
    }
}

/* Everything is as before the walk. */
void
_PyPacker_Undo(packer *p)
{
    for (Py_ssize_t i = p->nchanges; --i >= 0; ) {
        change *c = &p->changes[i];
        if (c->slot != NULL) {
            PyObject *new = *c->slot;
            *c->slot = c->old;
            Py_DECREF(new);
        }
        else {
            Py_DECREF(c->old);
        }
    }
    p->nchanges = 0;
    _PyPacker_UndoRows(p);
    p->ndissolved = 0;
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        given *g = &p->givens[i];
        Py_CLEAR(g->shell);
        g->cleared = g->logged = 0;
        if (g->instead != NULL) {
            _PyParcel_MovedCancel(p->home, g->instead);
            Py_CLEAR(g->instead);
        }
        if (g->prepared) {
            _PyParcel_MovedCancel(p->home, g->obj);
            g->prepared = 0;
        }
    }
    _PyParcel_ListTrack(&p->moved, p->nmoved);
    p->nmoved = 0;
    p->moved_reftotal = 0;
    // Each object that is released now is taken off.
    _PyInterpreterState_GET()->gc.generations[0].count += (int)p->uncounted;
    p->uncounted = 0;
    if (p->parcel != NULL) {
        _PyPacker_UndoFamilies(p);
        _PyParcel_Discard(p->parcel);
        p->parcel = NULL;
    }
}

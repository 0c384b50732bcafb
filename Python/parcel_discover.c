// Packing: reducing objects, which runs Python code.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


typedef struct {
    packer *packer;
    PyObject **stack;               // counted: what is still to be looked at
    Py_ssize_t depth, room;
    PyObject **seen;                // counted
    Py_ssize_t nseen, seen_room;
    known *table;
    size_t mask;
} discovery;

static int
look_at(discovery *d, PyObject *obj)
{
    if (obj == NULL || is_atom_type(Py_TYPE(obj))
        || _PyParcel_IsProcessWide(obj))
    {
        return 0;
    }
    if (GROW(d->stack, d->depth, d->room) < 0) {
        return -1;
    }
    d->stack[d->depth++] = Py_NewRef(obj);
    return 0;
}

static int
visit_look_at(PyObject *obj, void *arg)
{
    return look_at(arg, obj);
}

/* 1: it is new; 0: it has been seen. */
static int
mark_seen(discovery *d, PyObject *obj)
{
    known *k = probe(d->table, d->mask, obj);
    if (k->obj != NULL) {
        return 0;
    }
    if (GROW(d->seen, d->nseen, d->seen_room) < 0) {
        return -1;
    }
    d->seen[d->nseen++] = Py_NewRef(obj);
    k->obj = obj;
    if ((size_t)d->nseen * 3 > d->mask * 2) {
        size_t size = (d->mask + 1) * 4;
        known *table = PyMem_RawCalloc(size, sizeof(known));
        if (table == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        for (Py_ssize_t i = 0; i < d->nseen; i++) {
            probe(table, size - 1, d->seen[i])->obj = d->seen[i];
        }
        PyMem_RawFree(d->table);
        d->table = table;
        d->mask = size - 1;
    }
    return 1;
}

int
_PyPacker_IsRefusal(void)
{
    return (PyErr_ExceptionMatches(PyExc_Exception)
            && !PyErr_ExceptionMatches(PyExc_MemoryError)
            && !PyErr_ExceptionMatches(PyExc_RecursionError));
}

static int
reduce(discovery *d, PyObject *obj)
{
    packer *p = d->packer;
    Py_ssize_t index = _PyPacker_FindReduction(p, obj);
    if (index < 0) {
        _PyParcel_Reduction r;
        memset(&r, 0, sizeof(r));
        if (_PyParcel_Reduce(p->home, &p->message, obj, &r) < 0) {
            if (_PyPacker_IsRefusal()) {
                _PyParcel_RaiseNotShareable(p->home, p->root, obj);
            }
            return -1;
        }
        index = _PyPacker_AddReduction(p, obj, &r);
        if (index < 0) {
            return -1;
        }
    }
    _PyParcel_Reduction *r = &p->reductions[index].reduction;
    if (r->kind == _PyParcel_CALL) {
        PyObject *parts[] = {r->callable, r->args, r->state, r->list, r->items,
                             r->setter};
        for (int i = Py_ARRAY_LENGTH(parts); --i >= 0; ) {
            if (look_at(d, parts[i]) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static int
look_into(discovery *d, PyObject *obj)
{
    packer *p = d->packer;
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyList_Type || type == &PyTuple_Type || type == &PyDict_Type
        || type == &PySet_Type || type == &PyFrozenSet_Type
        || type == &PySlice_Type)
    {
        return type->tp_traverse(obj, visit_look_at, d);
    }
    if (type == p->home->move_type && type != NULL) {
        return look_at(d, ((_PyParcel_MoveObject *)obj)->obj);
    }
    if (_PyParcel_HandleKind(p->home, obj) >= 0) {
        return 0;
    }
    if (is_named(obj)) {
        PyObject *where = _PyParcel_QuickName(p->home, obj);
        if (where != NULL) {
            Py_DECREF(where);
            return 0;
        }
        return PyErr_Occurred() ? -1 : reduce(d, obj);
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (_PyPacker_CheckSimple(p, obj, &cls, &a, &simple) < 0) {
        return -1;
    }
    if (_PyParcel_IsArray(p->home, obj)) {
        return look_at(d, (PyObject *)type);
    }
    if (!simple) {
        return reduce(d, obj);
    }
    // Its class, and what it refers to.
    for (Py_ssize_t i = 0; i < a.n; i++) {
        if (look_at(d, attribute_value(&a, i)) < 0) {
            return -1;
        }
    }
    for (int i = 0; i < cls->nslots; i++) {
        if (look_at(d, *slot_of(obj, cls, i)) < 0) {
            return -1;
        }
    }
    return look_at(d, (PyObject *)type);
}

/* Reduce all that needs it. */
int
_PyPacker_Discover(packer *p)
{
    discovery d = {.packer = p};
    int res = -1;
    d.mask = 63;
    d.table = PyMem_RawCalloc(d.mask + 1, sizeof(known));
    if (d.table == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (look_at(&d, p->root) < 0) {
        goto exit;
    }
    while (d.depth > 0) {
        PyObject *obj = d.stack[--d.depth];
        // One reference is ours; one more, and nothing else leads to it.
        int new = Py_REFCNT(obj) > 2 || is_named(obj) ? mark_seen(&d, obj) : 1;
        if (new > 0) {
            new = look_into(&d, obj);
        }
        Py_DECREF(obj);
        if (new < 0) {
            goto exit;
        }
    }
    res = 0;

exit:
    while (d.depth > 0) {
        Py_DECREF(d.stack[--d.depth]);
    }
    while (d.nseen > 0) {
        Py_DECREF(d.seen[--d.nseen]);
    }
    PyMem_RawFree(d.stack);
    PyMem_RawFree(d.seen);
    PyMem_RawFree(d.table);
    return res;
}

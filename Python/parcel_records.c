// Packing what goes as a record, but for instances.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


/* Also called for the class of an instance: *word is remembered. */
int
_PyPacker_TakeNamed(packer *p, PyObject *obj, PyObject *where, _PyParcel_Word *word)
{
    PyObject *copy = _PyParcel_CopyName(where);
    if (copy == NULL) {
        return -1;
    }
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_NAMED, 1);
    if (record < 0 || _PyPacker_AddStep(p, OP_CREATE, record) < 0
        || remember(p, obj, RECORD_WORD(record)) < 0)
    {
        Py_DECREF(copy);
        return -1;
    }
    _PyParcel_Graph *g = &p->parcel->graph;
    g->words[g->records[record].first] = (_PyParcel_Word)copy;
    *word = RECORD_WORD(record);
    return 0;
}

int
_PyPacker_TakeHandle(packer *p, PyObject *obj, int kind, _PyParcel_Word *word)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW(g->resources, g->nresources, p->resources_room) < 0) {
        return -1;
    }
    Py_ssize_t record = _PyPacker_AddRecord(p, kind, 0);
    if (record < 0 || _PyPacker_AddStep(p, OP_CREATE, record) < 0) {
        return -1;
    }
    int64_t arg = 0;
    _PyParcel_Resource resource = {.what = NULL};
    if (PyPickleBuffer_Check(obj)) {
        if (_PyPacker_TakeBuffer(p, obj, &resource) < 0) {
            p->refused = p->needs_isolation ? NULL : obj;
            return -1;
        }
    }
    else if (_PyParcel_TakeHandle(p->home, obj, kind, &arg, &resource) < 0) {
        p->refused = obj;
        return -1;
    }
    else {
        p->parcel->stats.shared++;
    }
    g->records[record].arg = arg;
    if (resource.what != NULL) {
        if (kind != RECORD_INTERPRETER) {
            g->records[record].arg = g->nresources;
        }
        g->resources[g->nresources++] = resource;
    }
    *word = RECORD_WORD(record);
    return remember(p, obj, *word);
}

/* The index, or -1. */
Py_ssize_t
_PyPacker_FindReduction(packer *p, PyObject *obj)
{
    known *k = find_known(p, obj);
    return k != NULL ? k->reduction - 1 : -1;
}

/* Takes the contents of `r` over.  The index, or -1. */
Py_ssize_t
_PyPacker_AddReduction(packer *p, PyObject *obj, _PyParcel_Reduction *r)
{
    known *k;
    if (GROW(p->reductions, p->nreductions, p->reductions_room) < 0
        || (k = get_known(p, obj)) == NULL)
    {
        _PyParcel_ReductionClear(r);
        return -1;
    }
    p->reductions[p->nreductions] = (reduced){Py_NewRef(obj), *r};
    if (k->counted) {
        // The reference that has just been made is our own.
        k->inside++;
    }
    k->reduction = p->nreductions + 1;
    return p->nreductions++;
}

/* The same; a new one if that needs no code, else p->needs_code is set. */
Py_ssize_t
_PyPacker_GetReduction(packer *p, PyObject *obj)
{
    Py_ssize_t reduction = _PyPacker_FindReduction(p, obj);
    if (reduction >= 0) {
        return reduction;
    }
    if (_PyParcel_IsMoved(p->home, obj)) {
        _PyParcel_RaiseMoved(obj);
        return -1;
    }
    _PyParcel_Reduction r;
    memset(&r, 0, sizeof(r));
    int quick = _PyParcel_QuickReduce(p->home, obj, &r);
    if (quick <= 0) {
        if (quick == 0) {
            p->needs_code = obj;
        }
        return -1;
    }
    return _PyPacker_AddReduction(p, obj, &r);
}

int
_PyPacker_TakeReduction(packer *p, PyObject *obj, Py_ssize_t index,
                        _PyParcel_Word *word)
{
    _PyParcel_Reduction *r = &p->reductions[index].reduction;
    if (r->kind == _PyParcel_NAMED) {
        return _PyPacker_TakeNamed(p, obj, r->where, word);
    }
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_CALL, 6);
    if (record < 0 || remember(p, obj, RECORD_WORD(record)) < 0) {
        return -1;
    }
    frame *f = push_frame(p, FRAME_CALL, 0, 6);
    if (f == NULL) {
        return -1;
    }
    f->to.words = p->parcel->graph.records[record].first;
    f->of.reduction = index;
    f->record = record;
    p->npending++;
    p->parcel->graph.runs_code |= !r->innocent;
    p->parcel->stats.reduced++;
    *word = RECORD_WORD(record);
    return 1;
}

/* By name, when that can be found without code. */
int
_PyPacker_TakeByName(packer *p, PyObject *obj, _PyParcel_Word *word)
{
    PyObject *where = _PyParcel_QuickName(p->home, obj);
    if (where == NULL) {
        if (!PyErr_Occurred()) {
            p->needs_code = obj;
        }
        return -1;
    }
    int res = _PyPacker_TakeNamed(p, obj, where, word);
    Py_DECREF(where);
    return res;
}

int
_PyPacker_TakeArray(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    int exported = _PyParcel_ArrayIsExported(obj);
    if (owned == MUST_MOVE && exported) {
        return _PyPacker_NotIsolated(p, obj, 1);
    }
    _PyParcel_Word type;
    known *k = find_known(p, (PyObject *)Py_TYPE(obj));
    if (k != NULL && k->to != 0) {
        type = k->to;
    }
    else if (_PyPacker_TakeByName(p, (PyObject *)Py_TYPE(obj), &type) < 0) {
        return -1;
    }
    _PyParcel_Graph *g = &p->parcel->graph;
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_ARRAY, 1);
    if (record < 0 || _PyPacker_AddStep(p, OP_CREATE, record) < 0
        || GROW(g->resources, g->nresources, p->resources_room) < 0
        || (Py_REFCNT(obj) > 1 && remember(p, obj, RECORD_WORD(record)) < 0))
    {
        return -1;
    }
    int move = owned && !exported;
    _PyParcel_Array *array = _PyParcel_TakeArray(obj, move);
    if (array == NULL) {
        return -1;
    }
    if (!move) {
        note_copied(p, _PyParcel_ArraySize(array));
    }
    g->words[g->records[record].first] = type;
    g->records[record].arg = g->nresources;
    g->resources[g->nresources++] = (_PyParcel_Resource){RESOURCE_ARRAY, array};
    p->parcel->stats.rebuilt++;
    *word = RECORD_WORD(record);
    return 0;
}

/* A member of an enum: as good as named. */
int
_PyPacker_IsEnumMember(PyObject *obj)
{
    PyTypeObject *meta = Py_TYPE(Py_TYPE(obj));
    for (; meta != NULL && meta != &PyType_Type; meta = meta->tp_base) {
        if (strcmp(meta->tp_name, "EnumType") == 0) {
            return 1;
        }
    }
    return 0;
}


/* Can nobody tell an equal one from it, as far as its own type goes? */
int
_PyPacker_IsValueType(packer *p, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (is_atom_type(type)) {
        return type != &PyByteArray_Type;
    }
    if (type->tp_hash != PyObject_HashNotImplemented
        && type->tp_hash != PyBaseObject_Type.tp_hash
        && type->tp_richcompare != PyBaseObject_Type.tp_richcompare)
    {
        return 1;
    }
    return (type == &PySlice_Type || type == p->home->move_type
            || _PyParcel_HandleKind(p->home, obj) >= 0);
}

/* Can nobody tell an equal one from it? */
int
_PyPacker_IsValue(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (is_atom_type(type)) {
        return type != &PyByteArray_Type;
    }
    if (type == &PyTuple_Type) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(obj); i++) {
            PyTypeObject *t = Py_TYPE(PyTuple_GET_ITEM(obj, i));
            if (!is_atom_type(t) || t == &PyByteArray_Type) {
                return 0;
            }
        }
        return 1;
    }
    return is_named(obj);
}

/* An object that has been met again where it is needed to make itself: as an argument
   of its own constructor, or of one or in a frozenset that is such an argument.  pickle
   can't do that either.  (A list, a dict or an instance there is filled later.) */
int
_PyPacker_CheckMade(packer *p, PyObject *obj, _PyParcel_Word word)
{
    if (!WORD_IS_RECORD(word)
        || !unmade(&p->parcel->graph.records[WORD_RECORD(word)]))
    {
        return 0;
    }
    PyErr_SetString(PyExc_ValueError,
                    "it is among the arguments that it is made with");
    p->refused = obj;
    return -1;
}

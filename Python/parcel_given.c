// Packing: what the sender gives up.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


/* A marker: move(obj). */
int
_PyPacker_AddGiven(packer *p, PyObject *obj, PyObject **slot, int owned)
{
    if (GROW(p->givens, p->ngivens, p->givens_room) < 0) {
        return -1;
    }
    known *k = get_known(p, obj);
    if (k == NULL) {
        return -1;
    }
    assert(k->given == 0);
    p->givens[p->ngivens++] = (given){
        .obj = obj, .slot = slot, .owned = owned
    };
    k->given = p->ngivens;
    return 0;
}

int
_PyPacker_TakeMarker(packer *p, PyObject *marker, _PyParcel_Word *word)
{
    PyObject **slot = &((_PyParcel_MoveObject *)marker)->obj;
    if (*slot == NULL) {
        PyErr_SetString(p->home->moved_error, "the object has been moved already");
        return -1;
    }
    if (_PyParcel_IsProcessWide(*slot)) {
        *word = (_PyParcel_Word)*slot;
        return 0;
    }
    known *k = find_known(p, *slot);
    if (k == NULL || k->given == 0) {
        // All of them have to be known before the arithmetic.
        p->found_given = 1;
        *word = (_PyParcel_Word)Py_None;
        if (_PyPacker_AddGiven(p, *slot, Py_REFCNT(*slot) == 1 ? slot : NULL,
                               MUST_MOVE) < 0)
        {
            return -1;
        }
        p->givens[p->ngivens - 1].marker = slot;
        return 0;
    }
    if (k->to != 0) {
        *word = (WORD_IS_RECORD(k->to) ? k->to
                 : (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to)));
        return 0;
    }
    return _PyPacker_TakeGiven(p, k->given - 1, word);
}

/* An empty container of the same type, which gets what `obj` has when
   that is committed.  NULL without an exception if the type has none. */
static PyObject *
new_shell(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyList_Type) {
        return PyList_New(0);
    }
    if (type == &PyDict_Type && _PyPacker_CanMove(obj)) {
        return PyDict_New();
    }
    if (PyAnySet_CheckExact(obj) && _PyPacker_HasPlainMembers((PySetObject *)obj)) {
        return type == &PySet_Type ? PySet_New(NULL) : PyFrozenSet_New(NULL);
    }
    if (type == &PyByteArray_Type) {
        return PyByteArray_FromStringAndSize(NULL, 0);
    }
    return NULL;
}

/* Its content stays in place while the walk goes over it. */
static int
take_into_shell(packer *p, given *g)
{
    PyObject *obj = g->obj;
    frame *f;
    if (PyByteArray_CheckExact(obj)) {
        if (((PyByteArrayObject *)obj)->ob_exports > 0) {
            return _PyPacker_NotIsolated(p, obj,
                                         ((PyByteArrayObject *)obj)->ob_exports);
        }
        count_moved_atom(p, obj);
        return 0;
    }
    p->parcel->stats.moved++;
    _PyParcel_ListRemove(_Py_AS_GC(g->shell));
    _PyParcel_ListAppend(&p->parcel->plain, _Py_AS_GC(g->shell));
    p->parcel->nplain++;
    if (PyList_CheckExact(obj)) {
        f = push_frame(p, FRAME_ITEMS, g->owned, PyList_GET_SIZE(obj));
        if (f == NULL) {
            return -1;
        }
        f->from = f->to.slots = ((PyListObject *)obj)->ob_item;
        return 1;
    }
    if (PyAnySet_CheckExact(obj)) {
        f = push_frame(p, FRAME_SET, g->owned, ((PySetObject *)obj)->mask + 1);
        if (f == NULL) {
            return -1;
        }
        f->of.set = (PySetObject *)obj;
        f->to.object = obj;
        return 1;
    }
    PyDictKeysObject *keys = ((PyDictObject *)obj)->ma_keys;
    f = push_frame(p, FRAME_DICT, g->owned, 2 * keys->dk_nentries);
    if (f == NULL) {
        return -1;
    }
    if (keys->dk_refcnt == 1) {
        keys->dk_version = 0;
#ifdef Py_REF_DEBUG
        p->moved_reftotal++;
#endif
    }
    f->of.dict = (PyDictObject *)obj;
    f->to.object = obj;
    return 1;
}

/* A tuple or slice, or a set whose members need code: a new one, whose items are owned. */
static int
take_shallow(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    PyObject *copy = NULL;
    int res;
    if (PyTuple_CheckExact(obj)) {
        res = _PyPacker_TakeTuple(p, obj, 0, &copy);
    }
    else if (PySlice_Check(obj)) {
        res = _PyPacker_TakeSlice(p, obj, 0, &copy);
    }
    else {
        res = _PyPacker_TakeSet(p, obj, 0, &copy);
    }
    if (res < 0) {
        return -1;
    }
    frame *f = &p->frames[p->depth - 1];
    if (res == 1 && f->kind != FRAME_WORDS) {
        f->owned = (uint8_t)owned;
    }
    link_plain(p, copy);
    *word = (_PyParcel_Word)copy;
    return res;
}

/* All references to a large value are in variables, which can get a MovedObject
   instead?  1: it moves. */
static int
find_variables(packer *p, given *g)
{
    g->nplaces = _PyParcel_FindPlaces(g->obj, g->places, MAX_PLACES);
    // One more is the marker's.
    if (g->nplaces > MAX_PLACES || g->nplaces + 1 != Py_REFCNT(g->obj)) {
        return 0;
    }
    g->instead = (PyUnicode_Check(g->obj) ? PyUnicode_FromString("moved")
                  : PyBytes_FromString("moved"));
    if (g->instead == NULL) {
        return -1;
    }
    if (_PyParcel_MovedPrepare(p->home, g->instead) < 0) {
        Py_CLEAR(g->instead);
        return -1;
    }
    count_moved_atom(p, g->obj);
#ifdef Py_REF_DEBUG
    p->moved_reftotal--;            // it is a new reference that goes
#endif
    return 1;
}

/* Is this given up in vain: a value, a handle, or something that goes by name?
   -1: code is needed to tell. */
static int
stays_with_sender(packer *p, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (_PyPacker_IsValue(obj)) {
        return 1;
    }
    if (type == &PyByteArray_Type || type == &PyList_Type
        || type == &PyDict_Type || type == &PyTuple_Type
        || type == &PySet_Type || type == &PyFrozenSet_Type
        || type == &PySlice_Type)
    {
        return 0;
    }
    if (PyPickleBuffer_Check(obj)) {
        return 0;
    }
    if (_PyParcel_HandleKind(p->home, obj) >= 0) {
        return 1;
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (_PyPacker_CheckSimple(p, obj, &cls, &a, &simple) < 0) {
        return -1;
    }
    if (simple || _PyParcel_IsArray(p->home, obj)) {
        return 0;
    }
    Py_ssize_t reduction = _PyPacker_GetReduction(p, obj);
    if (reduction < 0) {
        return -1;
    }
    return (p->reductions[reduction].reduction.kind == _PyParcel_NAMED
            || _PyPacker_IsValueType(p, obj));
}

int
_PyPacker_TakeGiven(packer *p, Py_ssize_t index, _PyParcel_Word *word)
{
    given *g = &p->givens[index];
    PyObject *obj = g->obj;
    int slot = (g->slot != NULL);
    known *k = find_known(p, obj);
    k->taking = 1;
    _PyPacker_EndStretches(p);
    int same = stays_with_sender(p, obj);
    if (same < 0) {
        return -1;
    }
    if (same && !slot && g->marker != NULL && is_large(obj)
        && atom_can_move(obj) && !_Py_IsImmortal(obj))
    {
        int found = find_variables(p, g);
        if (found != 0) {
            *word = (_PyParcel_Word)obj;
            return found < 0 || remember(p, obj, *word) < 0 ? -1
                   : (Py_INCREF(obj), 0);
        }
    }
    if (slot || same) {
        // Nobody else has it, or need not know.
        int res = _PyPacker_Take(p, obj, slot ? g->owned : NOT_OWNED, word);
        if (res < 0) {
            return -1;
        }
        if (slot) {
            // The marker may be met again.
            if (remember(p, obj, *word) < 0) {
                return -1;
            }
            if (*word == (_PyParcel_Word)obj) {
                return res;
            }
            p->givens[index].logged = 1;
            return _PyPacker_ReleaseLater(p, obj) < 0 ? -1 : res;
        }
        if (!WORD_IS_RECORD(*word) && remember(p, obj, *word) < 0) {
            return -1;
        }
        return res;
    }
    if (!g->prepared) {
        if (_PyParcel_MovedPrepare(p->home, obj) < 0) {
            return -1;
        }
        g->prepared = 1;
    }
    assert(g->shell == NULL);
    g->shell = new_shell(obj);
    if (g->shell != NULL) {
        *word = (_PyParcel_Word)Py_NewRef(g->shell);
        if (remember(p, obj, *word) < 0) {
            return -1;
        }
        return take_into_shell(p, g);
    }
    if (PyErr_Occurred()) {
        return -1;
    }
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyTuple_Type || type == &PySlice_Type || type == &PySet_Type) {
        g->cleared = 1;
        int res = take_shallow(p, obj, g->owned, word);
        if (res >= 0 && remember(p, obj, *word) < 0) {
            return -1;
        }
        return res;
    }
    if (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        p->stays = obj;
        return _PyPacker_TakeOther(p, obj, g->owned, word);
    }
    return _PyPacker_Take(p, obj, 0, word);
}

// Instances of Python classes that go as the objects that they are, or as clones.
//
// Most instances have their attributes in themselves, as values whose names are in a
// table that all instances of their class share.  Such an instance needs not be made
// anew: what belongs to an interpreter is its class, and which value has which name.
// A family is all instances of one class in a parcel, and says both.
//
// While they are in the parcel their type is `parcel_instance`, which is of no
// interpreter.  So nothing of the sender's has to outlive it, and a parcel that is never
// opened can be freed anywhere: no __del__ is called then, and none of them is left over
// as garbage in a cycle, where somebody could see it.
//
// Opening gives them the receiver's class.  That asks for
//
//   F-1  the same names at the same places in the receiver's table, as far as the
//        sender had any
//   F-2  room in each instance for all values that the receiver's class may ever give a
//        name: specialised code does not look how many there are.  The table's entries
//        and what is left in it do not become more, so it is enough to take away what
//        is too much of what is left.
//
// If that can't be had, or if code runs while the parcel is opened, a duplicate is opened
// in which they are records (parcel_duplicate.c).  A sender that sees that code will run
// makes records at once: then they are made in the order in which pickle makes them.

#include "Python.h"
#include "pycore_parcel_pack.h"
#include "pycore_unicodeobject.h" // _PyUnicode_InternMortal()


#define FOR_EACH(GC, FAMILY) \
    for (GC = _PyGCHead_NEXT(&(FAMILY)->list); GC != &(FAMILY)->list; \
         GC = _PyGCHead_NEXT(GC))


/* --- Their type in a parcel --------------------------------------------------- */

static inline _PyParcel_Family **
family_of(PyObject *obj)
{
    // Where weak references would be: those that have any do not go.
    return (_PyParcel_Family **)((char *)obj + MANAGED_WEAKREF_OFFSET);
}

static void
clear_values(PyObject *obj)
{
    PyDictValues *values = _PyObject_InlineValues(obj);
    values->size = 0;
    for (int i = 0; i < values->capacity; i++) {
        Py_CLEAR(values->values[i]);
    }
}

static void
unlink_instance(PyObject *obj)
{
    PyGC_Head *gc = _Py_AS_GC(obj);
    _PyParcel_ListRemove(gc);
    gc->_gc_next = gc->_gc_prev = 0;
}

static void
instance_dealloc(PyObject *obj)
{
    unlink_instance(obj);
    Py_TRASHCAN_BEGIN(obj, instance_dealloc)
    clear_values(obj);
    PyObject_Free((char *)obj - _PyType_PreHeaderSize(Py_TYPE(obj)));
    Py_TRASHCAN_END
}

/* Of no interpreter, and no collector ever sees an object of it. */
static PyTypeObject parcel_instance = {
    PyVarObject_HEAD_INIT(&PyType_Type, 0)
    .tp_name = "_parcels.instance",
    .tp_basicsize = sizeof(PyObject),
    .tp_dealloc = instance_dealloc,
    .tp_traverse = PyObject_VisitManagedDict,
    .tp_flags = (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_MANAGED_DICT
                 | Py_TPFLAGS_INLINE_VALUES),
};

int
_PyParcel_IsOfFamily(PyObject *obj)
{
    return Py_IS_TYPE(obj, &parcel_instance);
}

const _PyParcel_Family *
_PyParcel_FamilyOf(PyObject *obj)
{
    assert(_PyParcel_IsOfFamily(obj));
    return *family_of(obj);
}


/* --- Packing --------------------------------------------------------------------- */

// A graph with instances of more classes takes those of the others as records.
#define MAX_FAMILIES 64

/* One of a class whose instances can. */
static inline int
stays_whole(PyObject *obj, int owned)
{
    // Weak references and a __dict__ that looks at the values are the sender's.
    return (!owned || (*family_of(obj) == NULL
                       && _PyObject_GetManagedDict(obj) == NULL));
}

int
_PyPacker_CanStayWhole(packer *p, PyObject *obj, const _PyParcel_Class *cls,
                       const attributes *a, int owned)
{
    if (!cls->whole || a->values == NULL || a->dict != NULL || p->no_families
        || p->parcel->graph.runs_code || obj == p->stays)
    {
        return 0;
    }
    return stays_whole(obj, owned);
}

static _PyParcel_Family *
new_family(packer *p, PyTypeObject *type, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    PyDictKeysObject *keys = cached_keys(type);
    Py_ssize_t n = keys->dk_nentries;
    Py_ssize_t owner = _PyPacker_AddRecord(p, RECORD_NAMED, n);
    if (owner < 0 || _PyPacker_ReleaseLater(p, (PyObject *)type) < 0) {
        return NULL;
    }
    _PyParcel_Family *family = PyMem_RawCalloc(1, sizeof(*family));
    if (family == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    _PyParcel_ListInit(&family->list);
    _PyParcel_ListInit(&family->moved);
    family->type = record;
    family->local = type;
    family->names = g->records[owner].first;
    family->nnames = (int)n;
    family->capacity = SHARED_KEYS_MAX_SIZE;
    family->next = g->families;
    g->families = family;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *name = DK_UNICODE_ENTRIES(keys)[i].me_key;
        if (_PyPacker_TakeName(p, name, &g->words[family->names + i]) < 0) {
            return NULL;
        }
    }
    return family;
}

/* NULL without an exception: there are too many. */
static _PyParcel_Family *
get_family(packer *p, PyTypeObject *type, Py_ssize_t record)
{
    if (p->last_family != NULL && p->last_family->local == type) {
        return p->last_family;
    }
    int n = 0;
    _PyParcel_Family *family = p->parcel->graph.families;
    while (family != NULL && family->local != type) {
        family = family->next;
        n++;
    }
    if (family == NULL && n < MAX_FAMILIES) {
        family = new_family(p, type, record);
    }
    p->last_family = family;
    return family;
}

/* A new one with room for as many values, none of which is there yet. */
static PyObject *
clone_instance(packer *p, _PyParcel_Family *family, const PyDictValues *values)
{
    int capacity = Py_MIN(values->capacity,
                          (int)shared_keys_usable_size(cached_keys(family->local)));
    size_t before = _PyType_PreHeaderSize(&parcel_instance);
    size_t prefix = _Py_SIZE_ROUND_UP(capacity, sizeof(PyObject *));
    char *mem = alloc_object(p, before + sizeof(PyObject) + prefix
                             + (capacity + 1) * sizeof(PyObject *));
    if (mem == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(mem, 0, before);
    PyObject *obj = (PyObject *)(mem + before);
    _PyObject_Init(obj, &parcel_instance);
    *family_of(obj) = family;
    PyDictValues *to = _PyObject_InlineValues(obj);
    to->capacity = (uint8_t)capacity;
    to->size = values->size;
    to->embedded = to->valid = 1;
    memset(to->values, 0, capacity * sizeof(PyObject *));
    memcpy(get_insertion_order_array(to),
           get_insertion_order_array((PyDictValues *)values), values->size);
    return obj;
}

/* Into the family; then its values.  `copy` may be the object itself.  As
   _PyPacker_EnterItems(). */
static int
enter_values(packer *p, _PyParcel_Family *family, PyObject *obj, PyObject *copy,
             int owned)
{
    PyDictValues *from = _PyObject_InlineValues(obj);
    PyDictValues *to = _PyObject_InlineValues(copy);
    int res = _PyPacker_EnterItems(p, from->values, to->values,
                                   Py_MIN(to->capacity, family->nnames), 0, owned);
    if (res < 0) {
        return -1;
    }
    family->capacity = Py_MIN(family->capacity, to->capacity);
    if (owned) {
        _PyParcel_ListRemove(_Py_AS_GC(obj));
        _PyParcel_ListAppend(&family->moved, _Py_AS_GC(obj));
        family->nmoved++;
#ifdef Py_REF_DEBUG
        p->moved_reftotal += Py_REFCNT(obj);
#endif
    }
    else {
        _PyParcel_ListAppend(&family->list, _Py_AS_GC(copy));
        family->n++;
        p->parcel->stats.copied++;
    }
    return res;
}

/* `record` is that of its class.  2: it has to be a record. */
int
_PyPacker_TakeWhole(packer *p, PyObject *obj, Py_ssize_t record, int owned,
                    _PyParcel_Word *word)
{
    _PyParcel_Family *family = get_family(p, Py_TYPE(obj), record);
    if (family == NULL) {
        return PyErr_Occurred() ? -1 : 2;
    }
    PyDictValues *values = _PyObject_InlineValues(obj);
    PyObject *copy = owned ? Py_NewRef(obj) : clone_instance(p, family, values);
    if (copy == NULL) {
        return -1;
    }
    int res = enter_values(p, family, obj, copy, owned);
    if (res < 0) {
        Py_DECREF(copy);
        return -1;
    }
#ifdef Py_REF_DEBUG
    // Without the reference that has just been made.
    p->moved_reftotal -= (owned != NOT_OWNED);
#endif
    *word = (_PyParcel_Word)copy;
    return res;
}

int
_PyPacker_EnterMember(packer *p, PyObject *obj, int owned, PyObject **slot)
{
    _PyParcel_Family *family = p->last_family;
    if (family == NULL || !Py_IS_TYPE(obj, family->local) || p->no_families
        || p->parcel->graph.runs_code || obj == p->stays
        || !_PyObject_InlineValues(obj)->valid || !stays_whole(obj, owned))
    {
        return 2;
    }
    if (owned) {
        return enter_values(p, family, obj, obj, owned);
    }
    PyObject *copy = clone_instance(p, family, _PyObject_InlineValues(obj));
    int res = copy != NULL ? enter_values(p, family, obj, copy, owned) : -1;
    if (res < 0) {
        Py_XDECREF(copy);
        return -1;
    }
    *slot = copy;
    return res;
}

void
_PyPacker_CommitFamilies(packer *p)
{
    _PyParcel_Family *family = p->parcel->graph.families;
    for (; family != NULL; family = family->next) {
        _PyParcel_ListMerge(&family->moved, &family->list);
        family->n += family->nmoved;
        p->parcel->stats.moved += family->nmoved;
    }
}

/* They let go of the sender's class. */
void
_PyPacker_LeaveFamilies(packer *p)
{
    _PyParcel_Family *family = p->parcel->graph.families;
    for (; family != NULL; family = family->next) {
        PyGC_Head *gc;
        FOR_EACH(gc, family) {
            PyObject *obj = _Py_FROM_GC(gc);
            if (Py_TYPE(obj) == family->local) {
                Py_SET_TYPE(obj, &parcel_instance);
                *family_of(obj) = family;
                // Not the last: see new_family().
                Py_DECREF(family->local);
            }
        }
        family->local = NULL;
    }
}

void
_PyPacker_UndoFamilies(packer *p)
{
    _PyParcel_Family *family = p->parcel->graph.families;
    for (; family != NULL; family = family->next) {
        _PyParcel_ListTrack(&family->moved, family->nmoved);
        family->nmoved = 0;
    }
    p->last_family = NULL;
}


/* --- Opening ----------------------------------------------------------------------- */

static int
has_name_at(PyDictKeysObject *keys, Py_ssize_t i, PyObject *name)
{
    return (i < keys->dk_nentries
            && _PyUnicode_Equal(DK_UNICODE_ENTRIES(keys)[i].me_key, name));
}

/* Let the table have these names, from the `first` on, at the places that they have in
   the family, if nobody else takes them. */
static int
add_names(PyTypeObject *type, const _PyParcel_Family *family,
          const _PyParcel_Word *names, Py_ssize_t first)
{
    PyObject *probe = type->tp_alloc(type, 0);
    if (probe == NULL) {
        return -1;
    }
    // Nobody has it.
    _PyGC_SET_FINALIZED(probe);
    int res = 0;
    for (Py_ssize_t i = first; res == 0 && i < family->nnames; i++) {
        PyObject *name = _PyParcel_CopyName(WORD_OBJECT(names[i]));
        if (name == NULL) {
            res = -1;
            break;
        }
        _PyUnicode_InternMortal(_PyInterpreterState_GET(), &name);
        res = _PyObject_StoreInstanceAttribute(probe, name, Py_None);
        Py_DECREF(name);
    }
    Py_DECREF(probe);
    return res;
}

int
_PyParcel_FamilyFits(_PyParcel_Home *home, const _PyParcel_Graph *g,
                     const _PyParcel_Family *family, PyTypeObject *type)
{
    const _PyParcel_Class *cls = _PyParcel_GetClass(home, type);
    if (cls == NULL) {
        return -1;
    }
    if (!cls->whole) {
        return 0;
    }
    PyDictKeysObject *keys = cached_keys(type);
    const _PyParcel_Word *names = g->words + family->names;
    Py_ssize_t there = Py_MIN(family->nnames, keys->dk_nentries);
    for (Py_ssize_t i = 0; i < family->nnames; i++) {
        if (i == there && add_names(type, family, names, i) < 0) {
            return -1;
        }
        if (!has_name_at(keys, i, WORD_OBJECT(names[i]))) {
            return 0;
        }
    }
    // F-2
    if (keys->dk_nentries > family->capacity) {
        return 0;
    }
    if (keys->dk_usable > family->capacity - keys->dk_nentries) {
        keys->dk_usable = family->capacity - keys->dk_nentries;
    }
    return 1;
}

/* Their type is `from`: a class of this interpreter's, or parcel_instance. */
static void
set_types(_PyParcel_Family *family, PyTypeObject *from, PyTypeObject *to)
{
    int heap = (to != &parcel_instance);
    PyGC_Head *gc;
    FOR_EACH(gc, family) {
        PyObject *obj = _Py_FROM_GC(gc);
        assert(Py_TYPE(obj) == from);
        *family_of(obj) = heap ? NULL : family;
        Py_SET_TYPE(obj, to);
        if (heap) {
            Py_INCREF(to);
        }
        else {
            Py_DECREF(from);
        }
    }
}

void
_PyParcel_GiveFamily(_PyParcel_Family *family, PyTypeObject *type)
{
    set_types(family, &parcel_instance, type);
}

void
_PyParcel_TakeBackFamily(_PyParcel_Family *family, PyTypeObject *type)
{
    set_types(family, type, &parcel_instance);
}


/* --- The end of those that nobody gets -------------------------------------------- */

/* They refer to each other, so none must go before all have lost what they have. */
void
_PyParcel_ClearFamilies(_PyParcel_Graph *g)
{
    PyGC_Head *gc;
    for (_PyParcel_Family *f = g->families; f != NULL; f = f->next) {
        FOR_EACH(gc, f) {
            Py_INCREF(_Py_FROM_GC(gc));
        }
    }
    for (_PyParcel_Family *f = g->families; f != NULL; f = f->next) {
        FOR_EACH(gc, f) {
            clear_values(_Py_FROM_GC(gc));
        }
    }
    for (_PyParcel_Family *f = g->families; f != NULL; f = f->next) {
        while (!_PyParcel_ListIsEmpty(&f->list)) {
            PyObject *obj = _Py_FROM_GC(_PyGCHead_NEXT(&f->list));
            unlink_instance(obj);
            Py_DECREF(obj);
        }
        f->n = 0;
    }
}

void
_PyParcel_FreeFamilies(_PyParcel_Graph *g)
{
    while (g->families != NULL) {
        _PyParcel_Family *family = g->families;
        g->families = family->next;
        PyMem_RawFree(family);
    }
}

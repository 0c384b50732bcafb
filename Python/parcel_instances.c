// Packing instances of Python classes.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


/* A str that the parcel has for this one. */
int
_PyPacker_TakeName(packer *p, PyObject *name, _PyParcel_Word *word)
{
    known *k = get_known(p, name);
    if (k == NULL) {
        return -1;
    }
    if (k->to == 0) {
        PyObject *copy = _PyParcel_InRuntime(name) ? name : copy_str(p, name);
        if (copy == NULL) {
            return -1;
        }
        k->to = (_PyParcel_Word)copy;
        *word = (_PyParcel_Word)copy;
        return 0;
    }
    *word = (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to));
    return 0;
}


void
_PyPacker_GetAttributes(PyObject *obj, const _PyParcel_Class *cls, attributes *a)
{
    memset(a, 0, sizeof(*a));
    if (!cls->has_dict) {
        return;
    }
    a->values = inline_values(obj);
    if (a->values != NULL) {
        a->keys = cached_keys(Py_TYPE(obj));
        a->order = get_insertion_order_array(a->values);
        a->n = a->values->size;
        return;
    }
    a->dict = _PyObject_GetManagedDict(obj);
    if (a->dict == NULL) {
        return;
    }
    a->keys = a->dict->ma_keys;
    if (a->dict->ma_values != NULL) {
        a->values = a->dict->ma_values;
        a->order = get_insertion_order_array(a->values);
        a->n = a->values->size;
    }
    else {
        a->n = a->keys->dk_nentries;
    }
}


/* Only a dict whose keys are all str, with nothing deleted, can be taken by hand. */
static int
attributes_are_simple(attributes *a)
{
    if (a->values != NULL || a->n == 0) {
        return 1;
    }
    return (DK_IS_UNICODE(a->keys) && a->dict->ma_used == a->n);
}


/* Is the shape that of this instance?  Its class is. */
static int
shape_fits(packer *p, const _PyParcel_Shape *shape, PyObject *obj,
           const _PyParcel_Class *cls, attributes *a, int nslots)
{
    if (shape->nattributes != a->n || shape->nslots != nslots) {
        return 0;
    }
    const _PyParcel_Word *names = &p->parcel->graph.words[shape->names];
    for (Py_ssize_t i = 0; i < a->n; i++) {
        PyObject *name = attribute_name(a, i);
        if ((_PyParcel_Word)name != names[i]) {
            known *k = find_known(p, name);
            if (k == NULL || k->to != names[i]) {
                return 0;
            }
        }
    }
    names += a->n;
    for (int i = 0; i < cls->nslots; i++) {
        if (*slot_of(obj, cls, i) != NULL) {
            known *k = find_known(p, cls->slot_names[i]);
            if ((_PyParcel_Word)cls->slot_names[i] != *names
                && (k == NULL || k->to != *names))
            {
                return 0;
            }
            names++;
        }
    }
    return 1;
}

/* A new shape.  The words of the names come first. */
static Py_ssize_t
add_shape(packer *p, PyObject *obj, const _PyParcel_Class *cls, attributes *a,
          int nslots, Py_ssize_t type)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    // A record with no steps owns the names.
    Py_ssize_t owner = _PyPacker_AddRecord(p, RECORD_NAMED, a->n + nslots);
    if (owner < 0 || GROW_GRAPH(p, shapes, nshapes) < 0) {
        return -1;
    }
    Py_ssize_t at = g->records[owner].first;
    for (Py_ssize_t i = 0; i < a->n; i++) {
        if (_PyPacker_TakeName(p, attribute_name(a, i), &g->words[at + i]) < 0) {
            return -1;
        }
    }
    Py_ssize_t next = at + a->n;
    for (int i = 0; i < cls->nslots; i++) {
        if (*slot_of(obj, cls, i) != NULL
            && _PyPacker_TakeName(p, cls->slot_names[i], &g->words[next++]) < 0)
        {
            return -1;
        }
    }
    g->shapes[g->nshapes] = (_PyParcel_Shape){type, at, (int)a->n, nslots};
    return g->nshapes++;
}

static Py_ssize_t
search_shape(packer *p, PyObject *obj, const _PyParcel_Class *cls, attributes *a,
             int nslots, Py_ssize_t type)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    Py_ssize_t oldest = Py_MAX(0, g->nshapes - 16);
    for (Py_ssize_t i = g->nshapes; --i >= oldest; ) {
        if (g->shapes[i].type == type
            && shape_fits(p, &g->shapes[i], obj, cls, a, nslots))
        {
            return i;
        }
    }
    return add_shape(p, obj, cls, a, nslots, type);
}

static Py_ssize_t
find_shape(packer *p, PyObject *obj, const _PyParcel_Class *cls, attributes *a,
           int nslots, Py_ssize_t type)
{
    // Inline values of the same keys in the same order have the same names.
    int comparable = (cls->nslots == 0 && a->order != NULL
                      && a->n <= SHARED_KEYS_MAX_SIZE);
    if (comparable && p->last_keys == a->keys && p->last_n == a->n
        && memcmp(p->last_order, a->order, a->n) == 0)
    {
        return p->last_shape;
    }
    Py_ssize_t shape = search_shape(p, obj, cls, a, nslots, type);
    p->last_shape = shape;
    p->last_keys = comparable && shape >= 0 ? a->keys : NULL;
    if (p->last_keys != NULL) {
        p->last_n = a->n;
        memcpy(p->last_order, a->order, a->n);
    }
    return shape;
}

/* It can be changed at any time.  Classes that say themselves how they are hashed and
   compared may be: that is found out when code can run. */
static int
is_dispatched(packer *p, PyTypeObject *type)
{
    if (Py_TYPE(type)->tp_hash != PyType_Type.tp_hash) {
        return 1;
    }
    PyObject *table = _PyParcel_DispatchTable(p->home);
    if (table == NULL) {
        return PyErr_Occurred() ? -1 : 0;
    }
    if (!PyDict_CheckExact(table)) {
        return 1;
    }
    return _PyDict_Contains_KnownHash(table, (PyObject *)type, _Py_HashPointer(type));
}

/* *simple is set if the instance can be taken by hand. */
int
_PyPacker_CheckSimple(packer *p, PyObject *obj, const _PyParcel_Class **cls,
                      attributes *a, int *simple)
{
    PyTypeObject *type = Py_TYPE(obj);
    *simple = 0;
    if (!(type->tp_flags & Py_TPFLAGS_HEAPTYPE)
        || type == p->home->interpreter_type)
    {
        return 0;
    }
    if (type != p->last_type) {
        *cls = _PyParcel_GetClass(p->home, type);
        if (*cls == NULL) {
            return -1;
        }
        if (!(*cls)->simple) {
            return 0;
        }
        // A class in the table that has the same hash could run code.
        _PyPacker_EndStretches(p);
        int dispatched = is_dispatched(p, type);
        if (dispatched != 0) {
            return dispatched < 0 ? -1 : 0;
        }
        p->last_type = type;
        p->last_class = *cls;
        p->last_class_record = -1;
        p->last_keys = NULL;
        p->last_family = NULL;
    }
    *cls = p->last_class;
    _PyPacker_GetAttributes(obj, *cls, a);
    *simple = attributes_are_simple(a);
    return 0;
}

static int
take_class(packer *p, PyTypeObject *type, Py_ssize_t *record)
{
    assert(type == p->last_type);
    if (p->last_class_record >= 0) {
        *record = p->last_class_record;
        return 0;
    }
    known *k = find_known(p, (PyObject *)type);
    _PyParcel_Word word = k != NULL ? k->to : 0;
    if (word == 0) {
        if (k != NULL && k->reduction != 0) {
            _PyParcel_Reduction *r = &p->reductions[k->reduction - 1].reduction;
            if (r->kind != _PyParcel_NAMED) {
                PyErr_Format(p->home->not_shareable_error,
                             "%N can't be found by its name", type);
                return -1;
            }
            if (_PyPacker_TakeNamed(p, (PyObject *)type, r->where, &word) < 0) {
                return -1;
            }
        }
        else if (_PyPacker_TakeByName(p, (PyObject *)type, &word) < 0) {
            return -1;
        }
    }
    *record = p->last_class_record = WORD_RECORD(word);
    return 0;
}

/* They are static in the base. */
static int
find_empty_keys(packer *p)
{
    PyObject *dict = PyDict_New();
    if (dict == NULL) {
        return -1;
    }
    p->empty_keys = ((PyDictObject *)dict)->ma_keys;
    Py_DECREF(dict);
    return 0;
}

int
_PyPacker_TakeInstance(packer *p, PyObject *obj, const _PyParcel_Class *cls,
                       attributes *a, int owned, _PyParcel_Word *word)
{
    Py_ssize_t type;
    if (take_class(p, Py_TYPE(obj), &type) < 0) {
        return -1;
    }
    if (_PyPacker_CanStayWhole(p, obj, cls, a, owned)) {
        int several = (Py_REFCNT(obj) > 1);
        int res = _PyPacker_TakeWhole(p, obj, type, owned, word);
        if ((res == 0 || res == 1) && several && remember(p, obj, *word) < 0) {
            Py_DECREF(WORD_OBJECT(*word));
            return -1;
        }
        if (res <= 1) {
            return res;
        }
    }
    int nslots = 0;
    for (int i = 0; i < cls->nslots; i++) {
        nslots += (*slot_of(obj, cls, i) != NULL);
    }
    Py_ssize_t shape = find_shape(p, obj, cls, a, nslots, type);
    if (shape < 0) {
        return -1;
    }
    Py_ssize_t n = a->n + nslots;
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_INSTANCE, n);
    if (record < 0) {
        return -1;
    }
    if (Py_REFCNT(obj) > 1) {
        // A cycle can lead back to it before it is built.
        if (remember(p, obj, RECORD_WORD(record)) < 0
            || _PyPacker_AddStep(p, OP_CREATE, record) < 0)
        {
            return -1;
        }
    }
    else if ((n == 0 || p->npending > 0)
             && _PyPacker_AddStep(p, OP_CREATE, record) < 0)
    {
        return -1;
    }
    if (owned && GROW(p->dissolved, p->ndissolved, p->dissolved_room) < 0) {
        return -1;
    }
    p->parcel->graph.records[record].arg = shape;
    frame *f = push_frame(p, FRAME_INSTANCE, owned, n);
    if (f == NULL) {
        return -1;
    }
    if (owned) {
        if (p->empty_keys == NULL && find_empty_keys(p) < 0) {
            return -1;
        }
        p->dissolved[p->ndissolved++] = obj;
    }
    f->to.object = obj;
    f->record = record;
    p->parcel->stats.rebuilt++;
    *word = RECORD_WORD(record);
    return 1;
}

int
_PyPacker_StepInstance(packer *p, frame *f)
{
    PyObject *obj = f->to.object;
    int owned = f->owned;
    const _PyParcel_Class *cls = Py_TYPE(obj) == p->last_type
        ? p->last_class : _PyParcel_GetClass(p->home, Py_TYPE(obj));
    if (cls == NULL) {
        return -1;
    }
    attributes a;
    _PyPacker_GetAttributes(obj, cls, &a);
    Py_ssize_t first = p->parcel->graph.records[f->record].first;
    Py_ssize_t i = f->i;
    int slot = 0;
    if (i > a.n) {
        // Slots without a value are not counted.
        for (Py_ssize_t seen = a.n; seen < i; slot++) {
            seen += (*slot_of(obj, cls, slot) != NULL);
        }
    }
    for (; i < f->n; i++) {
        PyObject *value;
        if (i < a.n) {
            value = attribute_value(&a, i);
        }
        else {
            while ((value = *slot_of(obj, cls, slot++)) == NULL) {
            }
        }
        f->i = i + 1;
        _PyParcel_Word word;
        int entered = take_quickly(p, value, owned, &word);
        if (entered >= 0) {
            entered = entered ? 0 : _PyPacker_Take(p, value, owned, &word);
        }
        if (entered < 0) {
            return -1;
        }
        p->parcel->graph.words[first + i] = word;
        if (owned && word != (_PyParcel_Word)value
            && _PyPacker_ReleaseLater(p, value) < 0)
        {
            return -1;
        }
        if (entered) {
            return 1;
        }
    }
    return f->n > 0 ? _PyPacker_AddBuild(p, f->record) : 0;
}

/* The dict of an instance that dies, if it looks at inline values, would get a copy
   of them first: that needs memory, and the base does not bear it if there is none.
   So it goes before. */
static void
clear_instance_dict(packer *p, PyObject *obj, PyDictObject *dict)
{
    PyDict_Clear((PyObject *)dict);
    if (dict->ma_values != NULL && dict->ma_values->embedded
        && Py_REFCNT(dict) == 1)
    {
        PyDictKeysObject *keys = dict->ma_keys;
        dict->ma_values = NULL;
        dict->ma_keys = p->empty_keys;
        _PyDictKeys_DecRef(keys);
        _PyObject_ManagedDictPointer(obj)->dict = NULL;
        Py_DECREF(dict);
    }
}

/* Take the values of an instance, which have references from the parcel. */
void
_PyPacker_Dissolve(packer *p, PyObject *obj)
{
    const _PyParcel_Class *cls = _PyParcel_GetClass(p->home, Py_TYPE(obj));
    assert(cls != NULL);            // it has been there before
    if (cls->has_dict) {
        PyDictValues *values = inline_values(obj);
        PyDictObject *dict = _PyObject_GetManagedDict(obj);
        if (dict != NULL) {
            clear_instance_dict(p, obj, dict);
        }
        else if (values != NULL) {
            uint8_t *order = get_insertion_order_array(values);
            for (int i = 0; i < values->size; i++) {
                Py_CLEAR(values->values[order[i]]);
            }
            values->size = 0;
        }
    }
    for (int i = 0; i < cls->nslots; i++) {
        Py_CLEAR(*slot_of(obj, cls, i));
    }
    if (_PyObject_IS_GC(obj)) {
        // Its __del__ is for the one that the receiver makes.
        _PyGC_SET_FINALIZED(obj);
    }
}

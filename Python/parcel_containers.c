// Packing: entering containers, which are moved or cloned; parcel_walk.c goes on
// in them.  See pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"


static int
go_on_from(packer *p, PyObject **from, PyObject **to, Py_ssize_t i, Py_ssize_t n, int shift,
           int owned)
{
    frame *f = push_frame(p, FRAME_ITEMS, owned, n);
    if (f == NULL) {
        return -1;
    }
    f->i = i;
    f->from = from;
    f->to.slots = to;
    f->shift = (uint8_t)shift;
    return 1;
}

/* The same, when what is left of some of these items has frames from the one at `base` on:
   they come first, as in a walk that had gone into them from here. */
static int
go_on_after(packer *p, Py_ssize_t base, PyObject **from, PyObject **to, Py_ssize_t i,
            Py_ssize_t n, int shift, int owned)
{
    if (i == n) {
        return 1;
    }
    if (go_on_from(p, from, to, i, n, shift, owned) < 0) {
        return -1;
    }
    frame rest = p->frames[p->depth - 1];
    memmove(&p->frames[base + 1], &p->frames[base], (p->depth - 1 - base) * sizeof(frame));
    p->frames[base] = rest;
    return 1;
}

/* A list or tuple that is copied item by item: the empty tuple is everybody's. */
static inline int
is_sequence(PyObject *obj)
{
    return PyList_CheckExact(obj) || (PyTuple_CheckExact(obj) && Py_SIZE(obj) > 0);
}

static inline PyObject **
items_of(PyObject *sequence)
{
    return (PyList_CheckExact(sequence) ? ((PyListObject *)sequence)->ob_item
            : ((PyTupleObject *)sequence)->ob_item);
}

// Dicts in dicts that need no frame of their own.
#define MAX_NESTED 3

static int enter_owned_dict(packer *p, PyDictObject *dict, int owned, int nested);
static int enter_copied_dict(packer *p, PyDictObject *dict, PyObject **slot, int nested);

/* Items are done here as long as they refer to nothing, which is often to the end, and so
   are lists and tuples of such items, and dicts of them, one in another, `nested` times.
   The first item that is not gets a frame, and what is left of its container another. */
static inline int
enter_in_place(packer *p, PyObject **items, Py_ssize_t n, int shift, int owned, int nested)
{
    Py_ssize_t i = 0, base = p->depth;
    tally t = {0};
    while ((i = skip_staying(items, i, n, shift, &t)) < n) {
        PyObject *obj = items[i << shift];
        int res = 2, kind = OF_OTHERS;
        if (Py_REFCNT(obj) == 1 && is_sequence(obj)) {
            PyObject **inner = items_of(obj);
            Py_ssize_t ninner = Py_SIZE(obj);
            Py_ssize_t j = skip_staying(inner, 0, ninner, 0, &t);
            res = j == ninner ? 0 : go_on_from(p, inner, inner, j, ninner, 0, owned);
        }
        else if (Py_REFCNT(obj) == 1 && nested > 0 && PyDict_CheckExact(obj)) {
            res = enter_owned_dict(p, (PyDictObject *)obj, owned, nested - 1);
            kind = OF_DICTS;
        }
        if (res < 0) {
            return -1;
        }
        if (res < 2) {
            link_moved(p, obj, kind);
            i++;
        }
        if (res > 0) {
            add_tally(p, &t);
            return go_on_after(p, base, items, items, i, n, shift, owned);
        }
    }
    add_tally(p, &t);
    return 0;
}

static PyObject *
new_tuple(packer *p, Py_ssize_t n)
{
    PyObject *tuple = PyTuple_New(n);
    if (tuple != NULL) {
        note_copied(p, n * sizeof(PyObject *));
    }
    return tuple;
}

/* As PyList_New() and PyTuple_New(). */
static inline PyObject *
new_sequence(packer *p, PyObject *like, Py_ssize_t n)
{
    if (!PyList_CheckExact(like)) {
        return new_tuple(p, n);
    }
    PyListObject *list = alloc_container(p, sizeof(PyListObject));
    if (list == NULL) {
        return NULL;
    }
    init_object((PyObject *)list, &PyList_Type);
    list->ob_item = n > 0 ? PyMem_Calloc(n, sizeof(PyObject *)) : NULL;
    note_filled(p, list->ob_item, n * sizeof(PyObject *));
    Py_SET_SIZE(list, list->ob_item != NULL ? n : 0);
    list->allocated = Py_SIZE(list);
    if (Py_SIZE(list) < n) {
        Py_DECREF(list);
        return PyErr_NoMemory();
    }
    return (PyObject *)list;
}

/* A copy of a list or tuple that nothing else refers to, and of its items.  If that fails,
   *slot is its container's to release.  As _PyPacker_EnterItems(). */
static inline int
enter_copied_sequence(packer *p, PyObject *obj, PyObject **slot, tally *t)
{
    Py_ssize_t n = Py_SIZE(obj);
    PyObject *copy = new_sequence(p, obj, n);
    if (copy == NULL) {
        return -1;
    }
    link_plain(p, copy);
    *slot = copy;
    PyObject **from = items_of(obj), **to = items_of(copy);
    Py_ssize_t i = copy_items(p, from, to, 0, n, 0, t);
    return (i < 0 ? -1 : i == n ? 0 : go_on_from(p, from, to, i, n, 0, NOT_OWNED));
}

/* As enter_in_place(), for copies. */
static int
enter_copies(packer *p, PyObject **from, PyObject **to, Py_ssize_t n, int shift, int nested)
{
    Py_ssize_t i = 0, base = p->depth;
    tally t = {0};
    while ((i = copy_items(p, from, to, i, n, shift, &t)) != n) {
        if (i < 0) {
            return -1;
        }
        PyObject *obj = from[i << shift];
        PyObject **slot = &to[i << shift];
        int res = 2;
        if (Py_REFCNT(obj) == 1 && is_sequence(obj)) {
            res = enter_copied_sequence(p, obj, slot, &t);
        }
        else if (Py_REFCNT(obj) == 1 && nested > 0 && PyDict_CheckExact(obj)) {
            res = enter_copied_dict(p, (PyDictObject *)obj, slot, nested - 1);
        }
        if (res < 0) {
            return -1;
        }
        i += (res < 2);
        if (res > 0) {
            add_tally(p, &t);
            return go_on_after(p, base, from, to, i, n, shift, NOT_OWNED);
        }
    }
    add_tally(p, &t);
    return 0;
}

int
_PyPacker_EnterItems(packer *p, PyObject **from, PyObject **to, Py_ssize_t n, int shift,
                     int owned)
{
    if (owned) {
        assert(from == to);
        return enter_in_place(p, from, n, shift, owned, 0);
    }
    tally t = {0};
    Py_ssize_t i = p->dup == NULL ? copy_items(p, from, to, 0, n, shift, &t) : 0;
    if (i < 0) {
        return -1;
    }
    add_tally(p, &t);
    return i == n ? 0 : go_on_from(p, from, to, i, n, shift, owned);
}

int
_PyPacker_TakeList(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    Py_ssize_t n = PyList_GET_SIZE(obj);
    PyObject **from = ((PyListObject *)obj)->ob_item;
    *copy = owned ? Py_NewRef(obj) : new_sequence(p, obj, n);
    if (*copy == NULL) {
        return -1;
    }
    int res = _PyPacker_EnterItems(p, from, ((PyListObject *)*copy)->ob_item, n, 0,
                                   owned);
    if (res < 0) {
        Py_CLEAR(*copy);
    }
    return res;
}

int
_PyPacker_TakeTuple(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    Py_ssize_t n = PyTuple_GET_SIZE(obj);
    *copy = owned ? Py_NewRef(obj) : new_tuple(p, n);
    if (*copy == NULL) {
        return -1;
    }
    int res = _PyPacker_EnterItems(p, ((PyTupleObject *)obj)->ob_item,
                                   ((PyTupleObject *)*copy)->ob_item, n, 0, owned);
    if (res < 0) {
        Py_CLEAR(*copy);
    }
    return res;
}

int
_PyPacker_TakeSlice(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    if (owned) {
        *copy = Py_NewRef(obj);
    }
    else {
        *copy = PySlice_New(NULL, NULL, NULL);
        if (*copy == NULL) {
            return -1;
        }
    }
    // start, stop and step stand one behind the other.
    frame *f = push_frame(p, FRAME_ITEMS, owned, 3);
    if (f == NULL) {
        Py_CLEAR(*copy);
        return -1;
    }
    f->from = &((PySliceObject *)obj)->start;
    f->to.slots = &((PySliceObject *)*copy)->start;
    return 1;
}

/* Does it hash alike everywhere, and does comparing it need no code? */
static int
is_plain_key(PyObject *key)
{
    if (is_atom_type(Py_TYPE(key)) || key == Py_None || PyBool_Check(key)) {
        return 1;
    }
    if (!PyTuple_CheckExact(key)) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(key); i++) {
        PyObject *item = PyTuple_GET_ITEM(key, i);
        if (!is_atom_type(Py_TYPE(item)) && !PyBool_Check(item)) {
            // None hashes alike too, but so few tuples have it...
            if (item != Py_None) {
                return 0;
            }
        }
    }
    return 1;
}

static int
dict_has_plain_keys(PyDictObject *dict)
{
    PyDictKeysObject *keys = dict->ma_keys;
    if (DK_IS_UNICODE(keys)) {
        return 1;
    }
    PyDictKeyEntry *entries = DK_ENTRIES(keys);
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
        if (entries[i].me_value != NULL && !is_plain_key(entries[i].me_key)) {
            return 0;
        }
    }
    return 1;
}

int
_PyPacker_HasPlainMembers(PySetObject *set)
{
    for (Py_ssize_t i = 0; i <= set->mask; i++) {
        setentry *entry = &set->table[i];
        read_member(set->table, i, set->mask);
        if (entry->key != NULL && entry->hash != -1
            && !is_plain_key(entry->key))
        {
            return 0;
        }
    }
    return 1;
}

/* References to what goes into a container late, or into a frozenset, as the
   words of a record. */
static int
enter_words(packer *p, Py_ssize_t record, Py_ssize_t first, Py_ssize_t n,
            PyObject *container)
{
    frame *f = push_frame(p, FRAME_WORDS, 0, n);
    if (f == NULL) {
        return -1;
    }
    f->to.words = p->parcel->graph.records[record].first + first;
    f->of.dict = (PyDictObject *)container;
    f->record = record;
    return 1;
}

/* `copy` is new and empty. */
static int
take_late(packer *p, PyObject *obj, Py_ssize_t n, PyObject *copy)
{
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_LATE, 1 + n);
    if (record < 0) {
        return -1;
    }
    _PyParcel_Graph *g = &p->parcel->graph;
    g->words[g->records[record].first] = (_PyParcel_Word)Py_NewRef(copy);
    g->runs_code = 1;
    return enter_words(p, record, 1, n, obj);
}

/* All but the entries. */
static PyDictKeysObject *
clone_keys(packer *p, PyDictKeysObject *keys)
{
    size_t size = _PyDict_KeysSize(keys);
    PyDictKeysObject *clone = PyMem_Malloc(size);
    if (clone == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    note_copied(p, size);
    memcpy(clone, keys, (char *)_DK_ENTRIES(keys) - (char *)keys);
    clone->dk_refcnt = 1;
    clone->dk_version = 0;
    // Entries count when they are there: see step_dict().
    clone->dk_nentries = 0;
#ifdef Py_REF_DEBUG
    _Py_AddRefTotal(_PyThreadState_GET(), 1);
#endif
    return clone;
}

static int
dict_can_move(PyDictObject *dict)
{
    return (dict->ma_values == NULL
            && (dict->ma_version_tag & DICT_WATCHER_AND_MODIFICATION_MASK) == 0
            && (dict->ma_keys->dk_refcnt == 1 || dict->ma_used == 0));
}

/* An owned container that has to be copied all the same. */
int
_PyPacker_CanMove(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyDict_Type) {
        PyDictObject *dict = (PyDictObject *)obj;
        return dict_can_move(dict) && dict_has_plain_keys(dict);
    }
    if (type == &PySet_Type || type == &PyFrozenSet_Type) {
        PySetObject *set = (PySetObject *)obj;
        return set->weakreflist == NULL && _PyPacker_HasPlainMembers(set);
    }
    return 1;
}

/* A dict with values of its own and a table that others share, or one that has
   holes: what a new dict is after the items have been inserted.  No code runs,
   since all keys are plain. */
static PyObject *
unsplit(PyObject *obj)
{
    PyObject *copy = PyDict_New();
    if (copy != NULL && PyDict_Update(copy, obj) < 0) {
        Py_CLEAR(copy);
    }
    return copy;
}

/* The keys of a moved dict are the receiver's. */
static inline void
leave_keys(packer *p, PyDictKeysObject *keys)
{
    if (keys->dk_refcnt == 1) {
        // Versions are each interpreter's.
        keys->dk_version = 0;
#ifdef Py_REF_DEBUG
        p->moved_reftotal++;
#endif
    }
}

/* One that may be like many others: its keys are done at once, and then it is an array
   of values.  2: it is not. */
static int
enter_owned_dict(packer *p, PyDictObject *dict, int owned, int nested)
{
    PyDictKeysObject *keys = dict->ma_keys;
    Py_ssize_t n = keys->dk_nentries;
    if (n > MAX_ROW || !DK_IS_UNICODE(keys) || !dict_can_move(dict)) {
        return 2;
    }
    leave_keys(p, keys);
    if (n == 0) {
        return 0;
    }
    PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
    if (_PyPacker_SettleKeys(p, entries, n, owned) < 0) {
        return -1;
    }
    return enter_in_place(p, &entries->me_value, n, 1, owned, nested);
}

/* As PyDict_New(), but that its keys are to come: until then it can only be released. */
static inline PyDictObject *
new_dict(packer *p)
{
    PyDictObject *dict = alloc_container(p, sizeof(PyDictObject));
    if (dict == NULL) {
        return NULL;
    }
    init_object((PyObject *)dict, &PyDict_Type);
    dict->ma_keys = NULL;
    dict->ma_values = NULL;
    dict->ma_used = 0;
    dict->ma_version_tag = DICT_NEXT_VERSION(_PyInterpreterState_GET());
    return dict;
}

/* A copy of such a dict, with its keys; the n values are to be done.  If it fails, the copy
   is the caller's to release.  2: it is not such a dict. */
static int
clone_dict(packer *p, PyDictObject *dict, PyObject **copy)
{
    PyDictKeysObject *keys = dict->ma_keys;
    Py_ssize_t n = keys->dk_nentries;
    if (n > MAX_ROW || dict->ma_used != n || dict->ma_values != NULL
        || !DK_IS_UNICODE(keys))
    {
        return 2;
    }
    if (n == 0) {
        *copy = PyDict_New();
        return *copy != NULL ? 0 : -1;
    }
    PyDictObject *new = new_dict(p);
    *copy = (PyObject *)new;
    PyDictKeysObject *clone = new != NULL ? clone_keys(p, keys) : NULL;
    if (clone == NULL) {
        return -1;
    }
    new->ma_keys = clone;
    new->ma_used = n;
    clone->dk_nentries = n;
    PyDictUnicodeEntry *from = DK_UNICODE_ENTRIES(keys);
    PyDictUnicodeEntry *to = DK_UNICODE_ENTRIES(clone);
    return _PyPacker_CopyKeys(p, from, to, n);
}

/* Where the value of the first entry is. */
static inline PyObject **
values_of(PyObject *dict)
{
    return &DK_UNICODE_ENTRIES(((PyDictObject *)dict)->ma_keys)->me_value;
}

/* A copy of one that nothing else refers to.  As enter_copied_sequence(), or 2: it is not
   such a dict. */
static int
enter_copied_dict(packer *p, PyDictObject *dict, PyObject **slot, int nested)
{
    PyObject *copy = NULL;
    int res = clone_dict(p, dict, &copy);
    if (res != 0) {
        Py_XDECREF(copy);
        return res;
    }
    link_plain(p, copy);
    *slot = copy;
    return enter_copies(p, values_of((PyObject *)dict), values_of(copy), dict->ma_used, 1,
                        nested);
}

int
_PyPacker_TakeDict(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    PyDictObject *dict = (PyDictObject *)obj;
    if (dict->ma_used > 0 && !dict_has_plain_keys(dict)) {
        *copy = PyDict_New();
        if (*copy == NULL || take_late(p, obj, 2 * dict->ma_used, *copy) < 0) {
            Py_CLEAR(*copy);
            return -1;
        }
        return 1;
    }
    PyDictKeysObject *keys = dict->ma_keys;
    int res = 2;
    if (owned) {
        *copy = Py_NewRef(obj);
        res = enter_owned_dict(p, dict, owned, 0);
    }
    else if (dict->ma_used == 0) {
        *copy = PyDict_New();
        return *copy != NULL ? 0 : -1;
    }
    else if (p->dup == NULL) {
        res = clone_dict(p, dict, copy);
        if (res == 0) {
            res = _PyPacker_EnterItems(p, values_of(obj), values_of(*copy), dict->ma_used,
                                       1, NOT_OWNED);
        }
    }
    if (res < 0) {
        Py_CLEAR(*copy);
    }
    if (res < 2) {
        return res;
    }
    if (owned) {
        leave_keys(p, keys);
    }
    else if (dict->ma_values != NULL
             || keys->dk_nentries > 2 * dict->ma_used + 8)
    {
        // Its own references are replaced by the parcel's, in place.
        *copy = unsplit(obj);
        if (*copy == NULL) {
            return -1;
        }
        frame *f = push_frame(p, FRAME_DICT, 0,
                              2 * ((PyDictObject *)*copy)->ma_keys->dk_nentries);
        if (f == NULL) {
            Py_CLEAR(*copy);
            return -1;
        }
        f->of.dict = (PyDictObject *)*copy;
        f->to.object = *copy;
        f->record = 0;              // owned by the walk: see step_dict()
        return 1;
    }
    else {
        *copy = PyDict_New();
        if (*copy == NULL) {
            return -1;
        }
        PyDictKeysObject *clone = clone_keys(p, keys);
        if (clone == NULL) {
            Py_CLEAR(*copy);
            return -1;
        }
        // The empty keys of a new dict are nobody's.
        ((PyDictObject *)*copy)->ma_keys = clone;
    }
    frame *f = push_frame(p, FRAME_DICT, owned, 2 * keys->dk_nentries);
    if (f == NULL) {
        Py_CLEAR(*copy);
        return -1;
    }
    f->of.dict = dict;
    f->to.object = *copy;
    return 1;
}

static Py_NO_INLINE int
enter_owned_sequence(packer *p, PyObject *obj, int owned)
{
    int res = enter_in_place(p, items_of(obj), Py_SIZE(obj), 0, owned, 0);
    if (res >= 0) {
        link_moved(p, obj, OF_OTHERS);
    }
    return res;
}

int
_PyPacker_EnterOwned(packer *p, PyObject *obj, int owned)
{
    assert(Py_REFCNT(obj) == 1 && owned);
    if (PyDict_CheckExact(obj)) {
        int res = enter_owned_dict(p, (PyDictObject *)obj, owned, MAX_NESTED);
        if (res == 0 || res == 1) {
            link_moved(p, obj, OF_DICTS);
        }
        return res;
    }
    if (is_sequence(obj)) {
        return enter_owned_sequence(p, obj, owned);
    }
    return _PyPacker_EnterMember(p, obj, owned, NULL);
}

int
_PyPacker_EnterCopied(packer *p, PyObject *obj, PyObject **slot)
{
    if (PyDict_CheckExact(obj)) {
        return enter_copied_dict(p, (PyDictObject *)obj, slot, MAX_NESTED);
    }
    if (is_sequence(obj)) {
        tally t = {0};
        int res = enter_copied_sequence(p, obj, slot, &t);
        add_tally(p, &t);
        return res;
    }
    return _PyPacker_EnterMember(p, obj, NOT_OWNED, slot);
}

int
_PyPacker_TakeFrozenset(packer *p, PyObject *obj, _PyParcel_Word *word)
{
    Py_ssize_t n = PySet_GET_SIZE(obj);
    Py_ssize_t record = _PyPacker_AddRecord(p, RECORD_FROZENSET, n);
    if (record < 0) {
        return -1;
    }
    *word = RECORD_WORD(record);
    p->parcel->stats.rebuilt++;
    p->parcel->graph.runs_code = 1;
    p->npending++;
    return enter_words(p, record, 0, n, obj);
}

static PyObject *
clone_set(packer *p, PySetObject *set)
{
    PyObject *obj = Py_IS_TYPE(set, &PyFrozenSet_Type) ? PyFrozenSet_New(NULL)
                                                       : PySet_New(NULL);
    if (obj == NULL) {
        return NULL;
    }
    PySetObject *copy = (PySetObject *)obj;
    if (set->mask >= PySet_MINSIZE) {
        setentry *table = PyMem_Calloc(set->mask + 1, sizeof(setentry));
        if (table == NULL) {
            Py_DECREF(obj);
            PyErr_NoMemory();
            return NULL;
        }
        note_copied(p, (set->mask + 1) * sizeof(setentry));
        copy->table = table;
        copy->mask = set->mask;
    }
    // Members are there when they are there: see step_set().
    copy->hash = set->hash;
    return obj;
}

int
_PyPacker_TakeSet(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    PySetObject *set = (PySetObject *)obj;
    // An owned one has: see _PyPacker_CanMove().
    if (!owned && !_PyPacker_HasPlainMembers(set)) {
        assert(PySet_CheckExact(obj));
        *copy = PySet_New(NULL);
        if (*copy == NULL || take_late(p, obj, set->used, *copy) < 0) {
            Py_CLEAR(*copy);
            return -1;
        }
        return 1;
    }
    *copy = owned ? Py_NewRef(obj) : clone_set(p, set);
    if (*copy == NULL) {
        return -1;
    }
    frame *f = push_frame(p, FRAME_SET, owned, set->mask + 1);
    if (f == NULL) {
        Py_CLEAR(*copy);
        return -1;
    }
    f->of.set = set;
    f->to.object = *copy;
    return 1;
}

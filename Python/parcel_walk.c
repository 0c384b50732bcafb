// Packing: what is to be done with an object, and going on in the containers that
// have been entered.  See parcel_pack.c and pycore_parcel_pack.h.

#include "Python.h"
#include "pycore_parcel_pack.h"
#include "pycore_setobject.h"     // _PySet_NextEntry()


/* --- Any object ----------------------------------------------------------- */

/* What is not a plain object of an exact builtin type. */
int
_PyPacker_TakeOther(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    known *k = find_known(p, obj);
    if (k != NULL && k->to != 0) {
        *word = (WORD_IS_RECORD(k->to) ? k->to
                 : (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to)));
        return 0;
    }
    if (p->dup != NULL && _PyParcel_IsOfFamily(obj)) {
        return _PyPacker_TakeApart(p, obj, word);
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (_PyPacker_CheckSimple(p, obj, &cls, &a, &simple) < 0) {
        return -1;
    }
    if (simple) {
        return _PyPacker_TakeInstance(p, obj, cls, &a, owned, word);
    }
    _PyPacker_EndStretches(p);
    int kind = _PyParcel_HandleKind(p->home, obj);
    if (kind >= 0) {
        return _PyPacker_TakeHandle(p, obj, kind, word);
    }
    if (_PyParcel_IsArray(p->home, obj)) {
        return _PyPacker_TakeArray(p, obj, owned, word);
    }
    if (is_named(obj) && _PyPacker_FindReduction(p, obj) < 0) {
        return _PyPacker_TakeByName(p, obj, word);
    }
    Py_ssize_t reduction = _PyPacker_GetReduction(p, obj);
    return reduction < 0 ? -1 : _PyPacker_TakeReduction(p, obj, reduction, word);
}

/* Is this container, which something owned refers to, owned too?  -1: it has to be
   found out, or it can't be moved and must. */
static int
is_owned(packer *p, PyObject *obj)
{
    known *k = NULL;
    if (Py_REFCNT(obj) > 1) {
        k = find_known(p, obj);
        if (k == NULL || !k->counted) {
            if (!p->isolated) {
                p->needs_isolation = 1;
                return -1;
            }
            return 0;
        }
        return !k->outside;
    }
    return 1;
}

/* The heart: see "Entering containers". */
int
_PyPacker_Take(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    PyTypeObject *type = Py_TYPE(obj);
    int which = (type == &PyList_Type ? 1 : type == &PyDict_Type ? 2
                 : type == &PyTuple_Type ? 3 : 0);
    if (which == 0 && is_atom_type(type)) {
        if (_PyParcel_InRuntime(obj)) {
            p->parcel->stats.shared++;
            *word = (_PyParcel_Word)obj;
            return 0;
        }
        if (owned && Py_REFCNT(obj) == 1 && atom_can_move(obj)) {
            count_moved_atom(p, obj);
            *word = (_PyParcel_Word)Py_NewRef(obj);
            return 0;
        }
        return _PyPacker_TakeAtom(p, obj, owned, word);
    }
    if (which == 0) {
        which = (type == &PySet_Type || type == &PyFrozenSet_Type ? 4
                 : type == &PySlice_Type ? 5 : 0);
    }
    if (which == 0) {
        if (_PyParcel_IsProcessWide(obj)) {
            p->parcel->stats.shared++;
            *word = (_PyParcel_Word)obj;
            return 0;
        }
        if (type == p->home->move_type && type != NULL) {
            return _PyPacker_TakeMarker(p, obj, word);
        }
        if (p->ngivens > 0) {
            known *k = find_known(p, obj);
            if (k != NULL && k->to == 0 && k->given != 0 && !k->taking) {
                return _PyPacker_TakeGiven(p, k->given - 1, word);
            }
        }
        if (owned && !is_named(obj)) {
            known *k = Py_REFCNT(obj) > 1 ? find_known(p, obj) : NULL;
            if (k == NULL || k->to == 0) {
                int isolated = is_owned(p, obj);
                if (isolated < 0) {
                    return -1;
                }
                if (!isolated) {
                    owned = NOT_OWNED;
                }
            }
        }
        return _PyPacker_TakeOther(p, obj, owned, word);
    }
    if (_PyParcel_InRuntime(obj)) {
        p->parcel->stats.shared++;
        *word = (_PyParcel_Word)obj;
        return 0;
    }
    int several = (Py_REFCNT(obj) > 1);
    if (several) {
        known *k = find_known(p, obj);
        if (k != NULL && k->to != 0) {
            *word = (WORD_IS_RECORD(k->to) ? k->to
                     : (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to)));
            return 0;
        }
        if (k != NULL && k->given != 0 && !k->taking) {
            return _PyPacker_TakeGiven(p, k->given - 1, word);
        }
    }
    if (owned) {
        int isolated = is_owned(p, obj);
        if (isolated < 0) {
            return -1;
        }
        if (!isolated || !_PyPacker_CanMove(obj)) {
            owned = NOT_OWNED;
        }
    }
    PyObject *copy = NULL;
    int res;
    switch (which) {
    case 1:
        res = _PyPacker_TakeList(p, obj, owned, &copy);
        break;
    case 2:
        res = _PyPacker_TakeDict(p, obj, owned, &copy);
        break;
    case 3:
        res = _PyPacker_TakeTuple(p, obj, owned, &copy);
        break;
    case 4:
        if (type == &PyFrozenSet_Type
            && !_PyPacker_HasPlainMembers((PySetObject *)obj))
        {
            res = _PyPacker_TakeFrozenset(p, obj, word);
            if (res >= 0 && several && remember(p, obj, *word) < 0) {
                return -1;
            }
            return res;
        }
        res = _PyPacker_TakeSet(p, obj, owned, &copy);
        break;
    default:
        res = _PyPacker_TakeSlice(p, obj, owned, &copy);
        break;
    }
    if (res < 0) {
        return -1;
    }
    *word = (_PyParcel_Word)copy;
    if (owned != NOT_OWNED) {
        // Without the reference that the taker made.
        assert(Py_REFCNT(obj) > 1);
        Py_DECREF(obj);
        link_moved(p, obj, which == 2 ? OF_DICTS : OF_OTHERS);
        Py_INCREF(obj);
    }
    else if (!_Py_IsImmortal(copy)) {
        link_plain(p, copy);
    }
    if (several && remember(p, obj, *word) < 0) {
        Py_DECREF(copy);
        return -1;
    }
    return res;
}


/* --- Going on in containers ----------------------------------------------- */

/* An owned object that does not go itself is released at the end, or is again its
   owner's if all is undone. */
int
_PyPacker_ReleaseLater(packer *p, PyObject *obj)
{
    if (GROW(p->changes, p->nchanges, p->changes_room) < 0) {
        return -1;
    }
    p->changes[p->nchanges++] = (change){NULL, Py_NewRef(obj)};
    return 0;
}


/* What has been taken for the child `old` of a container comes into its slot.  In
   place, a child that stands for itself stays. */
static inline int
store(packer *p, PyObject **slot, PyObject *old, frame *f, _PyParcel_Word word)
{
    PyObject *obj = WORD_IS_RECORD(word) ? Py_None : WORD_OBJECT(word);
    if (f->in_place) {
        if (replace_in_place(p, slot, old, obj) < 0) {
            return -1;
        }
    }
    else {
        if (f->owned && obj != old && _PyPacker_ReleaseLater(p, old) < 0) {
            Py_DECREF(obj);
            return -1;
        }
        *slot = obj;
    }
    return WORD_IS_RECORD(word) ? _PyPacker_AddHole(p, slot, WORD_RECORD(word)) : 0;
}

/* A container that nothing else refers to, if it is simple.  As
   _PyPacker_EnterOwned(). */
static inline int
enter_quickly(packer *p, PyObject *obj, PyObject **slot, int owned, int in_place)
{
    if (Py_REFCNT(obj) != 1) {
        return 2;
    }
    return (in_place ? _PyPacker_EnterOwned(p, obj, owned)
            : owned || p->dup != NULL ? 2
            : _PyPacker_EnterCopied(p, obj, slot));
}

/* Any item.  1: it has been entered; 0: done. */
static int
take_item(packer *p, frame *f, PyObject **from, PyObject **to)
{
    Py_ssize_t at = f - p->frames;
    PyObject *obj = *from;
    _PyParcel_Word word;
    int entered = TAKE_CHILD(p, from, f->owned, word);
    // The frames can have moved.
    f = &p->frames[at];
    if (entered < 0
        || (!entered && f->arguments && _PyPacker_CheckMade(p, obj, word) < 0)
        || store(p, to, obj, f, word) < 0)
    {
        return -1;
    }
    return entered;
}

/* A value that only a reduced object and the list that shows its content have: it
   will not be met again.  0: copied; 2: it is none. */
static int
copy_mirrored(packer *p, frame *f, PyObject **from, PyObject **to, Py_ssize_t i)
{
    int twice = (f->mirrored == 2 && (i & 1) == 0);
    int res = Py_REFCNT(*from) == 2 + twice ? copy_common(p, *from, to) : 0;
    if (res > 0) {
        p->parcel->stats.copied++;
    }
    return res > 0 ? 0 : res == 0 ? 2 : -1;
}

/* Containers that come later are read ahead: what they look like, then what they have,
   then the values of dicts.  It must be inline: gcc 12 takes a function that does nothing
   else for one without effects, and drops the calls. */
#define AHEAD 8
#define READ_VALUES 8

static inline Py_ALWAYS_INLINE void
read_ahead(PyObject **items, Py_ssize_t i, Py_ssize_t n, int shift)
{
#ifdef __GNUC__
    if (i + AHEAD >= n) {
        return;
    }
    PyObject *later = items[(i + AHEAD) << shift];
    __builtin_prefetch(later);
    __builtin_prefetch((void *)((uintptr_t)later - sizeof(PyGC_Head)));
    PyObject *soon = items[(i + AHEAD / 2) << shift];
    if (soon != NULL && PyDict_CheckExact(soon)) {
        char *keys = (char *)((PyDictObject *)soon)->ma_keys;
        __builtin_prefetch(keys);
        __builtin_prefetch(keys + 64);
    }
    else if (soon != NULL && PyList_CheckExact(soon)) {
        __builtin_prefetch(((PyListObject *)soon)->ob_item);
    }
    PyObject *next = items[(i + AHEAD / 4) << shift];
    if (next != NULL && PyDict_CheckExact(next)
        && DK_IS_UNICODE(((PyDictObject *)next)->ma_keys))
    {
        PyDictKeysObject *keys = ((PyDictObject *)next)->ma_keys;
        PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
        Py_ssize_t nvalues = Py_MIN(keys->dk_nentries, READ_VALUES);
        for (Py_ssize_t v = 0; v < nvalues; v++) {
            __builtin_prefetch(entries[v].me_value);
        }
    }
#endif
}

/* How long before its end whoever waits for the parcel is told: in a virtual machine it
   takes a core that long to wake up (limits.py, `wake`). */
#define NEAR_NS 80000

/* Item i of n of the root is next.  The others are taken to be like those before. */
static Py_NO_INLINE void
come_near(packer *p, Py_ssize_t i, Py_ssize_t n)
{
    PyTime_t now;
    (void)PyTime_MonotonicRaw(&now);
    if (p->began_at == 0) {
        p->began = now;
        p->began_at = i;
        p->near_at = 2 * i;
        return;
    }
    double each = (double)(now - p->began) / (double)(i - p->began_at);
    double early = each * (double)(n - i) - NEAR_NS;
    if (early <= 0) {
        p->near_at = PY_SSIZE_T_MAX;
        (void)_PyParcel_QueueExpect(p->queue);
        return;
    }
    // Not too late if those that follow take longer.
    p->near_at = i + 1 + (Py_ssize_t)(early / each / 2);
}

static int
step_items(packer *p, frame *f)
{
    Py_ssize_t at = f - p->frames;
    Py_ssize_t n = f->n;
    int shift = f->shift, entered = 0;
    tally t = {0};
    // This is called again after each container that is not simple.
    while (entered == 0) {
        f = &p->frames[at];
        PyObject **from = f->from, **to = f->to.slots;
        int owned = f->owned, in_place = f->in_place;
        Py_ssize_t i = f->i;
        if (in_place) {
            i = skip_staying(from, i, n, shift, &t);
        }
        else if (!owned && p->dup == NULL) {
            i = copy_items(p, from, to, i, n, shift, &t);
        }
        if (i < 0) {
            return -1;
        }
        if (i == n) {
            break;
        }
        f->i = i + 1;
        if (i >= p->near_at && at == 0) {
            come_near(p, i, n);
        }
        read_ahead(from, i, n, shift);
        from += i << shift;
        to += i << shift;
        if (*from == NULL) {
            continue;
        }
        entered = enter_quickly(p, *from, to, owned, in_place);
        if (entered == 2 && f->mirrored) {
            entered = copy_mirrored(p, f, from, to, i);
        }
        if (entered == 2) {
            entered = take_item(p, f, from, to);
        }
    }
    add_tally(p, &t);
    return entered;
}

/* An owned dict, whose keys are all str, with many entries. */
static int
step_dict_in_place(packer *p, frame *f)
{
    Py_ssize_t at = f - p->frames;
    PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(f->of.dict->ma_keys);
    Py_ssize_t n = f->of.dict->ma_keys->dk_nentries;
    int owned = f->owned;
    tally t = {0};
    int entered = 0;
    for (Py_ssize_t i = f->i; i < n && entered == 0; i++) {
        PyDictUnicodeEntry *entry = &entries[i];
        if (entry->me_value == NULL) {
            continue;
        }
        if (!stays(entry->me_key, &t)
            && _PyPacker_SettleKey(p, &entry->me_key, owned) < 0)
        {
            entered = -1;
        }
        else if (!stays(entry->me_value, &t)) {
            p->frames[at].i = i + 1;
            entered = enter_quickly(p, entry->me_value, NULL, owned, 1);
            if (entered == 2) {
                entered = take_item(p, &p->frames[at], &entry->me_value,
                                    &entry->me_value);
            }
        }
    }
    add_tally(p, &t);
    return entered;
}

static int
step_dict(packer *p, frame *f)
{
    if (f->in_place && DK_IS_UNICODE(f->of.dict->ma_keys)) {
        return step_dict_in_place(p, f);
    }
    Py_ssize_t at = f - p->frames;
    int owned = f->owned;
    int own = (f->record == 0);     // see unsplit()
    PyDictKeysObject *from = f->of.dict->ma_keys;
    PyDictKeysObject *to = ((PyDictObject *)f->to.object)->ma_keys;
    int unicode = DK_IS_UNICODE(from);
    size_t size = unicode ? sizeof(PyDictUnicodeEntry) : sizeof(PyDictKeyEntry);
    size_t shift = unicode ? 0 : offsetof(PyDictKeyEntry, me_key);
    char *src = (char *)_DK_ENTRIES(from) + shift;
    char *dst = (char *)_DK_ENTRIES(to) + shift;
    int fresh = (!f->in_place && !own);
    // First the key, then the value; they stand side by side.
    for (Py_ssize_t i = f->i; i < f->n; i++) {
        PyObject **from_slot = (PyObject **)(src + (i >> 1) * size) + (i & 1);
        PyObject **slot = (PyObject **)(dst + (i >> 1) * size) + (i & 1);
        PyObject *obj = *from_slot;
        if (fresh && (i & 1) == 0) {
            slot[0] = slot[1] = NULL;
            if (!unicode) {
                slot[-1] = from_slot[-1];       // the hash
            }
            to->dk_nentries = (i >> 1) + 1;
        }
        if (obj == NULL || ((i & 1) == 0 && from_slot[1] == NULL)) {
            continue;
        }
        _PyParcel_Word word;
        f->i = i + 1;
        int entered = p->dup != NULL ? 0 : take_quickly(p, obj, owned, &word);
        if (entered == 0) {
            entered = TAKE_CHILD(p, from_slot, owned, word);
            // The frames can have moved.
            f = &p->frames[at];
        }
        else if (entered > 0) {
            entered = 0;
        }
        if (entered < 0 || store(p, slot, obj, f, word) < 0) {
            return -1;
        }
        if (own) {
            Py_DECREF(obj);
        }
        if (entered) {
            return 1;
        }
    }
    if (fresh) {
        // Behind the last entry there may be deleted ones.
        assert(to->dk_nentries == from->dk_nentries);
        ((PyDictObject *)f->to.object)->ma_used = f->of.dict->ma_used;
    }
    return 0;
}

static int
step_set(packer *p, frame *f)
{
    Py_ssize_t at = f - p->frames;
    int owned = f->owned;
    setentry *from = f->of.set->table;
    PySetObject *copy = (PySetObject *)f->to.object;
    setentry *to = copy->table;
    for (Py_ssize_t i = f->i; i < f->n; i++) {
        PyObject *obj = from[i].key;
        read_member(from, i, f->n - 1);
        if (obj == NULL) {
            continue;
        }
        if (from[i].hash == -1) {
            if (!f->in_place) {
                // What stands for a removed member is process-wide.
                to[i] = from[i];
                copy->fill++;
            }
            continue;
        }
        f->i = i + 1;
        _PyParcel_Word word;
        int entered = p->dup != NULL ? 0 : take_quickly(p, obj, owned, &word);
        if (entered == 0) {
            entered = _PyPacker_Take(p, obj, owned, &word);
            // The frames can have moved.
            f = &p->frames[at];
        }
        else if (entered > 0) {
            entered = 0;
        }
        if (entered < 0 || store(p, &to[i].key, obj, f, word) < 0) {
            return -1;
        }
        if (!f->in_place) {
            to[i].hash = from[i].hash;
            copy->fill++;
            copy->used++;
        }
        if (entered) {
            return 1;
        }
    }
    return 0;
}

/* The i-th of what goes into the words of a LATE or FROZENSET record: from the
   dict or set.  Both are walked on with a position of their own. */
static PyObject *
next_late(frame *f, Py_ssize_t i)
{
    PyObject *container = (PyObject *)f->of.dict;
    PyObject *key, *value;
    Py_ssize_t pos = (Py_ssize_t)(uintptr_t)f->from;
    if (PyDict_Check(container)) {
        if (i & 1) {
            // The value of the key before; the position is that of the next.
            pos = pos >> 1;
            PyDictObject *dict = (PyDictObject *)container;
            Py_ssize_t at = pos - 1;
            if (dict->ma_values != NULL) {
                at = get_insertion_order_array(dict->ma_values)[at];
                return dict->ma_values->values[at];
            }
            return (DK_IS_UNICODE(dict->ma_keys)
                    ? DK_UNICODE_ENTRIES(dict->ma_keys)[at].me_value
                    : DK_ENTRIES(dict->ma_keys)[at].me_value);
        }
        pos = pos >> 1;
        int more = PyDict_Next(container, &pos, &key, &value);
        assert(more);
        (void)more;
        f->from = (PyObject **)(uintptr_t)(pos << 1);
        return key;
    }
    Py_hash_t hash;
    int more = _PySet_NextEntry(container, &pos, &key, &hash);
    assert(more);
    (void)more;
    f->from = (PyObject **)(uintptr_t)pos;
    return key;
}

/* Words of a record: they may move when others are added. */
static int
step_words(packer *p, frame *f)
{
    _PyParcel_RecordKind kind = p->parcel->graph.records[f->record].kind;
    for (Py_ssize_t i = f->i; i < f->n; i++) {
        PyObject *obj = next_late(f, i);
        Py_ssize_t at = f->to.words + i;
        f->i = i + 1;
        _PyParcel_Word word;
        int entered = _PyPacker_Take(p, obj, 0, &word);
        if (entered < 0 || (!entered && kind == RECORD_FROZENSET
                            && _PyPacker_CheckMade(p, obj, word) < 0))
        {
            return -1;
        }
        p->parcel->graph.words[at] = word;
        if (entered) {
            return 1;
        }
    }
    return (kind == RECORD_LATE ? _PyPacker_AddBuild(p, f->record)
            : _PyPacker_AddCreate(p, f->record));
}

static int
step_call(packer *p, frame *f)
{
    for (Py_ssize_t i = f->i; i < 6; i++) {
        if (i == 2 && f->owned == 0) {
            // Its arguments are there.
            if (_PyPacker_AddCreate(p, f->record) < 0) {
                return -1;
            }
            f->owned = 1;           // the step has been added
        }
        _PyParcel_Reduction *r = &p->reductions[f->of.reduction].reduction;
        PyObject *parts[6] = {r->callable, r->args, r->state, r->list,
                              r->items, r->setter};
        f->i = i + 1;
        if (parts[i] == NULL) {
            continue;
        }
        Py_ssize_t at = f->to.words + i;
        int mirrored = i > 2 ? r->mirrors : 0;
        Py_ssize_t depth = p->depth;
        _PyParcel_Word word;
        int entered = _PyPacker_Take(p, parts[i], 0, &word);
        if (entered < 0
            || (!entered && i < 2 && _PyPacker_CheckMade(p, parts[i], word) < 0))
        {
            return -1;
        }
        p->parcel->graph.words[at] = word;
        if (entered) {
            assert(p->depth == depth + 1 || (i != 1 && !mirrored));
            (void)depth;
            p->frames[p->depth - 1].arguments = (i == 1);
            p->frames[p->depth - 1].mirrored = (uint8_t)mirrored;
            return 1;
        }
    }
    _PyParcel_Reduction *r = &p->reductions[f->of.reduction].reduction;
    if (r->state == NULL && r->list == NULL && r->items == NULL) {
        return 0;
    }
    return _PyPacker_AddBuild(p, f->record);
}

/* Until nothing is left to be done. */
int
_PyPacker_Walk(packer *p)
{
    while (p->depth > 0) {
        Py_ssize_t depth = p->depth;
        frame *f = &p->frames[depth - 1];
        int entered;
        switch (f->kind) {
        case FRAME_ITEMS:
            entered = step_items(p, f);
            break;
        case FRAME_DICT:
            entered = step_dict(p, f);
            break;
        case FRAME_SET:
            entered = step_set(p, f);
            break;
        case FRAME_WORDS:
            entered = step_words(p, f);
            break;
        case FRAME_INSTANCE:
            entered = _PyPacker_StepInstance(p, f);
            break;
        case FRAME_APART:
            entered = _PyPacker_StepApart(p, f);
            break;
        case FRAME_CALL:
            entered = step_call(p, f);
            break;
        default:
            Py_UNREACHABLE();
        }
        if (entered < 0) {
            return -1;
        }
        if (!entered) {
            p->depth--;
        }
    }
    return 0;
}

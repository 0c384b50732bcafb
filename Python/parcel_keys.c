// Packing: keys that many dicts have.  See pycore_parcel_pack.h.
//
// What is parsed, or made row by row, has the same few str as keys in all of its dicts.
// What becomes of the keys of one dict is remembered as a row, and the next dict with the
// same keys in the same order gets it as a whole.
//
// Often nobody else refers to them.  To replace them everywhere would be most of the
// work.  So such a key of owned dicts stays where it is found, and is counted.  If in the
// end there are more references than have been found, somebody else has it: then it is
// replaced in all dicts that have been moved.

#include "Python.h"
#include "pycore_parcel_pack.h"
#include "pycore_pystate.h"       // _PyThreadState_GET()


// A graph with more of them than this has few dicts for each.
#define MAX_KEPT 4096

/* One that may stay is kept for now, and seen once more.  1 + its index; 0: it has to
   be replaced. */
static Py_ssize_t
keep_key(packer *p, PyObject *key)
{
    known *k = get_known(p, key);
    if (k == NULL) {
        return -1;
    }
    if (k->kept == 0) {
        if (k->to != 0 || p->nkept == MAX_KEPT || PyUnicode_CHECK_INTERNED(key)
            || _Py_IsImmortal(key))
        {
            return 0;
        }
        if (GROW(p->kept, p->nkept, p->kept_room) < 0) {
            return -1;
        }
        p->kept[p->nkept] = (kept_key){.key = key};
        k->kept = (int32_t)++p->nkept;
    }
    p->kept[k->kept - 1].seen++;
    return k->kept;
}

Py_ssize_t
_PyPacker_SettleKey(packer *p, PyObject **slot, int owned)
{
    PyObject *key = *slot;
    Py_ssize_t kept = keep_key(p, key);
    if (kept != 0) {
        return kept;
    }
    _PyParcel_Word word;
    if (_PyPacker_Take(p, key, owned, &word) < 0) {
        return -1;
    }
    return replace_in_place(p, slot, key, WORD_OBJECT(word));
}


/* --- Rows ------------------------------------------------------------------ */

// A graph with more of them has few dicts for each.
#define MAX_ROWS 4096

static inline int16_t *
cached_row(packer *p, PyObject *first, Py_ssize_t n, int owned)
{
    size_t hash = hash_pointer(first) + 5 * n + (owned != 0);
    return &p->row_cache[hash & (ROW_CACHE - 1)];
}

static inline int
is_row(const key_row *row, const PyDictUnicodeEntry *entries, Py_ssize_t n, int owned)
{
    if (row->n != n || row->owned != (owned != 0)) {
        return 0;
    }
    for (Py_ssize_t j = 0; j < n; j++) {
        // No key stands where an item has been deleted.
        if (entries[j].me_key != row->from[j]) {
            return 0;
        }
    }
    return 1;
}

/* The i-th is next, counted from 1. */
static inline void
follow_row(packer *p, int i)
{
    if (p->last_row != 0) {
        p->rows[p->last_row - 1].next = i;
    }
    p->last_row = i;
}

static inline key_row *
find_row(packer *p, const PyDictUnicodeEntry *entries, Py_ssize_t n, int owned)
{
    // Like last time: the processor goes on while it waits for the entries.
    int i = p->last_row != 0 ? p->rows[p->last_row - 1].next : 0;
    if (i != 0 && is_row(&p->rows[i - 1], entries, n, owned)) {
        p->last_row = i;
        return &p->rows[i - 1];
    }
    i = *cached_row(p, entries[0].me_key, n, owned);
    if (i != 0 && is_row(&p->rows[i - 1], entries, n, owned)) {
        follow_row(p, i);
        return &p->rows[i - 1];
    }
    return NULL;
}

/* `row` is what becomes of the keys of a dict. */
static int
add_row(packer *p, const key_row *row)
{
    if (p->nrows == MAX_ROWS) {
        return 0;
    }
    if (GROW(p->rows, p->nrows, p->rows_room) < 0) {
        return -1;
    }
    p->rows[p->nrows++] = *row;
    *cached_row(p, row->from[0], row->n, row->owned) = (int16_t)p->nrows;
    follow_row(p, (int)p->nrows);
    return 0;
}

/* Can other dicts have this very object as a key, and the same becomes of it? */
static inline int
is_common_key(PyObject *key)
{
    return Py_REFCNT(key) > 1;
}

static int
settle_new_row(packer *p, PyDictUnicodeEntry *entries, Py_ssize_t n, int owned)
{
    key_row row = {.n = n, .owned = 1, .same = 1};
    tally t = {0};
    int common = 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *key = entries[i].me_key;
        if (entries[i].me_value == NULL) {
            common = 0;
            continue;
        }
        common &= is_common_key(key);
        row.from[i] = key;
        if (!stays(key, &t)) {
            Py_ssize_t kept = _PyPacker_SettleKey(p, &entries[i].me_key, owned);
            if (kept < 0) {
                return -1;
            }
            row.kept[i] = (int32_t)kept;
        }
        row.to[i] = entries[i].me_key;
        row.same &= (row.to[i] == key);
    }
    add_tally(p, &t);
    row.nshared = (int)t.shared;
    return common ? add_row(p, &row) : 0;
}

static inline int
use_row(packer *p, key_row *row, PyDictUnicodeEntry *entries)
{
    if (!row->same) {
        if (GROW(p->rekeyed, p->nrekeyed, p->rekeyed_room) < 0) {
            return -1;
        }
        p->rekeyed[p->nrekeyed++] = (rekeyed){entries, row - p->rows};
        for (Py_ssize_t i = 0; i < row->n; i++) {
            // count_row() counts these references, all at once, and
            // _PyPacker_FreeRows() releases those that were there.
            entries[i].me_key = row->to[i];
        }
    }
    row->uses++;
    return 0;
}

int
_PyPacker_SettleKeys(packer *p, PyDictUnicodeEntry *entries, Py_ssize_t n, int owned)
{
    assert(0 < n && n <= MAX_ROW);
    key_row *row = find_row(p, entries, n, 1);
    if (row == NULL) {
        return settle_new_row(p, entries, n, owned);
    }
    return use_row(p, row, entries);
}

int
_PyPacker_CopyKeys(packer *p, const PyDictUnicodeEntry *from, PyDictUnicodeEntry *to,
                   Py_ssize_t n)
{
    assert(0 < n && n <= MAX_ROW);
    key_row *old = find_row(p, from, n, 0);
    if (old != NULL) {
        p->parcel->stats.shared += old->nshared;
        for (Py_ssize_t i = 0; i < n; i++) {
            to[i].me_key = Py_NewRef(old->to[i]);
            to[i].me_value = NULL;
        }
        return 0;
    }
    memset(to, 0, n * sizeof(*to));
    key_row row = {.n = n};
    int common = 1;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *key = from[i].me_key;
        if (from[i].me_value == NULL) {
            common = 0;
            continue;
        }
        _PyParcel_Word word;
        if (_PyPacker_Take(p, key, NOT_OWNED, &word) < 0) {
            return -1;
        }
        common &= is_common_key(key);
        row.from[i] = key;
        row.to[i] = to[i].me_key = WORD_OBJECT(word);
        row.nshared += (row.to[i] == key);
    }
    return common ? add_row(p, &row) : 0;
}

/* `n` references more, or if it is negative fewer. */
static void
count_many(PyObject *obj, Py_ssize_t n)
{
    if (n == 0 || _Py_IsImmortal(obj)) {
        return;
    }
    assert(Py_REFCNT(obj) + n > 0);
    Py_SET_REFCNT(obj, Py_REFCNT(obj) + n);
#ifdef Py_REF_DEBUG
    _Py_AddRefTotal(_PyThreadState_GET(), n);
#endif
}

static void
release_many(PyObject *obj, Py_ssize_t n)
{
    if (n > 0) {
        count_many(obj, 1 - n);
        Py_DECREF(obj);
    }
}

static void
count_row(packer *p, key_row *row)
{
    p->parcel->stats.shared += row->uses * row->nshared;
    row->counted = 1;
    for (Py_ssize_t i = 0; i < row->n; i++) {
        if (row->kept[i] != 0) {
            p->kept[row->kept[i] - 1].seen += row->uses;
        }
        if (row->to[i] != row->from[i]) {
            count_many(row->to[i], row->uses);
        }
    }
}

static void
count_rows(packer *p, Py_ssize_t first)
{
    for (Py_ssize_t r = first; r < p->nrows; r++) {
        if (p->rows[r].owned) {
            count_row(p, &p->rows[r]);
        }
    }
}

void
_PyPacker_CountRows(packer *p)
{
    count_rows(p, 0);
}

void
_PyPacker_UndoRows(packer *p)
{
    for (Py_ssize_t i = p->nrekeyed; --i >= 0; ) {
        PyDictUnicodeEntry *entries = p->rekeyed[i].entries;
        key_row *row = &p->rows[p->rekeyed[i].row];
        for (Py_ssize_t j = 0; j < row->n; j++) {
            // The undo log may have put back others of them.
            if (row->to[j] != row->from[j]) {
                entries[j].me_key = row->from[j];
            }
        }
    }
    for (Py_ssize_t r = 0; r < p->nrows; r++) {
        key_row *row = &p->rows[r];
        for (Py_ssize_t j = 0; row->counted && j < row->n; j++) {
            if (row->to[j] != row->from[j]) {
                release_many(row->to[j], row->uses);
            }
        }
    }
    p->nrekeyed = p->nrows = 0;
    p->last_row = 0;
    memset(p->row_cache, 0, sizeof(p->row_cache));
}

void
_PyPacker_FreeRows(packer *p)
{
    for (Py_ssize_t r = 0; r < p->nrows; r++) {
        key_row *row = &p->rows[r];
        for (Py_ssize_t i = 0; row->owned && i < row->n; i++) {
            if (row->to[i] != row->from[i]) {
                release_many(row->from[i], row->uses);
            }
        }
    }
    PyMem_RawFree(p->rows);
    PyMem_RawFree(p->rekeyed);
}


/* --- Kept keys that others have, too ----------------------------------------- */

/* What is no longer kept gets a copy, unless there is one.  kept_key.copy has a reference
   to it until it is in the dicts. */
static int
copy_kept(packer *p)
{
    int missing = 0;
    for (Py_ssize_t i = 0; i < p->nkept; i++) {
        kept_key *kept = &p->kept[i];
        known *k = find_known(p, kept->key);
        if (kept->seen == Py_REFCNT(kept->key)) {
            count_moved_atom(p, kept->key);
#ifdef Py_REF_DEBUG
            p->moved_reftotal += kept->seen - 1;
#endif
            k->kept = 0;
            continue;
        }
        missing = 1;
        if (k->to == 0) {
            kept->copy = copy_str(p, kept->key);
            if (kept->copy == NULL) {
                return -1;
            }
            p->parcel->stats.copied++;
            k->to = (_PyParcel_Word)kept->copy;
        }
    }
    return missing;
}

/* Rows that have such keys are followed by rows of what replaces them. */
static int
add_later_rows(packer *p)
{
    p->last_row = 0;
    memset(p->row_cache, 0, sizeof(p->row_cache));
    for (Py_ssize_t r = 0, n = p->nrows; r < n; r++) {
        if (!p->rows[r].owned) {
            continue;
        }
        key_row row = {.n = p->rows[r].n, .owned = 1, .same = 1};
        for (Py_ssize_t i = 0; i < row.n; i++) {
            PyObject *key = row.from[i] = row.to[i] = p->rows[r].to[i];
            known *k = p->rows[r].kept[i] != 0 ? find_known(p, key) : NULL;
            if (k != NULL && k->kept != 0) {
                row.to[i] = WORD_OBJECT(k->to);
                row.same = 0;
            }
        }
        if (!row.same && add_row(p, &row) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
replace_in_dict(packer *p, PyDictObject *dict)
{
    PyDictKeysObject *keys = dict->ma_keys;
    Py_ssize_t n = keys->dk_nentries;
    if (!DK_IS_UNICODE(keys) || n == 0) {
        return 0;
    }
    key_row *row = n <= MAX_ROW ? find_row(p, DK_UNICODE_ENTRIES(keys), n, 1) : NULL;
    if (row != NULL) {
        return use_row(p, row, DK_UNICODE_ENTRIES(keys));
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        PyDictUnicodeEntry *entry = &DK_UNICODE_ENTRIES(keys)[i];
        known *k = entry->me_value != NULL ? find_known(p, entry->me_key) : NULL;
        if (k == NULL || k->kept == 0) {
            continue;
        }
        PyObject *copy = Py_NewRef(WORD_OBJECT(k->to));
        if (replace_in_place(p, &entry->me_key, entry->me_key, copy) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
replace_in_all(packer *p)
{
    PyGC_Head *gc = _PyGCHead_NEXT(&p->moved);
    for (; gc != &p->moved; gc = _PyGCHead_NEXT(gc)) {
        PyObject *obj = _Py_FROM_GC(gc);
        if (PyDict_CheckExact(obj) && replace_in_dict(p, (PyDictObject *)obj) < 0) {
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        given *g = &p->givens[i];
        if (g->shell != NULL && PyDict_CheckExact(g->obj)
            && replace_in_dict(p, (PyDictObject *)g->obj) < 0)
        {
            return -1;
        }
    }
    return 0;
}

int
_PyPacker_ReplaceKeys(packer *p)
{
    Py_ssize_t nrows = p->nrows;
    int res = copy_kept(p);
    if (res > 0) {
        res = add_later_rows(p) < 0 ? -1 : replace_in_all(p);
    }
    if (res == 0) {
        count_rows(p, nrows);
    }
    for (Py_ssize_t i = 0; i < p->nkept; i++) {
        Py_CLEAR(p->kept[i].copy);
    }
    return res;
}

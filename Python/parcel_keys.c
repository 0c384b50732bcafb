// Packing: keys that many owned dicts have.  See pycore_parcel_pack.h.
//
// What is parsed, or made row by row, has the same few str as keys in all of its dicts,
// and often nobody else refers to them.  To replace them everywhere would be most of the
// work.  So such a key stays where it is found, and is counted.  If in the end there are
// more references than have been found, somebody else has it: then it is replaced in all
// dicts that have been moved.

#include "Python.h"
#include "pycore_parcel_pack.h"


// A graph with more of them than this has few dicts for each.
#define MAX_KEPT 4096

Py_ssize_t
_PyPacker_KeepKey(packer *p, PyObject *key)
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

/* What is no longer kept gets a copy, unless there is one.  kept_key.copy is then the
   first reference to it. */
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
            kept->copy = copy_str(kept->key);
            if (kept->copy == NULL) {
                return -1;
            }
            p->parcel->stats.copied++;
            k->to = (_PyParcel_Word)kept->copy;
        }
    }
    return missing;
}

static int
replace_in_dict(packer *p, PyDictObject *dict)
{
    PyDictKeysObject *keys = dict->ma_keys;
    if (!DK_IS_UNICODE(keys)) {
        return 0;
    }
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
        PyDictUnicodeEntry *entry = &DK_UNICODE_ENTRIES(keys)[i];
        known *k = entry->me_value != NULL ? find_known(p, entry->me_key) : NULL;
        if (k == NULL || k->kept == 0) {
            continue;
        }
        if (GROW(p->changes, p->nchanges, p->changes_room) < 0) {
            return -1;
        }
        p->changes[p->nchanges++] = (change){&entry->me_key, entry->me_key};
        PyObject **first = &p->kept[k->kept - 1].copy;
        entry->me_key = *first != NULL ? *first : Py_NewRef(WORD_OBJECT(k->to));
        *first = NULL;
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
    int res = copy_kept(p);
    if (res > 0) {
        res = replace_in_all(p);
    }
    for (Py_ssize_t i = 0; res < 0 && i < p->nkept; i++) {
        Py_CLEAR(p->kept[i].copy);
    }
    return res;
}

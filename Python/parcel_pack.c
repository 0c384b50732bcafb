// Packing: taking an object graph out of an interpreter.
// See pycore_parcel.h, and pycore_parcel_graph.h for what a parcel consists of.
//
// How it goes
//
//   One depth-first walk with a stack of our own visits the graph.  For every
//   kind of container there is one taker (take_*, which enters it) and one step
//   (step_*, which goes on in it).  No Python code runs during a walk, and no
//   other thread of the interpreter: so the graph does not change.
//
//   Objects that need Python code (__reduce_ex__ and so on) are reduced before:
//   the walk stops at the first that it meets, discover() then finds and reduces
//   all of them, and the walk begins again.  Should that code have changed the
//   graph so that it has others, that is repeated.
//
// Moving
//
//   A walk has an owned part where the roots that are given up and what only
//   they refer to lie.  Owned plain containers go into the parcel as they are;
//   in their slots only references to other things are replaced.  Whether an
//   object with one reference is owned is clear: if what refers to it is.  As
//   long as all owned containers are like that, one walk is enough.  At the first
//   that isn't, the walk is undone, isolate() does the collector's arithmetic
//   (references from inside against the reference count), and the walk begins
//   again with what that has found.
//
// All or nothing
//
//   Until commit() everything can be undone: replaced references are kept in
//   the undo log, moved objects are in a list of their own.  commit() and what
//   follows can't fail.
//
// References of owned objects
//
//   An owned plain container keeps its references.  An owned instance is made
//   anew in the receiver; its values get a reference from the parcel, and commit()
//   takes those of the instance.  What the graph no longer refers to is released
//   last, when the parcel is complete: that can run destructors.

#include "Python.h"
#include "pycore_call.h"
#include "pycore_dict.h"          // PyDictKeysObject
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_long.h"          // _PyLong_Copy()
#include "pycore_object.h"        // _PyObject_Init()
#include "pycore_parcel_graph.h"
#include "pycore_parcel_moved.h"  // _PyParcel_MovedPrepare()
#include "pycore_parcel_reduce.h" // _PyParcel_Reduce()
#include "pycore_pyerrors.h"      // _PyErr_FormatFromCause()
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_rwgil.h"         // _PyRWGIL_WriteOwn()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_setobject.h"
#include "pycore_typeobject.h"


/* --- Structures ---------------------------------------------------------- */

/* What is known of an object that more than one reference leads to. */
typedef struct {
    PyObject *obj;
    _PyParcel_Word to;              // what stands for it; 0: nothing yet
    Py_ssize_t inside;              // references from owned objects
    Py_ssize_t opaque;              // and from such as do not go themselves
    Py_ssize_t elsewhere;           // and all others, when they were counted
    uint8_t counted;                // isolate() has seen it
    uint8_t reached;                // from something that is given up
    uint8_t outside;                // others can reach it
    uint8_t flooded;                // and what it refers to has been marked
    uint8_t taking;                 // a given one that is being taken
    Py_ssize_t given;               // 1 + index, 0: none
    Py_ssize_t reduction;           // 1 + index, 0: none
} known;

/* Whether something is owned, and whether it is an error if a part of it is not. */
enum { NOT_OWNED = 0, MAY_MOVE = 1, MUST_MOVE = 2 };

typedef enum {
    FRAME_ITEMS,                    // an array of objects
    FRAME_DICT,
    FRAME_SET,
    FRAME_WORDS,                    // into the words of a record
    FRAME_INSTANCE,
    FRAME_CALL,
} frame_kind;

typedef struct {
    uint8_t kind;
    uint8_t owned;                  // what refers to the children is owned:
                                    // NOT_OWNED, MAY_MOVE, MUST_MOVE
    uint8_t in_place;               // they stay where they are, if they can
    uint8_t arguments;              // they are what a CALL is called with
    Py_ssize_t i;                   // the next child
    Py_ssize_t n;
    PyObject **from;                // items; or NULL
    union {
        PyObject **slots;           // where items go
        PyObject *object;           // the dict, set, or instance they go to/are of
        Py_ssize_t words;           // where words go
    } to;
    union {
        PyDictObject *dict;         // whose
        PySetObject *set;
        Py_ssize_t reduction;       // its index
        const void *none;
    } of;
    Py_ssize_t record;
} frame;

/* A slot of an owned container that has been changed. */
typedef struct {
    PyObject **slot;
    PyObject *old;                  // its reference is ours now
} change;

#define MAX_PLACES 8

/* An object that the sender gives up. */
typedef struct {
    PyObject *obj;
    PyObject **slot;                // the only reference to it; or NULL: it
                                    // becomes a MovedObject, and
    PyObject *shell;                // this one gets what it has, or NULL
    PyObject **marker;              // where move() has it
    PyObject *instead;              // what the variables in `places` get
    _PyParcel_Place places[MAX_PLACES];
    int nplaces;
    int owned;                      // MAY_MOVE, MUST_MOVE
    int prepared;                   // to become a MovedObject
    int cleared;                    // its items have got references of their own
} given;

typedef struct {
    PyObject *obj;                  // counted
    _PyParcel_Reduction reduction;
} reduced;

#define INPLACE_KNOWN 32            // a power of 2
#define INPLACE_FRAMES 8
#define KEY_CACHE 16

typedef struct {
    _PyParcel_Home *home;
    PyObject *root;                 // what the caller asked for
    _PyParcel *parcel;
    PyGC_Head moved;                // owned containers that go as they are
    Py_ssize_t nmoved;
    Py_ssize_t moved_reftotal;      // Py_REF_DEBUG, as the next one
    Py_ssize_t reftotal_before;
    // Room of each array of the graph.
    Py_ssize_t records_room, words_room, holes_room, shapes_room, program_room;
    Py_ssize_t resources_room;

    frame *frames;
    Py_ssize_t depth, frames_room;
    known *table;
    size_t table_mask;
    size_t table_used;
    change *changes;
    Py_ssize_t nchanges, changes_room;
    PyObject **dissolved;           // owned instances
    Py_ssize_t ndissolved, dissolved_room;
    given *givens;
    Py_ssize_t ngivens, givens_room;
    Py_ssize_t npending;            // records that are unmade()
    Py_ssize_t *delayed;            // records to be filled after one of them
    Py_ssize_t ndelayed, delayed_room;

    // Kept from one walk to the next.
    reduced *reductions;
    Py_ssize_t nreductions, reductions_room;
    PyObject *message;              // what they have in common
    PyObject *dispatch_table;       // of copyreg, when looked up
    PyDictKeysObject *empty_keys;   // of all empty dicts
    int isolated;                   // isolate() has been done

    PyObject *needs_code;           // why the walk stopped, borrowed
    PyObject *refused;              // or this, and an exception is set, or
    Py_ssize_t outside;             // it has references from elsewhere
    int needs_isolation;
    int found_given;                // a marker that was not known yet
    const _PyParcel *dup;           // this is a copy of that parcel
    known *dup_holes;               // slot -> record of it
    size_t dup_mask;

    struct { PyObject *from; PyObject *to; } keys[KEY_CACHE];
    // What the last instance was like: the next is often the same.
    PyTypeObject *last_type;
    const _PyParcel_Class *last_class;
    Py_ssize_t last_class_record;   // -1: not known
    Py_ssize_t last_shape;          // -1: not known
    PyDictKeysObject *last_keys;    // of inline values, in the order:
    Py_ssize_t last_n;
    uint8_t last_order[SHARED_KEYS_MAX_SIZE];
    frame inplace_frames[INPLACE_FRAMES];
    known inplace_table[INPLACE_KNOWN];
} packer;


/* --- Arrays that grow ----------------------------------------------------- */

static int
grow_slow(void **array, Py_ssize_t *room, size_t size, void *inplace)
{
    Py_ssize_t wanted = *room < 16 ? 32 : 2 * *room;
    if ((size_t)wanted > (size_t)PY_SSIZE_T_MAX / size) {
        PyErr_NoMemory();
        return -1;
    }
    void *new = PyMem_RawRealloc(*array == inplace ? NULL : *array,
                                 wanted * size);
    if (new == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (inplace != NULL && *array == inplace) {
        memcpy(new, inplace, *room * size);
    }
    *array = new;
    *room = wanted;
    return 0;
}

/* Room for one more. */
#define GROW(ARRAY, N, ROOM) \
    ((N) < (ROOM) ? 0 : \
     grow_slow((void **)&(ARRAY), &(ROOM), sizeof(*(ARRAY)), NULL))


/* --- What is known -------------------------------------------------------- */

static inline size_t
hash_pointer(const void *p)
{
    uintptr_t x = (uintptr_t)p;
    return (x >> 4) ^ (x >> 13) ^ (x >> 22);
}

/* The entry, or the free one where it belongs. */
static inline known *
probe(known *table, size_t mask, const void *obj)
{
    size_t i = hash_pointer(obj) & mask;
    while (table[i].obj != NULL && table[i].obj != obj) {
        i = (i + 1) & mask;
    }
    return &table[i];
}

static known *
find_known(packer *p, PyObject *obj)
{
    known *k = probe(p->table, p->table_mask, obj);
    return k->obj != NULL ? k : NULL;
}

static int
grow_table(packer *p)
{
    size_t size = (p->table_mask + 1) * 4;
    known *table = PyMem_RawCalloc(size, sizeof(known));
    if (table == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i <= p->table_mask; i++) {
        if (p->table[i].obj != NULL) {
            *probe(table, size - 1, p->table[i].obj) = p->table[i];
        }
    }
    if (p->table != p->inplace_table) {
        PyMem_RawFree(p->table);
    }
    p->table = table;
    p->table_mask = size - 1;
    return 0;
}

/* The entry of an object, a new one if need be.  Good until the next call. */
static known *
get_known(packer *p, PyObject *obj)
{
    known *k = probe(p->table, p->table_mask, obj);
    if (k->obj != NULL) {
        return k;
    }
    if (p->table_used * 3 >= p->table_mask * 2) {
        if (grow_table(p) < 0) {
            return NULL;
        }
        k = probe(p->table, p->table_mask, obj);
    }
    p->table_used++;
    k->obj = obj;
    return k;
}

static int
remember(packer *p, PyObject *obj, _PyParcel_Word word)
{
    known *k = get_known(p, obj);
    if (k == NULL) {
        return -1;
    }
    k->to = word;
    return 0;
}


/* --- The parcel's arrays --------------------------------------------------- */

static Py_ssize_t
add_record(packer *p, _PyParcel_RecordKind kind, Py_ssize_t nwords)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW(g->records, g->nrecords, p->records_room) < 0) {
        return -1;
    }
    while (nwords < MAX_RECORDS && g->nwords + nwords > p->words_room) {
        if (grow_slow((void **)&g->words, &p->words_room, sizeof(*g->words),
                      NULL) < 0)
        {
            return -1;
        }
    }
    if (g->nrecords >= MAX_RECORDS || g->nwords > MAX_RECORDS - nwords) {
        PyErr_SetString(PyExc_OverflowError,
                        "too many objects have to be made anew");
        return -1;
    }
    _PyParcel_Record *r = &g->records[g->nrecords];
    r->kind = kind;
    r->first = (int32_t)g->nwords;
    r->nwords = (int32_t)nwords;
    r->arg = 0;
    r->holes = -1;
    if (nwords > 0) {
        memset(g->words + g->nwords, 0, nwords * sizeof(*g->words));
        g->nwords += nwords;
    }
    return g->nrecords++;
}

static int
add_step(packer *p, _PyParcel_Op op, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW(g->program, g->nsteps, p->program_room) < 0) {
        return -1;
    }
    g->program[g->nsteps++] = PROGRAM_STEP(op, record);
    return 0;
}

/* Frozensets are made when all members are, and what is called when its arguments
   are: until then what refers to them can't be filled. */

static int
unmade(const _PyParcel_Record *r)
{
    return ((r->kind == RECORD_FROZENSET || r->kind == RECORD_CALL)
            && r->arg == 0);
}

static int
is_pending(packer *p, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    const _PyParcel_Record *r = &g->records[record];
    for (Py_ssize_t i = r->first; i < r->first + r->nwords; i++) {
        if (WORD_IS_RECORD(g->words[i])
            && unmade(&g->records[WORD_RECORD(g->words[i])]))
        {
            return 1;
        }
    }
    return 0;
}

static int
add_build(packer *p, Py_ssize_t record)
{
    if (p->npending > 0 && is_pending(p, record)) {
        if (GROW(p->delayed, p->ndelayed, p->delayed_room) < 0) {
            return -1;
        }
        p->delayed[p->ndelayed++] = record;
        return 0;
    }
    return add_step(p, OP_BUILD, record);
}

/* Its members or arguments have been taken: it can be made. */
static int
add_create(packer *p, Py_ssize_t record)
{
    p->parcel->graph.records[record].arg = 1;
    p->npending--;
    if (add_step(p, OP_CREATE, record) < 0) {
        return -1;
    }
    Py_ssize_t n = p->ndelayed;
    p->ndelayed = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        // Those that are delayed again come before where we are.
        if (add_build(p, p->delayed[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
add_hole(packer *p, PyObject **slot, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW(g->holes, g->nholes, p->holes_room) < 0) {
        return -1;
    }
    if (g->nholes >= MAX_RECORDS) {
        PyErr_SetString(PyExc_OverflowError,
                        "too many references to objects that are made anew");
        return -1;
    }
    _PyParcel_Record *r = &g->records[record];
    g->holes[g->nholes] = (_PyParcel_Hole){slot, (int32_t)record, r->holes};
    r->holes = (int32_t)g->nholes++;
    return 0;
}

static frame *
push_frame(packer *p, frame_kind kind, int owned, Py_ssize_t n)
{
    if (p->depth == p->frames_room
        && grow_slow((void **)&p->frames, &p->frames_room, sizeof(frame),
                     p->inplace_frames) < 0)
    {
        return NULL;
    }
    frame *f = &p->frames[p->depth++];
    f->kind = kind;
    f->owned = (uint8_t)owned;
    f->in_place = (owned != NOT_OWNED);
    f->arguments = 0;
    f->i = 0;
    f->n = n;
    f->from = NULL;
    f->of.none = NULL;
    f->record = -1;
    return f;
}

/* Link a new container into the parcel. */
static inline void
link_plain(packer *p, PyObject *obj)
{
    PyGC_Head *gc = _Py_AS_GC(obj);
    _PyParcel_ListRemove(gc);
    _PyParcel_ListAppend(&p->parcel->plain, gc);
    p->parcel->nplain++;
    p->parcel->stats.copied++;
}

/* An owned container goes as it is. */
static inline void
link_moved(packer *p, PyObject *obj)
{
    PyGC_Head *gc = _Py_AS_GC(obj);
    _PyParcel_ListRemove(gc);
    _PyParcel_ListAppend(&p->moved, gc);
    p->nmoved++;
#ifdef Py_REF_DEBUG
    p->moved_reftotal += Py_REFCNT(obj);
#endif
}

static inline void
count_moved_atom(packer *p, PyObject *Py_UNUSED(obj))
{
    p->parcel->stats.moved++;
#ifdef Py_REF_DEBUG
    p->moved_reftotal++;
#endif
}


/* --- Atoms ------------------------------------------------------------------ */

int
_PyParcel_IsProcessWide(PyObject *obj)
{
    if (_PyParcel_InRuntime(obj) || obj == Py_None || obj == Py_True
        || obj == Py_False || obj == Py_Ellipsis || obj == Py_NotImplemented)
    {
        return 1;
    }
    return (PyType_Check(obj)
            && (((PyTypeObject *)obj)->tp_flags & _Py_TPFLAGS_STATIC_BUILTIN));
}

static PyObject *
copy_str(PyObject *str)
{
    size_t size;
    Py_ssize_t length = PyUnicode_GET_LENGTH(str);
    assert(PyUnicode_CheckExact(str) && PyUnicode_IS_COMPACT(str));
    if (PyUnicode_IS_COMPACT_ASCII(str)) {
        size = sizeof(PyASCIIObject) + length + 1;
    }
    else {
        size = (sizeof(PyCompactUnicodeObject)
                + (length + 1) * PyUnicode_KIND(str));
    }
    PyObject *copy = PyObject_Malloc(size);
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    memcpy(copy, str, size);
    if (!PyUnicode_IS_COMPACT_ASCII(str)) {
        ((PyCompactUnicodeObject *)copy)->utf8 = NULL;
        ((PyCompactUnicodeObject *)copy)->utf8_length = 0;
    }
    ((PyASCIIObject *)copy)->state.interned = SSTATE_NOT_INTERNED;
    ((PyASCIIObject *)copy)->state.statically_allocated = 0;
    _PyObject_Init(copy, &PyUnicode_Type);
    return copy;
}

static PyObject *
copy_int(PyObject *obj)
{
    Py_ssize_t n = Py_MAX(_PyLong_DigitCount((PyLongObject *)obj), 1);
    size_t size = offsetof(PyLongObject, long_value.ob_digit)
                  + n * sizeof(digit);
    PyLongObject *copy = PyObject_Malloc(size);
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    copy->long_value.lv_tag = ((PyLongObject *)obj)->long_value.lv_tag;
    memcpy(copy->long_value.ob_digit,
           ((PyLongObject *)obj)->long_value.ob_digit, n * sizeof(digit));
    _PyObject_Init((PyObject *)copy, &PyLong_Type);
    return (PyObject *)copy;
}

/* start, stop and step are ints: attributes of C, no code. */
static PyObject *
copy_range(PyObject *obj)
{
    static const char *const names[] = {"start", "stop", "step"};
    PyObject *parts[3] = {NULL, NULL, NULL};
    PyObject *range = NULL;
    for (int i = 0; i < 3; i++) {
        // The cache for types keeps what is looked up: interned, it is one object.
        PyObject *name = PyUnicode_InternFromString(names[i]);
        PyObject *part = name != NULL ? PyObject_GetAttr(obj, name) : NULL;
        Py_XDECREF(name);
        if (part == NULL) {
            goto exit;
        }
        parts[i] = _PyLong_Copy((PyLongObject *)part);
        Py_DECREF(part);
        if (parts[i] == NULL) {
            goto exit;
        }
    }
    range = PyObject_Vectorcall((PyObject *)&PyRange_Type, parts, 3, NULL);

exit:
    for (int i = 0; i < 3; i++) {
        Py_XDECREF(parts[i]);
    }
    return range;
}

/* A fresh one that is equal. */
static PyObject *
copy_atom(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyUnicode_Type) {
        return copy_str(obj);
    }
    if (type == &PyLong_Type) {
        return copy_int(obj);
    }
    if (type == &PyFloat_Type) {
        return PyFloat_FromDouble(PyFloat_AS_DOUBLE(obj));
    }
    if (type == &PyBytes_Type) {
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(obj),
                                         PyBytes_GET_SIZE(obj));
    }
    if (type == &PyComplex_Type) {
        return PyComplex_FromCComplex(((PyComplexObject *)obj)->cval);
    }
    if (type == &PyByteArray_Type) {
        return PyByteArray_FromStringAndSize(PyByteArray_AS_STRING(obj),
                                             PyByteArray_GET_SIZE(obj));
    }
    assert(type == &PyRange_Type);
    return copy_range(obj);
}

static inline int
is_atom_type(PyTypeObject *type)
{
    return (type == &PyUnicode_Type || type == &PyLong_Type
            || type == &PyFloat_Type || type == &PyBytes_Type
            || type == &PyComplex_Type || type == &PyByteArray_Type
            || type == &PyRange_Type);
}

/* An owned one that nobody else refers to can go as it is. */
static inline int
atom_can_move(PyObject *obj)
{
    if (PyUnicode_CheckExact(obj)) {
        return !PyUnicode_CHECK_INTERNED(obj);
    }
    if (PyByteArray_CheckExact(obj)) {
        return ((PyByteArrayObject *)obj)->ob_exports == 0;
    }
    // The ints inside a range can be anybody's.
    return !PyRange_Check(obj);
}

// Above this many bytes it is worth to find out whether an atom with more than
// one reference can be moved.
#define LARGE_ATOM 4096

static int
is_large(PyObject *obj)
{
    if (PyBytes_CheckExact(obj)) {
        return PyBytes_GET_SIZE(obj) > LARGE_ATOM;
    }
    if (PyUnicode_CheckExact(obj)) {
        return PyUnicode_GET_LENGTH(obj) > LARGE_ATOM;
    }
    return PyByteArray_CheckExact(obj);
}

static int take_given(packer *, Py_ssize_t, _PyParcel_Word *);

/* `obj`, which has to be moved, has references from elsewhere.  Saying so runs code
   that looks at the graph: that waits until the walk has been undone. */
static int
not_isolated(packer *p, PyObject *obj, Py_ssize_t outside)
{
    p->refused = obj;
    p->outside = outside;
    return -1;
}

static int
take_atom_slow(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    // Others refer to it, or it is interned, or not owned.
    int several = (Py_REFCNT(obj) > 1);
    if (several) {
        known *k = find_known(p, obj);
        if (k != NULL && k->to != 0) {
            *word = (_PyParcel_Word)Py_NewRef(WORD_OBJECT(k->to));
            return 0;
        }
        if (k != NULL && k->given != 0 && !k->taking) {
            return take_given(p, k->given - 1, word);
        }
        if (owned && atom_can_move(obj) && !_Py_IsImmortal(obj)) {
            if (k != NULL && k->counted && !k->outside) {
                count_moved_atom(p, obj);
#ifdef Py_REF_DEBUG
                p->moved_reftotal += Py_REFCNT(obj) - 1;
#endif
                k->to = (_PyParcel_Word)obj;
                // Each reference to it stays where it is.
                *word = (_PyParcel_Word)Py_NewRef(obj);
                return 0;
            }
            if (!p->isolated && is_large(obj)) {
                p->needs_isolation = 1;
                return -1;
            }
        }
        if (owned == MUST_MOVE && PyByteArray_CheckExact(obj)) {
            if (k == NULL || k->elsewhere > 0) {
                return not_isolated(p, obj, k == NULL ? 1 : k->elsewhere);
            }
        }
    }
    else if (owned == MUST_MOVE && PyByteArray_CheckExact(obj)) {
        // It has exports.
        return not_isolated(p, obj, 1);
    }
    PyObject *copy = copy_atom(obj);
    if (copy == NULL) {
        return -1;
    }
    p->parcel->stats.copied++;
    *word = (_PyParcel_Word)copy;
    if (several && remember(p, obj, *word) < 0) {
        Py_DECREF(copy);
        return -1;
    }
    return 0;
}


/* --- Entering containers ----------------------------------------------------- */

/* All takers: *word is a counted reference to what stands for the object in the
   parcel, or a record.  1: it has been entered, go on there; 0: done. */

static int
take_list(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    Py_ssize_t n = PyList_GET_SIZE(obj);
    PyObject **to = ((PyListObject *)obj)->ob_item;
    if (owned) {
        *copy = Py_NewRef(obj);
    }
    else {
        *copy = PyList_New(n);
        if (*copy == NULL) {
            return -1;
        }
        to = ((PyListObject *)*copy)->ob_item;
    }
    frame *f = push_frame(p, FRAME_ITEMS, owned, n);
    if (f == NULL) {
        Py_CLEAR(*copy);
        return -1;
    }
    f->from = ((PyListObject *)obj)->ob_item;
    f->to.slots = to;
    return 1;
}

static int
take_tuple(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    Py_ssize_t n = PyTuple_GET_SIZE(obj);
    if (owned) {
        *copy = Py_NewRef(obj);
    }
    else {
        *copy = PyTuple_New(n);
        if (*copy == NULL) {
            return -1;
        }
    }
    frame *f = push_frame(p, FRAME_ITEMS, owned, n);
    if (f == NULL) {
        Py_CLEAR(*copy);
        return -1;
    }
    f->from = ((PyTupleObject *)obj)->ob_item;
    f->to.slots = ((PyTupleObject *)*copy)->ob_item;
    return 1;
}

static int
take_slice(packer *p, PyObject *obj, int owned, PyObject **copy)
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

static int
set_has_plain_members(PySetObject *set)
{
    for (Py_ssize_t i = 0; i <= set->mask; i++) {
        setentry *entry = &set->table[i];
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
    Py_ssize_t record = add_record(p, RECORD_LATE, 1 + n);
    if (record < 0) {
        return -1;
    }
    _PyParcel_Graph *g = &p->parcel->graph;
    g->words[g->records[record].first] = (_PyParcel_Word)Py_NewRef(copy);
    g->runs_code = 1;
    return enter_words(p, record, 1, n, obj);
}

static PyDictKeysObject *
clone_keys(PyDictKeysObject *keys)
{
    size_t size = _PyDict_KeysSize(keys);
    PyDictKeysObject *clone = PyMem_Malloc(size);
    if (clone == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memcpy(clone, keys, size);
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

static int
take_dict(packer *p, PyObject *obj, int owned, PyObject **copy)
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
    if (owned) {
        *copy = Py_NewRef(obj);
    }
    else if (dict->ma_used == 0) {
        *copy = PyDict_New();
        return *copy != NULL ? 0 : -1;
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
        PyDictKeysObject *clone = clone_keys(keys);
        if (clone == NULL) {
            Py_CLEAR(*copy);
            return -1;
        }
        // The empty keys of a new dict are nobody's.
        ((PyDictObject *)*copy)->ma_keys = clone;
    }
    if (owned && keys->dk_refcnt == 1) {
        // Versions are each interpreter's.
        keys->dk_version = 0;
#ifdef Py_REF_DEBUG
        p->moved_reftotal++;
#endif
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

static int
take_frozenset_record(packer *p, PyObject *obj, _PyParcel_Word *word)
{
    Py_ssize_t n = PySet_GET_SIZE(obj);
    Py_ssize_t record = add_record(p, RECORD_FROZENSET, n);
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
clone_set(PySetObject *set)
{
    PyObject *obj = Py_IS_TYPE(set, &PyFrozenSet_Type) ? PyFrozenSet_New(NULL)
                                                       : PySet_New(NULL);
    if (obj == NULL) {
        return NULL;
    }
    PySetObject *copy = (PySetObject *)obj;
    if (set->mask >= PySet_MINSIZE) {
        setentry *table = PyMem_New(setentry, set->mask + 1);
        if (table == NULL) {
            Py_DECREF(obj);
            PyErr_NoMemory();
            return NULL;
        }
        copy->table = table;
        copy->mask = set->mask;
    }
    // Members are there when they are there: see step_set().
    for (Py_ssize_t i = 0; i <= set->mask; i++) {
        copy->table[i].key = NULL;
        copy->table[i].hash = 0;
    }
    copy->hash = set->hash;
    return obj;
}

static int
take_set(packer *p, PyObject *obj, int owned, PyObject **copy)
{
    PySetObject *set = (PySetObject *)obj;
    if (!set_has_plain_members(set)) {
        assert(PySet_CheckExact(obj));
        *copy = PySet_New(NULL);
        if (*copy == NULL || take_late(p, obj, set->used, *copy) < 0) {
            Py_CLEAR(*copy);
            return -1;
        }
        return 1;
    }
    *copy = owned ? Py_NewRef(obj) : clone_set(set);
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


/* Classes, functions and modules go by name, where they can. */
static int
is_named(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    return (PyType_Check(obj) || PyFunction_Check(obj) || PyCFunction_Check(obj)
            || PyModule_Check(obj) || type == &PyMethodDescr_Type
            || type == &PyWrapperDescr_Type || type == &PyClassMethodDescr_Type
            || type == &PyMemberDescr_Type || type == &PyGetSetDescr_Type);
}

/* A member of an enum: as good as named. */
static int
is_enum_member(PyObject *obj)
{
    PyTypeObject *meta = Py_TYPE(Py_TYPE(obj));
    for (; meta != NULL && meta != &PyType_Type; meta = meta->tp_base) {
        if (strcmp(meta->tp_name, "EnumType") == 0) {
            return 1;
        }
    }
    return 0;
}


/* --- Records ------------------------------------------------------------------ */

static int take(packer *, PyObject *, int owned, _PyParcel_Word *);

/* Also called for the class of an instance: *word is remembered. */
static int
take_named(packer *p, PyObject *obj, PyObject *where, _PyParcel_Word *word)
{
    PyObject *copy = _PyParcel_CopyName(where);
    if (copy == NULL) {
        return -1;
    }
    Py_ssize_t record = add_record(p, RECORD_NAMED, 1);
    if (record < 0 || add_step(p, OP_CREATE, record) < 0
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

static int
take_handle(packer *p, PyObject *obj, int kind, _PyParcel_Word *word)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW(g->resources, g->nresources, p->resources_room) < 0) {
        return -1;
    }
    Py_ssize_t record = add_record(p, kind, 0);
    if (record < 0 || add_step(p, OP_CREATE, record) < 0) {
        return -1;
    }
    int64_t arg = 0;
    _PyParcel_Resource resource = {.what = NULL};
    if (_PyParcel_TakeHandle(p->home, obj, kind, &arg, &resource) < 0) {
        p->refused = obj;
        return -1;
    }
    g->records[record].arg = arg;
    if (resource.what != NULL) {
        if (kind != RECORD_INTERPRETER) {
            g->records[record].arg = g->nresources;
        }
        g->resources[g->nresources++] = resource;
    }
    *word = RECORD_WORD(record);
    p->parcel->stats.shared++;
    return remember(p, obj, *word);
}

/* The index, or -1. */
static Py_ssize_t
find_reduction(packer *p, PyObject *obj)
{
    known *k = find_known(p, obj);
    return k != NULL ? k->reduction - 1 : -1;
}

/* Takes the contents of `r` over.  The index, or -1. */
static Py_ssize_t
add_reduction(packer *p, PyObject *obj, _PyParcel_Reduction *r)
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
static Py_ssize_t
get_reduction(packer *p, PyObject *obj)
{
    Py_ssize_t reduction = find_reduction(p, obj);
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
    return add_reduction(p, obj, &r);
}

static int
take_reduction(packer *p, PyObject *obj, Py_ssize_t index,
               _PyParcel_Word *word)
{
    _PyParcel_Reduction *r = &p->reductions[index].reduction;
    if (r->kind == _PyParcel_NAMED) {
        return take_named(p, obj, r->where, word);
    }
    Py_ssize_t record = add_record(p, RECORD_CALL, 6);
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
static int
take_by_name(packer *p, PyObject *obj, _PyParcel_Word *word)
{
    PyObject *where = _PyParcel_QuickName(p->home, obj);
    if (where == NULL) {
        if (!PyErr_Occurred()) {
            p->needs_code = obj;
        }
        return -1;
    }
    int res = take_named(p, obj, where, word);
    Py_DECREF(where);
    return res;
}


/* --- Instances of Python classes ---------------------------------------------- */

/* The values of an instance that are inline, in order. */
static inline PyDictValues *
inline_values(PyObject *obj)
{
    if (!(Py_TYPE(obj)->tp_flags & Py_TPFLAGS_INLINE_VALUES)) {
        return NULL;
    }
    PyDictValues *values = _PyObject_InlineValues(obj);
    return values->valid ? values : NULL;
}

static inline PyDictKeysObject *
cached_keys(PyTypeObject *type)
{
    return ((PyHeapTypeObject *)type)->ht_cached_keys;
}

/* A str that the parcel has for this one. */
static int
take_name(packer *p, PyObject *name, _PyParcel_Word *word)
{
    known *k = get_known(p, name);
    if (k == NULL) {
        return -1;
    }
    if (k->to == 0) {
        PyObject *copy = _PyParcel_InRuntime(name) ? name : copy_str(name);
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

/* The i-th attribute's name and value; borrowed. */
typedef struct {
    PyDictValues *values;           // or
    PyDictObject *dict;             // its entries; or neither
    PyDictKeysObject *keys;
    uint8_t *order;
    Py_ssize_t n;
} attributes;

static void
get_attributes(PyObject *obj, const _PyParcel_Class *cls, attributes *a)
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

static inline PyObject *
attribute_value(attributes *a, Py_ssize_t i)
{
    if (a->values != NULL) {
        return a->values->values[a->order[i]];
    }
    return DK_UNICODE_ENTRIES(a->keys)[i].me_value;
}

static inline PyObject *
attribute_name(attributes *a, Py_ssize_t i)
{
    return DK_UNICODE_ENTRIES(a->keys)[a->values != NULL ? a->order[i] : i]
        .me_key;
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

static inline PyObject **
slot_of(PyObject *obj, const _PyParcel_Class *cls, int i)
{
    return (PyObject **)((char *)obj + cls->slot_offsets[i]);
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
    Py_ssize_t owner = add_record(p, RECORD_NAMED, a->n + nslots);
    if (owner < 0 || GROW(g->shapes, g->nshapes, p->shapes_room) < 0) {
        return -1;
    }
    Py_ssize_t at = g->records[owner].first;
    for (Py_ssize_t i = 0; i < a->n; i++) {
        if (take_name(p, attribute_name(a, i), &g->words[at + i]) < 0) {
            return -1;
        }
    }
    Py_ssize_t next = at + a->n;
    for (int i = 0; i < cls->nslots; i++) {
        if (*slot_of(obj, cls, i) != NULL
            && take_name(p, cls->slot_names[i], &g->words[next++]) < 0)
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

/* copyreg.dispatch_table; NULL without an exception if nobody has imported it: then
   there is nothing in it. */
static PyObject *
find_dispatch_table(void)
{
    PyObject *copyreg = NULL;
    PyObject *table = NULL;
    PyObject *modules = _PyInterpreterState_GET()->imports.modules;
    if (modules == NULL || !PyDict_Check(modules)
        || PyDict_GetItemStringRef(modules, "copyreg", &copyreg) <= 0)
    {
        return NULL;
    }
    PyObject *dict = PyModule_Check(copyreg) ? PyModule_GetDict(copyreg) : NULL;
    if (dict != NULL) {
        (void)PyDict_GetItemStringRef(dict, "dispatch_table", &table);
    }
    Py_DECREF(copyreg);
    return table;
}

/* It can be changed at any time. */
static int
is_dispatched(packer *p, PyTypeObject *type)
{
    if (p->dispatch_table == NULL) {
        p->dispatch_table = find_dispatch_table();
        if (p->dispatch_table == NULL) {
            return PyErr_Occurred() ? -1 : 0;
        }
    }
    if (!PyDict_CheckExact(p->dispatch_table)) {
        return 1;
    }
    return PyDict_Contains(p->dispatch_table, (PyObject *)type);
}

/* *simple is set if the instance can be taken by hand. */
static int
check_simple(packer *p, PyObject *obj, const _PyParcel_Class **cls,
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
        int dispatched = is_dispatched(p, type);
        if (dispatched != 0) {
            return dispatched < 0 ? -1 : 0;
        }
        p->last_type = type;
        p->last_class = *cls;
        p->last_class_record = -1;
        p->last_keys = NULL;
    }
    *cls = p->last_class;
    get_attributes(obj, *cls, a);
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
                             "%R can't be found by its name", type);
                return -1;
            }
            if (take_named(p, (PyObject *)type, r->where, &word) < 0) {
                return -1;
            }
        }
        else if (take_by_name(p, (PyObject *)type, &word) < 0) {
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

static int
take_instance(packer *p, PyObject *obj, const _PyParcel_Class *cls,
              attributes *a, int owned, _PyParcel_Word *word)
{
    Py_ssize_t type;
    if (take_class(p, Py_TYPE(obj), &type) < 0) {
        return -1;
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
    Py_ssize_t record = add_record(p, RECORD_INSTANCE, n);
    if (record < 0) {
        return -1;
    }
    if (Py_REFCNT(obj) > 1) {
        // A cycle can lead back to it before it is built.
        if (remember(p, obj, RECORD_WORD(record)) < 0
            || add_step(p, OP_CREATE, record) < 0)
        {
            return -1;
        }
    }
    else if ((n == 0 || p->npending > 0)
             && add_step(p, OP_CREATE, record) < 0)
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


/* An enum member, say. */
static int
is_reduced_to_name(packer *p, known *k)
{
    return (k->reduction != 0
            && p->reductions[k->reduction - 1].reduction.kind
               == _PyParcel_NAMED);
}

/* Can nobody tell an equal one from it, as far as its own type goes? */
static int
is_value_type(packer *p, PyObject *obj)
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


/* --- Any object ------------------------------------------------------------------ */

static int
take_array(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    int exported = _PyParcel_ArrayIsExported(obj);
    if (owned == MUST_MOVE && exported) {
        return not_isolated(p, obj, 1);
    }
    _PyParcel_Word type;
    known *k = find_known(p, (PyObject *)Py_TYPE(obj));
    if (k != NULL && k->to != 0) {
        type = k->to;
    }
    else if (take_by_name(p, (PyObject *)Py_TYPE(obj), &type) < 0) {
        return -1;
    }
    _PyParcel_Graph *g = &p->parcel->graph;
    Py_ssize_t record = add_record(p, RECORD_ARRAY, 1);
    if (record < 0 || add_step(p, OP_CREATE, record) < 0
        || GROW(g->resources, g->nresources, p->resources_room) < 0
        || (Py_REFCNT(obj) > 1 && remember(p, obj, RECORD_WORD(record)) < 0))
    {
        return -1;
    }
    _PyParcel_Array *array = _PyParcel_TakeArray(obj, owned && !exported);
    if (array == NULL) {
        return -1;
    }
    g->words[g->records[record].first] = type;
    g->records[record].arg = g->nresources;
    g->resources[g->nresources++] = (_PyParcel_Resource){RESOURCE_ARRAY, array};
    p->parcel->stats.rebuilt++;
    *word = RECORD_WORD(record);
    return 0;
}

/* What is not a plain object of an exact builtin type. */
static int
take_other(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    if (_PyParcel_IsProcessWide(obj)) {
        p->parcel->stats.shared++;
        *word = (_PyParcel_Word)obj;
        return 0;
    }
    known *k = find_known(p, obj);
    if (k != NULL && k->to != 0) {
        *word = k->to;
        return 0;
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (check_simple(p, obj, &cls, &a, &simple) < 0) {
        return -1;
    }
    if (simple) {
        return take_instance(p, obj, cls, &a, owned, word);
    }
    int kind = _PyParcel_HandleKind(p->home, obj);
    if (kind >= 0) {
        return take_handle(p, obj, kind, word);
    }
    if (_PyParcel_IsArray(p->home, obj)) {
        return take_array(p, obj, owned, word);
    }
    if (is_named(obj) && find_reduction(p, obj) < 0) {
        return take_by_name(p, obj, word);
    }
    Py_ssize_t reduction = get_reduction(p, obj);
    return reduction < 0 ? -1 : take_reduction(p, obj, reduction, word);
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

/* An owned container that has to be copied all the same. */
static int
can_move_in_place(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyDict_Type) {
        PyDictObject *dict = (PyDictObject *)obj;
        return dict_can_move(dict) && dict_has_plain_keys(dict);
    }
    if (type == &PySet_Type || type == &PyFrozenSet_Type) {
        PySetObject *set = (PySetObject *)obj;
        return set->weakreflist == NULL && set_has_plain_members(set);
    }
    return 1;
}

static int take_move_marker(packer *, PyObject *marker, _PyParcel_Word *);
/* The heart: see "Entering containers". */
static int
take(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (is_atom_type(type)) {
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
        return take_atom_slow(p, obj, owned, word);
    }
    int which = (type == &PyList_Type ? 1 : type == &PyDict_Type ? 2
                 : type == &PyTuple_Type ? 3
                 : type == &PySet_Type || type == &PyFrozenSet_Type ? 4
                 : type == &PySlice_Type ? 5 : 0);
    if (which == 0) {
        if (type == p->home->move_type && type != NULL) {
            return take_move_marker(p, obj, word);
        }
        if (p->ngivens > 0) {
            known *k = find_known(p, obj);
            if (k != NULL && k->to == 0 && k->given != 0 && !k->taking) {
                return take_given(p, k->given - 1, word);
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
        return take_other(p, obj, owned, word);
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
            return take_given(p, k->given - 1, word);
        }
    }
    if (owned) {
        int isolated = is_owned(p, obj);
        if (isolated < 0) {
            return -1;
        }
        if (!isolated || !can_move_in_place(obj)) {
            owned = NOT_OWNED;
        }
    }
    PyObject *copy = NULL;
    int res;
    switch (which) {
    case 1:
        res = take_list(p, obj, owned, &copy);
        break;
    case 2:
        res = take_dict(p, obj, owned, &copy);
        break;
    case 3:
        res = take_tuple(p, obj, owned, &copy);
        break;
    case 4:
        if (type == &PyFrozenSet_Type
            && !set_has_plain_members((PySetObject *)obj))
        {
            res = take_frozenset_record(p, obj, word);
            if (res >= 0 && several && remember(p, obj, *word) < 0) {
                return -1;
            }
            return res;
        }
        res = take_set(p, obj, owned, &copy);
        break;
    default:
        res = take_slice(p, obj, owned, &copy);
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
        link_moved(p, obj);
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


/* --- Going on in containers --------------------------------------------------------- */

/* An owned object that does not go itself is released at the end, or is again its
   owner's if all is undone. */
static int
release_later(packer *p, PyObject *obj)
{
    if (GROW(p->changes, p->nchanges, p->changes_room) < 0) {
        return -1;
    }
    p->changes[p->nchanges++] = (change){NULL, Py_NewRef(obj)};
    return 0;
}

/* The atoms of most graphs: those that nothing else refers to, and those that are
   process-wide.  1: *word is set; 0: take() knows; -1: no memory. */
static inline int
take_quickly(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    if (_PyParcel_InRuntime(obj) || obj == Py_None) {
        p->parcel->stats.shared++;
        *word = (_PyParcel_Word)obj;
        return 1;
    }
    if (Py_REFCNT(obj) != 1) {
        return 0;
    }
    PyTypeObject *type = Py_TYPE(obj);
    PyObject *copy;
    if (type == &PyUnicode_Type) {
        if (owned && !PyUnicode_CHECK_INTERNED(obj)) {
            goto moved;
        }
        copy = copy_str(obj);
    }
    else if (type == &PyLong_Type) {
        if (owned) {
            goto moved;
        }
        copy = copy_int(obj);
    }
    else if (type == &PyFloat_Type) {
        if (owned) {
            goto moved;
        }
        copy = PyFloat_FromDouble(PyFloat_AS_DOUBLE(obj));
    }
    else {
        return 0;
    }
    if (copy == NULL) {
        return -1;
    }
    p->parcel->stats.copied++;
    *word = (_PyParcel_Word)copy;
    return 1;

moved:
    count_moved_atom(p, obj);
    *word = (_PyParcel_Word)Py_NewRef(obj);
    return 1;
}

/* Of these, the ones that can stay in the slot of an owned container. */
static inline int
stays(packer *p, PyObject *obj)
{
    if (Py_REFCNT(obj) == 1) {
        PyTypeObject *type = Py_TYPE(obj);
        if (type == &PyLong_Type || type == &PyFloat_Type
            || (type == &PyUnicode_Type && !PyUnicode_CHECK_INTERNED(obj)))
        {
            count_moved_atom(p, obj);
            return 1;
        }
        return 0;
    }
    if (_PyParcel_InRuntime(obj) || obj == Py_None) {
        p->parcel->stats.shared++;
        return 1;
    }
    return 0;
}

/* An object that has been met again where it is needed to make itself: as an argument
   of its own constructor, or of one or in a frozenset that is such an argument.  pickle
   can't do that either.  (A list, a dict or an instance there is filled later.) */
static int
check_made(packer *p, PyObject *obj, _PyParcel_Word word)
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

/* What has been taken for the child `old` of a container comes into its slot.  In
   place, a child that stands for itself stays. */
static inline int
store(packer *p, PyObject **slot, PyObject *old, frame *f, _PyParcel_Word word)
{
    int owned = f->owned;
    if (f->in_place) {
        if (word == (_PyParcel_Word)old) {
            // Counted twice now.
            Py_DECREF(old);
            return 0;
        }
        if (GROW(p->changes, p->nchanges, p->changes_room) < 0) {
            goto error;
        }
        p->changes[p->nchanges++] = (change){slot, old};
    }
    else if (owned && word != (_PyParcel_Word)old
             && release_later(p, old) < 0)
    {
        goto error;
    }
    if (WORD_IS_RECORD(word)) {
        *slot = Py_None;
        return add_hole(p, slot, WORD_RECORD(word));
    }
    *slot = WORD_OBJECT(word);
    return 0;

error:
    if (!WORD_IS_RECORD(word)) {
        Py_DECREF(WORD_OBJECT(word));
    }
    return -1;
}

/* In a parcel that is copied: does this None stand for a record? */
static _PyParcel_Word
hole_at(packer *p, PyObject **slot)
{
    if (p->dup_holes == NULL) {
        return 0;
    }
    known *k = probe(p->dup_holes, p->dup_mask, slot);
    return k->obj != NULL ? k->to : 0;
}

#define TAKE_CHILD(P, FROM, OWNED, WORD) \
    ((P)->dup != NULL && *(FROM) == Py_None \
     && ((WORD) = hole_at((P), (FROM))) != 0 ? 0 \
     : take((P), *(FROM), (OWNED), &(WORD)))

static int
step_items(packer *p, frame *f)
{
    Py_ssize_t at = f - p->frames;
    int owned = f->owned;
    int in_place = f->in_place;
    PyObject **from = f->from;
    PyObject **to = f->to.slots;
    Py_ssize_t n = f->n;
    for (Py_ssize_t i = f->i; i < n; i++) {
        PyObject *obj = from[i];
        if (obj == NULL) {
            continue;
        }
        if (in_place && stays(p, obj)) {
            continue;
        }
        _PyParcel_Word word;
        int quick = p->dup != NULL ? 0 : take_quickly(p, obj, owned, &word);
        if (quick > 0) {
            if (store(p, &to[i], obj, f, word) < 0) {
                return -1;
            }
            continue;
        }
        f->i = i + 1;
        int entered = quick < 0 ? -1 : TAKE_CHILD(p, &from[i], owned, word);
        if (entered != 0) {
            if (entered < 0) {
                return -1;
            }
            // The frames can have moved.
            f = &p->frames[at];
        }
        else if (f->arguments && check_made(p, obj, word) < 0) {
            return -1;
        }
        if (store(p, &to[i], obj, f, word) < 0) {
            return -1;
        }
        if (entered) {
            return 1;
        }
    }
    return 0;
}

/* A key is never a record, and entering one (a tuple) is no different from
   entering a value. */
static int
take_key(packer *p, PyObject *key, Py_ssize_t i, int owned,
         _PyParcel_Word *word)
{
    if (!PyUnicode_CheckExact(key)) {
        return take(p, key, owned, word);
    }
    int cached = (i < KEY_CACHE);
    if (cached && p->keys[i].from == key) {
        *word = (_PyParcel_Word)Py_NewRef(p->keys[i].to);
        return 0;
    }
    int res = take(p, key, owned, word);
    if (res == 0 && cached && Py_REFCNT(key) > 1
        && *word != (_PyParcel_Word)key)
    {
        p->keys[i].from = key;
        p->keys[i].to = WORD_OBJECT(*word);
    }
    return res;
}

static int
step_dict(packer *p, frame *f)
{
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
    int in_place = f->in_place;
    int fresh = (!in_place && !own);
    // First the key, then the value; they stand side by side.
    for (Py_ssize_t i = f->i; i < f->n; i++) {
        PyObject **from_slot = (PyObject **)(src + (i >> 1) * size) + (i & 1);
        PyObject **slot = (PyObject **)(dst + (i >> 1) * size) + (i & 1);
        PyObject *obj = *from_slot;
        if (fresh && (i & 1) == 0) {
            slot[0] = slot[1] = NULL;
            to->dk_nentries = (i >> 1) + 1;
        }
        if (obj == NULL || ((i & 1) == 0 && from_slot[1] == NULL)) {
            continue;
        }
        if (in_place && stays(p, obj)) {
            continue;
        }
        _PyParcel_Word word;
        if (i & 1) {
            int quick = p->dup != NULL ? 0 : take_quickly(p, obj, owned, &word);
            if (quick < 0 || (quick > 0 && store(p, slot, obj, f, word) < 0)) {
                return -1;
            }
            if (quick > 0) {
                if (own) {
                    Py_DECREF(obj);
                }
                continue;
            }
        }
        f->i = i + 1;
        int entered = (i & 1) == 0 ? take_key(p, obj, i >> 1, owned, &word)
                                   : TAKE_CHILD(p, from_slot, owned, word);
        if (entered != 0) {
            if (entered < 0) {
                return -1;
            }
            f = &p->frames[at];
        }
        if (store(p, slot, obj, f, word) < 0) {
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
        int entered = take(p, obj, owned, &word);
        if (entered != 0) {
            if (entered < 0) {
                return -1;
            }
            f = &p->frames[at];
        }
        if (store(p, &to[i].key, obj, f, word) < 0) {
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
        int entered = take(p, obj, 0, &word);
        if (entered < 0 || (!entered && kind == RECORD_FROZENSET
                            && check_made(p, obj, word) < 0))
        {
            return -1;
        }
        p->parcel->graph.words[at] = word;
        if (entered) {
            return 1;
        }
    }
    return (kind == RECORD_LATE ? add_build(p, f->record)
            : add_create(p, f->record));
}

static int
step_instance(packer *p, frame *f)
{
    PyObject *obj = f->to.object;
    int owned = f->owned;
    const _PyParcel_Class *cls = Py_TYPE(obj) == p->last_type
        ? p->last_class : _PyParcel_GetClass(p->home, Py_TYPE(obj));
    if (cls == NULL) {
        return -1;
    }
    attributes a;
    get_attributes(obj, cls, &a);
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
            entered = entered ? 0 : take(p, value, owned, &word);
        }
        if (entered < 0) {
            return -1;
        }
        p->parcel->graph.words[first + i] = word;
        if (owned && word != (_PyParcel_Word)value
            && release_later(p, value) < 0)
        {
            return -1;
        }
        if (entered) {
            return 1;
        }
    }
    return f->n > 0 ? add_build(p, f->record) : 0;
}

static int
step_call(packer *p, frame *f)
{
    for (Py_ssize_t i = f->i; i < 6; i++) {
        if (i == 2 && f->owned == 0) {
            // Its arguments are there.
            if (add_create(p, f->record) < 0) {
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
        _PyParcel_Word word;
        int entered = take(p, parts[i], 0, &word);
        if (entered < 0
            || (!entered && i < 2 && check_made(p, parts[i], word) < 0))
        {
            return -1;
        }
        p->parcel->graph.words[at] = word;
        if (entered) {
            p->frames[p->depth - 1].arguments = (i == 1);
            return 1;
        }
    }
    _PyParcel_Reduction *r = &p->reductions[f->of.reduction].reduction;
    if (r->state == NULL && r->list == NULL && r->items == NULL) {
        return 0;
    }
    return add_build(p, f->record);
}

/* Until nothing is left to be done. */
static int
walk(packer *p)
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
            entered = step_instance(p, f);
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


/* --- What the sender gives up ------------------------------------------------------ */

/* A marker: move(obj). */
static int
add_given(packer *p, PyObject *obj, PyObject **slot, int owned)
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

static int
take_move_marker(packer *p, PyObject *marker, _PyParcel_Word *word)
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
        if (add_given(p, *slot, Py_REFCNT(*slot) == 1 ? slot : NULL,
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
    return take_given(p, k->given - 1, word);
}

/* An empty container of the same type, which gets what `obj` has: commit() does
   that.  NULL without an exception if the type has none. */
static PyObject *
new_shell(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyList_Type) {
        return PyList_New(0);
    }
    if (type == &PyDict_Type && can_move_in_place(obj)) {
        return PyDict_New();
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
            return not_isolated(p, obj,
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

/* A tuple, set or slice: a new one, whose items are owned. */
static int
take_shallow(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    PyObject *copy = NULL;
    int res;
    if (PyTuple_CheckExact(obj)) {
        res = take_tuple(p, obj, 0, &copy);
    }
    else if (PySlice_Check(obj)) {
        res = take_slice(p, obj, 0, &copy);
    }
    else {
        res = take_set(p, obj, 0, &copy);
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

/* Can nobody tell an equal one from it? */
static int
is_value(PyObject *obj)
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
    if (is_value(obj)) {
        return 1;
    }
    if (type == &PyByteArray_Type || type == &PyList_Type
        || type == &PyDict_Type || type == &PyTuple_Type
        || type == &PySet_Type || type == &PyFrozenSet_Type
        || type == &PySlice_Type)
    {
        return 0;
    }
    if (_PyParcel_HandleKind(p->home, obj) >= 0) {
        return 1;
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (check_simple(p, obj, &cls, &a, &simple) < 0) {
        return -1;
    }
    if (simple || _PyParcel_IsArray(p->home, obj)) {
        return 0;
    }
    Py_ssize_t reduction = get_reduction(p, obj);
    if (reduction < 0) {
        return -1;
    }
    return (p->reductions[reduction].reduction.kind == _PyParcel_NAMED
            || is_value_type(p, obj));
}

static int
take_given(packer *p, Py_ssize_t index, _PyParcel_Word *word)
{
    given *g = &p->givens[index];
    PyObject *obj = g->obj;
    int slot = (g->slot != NULL);
    known *k = find_known(p, obj);
    k->taking = 1;
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
        int res = take(p, obj, slot ? g->owned : NOT_OWNED, word);
        if (res < 0) {
            return -1;
        }
        if (slot) {
            return (*word != (_PyParcel_Word)obj
                    && release_later(p, obj) < 0) ? -1 : res;
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
    if (type == &PyTuple_Type || type == &PySlice_Type || type == &PySet_Type
        || (type == &PyFrozenSet_Type
            && set_has_plain_members((PySetObject *)obj)))
    {
        g->cleared = 1;
        int res = take_shallow(p, obj, g->owned, word);
        if (res >= 0 && remember(p, obj, *word) < 0) {
            return -1;
        }
        return res;
    }
    if (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        return take_other(p, obj, g->owned, word);
    }
    return take(p, obj, 0, word);
}


/* --- Who refers to what: the collector's arithmetic ------------------------------------ */

typedef struct {
    packer *packer;
    PyObject **stack;
    Py_ssize_t depth, room;
    int from_given;                 // counting what is to be moved
    int in_reductions;
    int opaque;                     // in what an object has, but does not send
    int flooding;                   // marking what others can reach
    PyObject *own_dict;             // of the value that is traversed
    PyObject *mutable;              // found while flooding
    int failed;
} arithmetic;

static int
push_object(arithmetic *a, PyObject *obj)
{
    if (GROW(a->stack, a->depth, a->room) < 0) {
        a->failed = 1;
        return -1;
    }
    a->stack[a->depth++] = (PyObject *)((uintptr_t)obj | (a->opaque != 0));
    return 0;
}

/* Does it stay, and go as a copy or in parts?  Then it can keep what it refers to
   alive for longer than the walk lasts, as garbage in a cycle, say. */
static int
is_opaque(packer *p, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyList_Type || type == &PyTuple_Type || type == &PySlice_Type) {
        return 0;
    }
    if (type == &PyDict_Type || type == &PySet_Type
        || type == &PyFrozenSet_Type)
    {
        return !can_move_in_place(obj);
    }
    const _PyParcel_Class *cls;
    attributes a;
    int simple;
    if (check_simple(p, obj, &cls, &a, &simple) < 0) {
        PyErr_Clear();
        return 1;
    }
    return !simple;
}

static int
visit_count(PyObject *obj, void *arg)
{
    arithmetic *a = arg;
    packer *p = a->packer;
    if (_Py_IsImmortal(obj) || is_named(obj) || is_enum_member(obj)) {
        return 0;
    }
    int atom = is_atom_type(Py_TYPE(obj));
    if (Py_REFCNT(obj) == 1) {
        return atom ? 0 : push_object(a, obj);
    }
    if (atom && !is_large(obj)) {
        return 0;
    }
    known *k = get_known(p, obj);
    if (k == NULL) {
        a->failed = 1;
        return -1;
    }
    if (k->given != 0 || is_reduced_to_name(p, k)) {
        return 0;
    }
    if (a->opaque) {
        k->opaque++;
    }
    else {
        k->inside++;
    }
    int reached = (a->from_given && !a->opaque);
    if (k->counted && k->reached >= reached) {
        return 0;
    }
    if (k->counted) {
        // It has been visited, but not as something that has to be moved.
        k->reached = 1;
        return 0;
    }
    k->counted = 1;
    k->reached = (uint8_t)reached;
    // What a reduction refers to dies with it only if nothing else does.
    a->opaque |= a->in_reductions;
    return atom ? 0 : push_object(a, obj);
}

/* Is it found by its name, or made from nothing but atoms and never changed?  As far
   as can be told without code. */
static int
reduces_to_value(packer *p, PyObject *obj)
{
    if (_PyParcel_IsArray(p->home, obj)) {
        return 0;
    }
    Py_ssize_t index = get_reduction(p, obj);
    p->needs_code = NULL;
    if (index < 0) {
        PyErr_Clear();
        return 0;
    }
    _PyParcel_Reduction *r = &p->reductions[index].reduction;
    if (r->kind == _PyParcel_NAMED) {
        return 1;
    }
    return (Py_TYPE(obj)->tp_hash != PyObject_HashNotImplemented
            && r->state == NULL && r->list == NULL && r->items == NULL
            && is_value(r->args));
}

static int
visit_flood(PyObject *obj, void *arg)
{
    arithmetic *a = arg;
    if (_Py_IsImmortal(obj) || is_named(obj) || is_enum_member(obj)) {
        return 0;
    }
    int atom = is_atom_type(Py_TYPE(obj));
    known *k = Py_REFCNT(obj) > 1 ? find_known(a->packer, obj) : NULL;
    if (k != NULL) {
        if (k->given != 0 || k->flooded || is_reduced_to_name(a->packer, k)) {
            return 0;
        }
        k->outside = 1;
        k->flooded = 1;
    }
    if (!is_value_type(a->packer, obj) && obj != a->own_dict) {
        if (is_opaque(a->packer, obj) && reduces_to_value(a->packer, obj)) {
            return 0;
        }
        a->mutable = obj;
    }
    return atom ? 0 : push_object(a, obj);
}

/* The __dict__ of an instance, if there is such an object. */
static PyObject *
dict_of(PyObject *obj)
{
    if (Py_TYPE(obj)->tp_flags & Py_TPFLAGS_MANAGED_DICT) {
        return (PyObject *)_PyObject_GetManagedDict(obj);
    }
    PyObject **dict = _PyObject_ComputedDictPointer(obj);
    return dict != NULL ? *dict : NULL;
}

/* From what is on the stack on. */
static int
traverse_all(arithmetic *a)
{
    visitproc visit = a->flooding ? visit_flood : visit_count;
    while (a->depth > 0) {
        PyObject *obj = a->stack[--a->depth];
        // The lowest bit: see push_object().
        a->opaque = (int)((uintptr_t)obj & 1);
        obj = (PyObject *)((uintptr_t)obj & ~(uintptr_t)1);
        a->opaque |= is_opaque(a->packer, obj);
        traverseproc traverse = Py_TYPE(obj)->tp_traverse;
        a->own_dict = a->flooding && is_value_type(a->packer, obj)
            ? dict_of(obj) : NULL;
        if (traverse != NULL && _PyObject_IS_GC(obj)
            && traverse(obj, visit, a) != 0)
        {
            return -1;
        }
    }
    return a->failed ? -1 : 0;
}

static int
visit_reductions(arithmetic *a)
{
    packer *p = a->packer;
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        reduced *r = &p->reductions[i];
        PyObject *parts[] = {
            r->obj, r->reduction.callable, r->reduction.args,
            r->reduction.state, r->reduction.list, r->reduction.items,
            r->reduction.setter,
        };
        for (size_t j = 0; j < Py_ARRAY_LENGTH(parts); j++) {
            a->opaque = 0;
            if (parts[j] != NULL && visit_count(parts[j], a) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

/* Mark what others can reach.  If it must not be so, say what. */
static int
flood(arithmetic *a)
{
    packer *p = a->packer;
    // Before reductions are made, which add references of their own.
    for (size_t i = 0; i <= p->table_mask; i++) {
        known *k = &p->table[i];
        if (k->obj != NULL && k->counted) {
            k->elsewhere = Py_REFCNT(k->obj) - k->inside - k->opaque;
            k->outside = (k->elsewhere > 0 || k->opaque > 0);
        }
    }
    a->flooding = 1;
    for (size_t i = 0; i <= p->table_mask; i++) {
        known k = p->table[i];
        if (k.obj == NULL || !k.counted || !k.outside || k.flooded) {
            continue;
        }
        a->mutable = NULL;
        a->own_dict = NULL;
        size_t mask = p->table_mask;
        if (visit_flood(k.obj, a) < 0 || traverse_all(a) < 0) {
            return -1;
        }
        if (k.reached && k.elsewhere > 0 && a->mutable != NULL) {
            return not_isolated(p, k.obj, k.elsewhere);
        }
        if (p->table_mask != mask) {
            // A reduction has made the table grow.
            i = (size_t)-1;
        }
    }
    return 0;
}

/* Find out which of the objects that more than one reference leads to are the
   graph's alone. */
static int
isolate(packer *p)
{
    arithmetic a = {.packer = p};
    int res = -1;
    // First what has to be moved, then what can be moved.
    for (int owned = MUST_MOVE; owned >= MAY_MOVE; owned--) {
        a.from_given = (owned == MUST_MOVE);
        for (Py_ssize_t i = 0; i < p->ngivens; i++) {
            a.opaque = 0;
            if (p->givens[i].owned == owned
                && push_object(&a, p->givens[i].obj) < 0)
            {
                goto exit;
            }
        }
        if (traverse_all(&a) < 0) {
            goto exit;
        }
    }
    // References of the reductions go with them.
    a.from_given = a.opaque = 0;
    a.in_reductions = 1;
    if (visit_reductions(&a) < 0 || traverse_all(&a) < 0 || flood(&a) < 0) {
        goto exit;
    }
    p->isolated = 1;
    res = 0;

exit:
    PyMem_RawFree(a.stack);
    return res;
}


/* --- Reducing: this runs Python code --------------------------------------------------- */

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

static int
is_refusal(void)
{
    return (PyErr_ExceptionMatches(PyExc_Exception)
            && !PyErr_ExceptionMatches(PyExc_MemoryError)
            && !PyErr_ExceptionMatches(PyExc_RecursionError));
}

static int
reduce(discovery *d, PyObject *obj)
{
    packer *p = d->packer;
    Py_ssize_t index = find_reduction(p, obj);
    if (index < 0) {
        _PyParcel_Reduction r;
        memset(&r, 0, sizeof(r));
        if (_PyParcel_Reduce(p->home, &p->message, obj, &r) < 0) {
            if (is_refusal()) {
                _PyParcel_RaiseNotShareable(p->home, p->root, obj);
            }
            return -1;
        }
        index = add_reduction(p, obj, &r);
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
    if (check_simple(p, obj, &cls, &a, &simple) < 0) {
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
static int
discover(packer *p)
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


/* --- Commit and undo ------------------------------------------------------------------- */

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
static void
dissolve(packer *p, PyObject *obj)
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
static void
commit(packer *p)
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
    p->parcel->nplain += p->nmoved;
    p->parcel->stats.moved += p->nmoved;
    _PyParcel_ListMerge(&p->moved, &p->parcel->plain);
    p->nmoved = 0;
}

/* What is left of them lets go of what has left.  Nothing runs code: what is not
   in the parcel is in the undo log as well. */
static void
clear_remains(packer *p)
{
    for (Py_ssize_t i = 0; i < p->ndissolved; i++) {
        dissolve(p, p->dissolved[i]);
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
static void
undo(packer *p)
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
    p->ndissolved = 0;
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        given *g = &p->givens[i];
        Py_CLEAR(g->shell);
        g->cleared = 0;
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
    if (p->parcel != NULL) {
        _PyParcel_Discard(p->parcel);
        p->parcel = NULL;
    }
}


/* --- A walk ------------------------------------------------------------------------------- */

/* Ready for another one; what has been found out stays. */
static int
begin_walk(packer *p)
{
    p->parcel = _PyParcel_New(p->home);
    if (p->parcel == NULL) {
        return -1;
    }
#ifdef Py_REF_DEBUG
    p->reftotal_before = _PyInterpreterState_GET()->object_state.reftotal;
#endif
    p->records_room = p->words_room = p->holes_room = 0;
    p->shapes_room = p->program_room = p->resources_room = 0;
    p->depth = 0;
    p->npending = p->ndelayed = 0;
    p->needs_code = NULL;
    p->refused = NULL;
    p->needs_isolation = 0;
    p->found_given = 0;
    p->last_type = NULL;
    p->last_class_record = -1;
    p->last_shape = -1;
    p->last_keys = NULL;
    memset(p->keys, 0, sizeof(p->keys));
    return 0;
}

static int
forget_known(packer *p)
{
    memset(p->table, 0, (p->table_mask + 1) * sizeof(known));
    p->table_used = 0;
    p->isolated = 0;
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        known *k = get_known(p, p->reductions[i].obj);
        if (k == NULL) {
            return -1;
        }
        k->reduction = i + 1;
    }
    for (Py_ssize_t i = 0; i < p->ngivens; i++) {
        known *k = get_known(p, p->givens[i].obj);
        if (k == NULL) {
            return -1;
        }
        k->given = i + 1;
    }
    return 0;
}

static int
do_walk(packer *p)
{
    int res;
    if (p->ngivens > 0 && p->givens[0].obj == p->root) {
        res = take_given(p, 0, &p->parcel->root);
    }
    else {
        res = take(p, p->root, 0, &p->parcel->root);
    }
    if (res > 0) {
        res = walk(p);
    }
    return res;
}

// Code that makes new objects each time it reduces one could go on for ever.
#define MAX_DISCOVERIES 64

/* Say what can't go, and why. */
static void
raise_refusal(packer *p)
{
    PyObject *root = p->root;
    if (_PyParcel_IsMove(p->home, root)) {
        root = ((_PyParcel_MoveObject *)root)->obj;
    }
    if (!PyErr_Occurred()) {
        _PyParcel_RaiseNotIsolated(p->home, root, p->refused, p->outside);
    }
    else if (is_refusal()) {
        _PyParcel_RaiseNotShareable(p->home, root, p->refused);
    }
}

/* What the walk stopped for. */
static int
prepare_again(packer *p, int *discoveries)
{
    if (p->needs_code != NULL) {
        if (++*discoveries > MAX_DISCOVERIES) {
            PyErr_SetString(PyExc_RuntimeError,
                            "the object changes while it is reduced");
            return -1;
        }
        if (forget_known(p) < 0 || discover(p) < 0) {
            return -1;
        }
        return forget_known(p);
    }
    if (forget_known(p) < 0) {
        return -1;
    }
    if (p->needs_isolation) {
        int res = isolate(p);
        if (p->refused != NULL) {
            raise_refusal(p);
        }
        return res;
    }
    assert(p->found_given);
    return 0;
}

/* Enter a write section over the own heap.  1: done; 0: other threads of the
   interpreter have run meanwhile, which only happens with -X rwgil=global; -1:
   exception. */
static int
begin_section(_PyRWGIL_Section *section)
{
    struct _gil_runtime_state *gil = _PyInterpreterState_GET()->ceval.gil;
    unsigned long switches = gil->switch_number;
    if (_PyRWGIL_WriteOwn(section) < 0) {
        return -1;
    }
    if (gil->switch_number != switches) {
        _PyRWGIL_WriteEnd(section);
        return 0;
    }
    return 1;
}

/* Walk until that succeeds.  0: the caller is in a write section over its heap.
   -1 with an exception: then all is as it was. */
static int
take_graph(packer *p, _PyRWGIL_Section *section)
{
    int discoveries = 0;
    for (;;) {
        int walked = (begin_walk(p) == 0 && do_walk(p) == 0 && !p->found_given);
        int done = walked ? begin_section(section) : -1;
        if (done > 0) {
            return 0;
        }
        undo(p);
        if (p->refused != NULL) {
            raise_refusal(p);
            return -1;
        }
        if (PyErr_Occurred()) {
            return -1;
        }
        if (walked ? forget_known(p) < 0 : prepare_again(p, &discoveries) < 0) {
            return -1;
        }
    }
}

static void
packer_init(packer *p, _PyParcel_Home *home, PyObject *root)
{
    memset(p, 0, offsetof(packer, inplace_frames));
    memset(p->inplace_table, 0, sizeof(p->inplace_table));
    p->home = home;
    p->root = root;
    p->frames = p->inplace_frames;
    p->frames_room = INPLACE_FRAMES;
    p->table = p->inplace_table;
    p->table_mask = INPLACE_KNOWN - 1;
    _PyParcel_ListInit(&p->moved);
}

/* References that were the graph's are released here: that can run code. */
static void
packer_free(packer *p)
{
    PyObject *exc = PyErr_GetRaisedException();
    for (Py_ssize_t i = 0; i < p->nchanges; i++) {
        Py_DECREF(p->changes[i].old);
    }
    // In this order: an object that dies while its dict is in use has to allocate
    // memory, and there may be none.
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        _PyParcel_ReductionClear(&p->reductions[i].reduction);
    }
    Py_XDECREF(p->message);
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        Py_DECREF(p->reductions[i].obj);
    }
    Py_XDECREF(p->dispatch_table);
    PyErr_SetRaisedException(exc);
    PyMem_RawFree(p->changes);
    PyMem_RawFree(p->reductions);
    PyMem_RawFree(p->dissolved);
    PyMem_RawFree(p->givens);
    PyMem_RawFree(p->delayed);
    PyMem_RawFree(p->dup_holes);
    if (p->frames != p->inplace_frames) {
        PyMem_RawFree(p->frames);
    }
    if (p->table != p->inplace_table) {
        PyMem_RawFree(p->table);
    }
}

/* The references of the graph are no longer the interpreter's, and neither are
   the objects that its collector counts. */
static void
leave_heap(packer *p)
{
    _PyParcel *parcel = p->parcel;
#ifdef Py_REF_DEBUG
    PyInterpreterState *interp = _PyInterpreterState_GET();
    parcel->reftotal = (p->moved_reftotal
                        + interp->object_state.reftotal - p->reftotal_before);
    _Py_AddRefTotal(_PyThreadState_GET(), -parcel->reftotal);
#endif
    int *count = &_PyInterpreterState_GET()->gc.generations[0].count;
    *count = parcel->nplain < *count ? *count - (int)parcel->nplain : 0;
    _PyParcel_Graph *g = &parcel->graph;
    parcel->nbytes = (sizeof(_PyParcel)
                      + g->nrecords * sizeof(*g->records)
                      + g->nwords * sizeof(*g->words)
                      + g->nholes * sizeof(*g->holes)
                      + g->nsteps * sizeof(*g->program));
}

static _PyParcel *
pack(packer *p)
{
    if (_PyInterpreterState_GET()->gc.collecting) {
        PyErr_SetString(p->home->not_shareable_error,
                        "nothing can be sent while the collector runs");
        return NULL;
    }
    _PyRWGIL_Section section;
    if (take_graph(p, &section) < 0) {
        return NULL;
    }
    commit(p);
    _PyRWGIL_WriteEnd(&section);
    clear_remains(p);
    leave_heap(p);
    _PyParcel *parcel = p->parcel;
    p->parcel = NULL;
    return parcel;
}

static _PyParcel *
pack_root(_PyParcel_Home *home, PyObject *obj, PyObject **slot)
{
    packer p;
    packer_init(&p, home, obj);
    _PyParcel *parcel = NULL;
    if (slot == NULL || add_given(&p, obj, slot, MAY_MOVE) == 0) {
        parcel = pack(&p);
    }
    packer_free(&p);
    return parcel;
}

/* What needs no walk: small messages. */
static _PyParcel *
pack_atom(_PyParcel_Home *home, PyObject *obj)
{
    _PyParcel *parcel = _PyParcel_New(home);
    if (parcel == NULL) {
        return NULL;
    }
    if (_PyParcel_IsProcessWide(obj)) {
        parcel->root = (_PyParcel_Word)obj;
        parcel->stats.shared = 1;
        return parcel;
    }
    PyObject *copy = copy_atom(obj);
    if (copy == NULL) {
        _PyParcel_Discard(parcel);
        return NULL;
    }
    parcel->root = (_PyParcel_Word)copy;
    parcel->stats.copied = 1;
    parcel->nbytes = sizeof(_PyParcel);
#ifdef Py_REF_DEBUG
    if (!_Py_IsImmortal(copy)) {
        parcel->reftotal = 1;
        _Py_AddRefTotal(_PyThreadState_GET(), -1);
    }
#endif
    return parcel;
}

static int
is_small(PyObject *obj)
{
    return is_atom_type(Py_TYPE(obj)) || _PyParcel_IsProcessWide(obj);
}

_PyParcel *
_PyParcel_Pack(_PyParcel_Home *home, PyObject *obj)
{
    return is_small(obj) ? pack_atom(home, obj) : pack_root(home, obj, NULL);
}

/* Is it a place on the evaluation stack of the frame that runs? */
static int
is_on_stack(PyObject *const *arg)
{
    _PyInterpreterFrame *frame = _PyThreadState_GET()->current_frame;
    if (frame == NULL || frame->owner == FRAME_OWNED_BY_CSTACK) {
        return 0;
    }
    PyObject **base = _PyFrame_Stackbase(frame);
    return (arg >= base
            && arg < base + _PyFrame_GetCode(frame)->co_stacksize);
}

_PyParcel *
_PyParcel_PackSlot(_PyParcel_Home *home, PyObject **slot)
{
    PyObject *obj = *slot;
    if (Py_REFCNT(obj) > 1
        || (is_small(obj) && !is_large(obj))
        || (home->move_type != NULL && Py_IS_TYPE(obj, home->move_type)))
    {
        return _PyParcel_Pack(home, obj);
    }
    return pack_root(home, obj, slot);
}

_PyParcel *
_PyParcel_PackArg(_PyParcel_Home *home, PyObject *const *arg)
{
    if (Py_REFCNT(*arg) > 1 || !is_on_stack(arg)) {
        return _PyParcel_Pack(home, *arg);
    }
    return _PyParcel_PackSlot(home, (PyObject **)arg);
}

/* Without running code, and without anything that is made anew by it. */
int
_PyParcel_IsNative(_PyParcel_Home *home, PyObject *obj)
{
    packer p;
    packer_init(&p, home, obj);
    int res = -1;
    if (begin_walk(&p) == 0) {
        res = (do_walk(&p) == 0);
        for (Py_ssize_t i = 0; res && i < p.parcel->graph.nrecords; i++) {
            _PyParcel_RecordKind kind = p.parcel->graph.records[i].kind;
            res = (kind != RECORD_NAMED && kind != RECORD_INSTANCE
                   && kind != RECORD_CALL);
        }
        if (PyErr_Occurred()) {
            res = -1;
        }
    }
    undo(&p);
    packer_free(&p);
    return res;
}


/* --- A copy of a parcel ------------------------------------------------------------------- */

static int
index_holes(packer *p, const _PyParcel_Graph *g)
{
    size_t size = 8;
    while (size < 2 * (size_t)g->nholes) {
        size *= 2;
    }
    p->dup_holes = PyMem_RawCalloc(size, sizeof(known));
    if (p->dup_holes == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    p->dup_mask = size - 1;
    for (Py_ssize_t i = 0; i < g->nholes; i++) {
        known *k = probe(p->dup_holes, p->dup_mask, g->holes[i].slot);
        k->obj = (PyObject *)g->holes[i].slot;
        k->to = RECORD_WORD(g->holes[i].record);
    }
    return 0;
}

static void *
copy_array(const void *array, Py_ssize_t n, size_t size)
{
    void *copy = PyMem_RawMalloc(n * size + 1);
    if (copy == NULL) {
        PyErr_NoMemory();
    }
    else if (n > 0) {
        memcpy(copy, array, n * size);
    }
    return copy;
}

#define COPY_ARRAY(TO, FROM, ARRAY, N) \
    ((TO)->ARRAY = copy_array((FROM)->ARRAY, (FROM)->N, \
                              sizeof(*(FROM)->ARRAY)))

/* All but words, holes and resources. */
static int
copy_records(packer *p, const _PyParcel_Graph *from)
{
    _PyParcel_Graph *to = &p->parcel->graph;
    if (COPY_ARRAY(to, from, records, nrecords) == NULL
        || COPY_ARRAY(to, from, shapes, nshapes) == NULL
        || COPY_ARRAY(to, from, program, nsteps) == NULL
        || COPY_ARRAY(to, from, resources, nresources) == NULL)
    {
        return -1;
    }
    to->words = PyMem_RawCalloc(from->nwords + 1, sizeof(*to->words));
    if (to->words == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    to->nrecords = p->records_room = from->nrecords;
    to->nshapes = p->shapes_room = from->nshapes;
    to->nsteps = p->program_room = from->nsteps;
    to->nwords = p->words_room = from->nwords;
    to->runs_code = from->runs_code;
    for (Py_ssize_t i = 0; i < to->nrecords; i++) {
        to->records[i].holes = -1;
    }
    p->resources_room = from->nresources;
    for (; to->nresources < from->nresources; to->nresources++) {
        if (_PyParcel_ShareResource(&to->resources[to->nresources]) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
copy_word(packer *p, _PyParcel_Word from, _PyParcel_Word *to)
{
    if (from == 0 || WORD_IS_RECORD(from)) {
        *to = from;
        return 0;
    }
    int entered = take(p, WORD_OBJECT(from), 0, to);
    return entered > 0 ? walk(p) : entered;
}

_PyParcel *
_PyParcel_Duplicate(_PyParcel_Home *home, _PyParcel *parcel)
{
    const _PyParcel_Graph *g = &parcel->graph;
    packer p;
    packer_init(&p, home, NULL);
    p.dup = parcel;
    if (begin_walk(&p) < 0 || copy_records(&p, g) < 0
        || index_holes(&p, g) < 0
        || copy_word(&p, parcel->root, &p.parcel->root) < 0)
    {
        goto error;
    }
    for (Py_ssize_t i = 0; i < g->nwords; i++) {
        if (copy_word(&p, g->words[i], &p.parcel->graph.words[i]) < 0) {
            goto error;
        }
    }
    assert(p.parcel->graph.nholes == g->nholes);
    leave_heap(&p);
    parcel = p.parcel;
    packer_free(&p);
    return parcel;

error:
    undo(&p);
    packer_free(&p);
    return NULL;
}


/* --- Classes ------------------------------------------------------------------------------- */

#define MAX_CLASSES 1024            // then all are forgotten

typedef struct {
    _PyParcel_Class *entries;       // open addressing, by type
    size_t mask;
    size_t used;
} class_table;

static int
inherits(PyTypeObject *type, const char *name, PyTypeObject *base, int *yes)
{
    // The cache for types keeps what is looked up.
    PyObject *str = PyUnicode_InternFromString(name);
    if (str == NULL) {
        return -1;
    }
    *yes = (_PyType_Lookup(type, str) == _PyType_Lookup(base, str));
    Py_DECREF(str);
    return 0;
}

/* Does pickling an instance mean no more than its attributes? */
static int
has_own_protocol(PyTypeObject *type)
{
    static const char *const names[] = {
        "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__",
        "__getnewargs_ex__", "__getnewargs__", "__class__", NULL
    };
    for (const char *const *name = names; *name != NULL; name++) {
        int same;
        if (inherits(type, *name, &PyBaseObject_Type, &same) < 0) {
            return -1;
        }
        if (!same) {
            return 1;
        }
    }
    return 0;
}

/* Classes made by Python code, down to object. */
static int
has_simple_layout(PyTypeObject *type, int *nslots)
{
    if (type->tp_itemsize != 0 || type->tp_new != PyBaseObject_Type.tp_new
        || type->tp_alloc != PyType_GenericAlloc || type->tp_del != NULL
        || type->tp_getattro != PyObject_GenericGetAttr
        || (!_PyType_IS_GC(type) && type->tp_finalize != NULL))
    {
        return 0;
    }
    *nslots = 0;
    for (PyTypeObject *t = type; t != &PyBaseObject_Type; t = t->tp_base) {
        if (t == NULL || !(t->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
            return 0;
        }
        PyObject *slots = ((PyHeapTypeObject *)t)->ht_slots;
        *nslots += slots != NULL ? (int)PyTuple_GET_SIZE(slots) : 0;
    }
    if ((type->tp_dictoffset != 0 || type->tp_weaklistoffset > 0)
        && !(type->tp_flags & Py_TPFLAGS_MANAGED_DICT)
        && type->tp_dictoffset != 0)
    {
        return 0;
    }
    if (type->tp_weaklistoffset > 0) {
        return 0;
    }
    if (*nslots > 0 && type->tp_setattro != PyObject_GenericSetAttr) {
        return 0;
    }
    return (type->tp_basicsize
            == (Py_ssize_t)(sizeof(PyObject) + *nslots * sizeof(PyObject *)));
}

static int
collect_slots(_PyParcel_Class *cls, PyTypeObject *type)
{
    cls->slot_names = PyMem_RawCalloc(cls->nslots + 1, sizeof(PyObject *));
    cls->slot_offsets = PyMem_RawCalloc(cls->nslots + 1, sizeof(Py_ssize_t));
    if (cls->slot_names == NULL || cls->slot_offsets == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    int n = 0;
    for (PyTypeObject *t = type; t != &PyBaseObject_Type; t = t->tp_base) {
        PyObject *slots = ((PyHeapTypeObject *)t)->ht_slots;
        for (Py_ssize_t i = 0; slots != NULL && i < PyTuple_GET_SIZE(slots); i++) {
            cls->slot_names[n] = PyTuple_GET_ITEM(slots, i);
            cls->slot_offsets[n++] = t->tp_members[i].offset;
        }
    }
    return 0;
}

static int
describe_class(_PyParcel_Class *cls, PyTypeObject *type)
{
    memset(cls, 0, sizeof(*cls));
    cls->type = type;
    if (!has_simple_layout(type, &cls->nslots)) {
        cls->nslots = 0;
        return 0;
    }
    int own = has_own_protocol(type);
    if (own != 0) {
        cls->nslots = 0;
        return own < 0 ? -1 : 0;
    }
    cls->has_dict = (type->tp_flags & Py_TPFLAGS_MANAGED_DICT) != 0;
    cls->simple = 1;
    return cls->nslots > 0 ? collect_slots(cls, type) : 0;
}

static void
free_entries(class_table *table)
{
    for (size_t i = 0; i <= table->mask; i++) {
        PyMem_RawFree(table->entries[i].slot_names);
        PyMem_RawFree(table->entries[i].slot_offsets);
    }
    PyMem_RawFree(table->entries);
}

void
_PyParcel_FreeClasses(_PyParcel_Home *home)
{
    if (home->classes != NULL) {
        free_entries(home->classes);
        PyMem_RawFree(home->classes);
        home->classes = NULL;
    }
}

static class_table *
get_class_table(_PyParcel_Home *home)
{
    class_table *table = home->classes;
    if (table != NULL) {
        return table;
    }
    table = PyMem_RawCalloc(1, sizeof(*table));
    if (table != NULL) {
        table->mask = 2 * MAX_CLASSES - 1;
        table->entries = PyMem_RawCalloc(table->mask + 1,
                                         sizeof(_PyParcel_Class));
        if (table->entries != NULL) {
            home->classes = table;
            return table;
        }
        PyMem_RawFree(table);
    }
    PyErr_NoMemory();
    return NULL;
}

const _PyParcel_Class *
_PyParcel_GetClass(_PyParcel_Home *home, PyTypeObject *type)
{
    class_table *table = get_class_table(home);
    if (table == NULL) {
        return NULL;
    }
    size_t i = hash_pointer(type) & table->mask;
    while (table->entries[i].type != NULL && table->entries[i].type != type) {
        i = (i + 1) & table->mask;
    }
    _PyParcel_Class *cls = &table->entries[i];
    if (cls->type != NULL && cls->version != 0
        && cls->version == type->tp_version_tag)
    {
        return cls;
    }
    if (cls->type == NULL) {
        if (table->used == MAX_CLASSES) {
            _PyParcel_FreeClasses(home);
            return _PyParcel_GetClass(home, type);
        }
        table->used++;
    }
    PyMem_RawFree(cls->slot_names);
    PyMem_RawFree(cls->slot_offsets);
    cls->slot_names = NULL;
    cls->slot_offsets = NULL;
    if (describe_class(cls, type) < 0) {
        cls->version = 0;
        cls->simple = 0;
        return NULL;
    }
    PyUnstable_Type_AssignVersionTag(type);
    cls->version = type->tp_version_tag;
    return cls;
}

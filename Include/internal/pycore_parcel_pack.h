// Packing: what Python/parcel_*.c that take graphs out of interpreters share.
// For them only; parcel_pack.c says how it goes.
//
// One file has one step of it:
//
//   parcel_pack.c         a walk from its beginning to its end; the parcel's arrays
//   parcel_walk.c         what is to be done with an object, and in containers
//   parcel_containers.c   entering containers
//   parcel_atoms.c        values
//   parcel_keys.c         keys that many dicts have
//   parcel_records.c      what goes as a record
//   parcel_instances.c    instances of Python classes
//   parcel_family.c       those that go as they are
//   parcel_classes.c      what has to be known of such a class
//   parcel_given.c        what the sender gives up
//   parcel_isolate.c      who refers to what: the collector's arithmetic
//   parcel_discover.c     reducing what needs Python code
//   parcel_buffer.c       memory that PickleBuffers hand out
//   parcel_commit.c       leaving the heap, or being as before
//   parcel_going.c        which memory goes
//   parcel_duplicate.c    a copy of a parcel
//
// All functions that return an int return -1 for failure: with an exception, or
// with one of the packer's fields set that say why the walk has stopped.

#ifndef Py_INTERNAL_PARCEL_PACK_H
#define Py_INTERNAL_PARCEL_PACK_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_dict.h"          // PyDictKeysObject
#include "pycore_long.h"          // _PyLong_DigitCount()
#include "pycore_memheap.h"       // _PyMemHeap_LARGE
#include "pycore_object.h"        // _PyObject_Init()
#include "pycore_parcel_graph.h"
#include "pycore_parcel_moved.h"  // _PyParcel_IsMove()
#include "pycore_parcel_reduce.h" // _PyParcel_Reduction


/* --- Structures ---------------------------------------------------------- */

/* What is known of an object that more than one reference leads to. */
typedef struct {
    PyObject *obj;
    _PyParcel_Word to;              // what stands for it; 0: nothing yet
    Py_ssize_t inside;              // references from owned objects
    Py_ssize_t opaque;              // and from such as do not go themselves
    Py_ssize_t elsewhere;           // and all others, when they were counted
    uint8_t counted;                // _PyPacker_Isolate() has seen it
    uint8_t reached;                // from something that is given up
    uint8_t outside;                // others can reach it
    uint8_t foreign;                // others, that have no part in the graph
    uint8_t flooded;                // and what it refers to has been marked
    uint8_t taking;                 // a given one that is being taken
    int32_t kept;                   // 1 + index, 0: none
    Py_ssize_t given;               // 1 + index, 0: none
    Py_ssize_t reduction;           // 1 + index, 0: none
} known;

/* Whether something is owned, and whether it is an error if a part of it is not. */
enum { NOT_OWNED = 0, MAY_MOVE = 1, MUST_MOVE = 2 };

typedef enum {
    FRAME_ITEMS,                    // an array of objects, or values of a dict whose
                                    // keys are done
    FRAME_DICT,
    FRAME_SET,
    FRAME_WORDS,                    // into the words of a record
    FRAME_INSTANCE,
    FRAME_APART,                    // an instance of a family, into words
    FRAME_CALL,
} frame_kind;

typedef struct {
    uint8_t kind;
    uint8_t owned;                  // what refers to the children is owned:
                                    // NOT_OWNED, MAY_MOVE, MUST_MOVE
    uint8_t in_place;               // they stay where they are, if they can
    uint8_t arguments;              // they are what a CALL is called with
    uint8_t mirrored;               // a reduced object has them, too
    uint8_t shift;                  // items: one is found every 1 << shift
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

/* Owned containers that still are in the collector's list, one behind the other.  No first
   one: there are none, and the last is the head of another list, that nothing follows on. */
typedef struct {
    PyGC_Head *first, *last;
} stretch;

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
    int logged;                     // the undo log has a reference, too
} given;

typedef struct {
    PyObject *obj;                  // counted
    _PyParcel_Reduction reduction;
} reduced;

/* A key of owned dicts to which all references may be in the graph. */
typedef struct {
    PyObject *key;                  // borrowed
    PyObject *copy;                 // what replaces it, until it is in the dicts
    Py_ssize_t seen;                // references
} kept_key;

// A dict with more entries is not one of many alike.
#define MAX_ROW 16

/* The keys of dicts that are alike, in order, and what they are in the parcel.  Or, if
   kept keys have to be replaced in the end, what all dicts of such a row have then, and what
   replaces it. */
typedef struct {
    PyObject *from[MAX_ROW];        // borrowed from the first of the dicts, or from
    PyObject *to[MAX_ROW];          // the undo log
    int32_t kept[MAX_ROW];          // as in `known`
    Py_ssize_t n;
    int owned;
    int same;                       // all stay
    int nshared;                    // are process-wide
    int counted;                    // what the uses refer to has their references
    int next;                       // 1 + index of the one that came after it; 0: none
    Py_ssize_t uses;                // owned dicts with them, after the first
} key_row;

/* An owned dict whose keys have been replaced by those of a row. */
typedef struct {
    PyDictUnicodeEntry *entries;
    Py_ssize_t row;
} rekeyed;

// Blocks of up to RUN_CLASSES * 16 bytes are got several at a time.
#define RUN_CLASSES 8
#define MAX_RUN 64

#define FIRST_LOOK 64               // items: see come_near()
#define INPLACE_KNOWN 32            // a power of 2
#define INPLACE_FRAMES 8
#define ROW_CACHE 32                // a power of 2

typedef struct {
    _PyParcel_Home *home;
    PyObject *root;                 // what the caller asked for
    _PyParcel_Queue *queue;         // where it will be put, or NULL
    _PyParcel *parcel;
    PyGC_Head moved;                // owned containers that go as they are
    Py_ssize_t nmoved;
    stretch stretches[2];           // see link_moved()
    int last_stretch;
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
    // When the end is near: see come_near().
    Py_ssize_t near_at;             // index of the root's item where to look at the clock
    Py_ssize_t began_at;            // and where that was done first
    PyTime_t began;                 // when
    given *givens;
    Py_ssize_t ngivens, givens_room;
    Py_ssize_t npending;            // records that are unmade()
    Py_ssize_t *delayed;            // records to be filled after one of them
    Py_ssize_t ndelayed, delayed_room;

    // Kept from one walk to the next.
    reduced *reductions;
    Py_ssize_t nreductions, reductions_room;
    PyObject *message;              // what they have in common
    PyDictKeysObject *empty_keys;   // of all empty dicts
    int isolated;                   // _PyPacker_Isolate() has been done

    int no_families;                // code will run: records only

    PyObject *needs_code;           // why the walk stopped, borrowed
    PyObject *refused;              // or this, and an exception is set, or
    Py_ssize_t outside;             // it has references from elsewhere
    int needs_isolation;
    int found_given;                // a marker that was not known yet
    int found_code;                 // families, and code that will run
    const _PyParcel *dup;           // this is a copy of that parcel
    known *dup_holes;               // slot -> record of it
    size_t dup_mask;

    kept_key *kept;
    Py_ssize_t nkept, kept_room;
    key_row *rows;
    Py_ssize_t nrows, rows_room;
    rekeyed *rekeyed;
    Py_ssize_t nrekeyed, rekeyed_room;
    int last_row;                   // 1 + index, 0: none
    int16_t row_cache[ROW_CACHE];   // the same, by first key
    struct {
        uint8_t next, end;          // those that are left of the last run
        uint8_t size;               // of that
    } runs[RUN_CLASSES];
    size_t large;                   // bytes of large blocks that have been copied
    Py_ssize_t uncounted;           // objects from alloc_container()
    // What the last instance was like: the next is often the same.
    PyTypeObject *last_type;
    const _PyParcel_Class *last_class;
    Py_ssize_t last_class_record;   // -1: not known
    Py_ssize_t last_shape;          // -1: not known
    PyDictKeysObject *last_keys;    // of inline values, in the order:
    Py_ssize_t last_n;
    uint8_t last_order[SHARED_KEYS_MAX_SIZE];
    _PyParcel_Family *last_family;
    PyObject *stays;                // this instance becomes a MovedObject
    frame inplace_frames[INPLACE_FRAMES];       // from here on nothing is zeroed
    known inplace_table[INPLACE_KNOWN];
    void *blocks[RUN_CLASSES][MAX_RUN];
} packer;


/* --- Arrays that grow: parcel_pack.c -------------------------------------- */

extern int _PyPacker_GrowSlow(void **array, Py_ssize_t *room, size_t size,
                              void *inplace);

/* Room for one more. */
#define GROW(ARRAY, N, ROOM) \
    ((N) < (ROOM) ? 0 : \
     _PyPacker_GrowSlow((void **)&(ARRAY), &(ROOM), sizeof(*(ARRAY)), NULL))

/* The same for an array of the graph. */
#define GROW_GRAPH(P, ARRAY, N) \
    ((P)->parcel->graph.N < (P)->ARRAY##_room ? 0 : \
     _PyPacker_GrowSlow((void **)&(P)->parcel->graph.ARRAY, \
                        &(P)->ARRAY##_room, \
                        sizeof(*(P)->parcel->graph.ARRAY), \
                        (P)->parcel->graph.inplace.ARRAY))


/* --- What is known -------------------------------------------------------- */

extern int _PyPacker_GrowTable(packer *p);

static inline size_t
hash_pointer(const void *p)
{
    // Objects of one size lie side by side, and so would their entries: a search for
    // one that is not there would go through all of them.
    uint64_t x = (uint64_t)(uintptr_t)p * 0x9E3779B97F4A7C15u;
    return (size_t)(x >> 28);
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

static inline known *
find_known(packer *p, PyObject *obj)
{
    known *k = probe(p->table, p->table_mask, obj);
    return k->obj != NULL ? k : NULL;
}

/* The entry of an object, a new one if need be.  Good until the next call. */
static inline known *
get_known(packer *p, PyObject *obj)
{
    known *k = probe(p->table, p->table_mask, obj);
    if (k->obj != NULL) {
        return k;
    }
    if (p->table_used * 3 >= p->table_mask * 2) {
        if (_PyPacker_GrowTable(p) < 0) {
            return NULL;
        }
        k = probe(p->table, p->table_mask, obj);
    }
    p->table_used++;
    k->obj = obj;
    return k;
}

static inline int
remember(packer *p, PyObject *obj, _PyParcel_Word word)
{
    known *k = get_known(p, obj);
    if (k == NULL) {
        return -1;
    }
    k->to = word;
    return 0;
}


/* --- The parcel's arrays: parcel_pack.c ----------------------------------- */

extern Py_ssize_t _PyPacker_AddRecord(packer *p, _PyParcel_RecordKind kind,
                                      Py_ssize_t nwords);
extern int _PyPacker_AddStep(packer *p, _PyParcel_Op op, Py_ssize_t record);
/* A step that fills a record, later if what it refers to has not been made. */
extern int _PyPacker_AddBuild(packer *p, Py_ssize_t record);
extern int _PyPacker_AddCreate(packer *p, Py_ssize_t record);
extern int _PyPacker_AddHole(packer *p, PyObject **slot, Py_ssize_t record);

/* Frozensets are made when all members are, and what is called when its arguments
   are: until then what refers to them can't be filled. */
static inline int
unmade(const _PyParcel_Record *r)
{
    return ((r->kind == RECORD_FROZENSET || r->kind == RECORD_CALL)
            && r->arg == 0);
}

static inline frame *
push_frame(packer *p, frame_kind kind, int owned, Py_ssize_t n)
{
    if (p->depth == p->frames_room
        && _PyPacker_GrowSlow((void **)&p->frames, &p->frames_room,
                              sizeof(frame), p->inplace_frames) < 0)
    {
        return NULL;
    }
    frame *f = &p->frames[p->depth++];
    f->kind = kind;
    f->owned = (uint8_t)owned;
    f->in_place = (owned != NOT_OWNED);
    f->arguments = f->mirrored = f->shift = 0;
    f->i = 0;
    f->n = n;
    f->from = NULL;
    f->of.none = NULL;
    f->record = -1;
    return f;
}

/* In place of `old` in a slot of an owned container; both references are stolen.  They
   may be the same object, which then has been counted once more. */
static inline int
replace_in_place(packer *p, PyObject **slot, PyObject *old, PyObject *with)
{
    if (with == old) {
        Py_DECREF(old);
        return 0;
    }
    if (GROW(p->changes, p->nchanges, p->changes_room) < 0) {
        Py_DECREF(with);
        return -1;
    }
    p->changes[p->nchanges++] = (change){slot, old};
    *slot = with;
    return 0;
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

/* See link_moved(): parcel_pack.c.  A collection would change the neighbours, so stretches
   end before anything that could run code or wait for others. */
extern void _PyPacker_BeginStretch(packer *p, int which, PyGC_Head *first);
extern void _PyPacker_EndStretches(packer *p);

/* An owned container goes as it is.  In the collector's list they stand in the order in
   which they were made, which often is the walk's; or if it has been over them, as it has
   found them, one level of the graph after the other, and so often by kind.  A stretch
   that is in the order of the walk comes into `moved` as a whole. */
enum { OF_DICTS, OF_OTHERS };

static inline void
link_moved(packer *p, PyObject *obj, int which)
{
    PyGC_Head *gc = _Py_AS_GC(obj);
    if (_PyGCHead_NEXT(p->stretches[which].last) == gc) {
        p->stretches[which].last = gc;
    }
    else if (_PyGCHead_NEXT(p->stretches[p->last_stretch].last) == gc) {
        p->stretches[p->last_stretch].last = gc;
    }
    else {
        _PyPacker_BeginStretch(p, which, gc);
    }
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


/* --- Memory for many small objects: parcel_pack.c -------------------------- */

extern void *_PyPacker_AllocSlow(packer *p, size_t size);
/* Give back what is left. */
extern void _PyPacker_FreeRuns(packer *p);

/* A copy gets a block of `size` bytes; `p` may be NULL. */
static inline void
note_copied(packer *p, size_t size)
{
    if (p != NULL && size >= _PyMemHeap_LARGE) {
        p->large += size;
    }
}

/* The same for one that is filled from end to end; it may be NULL, too. */
static inline void *
note_filled(packer *p, void *block, size_t size)
{
    note_copied(p, size);
    if (size >= _PyMemHeap_LARGE) {
        _PyMemHeap_WillFill(block, size);
    }
    return block;
}

/* As PyObject_Malloc(); `p` may be NULL. */
static inline void *
alloc_object(packer *p, size_t size)
{
    size_t c = (size - 1) / 16;
    if (p == NULL || c >= RUN_CLASSES) {
        return note_filled(p, PyObject_Malloc(size), size);
    }
    if (p->runs[c].next < p->runs[c].end) {
        return p->blocks[c][p->runs[c].next++];
    }
    return _PyPacker_AllocSlow(p, size);
}

/* As PyObject_GC_New(), without init_object().  The collector counts it when it has a
   heap: it is not to start because of what will leave. */
static inline void *
alloc_container(packer *p, size_t size)
{
    PyGC_Head *gc = alloc_object(p, sizeof(PyGC_Head) + size);
    if (gc == NULL) {
        return PyErr_NoMemory();
    }
    gc->_gc_next = gc->_gc_prev = 0;
    p->uncounted++;
    return _Py_FROM_GC(gc);
}


/* --- Atoms: parcel_atoms.c ------------------------------------------------ */

extern PyObject *_PyPacker_CopyAtom(packer *p, PyObject *obj);
/* `obj`, which has to be moved, has references from elsewhere. */
extern int _PyPacker_NotIsolated(packer *p, PyObject *obj, Py_ssize_t outside);
/* One that others refer to, or that is interned, or not owned. */
extern int _PyPacker_TakeAtom(packer *p, PyObject *obj, int owned,
                              _PyParcel_Word *word);

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

static inline int
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

/* As _PyObject_Init() for a static type, but without a call where nothing is counted:
   a copied graph may have millions of them. */
static inline void
init_object(PyObject *obj, PyTypeObject *type)
{
#if defined(Py_REF_DEBUG) || defined(Py_TRACE_REFS)
    _PyObject_Init(obj, type);
#else
    obj->ob_refcnt = 1;
    Py_SET_TYPE(obj, type);
    _PyReftracerTrack(obj, PyRefTracer_CREATE);
#endif
}

/* Copies of these have memory from alloc_object(). */

static inline PyObject *
copy_str(packer *p, PyObject *str)
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
    PyObject *copy = alloc_object(p, size);
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
    init_object(copy, &PyUnicode_Type);
    return copy;
}

static inline PyObject *
copy_int(packer *p, PyObject *obj)
{
    const PyLongObject *from = (PyLongObject *)obj;
    Py_ssize_t n = _PyLong_IsCompact(from) ? 1 : _PyLong_DigitCount(from);
    size_t size = offsetof(PyLongObject, long_value.ob_digit)
                  + n * sizeof(digit);
    PyLongObject *copy = alloc_object(p, size);
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    copy->long_value.lv_tag = from->long_value.lv_tag;
    // The compiler would make a call to memcpy() of a loop from 0.
    copy->long_value.ob_digit[0] = from->long_value.ob_digit[0];
    for (Py_ssize_t i = 1; i < n; i++) {
        copy->long_value.ob_digit[i] = from->long_value.ob_digit[i];
    }
    init_object((PyObject *)copy, &PyLong_Type);
    return (PyObject *)copy;
}

static inline PyObject *
copy_float(packer *p, PyObject *obj)
{
    PyFloatObject *copy = alloc_object(p, sizeof(PyFloatObject));
    if (copy == NULL) {
        return PyErr_NoMemory();
    }
    copy->ob_fval = PyFloat_AS_DOUBLE(obj);
    init_object((PyObject *)copy, &PyFloat_Type);
    return (PyObject *)copy;
}

/* The process-wide objects that most graphs have. */
static inline int
is_common(PyObject *obj)
{
    return (_PyParcel_InRuntime(obj) || obj == Py_None || obj == Py_True
            || obj == Py_False);
}

/* What a loop has met: counted in registers, and added to the parcel's when it ends. */
typedef struct {
    Py_ssize_t shared, moved, copied;
} tally;

static inline void
add_tally(packer *p, const tally *t)
{
    p->parcel->stats.shared += t->shared;
    p->parcel->stats.moved += t->moved;
    p->parcel->stats.copied += t->copied;
#ifdef Py_REF_DEBUG
    p->moved_reftotal += t->moved;
#endif
}

/* An atom to which a slot of an owned container has the only reference, and that can stay
   there? */
static inline int
stays_alone(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    return (type == &PyLong_Type || type == &PyFloat_Type
            || (type == &PyUnicode_Type && !PyUnicode_CHECK_INTERNED(obj)));
}

/* The atoms that can stay in such a slot: those, and the process-wide ones. */
static inline int
stays(PyObject *obj, tally *t)
{
    if (Py_REFCNT(obj) == 1) {
        int alone = stays_alone(obj);
        t->moved += alone;
        return alone;
    }
    int common = is_common(obj);
    t->shared += common;
    return common;
}

/* A copy of a value of the most common types.  1: *slot has it; 0: it is none;
   -1: no memory. */
static inline int
copy_common(packer *p, PyObject *obj, PyObject **slot)
{
    PyTypeObject *type = Py_TYPE(obj);
    PyObject *copy;
    if (type == &PyUnicode_Type) {
        copy = copy_str(p, obj);
    }
    else if (type == &PyLong_Type) {
        copy = copy_int(p, obj);
    }
    else if (type == &PyFloat_Type) {
        copy = copy_float(p, obj);
    }
    else {
        return 0;
    }
    if (copy == NULL) {
        return -1;
    }
    *slot = copy;
    return 1;
}

/* What stands in a copy for one of the atoms of most graphs.  As copy_common(). */
static inline int
copy_quickly(packer *p, PyObject *obj, PyObject **slot, tally *t)
{
    if (Py_REFCNT(obj) != 1) {
        if (!is_common(obj)) {
            return 0;
        }
        t->shared++;
        *slot = obj;
        return 1;
    }
    int res = copy_common(p, obj, slot);
    t->copied += (res > 0);
    return res;
}

/* The atoms of most graphs, wherever they are.  0: _PyPacker_Take() knows. */
static inline int
take_quickly(packer *p, PyObject *obj, int owned, _PyParcel_Word *word)
{
    tally t = {0};
    PyObject *taken = NULL;
    int res = 1;
    if (owned && Py_REFCNT(obj) == 1 && stays(obj, &t)) {
        taken = Py_NewRef(obj);
    }
    else {
        res = copy_quickly(p, obj, &taken, &t);
    }
    add_tally(p, &t);
    *word = (_PyParcel_Word)taken;
    return res;
}


/* --- Containers: parcel_containers.c --------------------------------------- */

/* All takers: *word is a counted reference to what stands for the object in the
   parcel, or a record.  1: it has been entered, go on there; 0: done. */
extern int _PyPacker_TakeList(packer *p, PyObject *obj, int owned,
                              PyObject **copy);
extern int _PyPacker_TakeTuple(packer *p, PyObject *obj, int owned,
                               PyObject **copy);
extern int _PyPacker_TakeSlice(packer *p, PyObject *obj, int owned,
                               PyObject **copy);
extern int _PyPacker_TakeDict(packer *p, PyObject *obj, int owned,
                              PyObject **copy);
extern int _PyPacker_TakeSet(packer *p, PyObject *obj, int owned,
                             PyObject **copy);
extern int _PyPacker_TakeFrozenset(packer *p, PyObject *obj,
                                   _PyParcel_Word *word);

extern int _PyPacker_HasPlainMembers(PySetObject *set);
/* An owned container that does not have to be copied all the same? */
extern int _PyPacker_CanMove(PyObject *obj);
/* A list, tuple, dict or instance that nothing but a container of the graph refers to,
   if it is of the simple kind.  1: entered, go on there; 0: done; 2: _PyPacker_Take() knows.  An
   owned one goes as it is; of others *slot gets a copy. */
extern int _PyPacker_EnterOwned(packer *p, PyObject *obj, int owned);
extern int _PyPacker_EnterCopied(packer *p, PyObject *obj, PyObject **slot);

/* The items of a container that has been linked into the parcel.  1: there are some to
   go on with; 0: all are done.  If it is not owned, what is to go on with has one frame, the
   last; if it is, there can be several, of its items too. */
extern int _PyPacker_EnterItems(packer *p, PyObject **from, PyObject **to, Py_ssize_t n,
                                int shift, int owned);

/* The first item, from the i-th on, that can't stay in its slot. */
static inline Py_ssize_t
skip_staying(PyObject **items, Py_ssize_t i, Py_ssize_t n, int shift, tally *t)
{
    // Most are moved: it is the others that are counted.
    Py_ssize_t first = i, none = 0, shared = 0;
    for (; i < n; i++) {
        PyObject *obj = items[i << shift];
        if (obj == NULL) {
            none++;
        }
        else if (Py_REFCNT(obj) == 1) {
            if (!stays_alone(obj)) {
                break;
            }
        }
        else if (is_common(obj)) {
            shared++;
        }
        else {
            break;
        }
    }
    t->moved += i - first - none - shared;
    t->shared += shared;
    return i;
}

#define COPY_AHEAD 16

/* A later member of a set: they stand in no order, with room between them. */
static inline Py_ALWAYS_INLINE void
read_member(const setentry *table, Py_ssize_t i, Py_ssize_t last)
{
#ifdef __GNUC__
    if (i + 2 * COPY_AHEAD <= last) {
        __builtin_prefetch(table[i + 2 * COPY_AHEAD].key);
    }
#endif
}

/* The first that is not copied quickly; -1: no memory. */
static inline Py_ssize_t
copy_items(packer *p, PyObject **from, PyObject **to, Py_ssize_t i, Py_ssize_t n,
           int shift, tally *t)
{
    for (; i < n; i++) {
        PyObject *obj = from[i << shift];
#ifdef __GNUC__
        // The processor foresees a row of addresses only to the end of a page.
        if (i + COPY_AHEAD < n) {
            __builtin_prefetch(from[(i + COPY_AHEAD) << shift]);
        }
#endif
        if (obj != NULL) {
            int res = copy_quickly(p, obj, &to[i << shift], t);
            if (res <= 0) {
                return res < 0 ? -1 : i;
            }
        }
    }
    return i;
}


/* --- Keys that many dicts have: parcel_keys.c -------------------------------- */

/* The key of an owned dict, all of whose keys are str: it stays, or is replaced in its
   slot.  1 + its index if it is one that is kept; 0; -1. */
extern Py_ssize_t _PyPacker_SettleKey(packer *p, PyObject **slot, int owned);
/* All keys of an owned dict with no more than MAX_ROW entries. */
extern int _PyPacker_SettleKeys(packer *p, PyDictUnicodeEntry *entries, Py_ssize_t n,
                                int owned);
/* The keys of a copy of such a dict; its values become NULL. */
extern int _PyPacker_CopyKeys(packer *p, const PyDictUnicodeEntry *from,
                              PyDictUnicodeEntry *to, Py_ssize_t n);
/* The walk is over: what dicts that are alike have is counted. */
extern void _PyPacker_CountRows(packer *p);
/* Replace the kept ones to which others refer as well. */
extern int _PyPacker_ReplaceKeys(packer *p);
extern void _PyPacker_UndoRows(packer *p);
/* Release the keys that have been replaced. */
extern void _PyPacker_FreeRows(packer *p);


/* --- Records: parcel_records.c ---------------------------------------------- */

extern int _PyPacker_TakeNamed(packer *p, PyObject *obj, PyObject *where,
                               _PyParcel_Word *word);
extern int _PyPacker_TakeByName(packer *p, PyObject *obj, _PyParcel_Word *word);
extern int _PyPacker_TakeHandle(packer *p, PyObject *obj, int kind,
                                _PyParcel_Word *word);
extern int _PyPacker_TakeArray(packer *p, PyObject *obj, int owned,
                               _PyParcel_Word *word);
extern Py_ssize_t _PyPacker_FindReduction(packer *p, PyObject *obj);
extern Py_ssize_t _PyPacker_AddReduction(packer *p, PyObject *obj,
                                         _PyParcel_Reduction *r);
extern Py_ssize_t _PyPacker_GetReduction(packer *p, PyObject *obj);
extern int _PyPacker_TakeReduction(packer *p, PyObject *obj, Py_ssize_t index,
                                   _PyParcel_Word *word);
extern int _PyPacker_IsEnumMember(PyObject *obj);
extern int _PyPacker_IsValueType(packer *p, PyObject *obj);
extern int _PyPacker_IsValue(PyObject *obj);
extern int _PyPacker_CheckMade(packer *p, PyObject *obj, _PyParcel_Word word);

/* Classes, functions and modules go by name, where they can. */
static inline int
is_named(PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    return (PyType_Check(obj) || PyFunction_Check(obj) || PyCFunction_Check(obj)
            || PyModule_Check(obj) || type == &PyMethodDescr_Type
            || type == &PyWrapperDescr_Type || type == &PyClassMethodDescr_Type
            || type == &PyMemberDescr_Type || type == &PyGetSetDescr_Type);
}

/* An enum member, say. */
static inline int
is_reduced_to_name(packer *p, known *k)
{
    return (k->reduction != 0
            && p->reductions[k->reduction - 1].reduction.kind
               == _PyParcel_NAMED);
}


/* --- Instances of Python classes: parcel_instances.c ------------------------ */

/* The i-th attribute's name and value; borrowed. */
typedef struct {
    PyDictValues *values;           // or
    PyDictObject *dict;             // its entries; or neither
    PyDictKeysObject *keys;
    uint8_t *order;
    Py_ssize_t n;
} attributes;

extern void _PyPacker_GetAttributes(PyObject *obj, const _PyParcel_Class *cls,
                                    attributes *a);
/* *simple is set if the instance can be taken by hand. */
extern int _PyPacker_CheckSimple(packer *p, PyObject *obj,
                                 const _PyParcel_Class **cls, attributes *a,
                                 int *simple);
extern int _PyPacker_TakeInstance(packer *p, PyObject *obj,
                                  const _PyParcel_Class *cls, attributes *a,
                                  int owned, _PyParcel_Word *word);
extern int _PyPacker_StepInstance(packer *p, frame *f);
/* A str that the parcel has for this one. */
extern int _PyPacker_TakeName(packer *p, PyObject *name, _PyParcel_Word *word);
/* Take the values of an instance, which have references from the parcel. */
extern void _PyPacker_Dissolve(packer *p, PyObject *obj);

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

static inline PyObject **
slot_of(PyObject *obj, const _PyParcel_Class *cls, int i)
{
    return (PyObject **)((char *)obj + cls->slot_offsets[i]);
}


/* --- Families: parcel_family.c ------------------------------------------------ */

extern int _PyPacker_CanStayWhole(packer *p, PyObject *obj,
                                  const _PyParcel_Class *cls,
                                  const attributes *a, int owned);
/* `type` is the record of its class.  2: it has to be a record. */
extern int _PyPacker_TakeWhole(packer *p, PyObject *obj, Py_ssize_t type,
                               int owned, _PyParcel_Word *word);
/* The same for one that nothing but a container refers to, of a family that is known. */
extern int _PyPacker_EnterMember(packer *p, PyObject *obj, int owned, PyObject **slot);
extern void _PyPacker_CommitFamilies(packer *p);
extern void _PyPacker_LeaveFamilies(packer *p);
extern void _PyPacker_UndoFamilies(packer *p);


/* --- Any object: parcel_walk.c ---------------------------------------------- */

extern int _PyPacker_Take(packer *p, PyObject *obj, int owned,
                          _PyParcel_Word *word);
/* What is not a plain object of an exact builtin type. */
extern int _PyPacker_TakeOther(packer *p, PyObject *obj, int owned,
                               _PyParcel_Word *word);
extern int _PyPacker_ReleaseLater(packer *p, PyObject *obj);
/* Until nothing is left to be done. */
extern int _PyPacker_Walk(packer *p);


/* --- What the sender gives up: parcel_given.c -------------------------------- */

extern int _PyPacker_AddGiven(packer *p, PyObject *obj, PyObject **slot,
                              int owned);
extern int _PyPacker_TakeMarker(packer *p, PyObject *marker,
                                _PyParcel_Word *word);
extern int _PyPacker_TakeGiven(packer *p, Py_ssize_t index,
                               _PyParcel_Word *word);


/* --- Memory that PickleBuffers hand out: parcel_buffer.c --------------------- */

/* Lent if the graph alone has it, else a copy. */
extern int _PyPacker_TakeBuffer(packer *p, PyObject *obj,
                                _PyParcel_Resource *resource);
/* What an object's memory belongs to, if tp_traverse does not show it.  Borrowed, or
   NULL.  Runs no code. */
extern PyObject *_PyPacker_HiddenBase(packer *p, PyObject *obj);


/* --- Duplicates: parcel_duplicate.c ----------------------------------------- */

/* An instance of a family of the parcel that is copied becomes a record. */
extern int _PyPacker_TakeApart(packer *p, PyObject *obj, _PyParcel_Word *word);
extern int _PyPacker_StepApart(packer *p, frame *f);
/* What the child of a container in such a parcel is: a hole is a record. */
#define TAKE_CHILD(P, FROM, OWNED, WORD) \
    ((P)->dup != NULL && *(FROM) == Py_None \
     && ((WORD) = _PyPacker_HoleAt((P), (FROM))) != 0 ? 0 \
     : _PyPacker_Take((P), *(FROM), (OWNED), &(WORD)))
extern _PyParcel_Word _PyPacker_HoleAt(packer *p, PyObject **slot);


/* --- Which memory goes: parcel_going.c -------------------------------------- */

/* Tells the heap, unless it need not know. */
extern void _PyParcel_SayWhatGoes(_PyParcel *parcel);


/* --- The steps of packing --------------------------------------------------- */

extern int _PyPacker_Isolate(packer *p);
extern int _PyPacker_Discover(packer *p);
extern int _PyPacker_IsRefusal(void);
extern void _PyPacker_Commit(packer *p);
extern void _PyPacker_ClearRemains(packer *p);
extern void _PyPacker_Undo(packer *p);
extern int _PyPacker_BeginWalk(packer *p);
extern void _PyPacker_Init(packer *p, _PyParcel_Home *home, PyObject *root);
extern void _PyPacker_Free(packer *p);
extern void _PyPacker_LeaveHeap(packer *p);

#endif   // !Py_INTERNAL_PARCEL_PACK_H

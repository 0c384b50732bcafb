// What is inside a parcel.  For Python/parcel_*.c only; pycore_parcel.h is what
// everybody else needs.
//
// A parcel has three parts.
//
//   plain     real objects of exact builtin types: None, bool, int, float,
//             complex, str, bytes, bytearray, tuple, list, dict, set, frozenset,
//             range, slice.  They were the sender's (moved) or are fresh (copied).
//             Those that a collector may have to know are linked in the parcel's
//             own list, so that a receiver's collector takes over all of them at
//             once.  They refer to each other, and to what is process-wide.
//   families  instances of Python classes whose values are in themselves: they get
//             the receiver's class when the parcel is opened
//   records   what can't cross as memory: descriptions of objects that are made
//             when the parcel is opened
//
// A reference inside a parcel is a word: a plain object (or one of a family, which here
// is as good as plain), or a record.  A plain container can only refer to objects, so its slot holds None until the record
// has been made into one: a hole.
//
// The program says in which order the records are made: as a pickle would, an
// object's arguments first, then the object, then its state.
//
// Invariants
//
//   G-1  A plain object is referred to from nowhere but its parcel.  So any
//        thread that has the parcel to itself may change it.
//   G-2  No plain str is interned.
//   G-3  A dict or set has no hole in a key, and its hashes are right in every
//        interpreter.  One with keys whose hash may differ, or that are records,
//        is empty, and a record inserts the items (RECORD_LATE).

#ifndef Py_INTERNAL_PARCEL_GRAPH_H
#define Py_INTERNAL_PARCEL_GRAPH_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_parcel.h"
#include "pycore_gc.h"            // PyGC_Head
#include "pycore_runtime.h"       // _PyRuntime

/* A counted reference to a plain object, or 2 * record + 1, or 0: nothing. */
typedef uintptr_t _PyParcel_Word;

#define WORD_IS_RECORD(W) (((W) & 1) != 0)
#define WORD_RECORD(W) ((Py_ssize_t)((W) >> 1))
#define WORD_OBJECT(W) ((PyObject *)(W))
#define RECORD_WORD(R) (((_PyParcel_Word)(R) << 1) | 1)

typedef enum {
    RECORD_NAMED,       // words: where (see pycore_parcel_reduce.h)
    RECORD_INSTANCE,    // words: values; arg: shape
    RECORD_CALL,        // words: callable, args, state, list, items, setter;
                        // arg: 1 once its arguments have been taken
    RECORD_FROZENSET,   // words: members; arg: 1 once they have been taken
    RECORD_LATE,        // words: a plain dict or set, and what goes into it
    RECORD_ARRAY,       // words: its type; arg: resource
    RECORD_SENTINEL,    // arg: which
    RECORD_INTERPRETER, // arg: id
    RECORD_QUEUE,       // arg: resource
    RECORD_PARCEL,      // arg: resource
    RECORD_LENT,        // arg: resource
    RECORD_XIDATA,      // arg: resource
} _PyParcel_RecordKind;

/* There can be many of each, and memory is what takes the time: so they are small,
   and there are at most this many. */
#define MAX_RECORDS (INT32_MAX / 2)

typedef struct {
    int64_t arg;
    int32_t first;                  // its words begin here
    int32_t nwords;
    int32_t holes;                  // the last of its holes, -1: none
    uint8_t kind;                   // _PyParcel_RecordKind
} _PyParcel_Record;

typedef struct {
    PyObject **slot;
    int32_t record;
    int32_t next;                   // another hole of the same record, or -1
} _PyParcel_Hole;

/* Instances of one class with the same attributes in the same order. */
typedef struct {
    Py_ssize_t type;                // record of the class
    Py_ssize_t names;               // words: names of attributes, then of slots
    int nattributes;
    int nslots;
} _PyParcel_Shape;

/* Instances of one class that are in the parcel as objects: see parcel_family.c. */
typedef struct _PyParcel_family {
    struct _PyParcel_family *next;
    Py_ssize_t type;                // record of the class
    Py_ssize_t names;               // words: what the values are called, by place
    int nnames;
    int capacity;                   // each has room for as many values
    PyGC_Head list;
    Py_ssize_t n;                   // objects in it
    // While it is packed:
    PyTypeObject *local;            // the sender's class, borrowed
    PyGC_Head moved;                // owned ones, which stay as they are until then
    Py_ssize_t nmoved;
} _PyParcel_Family;

/* Build what has not been created: then that comes first. */
typedef enum { OP_CREATE = 0, OP_BUILD = 1 } _PyParcel_Op;

typedef uint32_t _PyParcel_Step;

#define PROGRAM_STEP(OP, R) (((_PyParcel_Step)(R) << 1) | (OP))

typedef struct {
    _PyParcel_Record *records;
    Py_ssize_t nrecords;
    _PyParcel_Word *words;
    Py_ssize_t nwords;
    _PyParcel_Hole *holes;
    Py_ssize_t nholes;
    _PyParcel_Shape *shapes;
    Py_ssize_t nshapes;
    _PyParcel_Step *program;
    Py_ssize_t nsteps;
    struct _PyParcel_resource *resources;
    Py_ssize_t nresources;
    _PyParcel_Family *families;
    int runs_code;                  // making it may run any Python code
    // Where the arrays of a small graph are: to allocate each would take longer
    // than to fill it.  Parcels without records do not have this part.
    struct {
        _PyParcel_Record records[4];
        _PyParcel_Word words[24];
        _PyParcel_Hole holes[2];
        _PyParcel_Shape shapes[1];
        _PyParcel_Step program[6];
    } inplace;
} _PyParcel_Graph;

struct _PyParcel {
    _PyParcel *next;                // guarded by the queue that holds it
    Py_ssize_t refs;                // atomic
    int64_t interpid;               // read-only
    uint8_t unbound;                // written before it is put: what to do if
                                    // the sender goes
    uint8_t gone;                   // guarded by the queue: that has happened
    uint8_t opened;                 // atomic: somebody opens it, or has
    // Written by the thread that packs; then they belong to the one that opens.
    _PyParcel_Word root;
    PyGC_Head plain;                // the collector's list
    Py_ssize_t nplain;              // objects in it
    Py_ssize_t reftotal;            // Py_REF_DEBUG: references in the plain part
    size_t nbytes;                  // of memory, about
    _PyParcel_Stats stats;
    _PyParcel_Graph graph;          // zero: there are no records.  The last member.
};

/* An empty parcel; NULL with MemoryError.  One for a graph has its part in place. */
extern _PyParcel *_PyParcel_New(_PyParcel_Home *, int for_graph);
extern void _PyParcel_FreeGraph(_PyParcel_Graph *);

/* --- The collector's lists ------------------------------------------------ */

static inline void
_PyParcel_ListInit(PyGC_Head *list)
{
    list->_gc_prev = (uintptr_t)list;
    list->_gc_next = (uintptr_t)list;
}

static inline int
_PyParcel_ListIsEmpty(PyGC_Head *list)
{
    return list->_gc_next == (uintptr_t)list;
}

/* Link an object that is in no list. */
static inline void
_PyParcel_ListAppend(PyGC_Head *list, PyGC_Head *gc)
{
    PyGC_Head *last = (PyGC_Head *)list->_gc_prev;
    _PyGCHead_SET_NEXT(last, gc);
    _PyGCHead_SET_PREV(gc, last);
    _PyGCHead_SET_NEXT(gc, list);
    list->_gc_prev = (uintptr_t)gc;
}

/* Take an object out of the list that it is in, if any. */
static inline void
_PyParcel_ListRemove(PyGC_Head *gc)
{
    PyGC_Head *next = _PyGCHead_NEXT(gc);
    if (next != NULL) {
        PyGC_Head *prev = _PyGCHead_PREV(gc);
        _PyGCHead_SET_NEXT(prev, next);
        _PyGCHead_SET_PREV(next, prev);
    }
}

/* All of `from` behind `to`; `from` is empty then. */
extern void _PyParcel_ListMerge(PyGC_Head *from, PyGC_Head *to);
/* Give n objects to the collector of the current interpreter. */
extern void _PyParcel_ListTrack(PyGC_Head *list, Py_ssize_t n);


/* --- Classes whose instances need no code -------------------------------- */

/* What is to be known about a class to take or make its instances by hand. */
typedef struct {
    PyTypeObject *type;             // borrowed; right as long as the version is
    unsigned int version;
    int simple;                     // instances can be taken and made by hand
    int whole;                      // they can be of a family
    int has_dict;                   // a managed one
    int nslots;
    PyObject **slot_names;          // borrowed from the class
    Py_ssize_t *slot_offsets;
} _PyParcel_Class;

/* Runs no Python code.  NULL with MemoryError.  Good until the next call. */
extern const _PyParcel_Class *_PyParcel_GetClass(_PyParcel_Home *,
                                                 PyTypeObject *);
extern void _PyParcel_FreeClasses(_PyParcel_Home *);


/* --- Families: parcel_family.c -------------------------------------------- */

extern int _PyParcel_IsOfFamily(PyObject *);
extern const _PyParcel_Family *_PyParcel_FamilyOf(PyObject *);
/* Can its objects be instances of this class?  1: yes; 0: no; -1: no memory.  Runs no
   Python code. */
extern int _PyParcel_FamilyFits(_PyParcel_Home *, const _PyParcel_Graph *,
                                const _PyParcel_Family *, PyTypeObject *);
/* They become that, if they fit.  It can't fail, and can be taken back. */
extern void _PyParcel_GiveFamily(_PyParcel_Family *, PyTypeObject *);
extern void _PyParcel_TakeBackFamily(_PyParcel_Family *, PyTypeObject *);
/* Nobody gets the objects: they lose all references that they have. */
extern void _PyParcel_ClearFamilies(_PyParcel_Graph *);
extern void _PyParcel_FreeFamilies(_PyParcel_Graph *);


/* --- Packing and opening -------------------------------------------------- */

/* A copy of a parcel, for code that may spoil it.  NULL with MemoryError. */
extern _PyParcel *_PyParcel_Duplicate(_PyParcel_Home *, _PyParcel *);

/* A plain object that is equal, of no more than str, int, None and tuples. */
extern PyObject *_PyParcel_CopyName(PyObject *);

/* Objects that are the same in all interpreters and never go away. */
static inline int
_PyParcel_InRuntime(PyObject *obj)
{
    return (uintptr_t)obj - (uintptr_t)&_PyRuntime < sizeof(_PyRuntime);
}

extern int _PyParcel_IsProcessWide(PyObject *);

/* --- The memory of an array.array: parcel_array.c -------------------------- */

typedef struct _PyParcel_Array _PyParcel_Array;

extern int _PyParcel_IsArray(_PyParcel_Home *, PyObject *);
extern int _PyParcel_ArrayIsExported(PyObject *);
/* With `move` it stays where it is until Steal, which can't fail. */
extern _PyParcel_Array *_PyParcel_TakeArray(PyObject *, int move);
extern void _PyParcel_StealArray(_PyParcel_Array *);
/* Is it an array.array, of whatever kind?  Then its memory can be taken out of it: a block
   of PyMem_Malloc(), or NULL. */
extern int _PyParcel_HasArrayMemory(_PyParcel_Home *, PyObject *);
extern void *_PyParcel_EmptyArray(PyObject *);
extern const void *_PyParcel_ArrayMemory(const _PyParcel_Array *);
extern size_t _PyParcel_ArraySize(const _PyParcel_Array *);      // in bytes
extern _PyParcel_Array *_PyParcel_CopyArray(const _PyParcel_Array *);
extern void _PyParcel_FreeArray(_PyParcel_Array *);
/* A new array that gets the memory; it can be taken back. */
extern PyObject *_PyParcel_GiveArray(_PyParcel_Home *, PyObject *type,
                                     _PyParcel_Array *);
extern void _PyParcel_TakeBackArray(PyObject *, _PyParcel_Array *);

/* --- Variables: parcel_places.c -------------------------------------------- */

/* A slot of a frame or a cell, or an item of a dict. */
typedef struct {
    PyObject **slot;                // or
    PyObject *dict;                 // borrowed, as the key
    PyObject *key;
} _PyParcel_Place;

/* Variables that refer to the object: how many there are.  At most `max` are
   stored.  Runs no code, and they are right as long as none runs. */
extern int _PyParcel_FindPlaces(PyObject *obj, _PyParcel_Place *, int max);
/* Each gets a reference to something else.  The references that they had must not
   be the last. */
extern void _PyParcel_ReplacePlaces(_PyParcel_Place *, int n, PyObject *with);

/* --- Handles: parcel_handles.c -------------------------------------------- */

typedef enum {
    RESOURCE_QUEUE,
    RESOURCE_PARCEL,
    RESOURCE_LENT,
    RESOURCE_BUFFER,                // of a PickleBuffer: lent, or a copy
    RESOURCE_XIDATA,
    RESOURCE_INTERPRETER,           // counted; `what` is its id
    RESOURCE_ARRAY,
    RESOURCE_NOTHING,
} _PyParcel_ResourceKind;

typedef struct _PyParcel_resource {
    _PyParcel_ResourceKind kind;
    void *what;
} _PyParcel_Resource;

/* Is it a handle, and of what?  -1: no.  Runs no Python code. */
extern int _PyParcel_HandleKind(_PyParcel_Home *, PyObject *);
/* Take it.  *arg is what the record needs; if *what is set on return, it is a
   resource that the caller takes over.  Runs no Python code but for xidata. */
extern int _PyParcel_TakeHandle(_PyParcel_Home *, PyObject *, int kind,
                                int64_t *arg, _PyParcel_Resource *);
extern PyObject *_PyParcel_GiveHandle(_PyParcel_Home *, int kind, int64_t arg,
                                      _PyParcel_Resource *);
/* For a duplicate.  -1: no memory. */
extern int _PyParcel_ShareResource(_PyParcel_Resource *);
extern void _PyParcel_ReleaseResources(_PyParcel_Resource *, Py_ssize_t n);

/* The bytes of a PickleBuffer, in one piece: without copying them, as they are and
   stay in the sender; or a copy.  If they come back after the sender's end, the block
   is given to _PyRWExt_FreeBlock(): nobody else may have it, then.  If they are only
   lent on, `under` is what was lent to the sender.  NULL if there is none. */
extern _PyParcel_Lent *_PyParcel_LendBuffer(_PyParcel_Home *, PyObject *,
                                            void *block, _PyParcel_Lent *under);
extern _PyParcel_Lent *_PyParcel_CopyBuffer(const Py_buffer *);
/* The interpreter has ended: keep what is lent. */
extern void _PyParcel_KeepLent(_PyParcel_Home *, struct _PyMemHeap_Remains *);
extern void _PyParcel_HoldLent(_PyParcel_Home *);
/* The interpreter ends: release what it has lent on, and leave to the receivers what
   nobody can see in it any more. */
extern void _PyParcel_LeaveLent(_PyParcel_Home *);
/* Is there one reference only? */
extern int _PyParcel_LentIsSingle(_PyParcel_Lent *);
extern void _PyParcel_UnshareBuffers(_PyParcel_Resource *, Py_ssize_t n);

#endif   // !Py_INTERNAL_PARCEL_GRAPH_H

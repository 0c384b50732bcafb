// Opening: putting an object graph into an interpreter.  And the life of parcels.
// See pycore_parcel.h, and pycore_parcel_graph.h for what a parcel consists of.
//
// Steps
//
//   resolve     names: modules are imported.  Anything can go wrong; the parcel
//               has not been touched.
//   duplicate   only if making the records runs code of others, which could keep
//               or change what it is given and then fail: the original is kept
//               until all has gone well
//   make        run the program, put what has been made into the holes.  It can
//               fail; then the holes are None again.
//   adopt       the receiver's collector takes over the plain part.  That can't
//               fail.  It is all there is to be done without records.
//
// The collector must not see a container before all its holes are filled.  With None in
// them, a tuple or dict looks as if it could be in no cycle; the collector then untracks
// it for good, and cycles through it would never be found.  Until it is adopted, a plain
// part is in no list of the collector's, which so takes what it refers to for in use.
//
// Guarantees
//
//   O-1  A parcel is opened once.  Of several who try at the same time one wins.
//   O-2  If opening fails, the parcel is as it was and can be opened again.
//   O-3  No object of the receiver refers to the plain part of a parcel before it
//        is adopted; what has been made for one that fails is gone.

#include "Python.h"
#include "pycore_ceval.h"
#include "pycore_dict.h"          // _PyDictValues_AddToInsertionOrder()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_object.h"        // _PyObject_InlineValues()
#include "pycore_parcel_graph.h"
#include "pycore_parcel_moved.h"
#include "pycore_parcel_pack.h"   // copy_str()
#include "pycore_parcel_reduce.h" // _PyParcel_FindNamed()
#include "pycore_pyerrors.h"
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_rwgil.h"         // _PyRWGIL_WriteOwn()
#include "pycore_unicodeobject.h" // _PyUnicode_InternMortal()


/* --- The collector's lists ------------------------------------------------- */

void
_PyParcel_ListMerge(PyGC_Head *from, PyGC_Head *to)
{
    if (_PyParcel_ListIsEmpty(from)) {
        return;
    }
    PyGC_Head *last = (PyGC_Head *)to->_gc_prev;
    PyGC_Head *first = (PyGC_Head *)from->_gc_next;
    _PyGCHead_SET_NEXT(last, first);
    _PyGCHead_SET_PREV(first, last);
    PyGC_Head *tail = (PyGC_Head *)from->_gc_prev;
    _PyGCHead_SET_NEXT(tail, to);
    to->_gc_prev = (uintptr_t)tail;
    _PyParcel_ListInit(from);
}

// More objects than this do not go to the youngest generation: they are not
// likely to die soon, and it is looked through often.
#define MAX_YOUNG 700

void
_PyParcel_ListTrack(PyGC_Head *list, Py_ssize_t n)
{
    struct _gc_runtime_state *gc = &_PyInterpreterState_GET()->gc;
    if (n <= MAX_YOUNG) {
        _PyParcel_ListMerge(list, gc->generation0);
        gc->generations[0].count += (int)n;
    }
    else {
        // As if they had survived until now: a full collection is due when
        // enough of those have come together.
        _PyParcel_ListMerge(list, &gc->generations[NUM_GENERATIONS - 1].head);
        gc->long_lived_pending += n;
    }
}


/* --- Life -------------------------------------------------------------------- */

_PyParcel *
_PyParcel_New(_PyParcel_Home *home, int for_graph)
{
    size_t head = offsetof(_PyParcel, graph.inplace);
    _PyParcel *parcel = PyMem_RawMalloc(for_graph ? sizeof(*parcel) : head);
    if (parcel == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    memset(parcel, 0, head);
    parcel->refs = 1;
    parcel->interpid = home->interpid;
    parcel->nbytes = for_graph ? sizeof(*parcel) : head;
    _PyParcel_ListInit(&parcel->plain);
    return parcel;
}

_PyParcel *
_PyParcel_Share(_PyParcel *parcel)
{
    _Py_atomic_add_ssize(&parcel->refs, 1);
    return parcel;
}

void
_PyParcel_FreeGraph(_PyParcel_Graph *g)
{
#define FREE_ARRAY(ARRAY) \
    if (g->ARRAY != g->inplace.ARRAY) { \
        PyMem_RawFree(g->ARRAY); \
    }
    FREE_ARRAY(records)
    FREE_ARRAY(words)
    FREE_ARRAY(holes)
    FREE_ARRAY(shapes)
    FREE_ARRAY(program)
#undef FREE_ARRAY
    _PyParcel_FreeFamilies(g);
    if (g->resources != NULL) {
        _PyParcel_ReleaseResources(g->resources, g->nresources);
    }
    memset(g, 0, offsetof(_PyParcel_Graph, inplace));
}

static void
count_references(_PyParcel *parcel)
{
#ifdef Py_REF_DEBUG
    _Py_AddRefTotal(_PyThreadState_GET(), parcel->reftotal);
    parcel->reftotal = 0;
#else
    (void)parcel;
#endif
}

/* The plain part becomes the current interpreter's. */
static void
adopt(_PyParcel *parcel)
{
    count_references(parcel);
    _PyParcel_ListTrack(&parcel->plain, parcel->nplain);
    parcel->nplain = 0;
}

static void
drop_words(_PyParcel_Graph *g)
{
    for (Py_ssize_t i = 0; i < g->nwords; i++) {
        _PyParcel_Word word = g->words[i];
        if (word != 0 && !WORD_IS_RECORD(word)) {
            Py_DECREF(WORD_OBJECT(word));
        }
    }
    g->nwords = 0;
}

/* Break all cycles: so none of them has an object of a family. */
static void
clear_plain(_PyParcel *parcel)
{
    PyGC_Head *list = &parcel->plain;
    PyGC_Head *gc;
    for (gc = _PyGCHead_NEXT(list); gc != list; gc = _PyGCHead_NEXT(gc)) {
        Py_INCREF(_Py_FROM_GC(gc));
    }
    for (gc = _PyGCHead_NEXT(list); gc != list; gc = _PyGCHead_NEXT(gc)) {
        PyObject *obj = _Py_FROM_GC(gc);
        if (Py_TYPE(obj)->tp_clear != NULL) {
            (void)Py_TYPE(obj)->tp_clear(obj);
        }
    }
    PyGC_Head todo;
    _PyParcel_ListInit(&todo);
    _PyParcel_ListMerge(list, &todo);
    while (!_PyParcel_ListIsEmpty(&todo)) {
        // Some types die only in a list.
        gc = _PyGCHead_NEXT(&todo);
        _PyParcel_ListRemove(gc);
        _PyParcel_ListAppend(list, gc);
        Py_DECREF(_Py_FROM_GC(gc));
    }
    parcel->nplain = 0;
}

/* What is left of it dies in this interpreter. */
static void
empty_parcel(_PyParcel *parcel)
{
    _PyParcel_Word root = parcel->root;
    if (root != 0 || parcel->nplain > 0 || parcel->graph.nwords > 0) {
        PyObject *exc = PyErr_GetRaisedException();
        if (parcel->graph.families != NULL) {
            _PyParcel_ClearFamilies(&parcel->graph);
            clear_plain(parcel);
        }
        adopt(parcel);
        parcel->root = 0;
        drop_words(&parcel->graph);
        if (root != 0 && !WORD_IS_RECORD(root)) {
            Py_DECREF(WORD_OBJECT(root));
        }
        PyErr_SetRaisedException(exc);
    }
}

static void
free_parcel(_PyParcel *parcel)
{
    empty_parcel(parcel);
    _PyParcel_FreeGraph(&parcel->graph);
    PyMem_RawFree(parcel);
}

/* Parcels that this thread is about to free: one can refer to another, by
   itself or by a queue, to any depth. */
static _Py_thread_local _PyParcel *doomed;
static _Py_thread_local int freeing;

/* Parcels whose last reference went in a thread that is in no interpreter: a list
   to which any thread adds without a lock, and from which one takes all. */
static _PyParcel *unfreed;

static void
push_unfreed(_PyParcel *parcel)
{
    do {
        parcel->next = _Py_atomic_load_ptr(&unfreed);
    } while (!_Py_atomic_compare_exchange_ptr(&unfreed, &parcel->next, parcel));
}

static _PyParcel *
pop_unfreed(void)
{
    return _Py_atomic_exchange_ptr(&unfreed, NULL);
}

void
_PyParcel_Discard(_PyParcel *parcel)
{
    if (_Py_atomic_add_ssize(&parcel->refs, -1) != 1) {
        return;
    }
    if (_PyThreadState_GET() == NULL) {
        push_unfreed(parcel);
        return;
    }
    parcel->next = doomed;
    doomed = parcel;
    if (freeing) {
        return;
    }
    freeing = 1;
    if (_Py_atomic_load_ptr_relaxed(&unfreed) != NULL) {
        _PyParcel *others = pop_unfreed();
        while (others != NULL) {
            _PyParcel *next = others->next;
            others->next = doomed;
            doomed = others;
            others = next;
        }
    }
    while (doomed != NULL) {
        parcel = doomed;
        doomed = parcel->next;
        free_parcel(parcel);
    }
    freeing = 0;
}

int64_t
_PyParcel_Interp(_PyParcel *parcel)
{
    return parcel->interpid;
}

size_t
_PyParcel_Size(_PyParcel *parcel)
{
    return parcel->nbytes;
}

void
_PyParcel_GetStats(_PyParcel *parcel, _PyParcel_Stats *stats)
{
    *stats = parcel->stats;
}

int
_PyParcel_Opened(_PyParcel *parcel)
{
    return _Py_atomic_load_uint8(&parcel->opened) != 0;
}


/* --- Names ---------------------------------------------------------------------- */

PyObject *
_PyParcel_CopyName(PyObject *obj)
{
    if (PyUnicode_CheckExact(obj)) {
        if (_PyParcel_InRuntime(obj)) {
            return obj;
        }
        return copy_str(NULL, obj);
    }
    if (PyTuple_CheckExact(obj)) {
        Py_ssize_t n = PyTuple_GET_SIZE(obj);
        PyObject *copy = PyTuple_New(n);
        if (copy == NULL || n == 0) {
            return copy;
        }
        for (Py_ssize_t i = 0; i < n; i++) {
            PyObject *item = _PyParcel_CopyName(PyTuple_GET_ITEM(obj, i));
            if (item == NULL) {
                Py_DECREF(copy);
                return NULL;
            }
            PyTuple_SET_ITEM(copy, i, item);
        }
        // It has no cycles: no collector need know it.
        PyObject_GC_UnTrack(copy);
        return copy;
    }
    if (_PyParcel_IsProcessWide(obj)) {
        return Py_NewRef(obj);
    }
    if (PyLong_CheckExact(obj)) {
        return _PyLong_Copy((PyLongObject *)obj);
    }
    PyErr_Format(PyExc_TypeError, "a name can't have a %T", obj);
    return NULL;
}


/* --- Making records ----------------------------------------------------------------- */

#define INPLACE_MADE 16
#define INPLACE_SHAPES 2
#define INPLACE_PLACES 16

/* A shape in the receiver. */
typedef struct {
    const _PyParcel_Class *cls;     // valid if `simple`
    PyTypeObject *type;             // counted
    int simple;
    int mapped;                     // places[] are right
    PyObject **names;               // of attributes: interned, counted; or NULL
    uint8_t *places;                // of attributes among the inline values
    Py_ssize_t *offsets;            // of slots
    uint8_t inplace_places[INPLACE_PLACES];
} local_shape;

typedef struct {
    _PyParcel_Home *home;
    _PyParcel *parcel;
    _PyParcel_Graph *g;
    PyObject **made;                // by record; counted
    local_shape *shapes;
    int loud;                       // runs code of others
    int strange;                    // families do not fit
    // For small messages, most of what takes time would be allocations.
    PyObject *inplace_made[INPLACE_MADE];
    local_shape inplace_shapes[INPLACE_SHAPES];
} maker;

/* A counted reference to what a word stands for.  The plain part is still the
   parcel's, or, if loud, the interpreter's already. */
static PyObject *
object_of(maker *m, _PyParcel_Word word)
{
    if (WORD_IS_RECORD(word)) {
        PyObject *obj = m->made[WORD_RECORD(word)];
        // A cycle through the arguments of a constructor.
        return Py_NewRef(obj != NULL ? obj : Py_None);
    }
    return Py_NewRef(WORD_OBJECT(word));
}

static void
fill_holes(maker *m, Py_ssize_t record, PyObject *obj)
{
    for (Py_ssize_t i = m->g->records[record].holes; i >= 0;
         i = m->g->holes[i].next)
    {
        *m->g->holes[i].slot = Py_NewRef(obj);
    }
}

static void
unfill_holes(maker *m, Py_ssize_t record)
{
    for (Py_ssize_t i = m->g->records[record].holes; i >= 0;
         i = m->g->holes[i].next)
    {
        PyObject *obj = *m->g->holes[i].slot;
        *m->g->holes[i].slot = Py_None;
        Py_DECREF(obj);
    }
}

static PyObject *
find_named(maker *m, _PyParcel_Record *r)
{
    PyObject *where = WORD_OBJECT(m->g->words[r->first]);
    PyObject *obj = _PyParcel_QuickFind(m->home, where);
    if (obj != NULL) {
        return obj;
    }
    // Importing can keep what it is given.
    where = _PyParcel_CopyName(where);
    if (where == NULL) {
        return NULL;
    }
    obj = _PyParcel_FindNamed(m->home, where);
    Py_DECREF(where);
    return obj;
}

/* All names, before anything is made. */
static int
resolve(maker *m)
{
    _PyParcel_Graph *g = m->g;
    for (Py_ssize_t i = 0; i < g->nsteps; i++) {
        Py_ssize_t record = (Py_ssize_t)(g->program[i] >> 1);
        if (g->records[record].kind == RECORD_NAMED) {
            m->made[record] = find_named(m, &g->records[record]);
            if (m->made[record] == NULL) {
                return -1;
            }
        }
    }
    return 0;
}

/* Names of attributes are interned, so that they are found quickly. */
static int
intern_names(maker *m, local_shape *local, const _PyParcel_Shape *shape)
{
    local->names = PyMem_RawCalloc(shape->nattributes + 1, sizeof(PyObject *));
    if (local->names == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (int i = 0; i < shape->nattributes; i++) {
        PyObject *name = _PyParcel_CopyName(
            WORD_OBJECT(m->g->words[shape->names + i]));
        if (name == NULL) {
            return -1;
        }
        _PyUnicode_InternMortal(_PyInterpreterState_GET(), &name);
        local->names[i] = name;
    }
    return 0;
}

static int
map_slots(maker *m, local_shape *local, const _PyParcel_Shape *shape)
{
    const _PyParcel_Word *names = m->g->words + shape->names
                                  + shape->nattributes;
    for (int i = 0; i < shape->nslots; i++) {
        int j = 0;
        while (j < local->cls->nslots
               && !_PyUnicode_Equal(local->cls->slot_names[j],
                                    WORD_OBJECT(names[i])))
        {
            j++;
        }
        if (j == local->cls->nslots) {
            // The class here has no such slot: setattr() is to say so.
            local->simple = 0;
            return 0;
        }
        local->offsets[i] = local->cls->slot_offsets[j];
    }
    return 0;
}

/* Where the attributes of the shape are among the inline values of instances of
   its class, once an instance has had all of them. */
static void
map_attributes(maker *m, local_shape *local, const _PyParcel_Shape *shape)
{
    PyTypeObject *type = local->type;
    if (!(type->tp_flags & Py_TPFLAGS_INLINE_VALUES)) {
        return;
    }
    PyDictKeysObject *keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    if (keys == NULL) {
        return;
    }
    PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
    const _PyParcel_Word *names = m->g->words + shape->names;
    Py_ssize_t guess = 0;
    for (int i = 0; i < shape->nattributes; i++) {
        PyObject *name = WORD_OBJECT(names[i]);
        Py_ssize_t at = guess;
        if (at >= keys->dk_nentries
            || !_PyUnicode_Equal(entries[at].me_key, name))
        {
            at = 0;
            while (at < keys->dk_nentries
                   && !_PyUnicode_Equal(entries[at].me_key, name))
            {
                at++;
            }
            if (at == keys->dk_nentries) {
                return;
            }
        }
        local->places[i] = (uint8_t)at;
        guess = at + 1;
    }
    local->mapped = 1;
}

static int
raise_no_class(PyObject *obj)
{
    PyErr_Format(PyExc_TypeError, "%R is a class in the sender, but not here", obj);
    return -1;
}

static int
look_at_shapes(maker *m)
{
    _PyParcel_Graph *g = m->g;
    m->shapes = m->inplace_shapes;
    if (g->nshapes > INPLACE_SHAPES) {
        m->shapes = PyMem_RawMalloc(g->nshapes * sizeof(local_shape));
        if (m->shapes == NULL) {
            PyErr_NoMemory();
            return -1;
        }
    }
    memset(m->shapes, 0, g->nshapes * sizeof(local_shape));
    for (Py_ssize_t i = 0; i < g->nshapes; i++) {
        const _PyParcel_Shape *shape = &g->shapes[i];
        local_shape *local = &m->shapes[i];
        PyObject *type = m->made[shape->type];
        if (!PyType_Check(type)) {
            return raise_no_class(type);
        }
        local->type = (PyTypeObject *)Py_NewRef(type);
        local->places = local->inplace_places;
        if (shape->nattributes > INPLACE_PLACES
            && (local->places = PyMem_RawMalloc(shape->nattributes)) == NULL)
        {
            PyErr_NoMemory();
            return -1;
        }
        if (shape->nslots > 0
            && (local->offsets = PyMem_RawCalloc(shape->nslots,
                                                 sizeof(Py_ssize_t))) == NULL)
        {
            PyErr_NoMemory();
            return -1;
        }
        local->cls = _PyParcel_GetClass(m->home, local->type);
        if (local->cls == NULL) {
            return -1;
        }
        local->simple = (local->cls->simple
                         && (local->cls->has_dict || shape->nattributes == 0));
        if (local->simple && map_slots(m, local, shape) < 0) {
            return -1;
        }
        map_attributes(m, local, shape);
        m->loud |= !local->simple;
    }
    return 0;
}

/* Families whose objects can't be instances of the class here. */
static int
look_at_families(maker *m)
{
    for (_PyParcel_Family *f = m->g->families; f != NULL; f = f->next) {
        PyObject *type = m->made[f->type];
        if (!PyType_Check(type)) {
            return raise_no_class(type);
        }
        int fits = _PyParcel_FamilyFits(m->home, m->g, f, (PyTypeObject *)type);
        if (fits < 0) {
            return -1;
        }
        m->strange |= !fits;
    }
    return 0;
}

static PyObject *
make_frozenset(maker *m, _PyParcel_Record *r)
{
    PyObject *list = PyList_New(r->nwords);
    if (list == NULL) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < r->nwords; i++) {
        PyList_SET_ITEM(list, i, object_of(m, m->g->words[r->first + i]));
    }
    PyObject *set = PyFrozenSet_New(list);
    Py_DECREF(list);
    return set;
}

static PyObject *
make_call(maker *m, _PyParcel_Record *r)
{
    PyObject *callable = object_of(m, m->g->words[r->first]);
    PyObject *args = object_of(m, m->g->words[r->first + 1]);
    PyObject *obj = _PyParcel_Construct(m->home, callable, args);
    Py_DECREF(callable);
    Py_DECREF(args);
    return obj;
}

static PyObject *
make_instance(maker *m, _PyParcel_Record *r)
{
    local_shape *local = &m->shapes[r->arg];
    PyTypeObject *type = local->type;
    if (local->simple) {
        return type->tp_alloc(type, 0);
    }
    PyObject *args = PyTuple_New(0);
    PyObject *obj = type->tp_new != NULL ? type->tp_new(type, args, NULL) : NULL;
    Py_DECREF(args);
    if (obj == NULL && !PyErr_Occurred()) {
        PyErr_Format(PyExc_TypeError, "instances of %R can't be made", type);
    }
    return obj;
}

static PyObject *
make_record(maker *m, Py_ssize_t record)
{
    _PyParcel_Record *r = &m->g->records[record];
    switch (r->kind) {
    case RECORD_NAMED:
        return Py_NewRef(m->made[record]);
    case RECORD_INSTANCE:
        return make_instance(m, r);
    case RECORD_CALL:
        return make_call(m, r);
    case RECORD_FROZENSET:
        return make_frozenset(m, r);
    case RECORD_ARRAY:
        return _PyParcel_GiveArray(
            m->home, m->made[WORD_RECORD(m->g->words[r->first])],
            m->g->resources[r->arg].what);
    default:
        return _PyParcel_GiveHandle(m->home, r->kind, r->arg,
                                    m->g->resources);
    }
}

/* All attributes of a new instance, straight into their places. */
static int
store_mapped(maker *m, PyObject *obj, local_shape *local,
             const _PyParcel_Word *words, int n)
{
    PyDictValues *values = _PyObject_InlineValues(obj);
    if (!values->valid || values->size != 0) {
        return 0;
    }
    for (int i = 0; i < n; i++) {
        if (local->places[i] >= values->capacity) {
            return 0;
        }
    }
    for (int i = 0; i < n; i++) {
        values->values[local->places[i]] = object_of(m, words[i]);
        _PyDictValues_AddToInsertionOrder(values, local->places[i]);
    }
    return 1;
}

static int
store_attributes(maker *m, PyObject *obj, local_shape *local,
                 const _PyParcel_Shape *shape, const _PyParcel_Word *words)
{
    int n = shape->nattributes;
    if (n == 0 || (local->mapped && store_mapped(m, obj, local, words, n))) {
        return 0;
    }
    if (local->names == NULL && intern_names(m, local, shape) < 0) {
        return -1;
    }
    for (int i = 0; i < n; i++) {
        PyObject *value = object_of(m, words[i]);
        int res;
        PyObject *name = local->names[i];
        if (local->type->tp_flags & Py_TPFLAGS_INLINE_VALUES) {
            res = _PyObject_StoreInstanceAttribute(obj, name, value);
        }
        else {
            PyObject *dict = PyObject_GenericGetDict(obj, NULL);
            res = dict != NULL ? PyDict_SetItem(dict, name, value) : -1;
            Py_XDECREF(dict);
        }
        Py_DECREF(value);
        if (res < 0) {
            return -1;
        }
    }
    map_attributes(m, local, shape);
    return 0;
}

/* What a class that is no simple one here makes of attributes. */
static int
build_by_code(maker *m, PyObject *obj, const _PyParcel_Shape *shape,
              const _PyParcel_Word *words)
{
    PyObject *state = PyDict_New();
    PyObject *slots = shape->nslots > 0 ? PyDict_New() : NULL;
    int res = -1;
    if (state == NULL || (shape->nslots > 0 && slots == NULL)) {
        goto exit;
    }
    const _PyParcel_Word *names = m->g->words + shape->names;
    for (int i = 0; i < shape->nattributes + shape->nslots; i++) {
        PyObject *value = object_of(m, words[i]);
        int failed = PyDict_SetItem(i < shape->nattributes ? state : slots,
                                    WORD_OBJECT(names[i]), value);
        Py_DECREF(value);
        if (failed) {
            goto exit;
        }
    }
    if (slots != NULL) {
        PyObject *both = PyTuple_Pack(2, state, slots);
        if (both == NULL) {
            goto exit;
        }
        Py_SETREF(state, both);
    }
    res = _PyParcel_Build(m->home, obj, state, NULL, NULL, NULL);

exit:
    Py_XDECREF(state);
    Py_XDECREF(slots);
    return res;
}

static int
build_instance(maker *m, PyObject *obj, _PyParcel_Record *r)
{
    local_shape *local = &m->shapes[r->arg];
    const _PyParcel_Shape *shape = &m->g->shapes[r->arg];
    const _PyParcel_Word *words = m->g->words + r->first;
    if (!local->simple) {
        return build_by_code(m, obj, shape, words);
    }
    if (store_attributes(m, obj, local, shape, words) < 0) {
        return -1;
    }
    words += shape->nattributes;
    for (int i = 0; i < shape->nslots; i++) {
        PyObject **slot = (PyObject **)((char *)obj + local->offsets[i]);
        Py_XSETREF(*slot, object_of(m, words[i]));
    }
    return 0;
}

static int
build_call(maker *m, PyObject *obj, _PyParcel_Record *r)
{
    PyObject *parts[4];
    for (int i = 0; i < 4; i++) {
        _PyParcel_Word word = m->g->words[r->first + 2 + i];
        parts[i] = word != 0 ? object_of(m, word) : NULL;
    }
    int res = _PyParcel_Build(m->home, obj, parts[0], parts[1], parts[2],
                              parts[3]);
    for (int i = 0; i < 4; i++) {
        Py_XDECREF(parts[i]);
    }
    return res;
}

static int
build_late(maker *m, _PyParcel_Record *r)
{
    const _PyParcel_Word *words = m->g->words + r->first;
    PyObject *container = WORD_OBJECT(words[0]);
    int dict = PyDict_Check(container);
    int res = 0;
    for (Py_ssize_t i = 1; res == 0 && i < r->nwords; i += 1 + dict) {
        PyObject *key = object_of(m, words[i]);
        if (dict) {
            PyObject *value = object_of(m, words[i + 1]);
            res = PyDict_SetItem(container, key, value);
            Py_DECREF(value);
        }
        else {
            res = PySet_Add(container, key);
        }
        Py_DECREF(key);
    }
    return res;
}

static int
build_record(maker *m, Py_ssize_t record)
{
    _PyParcel_Record *r = &m->g->records[record];
    switch (r->kind) {
    case RECORD_INSTANCE:
        return build_instance(m, m->made[record], r);
    case RECORD_CALL:
        return build_call(m, m->made[record], r);
    case RECORD_LATE:
        return build_late(m, r);
    default:
        Py_UNREACHABLE();
    }
}

static int
run_program(maker *m)
{
    for (Py_ssize_t i = 0; i < m->g->nsteps; i++) {
        _PyParcel_Step step = m->g->program[i];
        Py_ssize_t record = (Py_ssize_t)(step >> 1);
        int build = ((step & 1) == OP_BUILD);
        if (!build || (m->made[record] == NULL
                       && m->g->records[record].kind == RECORD_INSTANCE))
        {
            PyObject *obj = make_record(m, record);
            if (obj == NULL) {
                return -1;
            }
            Py_XSETREF(m->made[record], obj);
            fill_holes(m, record, obj);
        }
        if (build && build_record(m, record) < 0) {
            return -1;
        }
    }
    return 0;
}

/* What has been made for nothing. */
static void
unmake(maker *m)
{
    PyObject *exc = PyErr_GetRaisedException();
    for (Py_ssize_t i = 0; i < m->g->nrecords; i++) {
        PyObject *obj = m->made[i];
        if (obj == NULL) {
            continue;
        }
        if (m->g->records[i].kind == RECORD_ARRAY) {
            _PyParcel_TakeBackArray(
                obj, m->g->resources[m->g->records[i].arg].what);
        }
        if (m->g->records[i].kind == RECORD_INSTANCE && _PyObject_IS_GC(obj)) {
            // It has never been a whole one.
            _PyGC_SET_FINALIZED(obj);
        }
    }
    for (Py_ssize_t i = 0; i < m->g->nrecords; i++) {
        int32_t hole = m->g->records[i].holes;
        if (hole >= 0 && m->made[i] != NULL
            && *m->g->holes[hole].slot == m->made[i])
        {
            unfill_holes(m, i);
        }
    }
    PyErr_SetRaisedException(exc);
}

static void
maker_free(maker *m, Py_ssize_t nrecords)
{
    if (m->made != NULL) {
        for (Py_ssize_t i = 0; i < nrecords; i++) {
            Py_XDECREF(m->made[i]);
        }
        if (m->made != m->inplace_made) {
            PyMem_RawFree(m->made);
        }
    }
    if (m->shapes != NULL) {
        for (Py_ssize_t i = 0; i < m->g->nshapes; i++) {
            for (int j = 0; m->shapes[i].names != NULL
                            && j < m->g->shapes[i].nattributes; j++) {
                Py_XDECREF(m->shapes[i].names[j]);
            }
            PyMem_RawFree(m->shapes[i].names);
            Py_XDECREF(m->shapes[i].type);
            if (m->shapes[i].places != m->shapes[i].inplace_places) {
                PyMem_RawFree(m->shapes[i].places);
            }
            PyMem_RawFree(m->shapes[i].offsets);
        }
        if (m->shapes != m->inplace_shapes) {
            PyMem_RawFree(m->shapes);
        }
    }
}


/* --- Opening ---------------------------------------------------------------------- */

/* The root, and nothing else is left of the parcel. */
static PyObject *
finish(_PyParcel *parcel, maker *m)
{
    PyObject *root;
    if (WORD_IS_RECORD(parcel->root)) {
        root = Py_NewRef(m->made[WORD_RECORD(parcel->root)]);
    }
    else {
        root = WORD_OBJECT(parcel->root);
    }
    parcel->root = 0;
    return root;
}

/* The plain part becomes the interpreter's, but the collector need not know yet. */
static int
hand_over(_PyParcel *parcel)
{
    _PyRWGIL_Section section;
    if (_PyRWGIL_WriteOwn(&section) < 0) {
        return -1;
    }
    _PyParcel_Family *family = parcel->graph.families;
    for (; family != NULL; family = family->next) {
        _PyParcel_ListMerge(&family->list, &parcel->plain);
        parcel->nplain += family->n;
        family->n = 0;
    }
    count_references(parcel);
    _PyRWGIL_WriteEnd(&section);
    return 0;
}

static void
give_families(maker *m)
{
    for (_PyParcel_Family *f = m->g->families; f != NULL; f = f->next) {
        _PyParcel_GiveFamily(f, (PyTypeObject *)m->made[f->type]);
    }
}

static void
take_back_families(maker *m)
{
    for (_PyParcel_Family *f = m->g->families; f != NULL; f = f->next) {
        _PyParcel_TakeBackFamily(f, (PyTypeObject *)m->made[f->type]);
    }
}

/* Names have been resolved.  `parcel` is the original or a duplicate. */
static PyObject *
make_all(maker *m, _PyParcel *parcel)
{
    if (m->loud && hand_over(parcel) < 0) {
        return NULL;
    }
    m->parcel = parcel;
    m->g = &parcel->graph;
    // What is called looks at the types of its arguments.
    give_families(m);
    if (run_program(m) < 0 || (!m->loud && hand_over(parcel) < 0)) {
        unmake(m);
        take_back_families(m);
        return NULL;
    }
    adopt(parcel);
    return finish(parcel, m);
}

/* `root`, or NULL, is what has been made of a duplicate, which is not needed any
   more. */
static void
end_duplicate(_PyParcel *parcel, _PyParcel *duplicate, PyObject *root)
{
    _PyParcel_Discard(duplicate);
    if (root != NULL) {
        empty_parcel(parcel);
    }
    else {
        _PyParcel_UnshareBuffers(parcel->graph.resources,
                                 parcel->graph.nresources);
    }
}

static PyObject *open_graph(_PyParcel_Home *, _PyParcel *);

/* With records instead of families. */
static PyObject *
open_apart(_PyParcel_Home *home, _PyParcel *parcel)
{
    _PyParcel *copy = _PyParcel_Duplicate(home, parcel);
    if (copy == NULL) {
        return NULL;
    }
    PyObject *root = open_graph(home, copy);
    end_duplicate(parcel, copy, root);
    return root;
}

static PyObject *
open_graph(_PyParcel_Home *home, _PyParcel *parcel)
{
    Py_ssize_t nrecords = parcel->graph.nrecords;
    Py_ssize_t nshapes = parcel->graph.nshapes;
    maker m;
    memset(&m, 0, offsetof(maker, inplace_made));
    m.home = home;
    m.parcel = parcel;
    m.g = &parcel->graph;
    m.loud = parcel->graph.runs_code;
    PyObject *root = NULL;
    m.made = m.inplace_made;
    if (nrecords > INPLACE_MADE) {
        m.made = PyMem_RawMalloc(nrecords * sizeof(PyObject *));
        if (m.made == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
    }
    memset(m.made, 0, nrecords * sizeof(PyObject *));
    if (resolve(&m) < 0 || (nshapes > 0 && look_at_shapes(&m) < 0)
        || look_at_families(&m) < 0)
    {
        goto exit;
    }
    if (m.strange || (m.loud && parcel->graph.families != NULL)) {
        root = open_apart(home, parcel);
        goto exit;
    }
    if (!m.loud) {
        root = make_all(&m, parcel);
        if (root != NULL) {
            drop_words(&parcel->graph);
        }
        goto exit;
    }
    _PyParcel *copy = _PyParcel_Duplicate(home, parcel);
    if (copy != NULL) {
        root = make_all(&m, copy);
        m.g = &parcel->graph;
        end_duplicate(parcel, copy, root);
    }

exit:
    maker_free(&m, nrecords);
    if (root != NULL) {
        // The receiver alone has what was lent, whoever keeps the parcel.
        _PyParcel_FreeGraph(&parcel->graph);
    }
    return root;
}

/* Nobody opens it at the same time. */
static PyObject *
open_claimed(_PyParcel_Home *home, _PyParcel *parcel)
{
    if (parcel->graph.nrecords > 0) {
        return open_graph(home, parcel);
    }
    if (hand_over(parcel) < 0) {
        return NULL;
    }
    adopt(parcel);
    return finish(parcel, NULL);
}

PyObject *
_PyParcel_Open(_PyParcel_Home *home, _PyParcel *parcel)
{
    if (home->queue_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "the interpreter is closing");
        return NULL;
    }
    if (_Py_atomic_exchange_uint8(&parcel->opened, 1)) {
        PyErr_SetString(home->transfer_error != NULL ? home->transfer_error
                                                     : PyExc_RuntimeError,
                        "the parcel has been opened already");
        return NULL;
    }
    PyObject *obj = open_claimed(home, parcel);
    if (obj == NULL) {
        _Py_atomic_store_uint8(&parcel->opened, 0);
    }
    return obj;
}

// Packing: taking an object graph out of an interpreter.
// See pycore_parcel.h, and pycore_parcel_graph.h for what a parcel consists of.
//
// How it goes
//
//   One depth-first walk with a stack of our own visits the graph.  For every
//   kind of container there is one taker (*Take*, which enters it) and one step
//   (step_*, which goes on in it).  No Python code runs during a walk, and no other
//   thread of the interpreter: so the graph does not change.  pycore_parcel_pack.h
//   says what is in which file.
//
//   But for this: the functions that extensions have registered for their objects
//   (RECORD_XIDATA) may do what they like, and who lends memory may have to wait,
//   detached, for somebody who gives some back in that moment.  The collector can
//   run then.  What it changes is not relied upon: see _PyPacker_EndStretches().
//
//   Objects that need Python code (__reduce_ex__ and so on) are reduced before:
//   the walk stops at the first that it meets, Discover() then finds and reduces
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
//   that isn't, the walk is undone, Isolate() does the collector's arithmetic
//   (references from inside against the reference count), and the walk begins
//   again with what that has found.
//
// All or nothing
//
//   Until Commit() everything can be undone: replaced references are kept in
//   the undo log, moved objects are in a list of their own.  Commit() and what
//   follows can't fail.
//
// References of owned objects
//
//   An owned plain container keeps its references.  An owned instance is made
//   anew in the receiver; its values get a reference from the parcel, and Commit()
//   takes those of the instance.  What the graph no longer refers to is released
//   last, when the parcel is complete: that can run destructors.

#include "Python.h"
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_memheap.h"       // _PyMemHeap_AllocRun()
#include "pycore_parcel_pack.h"
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_rwgil.h"         // _PyRWGIL_WriteOwn()


/* --- Arrays that grow ----------------------------------------------------- */

int
_PyPacker_GrowSlow(void **array, Py_ssize_t *room, size_t size, void *inplace)
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


/* --- What goes as it is ---------------------------------------------------- */

static void
end_stretch(packer *p, stretch *s)
{
    if (s->first == NULL) {
        return;
    }
    PyGC_Head *before = _PyGCHead_PREV(s->first), *behind = _PyGCHead_NEXT(s->last);
    _PyGCHead_SET_NEXT(before, behind);
    _PyGCHead_SET_PREV(behind, before);
    PyGC_Head *end = (PyGC_Head *)p->moved._gc_prev;
    _PyGCHead_SET_NEXT(end, s->first);
    _PyGCHead_SET_PREV(s->first, end);
    _PyGCHead_SET_NEXT(s->last, &p->moved);
    p->moved._gc_prev = (uintptr_t)s->last;
    *s = (stretch){NULL, &p->moved};
}

void
_PyPacker_BeginStretch(packer *p, int which, PyGC_Head *first)
{
    if (_PyGCHead_NEXT(first) == NULL) {
        // The collector does not know it.
        _PyParcel_ListAppend(&p->moved, first);
        return;
    }
    end_stretch(p, &p->stretches[which]);
    p->stretches[which] = (stretch){first, first};
    p->last_stretch = which;
}

void
_PyPacker_EndStretches(packer *p)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(p->stretches); i++) {
        end_stretch(p, &p->stretches[i]);
    }
}


/* --- Memory for many small objects ----------------------------------------- */

void *
_PyPacker_AllocSlow(packer *p, size_t size)
{
    size_t c = (size - 1) / 16;
    // Whatever is of this class can get what is left.
    size = (c + 1) * 16;
    // A small graph needs few.
    int wanted = Py_MIN(MAX_RUN, 2 * p->runs[c].size + 1);
    int n = _PyMemHeap_AllocRun(size, p->blocks[c], wanted);
    if (n == 0) {
        return PyObject_Malloc(size);
    }
    p->runs[c].size = (uint8_t)wanted;
    p->runs[c].next = 1;
    p->runs[c].end = (uint8_t)n;
    return p->blocks[c][0];
}

void
_PyPacker_FreeRuns(packer *p)
{
    for (int c = 0; c < RUN_CLASSES; c++) {
        while (p->runs[c].next < p->runs[c].end) {
            PyObject_Free(p->blocks[c][p->runs[c].next++]);
        }
    }
}


/* --- What is known -------------------------------------------------------- */

int
_PyPacker_GrowTable(packer *p)
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


/* --- The parcel's arrays -------------------------------------------------- */

Py_ssize_t
_PyPacker_AddRecord(packer *p, _PyParcel_RecordKind kind, Py_ssize_t nwords)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW_GRAPH(p, records, nrecords) < 0) {
        return -1;
    }
    while (nwords < MAX_RECORDS && g->nwords + nwords > p->words_room) {
        if (_PyPacker_GrowSlow((void **)&g->words, &p->words_room,
                               sizeof(*g->words), g->inplace.words) < 0)
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

int
_PyPacker_AddStep(packer *p, _PyParcel_Op op, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW_GRAPH(p, program, nsteps) < 0) {
        return -1;
    }
    g->program[g->nsteps++] = PROGRAM_STEP(op, record);
    return 0;
}

/* Frozensets are made when all members are, and what is called when its arguments
   are: until then what refers to them can't be filled. */
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

int
_PyPacker_AddBuild(packer *p, Py_ssize_t record)
{
    if (p->npending > 0 && is_pending(p, record)) {
        if (GROW(p->delayed, p->ndelayed, p->delayed_room) < 0) {
            return -1;
        }
        p->delayed[p->ndelayed++] = record;
        return 0;
    }
    return _PyPacker_AddStep(p, OP_BUILD, record);
}

/* Its members or arguments have been taken: it can be made. */
int
_PyPacker_AddCreate(packer *p, Py_ssize_t record)
{
    p->parcel->graph.records[record].arg = 1;
    p->npending--;
    if (_PyPacker_AddStep(p, OP_CREATE, record) < 0) {
        return -1;
    }
    Py_ssize_t n = p->ndelayed;
    p->ndelayed = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        // Those that are delayed again come before where we are.
        if (_PyPacker_AddBuild(p, p->delayed[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

int
_PyPacker_AddHole(packer *p, PyObject **slot, Py_ssize_t record)
{
    _PyParcel_Graph *g = &p->parcel->graph;
    if (GROW_GRAPH(p, holes, nholes) < 0) {
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


/* --- A walk --------------------------------------------------------------- */

/* Ready for another one; what has been found out stays. */
int
_PyPacker_BeginWalk(packer *p)
{
    p->parcel = _PyParcel_New(p->home, 1);
    if (p->parcel == NULL) {
        return -1;
    }
#ifdef Py_REF_DEBUG
    p->reftotal_before = _PyInterpreterState_GET()->object_state.reftotal;
#endif
    _PyParcel_Graph *g = &p->parcel->graph;
    g->records = g->inplace.records;
    g->words = g->inplace.words;
    g->holes = g->inplace.holes;
    g->shapes = g->inplace.shapes;
    g->program = g->inplace.program;
    p->records_room = Py_ARRAY_LENGTH(g->inplace.records);
    p->words_room = Py_ARRAY_LENGTH(g->inplace.words);
    p->holes_room = Py_ARRAY_LENGTH(g->inplace.holes);
    p->shapes_room = Py_ARRAY_LENGTH(g->inplace.shapes);
    p->program_room = Py_ARRAY_LENGTH(g->inplace.program);
    p->resources_room = 0;
    p->depth = 0;
    p->npending = p->ndelayed = 0;
    p->near_at = p->queue != NULL ? FIRST_LOOK : PY_SSIZE_T_MAX;
    p->began_at = 0;
    p->needs_code = NULL;
    p->refused = NULL;
    p->needs_isolation = 0;
    p->found_given = 0;
    p->found_code = 0;
    p->last_family = NULL;
    p->stays = NULL;
    p->last_type = NULL;
    p->last_class_record = -1;
    p->last_shape = -1;
    p->last_keys = NULL;
    assert(p->nrows == 0);
    p->nkept = 0;
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
        res = _PyPacker_TakeGiven(p, 0, &p->parcel->root);
    }
    else {
        res = _PyPacker_Take(p, p->root, 0, &p->parcel->root);
    }
    if (res > 0) {
        res = _PyPacker_Walk(p);
    }
    _PyPacker_EndStretches(p);
    if (res == 0 && p->parcel->graph.runs_code
        && p->parcel->graph.families != NULL)
    {
        p->found_code = 1;
        return -1;
    }
    _PyPacker_CountRows(p);
    if (res == 0 && p->nkept > 0) {
        res = _PyPacker_ReplaceKeys(p);
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
    else if (_PyPacker_IsRefusal()) {
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
        if (forget_known(p) < 0 || _PyPacker_Discover(p) < 0) {
            return -1;
        }
        return forget_known(p);
    }
    if (forget_known(p) < 0) {
        return -1;
    }
    if (p->needs_isolation) {
        int res = _PyPacker_Isolate(p);
        if (p->refused != NULL) {
            raise_refusal(p);
        }
        return res;
    }
    assert(p->found_given || p->found_code);
    p->no_families |= p->found_code;
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
        int walked = (_PyPacker_BeginWalk(p) == 0 && do_walk(p) == 0
                      && !p->found_given);
        int done = walked ? begin_section(section) : -1;
        if (done > 0) {
            return 0;
        }
        _PyPacker_Undo(p);
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

void
_PyPacker_Init(packer *p, _PyParcel_Home *home, PyObject *root)
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
    for (size_t i = 0; i < Py_ARRAY_LENGTH(p->stretches); i++) {
        p->stretches[i].last = &p->moved;
    }
}

/* References that were the graph's are released here: that can run code. */
void
_PyPacker_Free(packer *p)
{
    PyObject *exc = PyErr_GetRaisedException();
    _PyPacker_FreeRuns(p);
    if (p->large > 0) {
        _PyMemHeap_ExpectLarge(p->large);
    }
    for (Py_ssize_t i = 0; i < p->nchanges; i++) {
        Py_DECREF(p->changes[i].old);
    }
    _PyPacker_FreeRows(p);
    // In this order: an object that dies while its dict is in use has to allocate
    // memory, and there may be none.
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        _PyParcel_ReductionClear(&p->reductions[i].reduction);
    }
    Py_XDECREF(p->message);
    for (Py_ssize_t i = 0; i < p->nreductions; i++) {
        Py_DECREF(p->reductions[i].obj);
    }
    PyErr_SetRaisedException(exc);
    PyMem_RawFree(p->changes);
    PyMem_RawFree(p->reductions);
    PyMem_RawFree(p->dissolved);
    PyMem_RawFree(p->givens);
    PyMem_RawFree(p->delayed);
    PyMem_RawFree(p->kept);
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
void
_PyPacker_LeaveHeap(packer *p)
{
    _PyParcel *parcel = p->parcel;
#ifdef Py_REF_DEBUG
    PyInterpreterState *interp = _PyInterpreterState_GET();
    parcel->reftotal = (p->moved_reftotal
                        + interp->object_state.reftotal - p->reftotal_before);
    _Py_AddRefTotal(_PyThreadState_GET(), -parcel->reftotal);
#endif
    _PyParcel_Graph *g = &parcel->graph;
    Py_ssize_t n = parcel->nplain - p->uncounted;
    for (_PyParcel_Family *f = g->families; f != NULL; f = f->next) {
        n += f->n;
    }
    int *count = &_PyInterpreterState_GET()->gc.generations[0].count;
    *count = n < *count ? *count - (int)n : 0;
    parcel->nbytes += (g->nrecords * sizeof(*g->records)
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
    _PyPacker_Commit(p);
    _PyRWGIL_WriteEnd(&section);
    _PyPacker_ClearRemains(p);
    _PyPacker_LeaveHeap(p);
    _PyParcel *parcel = p->parcel;
    p->parcel = NULL;
    _PyParcel_SayWhatGoes(parcel);
    return parcel;
}

static _PyParcel *
pack_root(_PyParcel_Home *home, PyObject *obj, PyObject **slot, _PyParcel_Queue *queue)
{
    packer p;
    _PyPacker_Init(&p, home, obj);
    p.queue = queue;
    _PyParcel *parcel = NULL;
    if (slot == NULL || _PyPacker_AddGiven(&p, obj, slot, MAY_MOVE) == 0) {
        parcel = pack(&p);
    }
    _PyPacker_Free(&p);
    return parcel;
}

/* What needs no walk: small messages. */
static _PyParcel *
pack_atom(_PyParcel_Home *home, PyObject *obj)
{
    _PyParcel *parcel = _PyParcel_New(home, 0);
    if (parcel == NULL) {
        return NULL;
    }
    if (_PyParcel_IsProcessWide(obj)) {
        parcel->root = (_PyParcel_Word)obj;
        parcel->stats.shared = 1;
        return parcel;
    }
    PyObject *copy = _PyPacker_CopyAtom(NULL, obj);
    if (copy == NULL) {
        _PyParcel_Discard(parcel);
        return NULL;
    }
    parcel->root = (_PyParcel_Word)copy;
    parcel->stats.copied = 1;
#ifdef Py_REF_DEBUG
    if (!_Py_IsImmortal(copy)) {
        parcel->reftotal = 1;
        _Py_AddRefTotal(_PyThreadState_GET(), -1);
    }
#endif
    _PyParcel_SayWhatGoes(parcel);
    return parcel;
}

static int
is_small(PyObject *obj)
{
    return is_atom_type(Py_TYPE(obj)) || _PyParcel_IsProcessWide(obj);
}

static _PyParcel *
pack_for(_PyParcel_Home *home, PyObject *obj, _PyParcel_Queue *queue)
{
    return is_small(obj) ? pack_atom(home, obj) : pack_root(home, obj, NULL, queue);
}

_PyParcel *
_PyParcel_Pack(_PyParcel_Home *home, PyObject *obj)
{
    return pack_for(home, obj, NULL);
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

static _PyParcel *
pack_slot_for(_PyParcel_Home *home, PyObject **slot, _PyParcel_Queue *queue)
{
    PyObject *obj = *slot;
    if (Py_REFCNT(obj) > 1
        || (is_small(obj) && !is_large(obj))
        || (home->move_type != NULL && Py_IS_TYPE(obj, home->move_type)))
    {
        return pack_for(home, obj, queue);
    }
    return pack_root(home, obj, slot, queue);
}

_PyParcel *
_PyParcel_PackSlot(_PyParcel_Home *home, PyObject **slot)
{
    return pack_slot_for(home, slot, NULL);
}

_PyParcel *
_PyParcel_PackArg(_PyParcel_Home *home, PyObject *const *arg, _PyParcel_Queue *queue)
{
    if (Py_REFCNT(*arg) > 1 || !is_on_stack(arg)) {
        return pack_for(home, *arg, queue);
    }
    return pack_slot_for(home, (PyObject **)arg, queue);
}

/* Without running code, and without anything that is made anew by it. */
int
_PyParcel_IsNative(_PyParcel_Home *home, PyObject *obj)
{
    packer p;
    _PyPacker_Init(&p, home, obj);
    int res = -1;
    if (_PyPacker_BeginWalk(&p) == 0) {
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
    _PyPacker_Undo(&p);
    _PyPacker_Free(&p);
    return res;
}

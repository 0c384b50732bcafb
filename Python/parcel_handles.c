// Handles: objects that stand for something process-wide, on their way between
// interpreters.  See pycore_parcel.h and pycore_parcel_graph.h.
//
// A queue, a parcel, an interpreter, a lent buffer, the sentinels of queues, and
// what other modules have registered cross-interpreter data for.  Each goes as a
// number or as a resource that the parcel counts or owes.
//
// Guarantees
//
//   P-1  What must be released in its own interpreter is released there, or,
//        if that is gone, never: then its memory stays valid.  Where it is known
//        what the memory is, it is freed all the same, by whoever has it last: that
//        of a moved NumPy array (rwextmem.c); and an interpreter that ends takes it
//        out of bytearrays, array.arrays and bytes that nobody else can see.  What
//        was lent on is released by the one who has lent it first.
//
// Lent buffers
//
//   A memoryview is lent: the receivers see the same bytes.  The sender's buffer
//   is exported once per parcel and counted by everyone who may look at it.  The
//   last one gives it back.  In another interpreter it can't be released at
//   once; it goes on the list of its home and a pending call is asked for.
//
//   The memory that a PickleBuffer hands out arrives as such a buffer, too: lent if
//   nobody else can see it (parcel_buffer.c), else as a copy that belongs to nobody
//   but the receivers.

#include "Python.h"
#include "pycore_ceval.h"         // _PyEval_AddPendingCall()
#include "pycore_crossinterp.h"   // _PyCrossInterpreterData_Lookup()
#include "pycore_hashtable.h"     // _Py_hashtable_t
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_memheap.h"       // _PyMemHeap_KeepBlock()
#include "pycore_object.h"        // _Py_DecRefTotal()
#include "pycore_parcel_graph.h"
#include "pycore_pystate.h"       // _PyThreadState_GET()
#include "pycore_rwextcopy.h"     // _PyRWExt_Hold()
#include "pycore_rwinterp.h"      // _PyRWInterp_Enter()


/* --- Resources ----------------------------------------------------------- */

struct _PyParcel_Lent {
    Py_ssize_t refs;                // atomic
    _PyParcel_Home *home;           // counted: the lender's; NULL: nobody's, the
                                    // memory is that of `shown` and freed with it
    _PyParcel_Lent *next;           // guarded by the home: its list of those that
                                    // have come back
    _PyParcel_Lent *before, *after; // the same: its list of all
    Py_buffer held;                 // to be released by the lender
    Py_buffer shown;                // to the receivers, without an owner
    void *description;              // its shape and the like
    int holds;                      // hold_statics() was called
    void *block;                    // to be freed if the lender is gone, or NULL
    void (*free_block)(void *);     // and how
    int of_array;                   // it is known that an array.array exports it
    _PyParcel_Lent *under;          // counted: whose memory this really is, or NULL
};

static _PyParcel_Lent *
share_lent(_PyParcel_Lent *lent)
{
    _Py_atomic_add_ssize(&lent->refs, 1);
    return lent;
}

/* What exports the memory, below memoryviews, of which there may be some; NULL: nothing,
   or, if that is asked, something that others can see. */
static PyObject *
find_exporter(PyObject *obj, int alone)
{
    while (obj != NULL && PyMemoryView_Check(obj)) {
        _PyManagedBufferObject *managed = ((PyMemoryViewObject *)obj)->mbuf;
        if (alone && (Py_REFCNT(obj) != 1 || Py_REFCNT(managed) != 1)) {
            return NULL;
        }
        obj = managed->master.obj;
    }
    return obj != NULL && (!alone || Py_REFCNT(obj) == 1) ? obj : NULL;
}

/* What describes the memory may be needed for longer than the exporter lives. */
static int
copy_description(_PyParcel_Lent *lent)
{
    const Py_buffer *held = &lent->held;
    size_t row = held->ndim * sizeof(Py_ssize_t);
    size_t letters = held->format != NULL ? strlen(held->format) + 1 : 0;
    Py_ssize_t *rows = PyMem_RawMalloc(3 * row + letters);
    if (rows == NULL) {
        return -1;
    }
    lent->shown = *held;
    lent->description = rows;
    struct {
        const Py_ssize_t *from;
        Py_ssize_t **to;
    } all[] = {{held->shape, &lent->shown.shape}, {held->strides, &lent->shown.strides},
               {held->suboffsets, &lent->shown.suboffsets}};
    for (size_t i = 0; i < Py_ARRAY_LENGTH(all); i++) {
        if (all[i].from != NULL) {
            memcpy(rows, all[i].from, row);
            *all[i].to = rows;
            rows += held->ndim;
        }
    }
    if (letters > 0) {
        lent->shown.format = memcpy(rows, held->format, letters);
    }
    return 0;
}

static _PyParcel_Lent *
lend(_PyParcel_Home *home, PyObject *obj, void *block, _PyParcel_Lent *under)
{
    _PyParcel_Lent *lent = PyMem_RawMalloc(sizeof(*lent));
    if (lent == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (PyObject_GetBuffer(obj, &lent->held, PyBUF_FULL_RO) < 0) {
        PyMem_RawFree(lent);
        return NULL;
    }
    if (copy_description(lent) < 0) {
        PyBuffer_Release(&lent->held);
        PyMem_RawFree(lent);
        PyErr_NoMemory();
        return NULL;
    }
    lent->refs = 1;
    lent->next = NULL;
    lent->home = home;
    lent->holds = 0;
    lent->block = block;
    lent->free_block = _PyRWExt_FreeBlock;
    PyObject *exporter = find_exporter(lent->held.obj, 0);
    lent->of_array = exporter != NULL && _PyParcel_HasArrayMemory(home, exporter);
    lent->under = under != NULL ? share_lent(under) : NULL;
    _Py_atomic_add_ssize(&home->refs, 1);
    PyMutex_Lock(&home->mutex);
    lent->before = NULL;
    lent->after = home->lent;
    if (home->lent != NULL) {
        home->lent->before = lent;
    }
    home->lent = lent;
    PyMutex_Unlock(&home->mutex);
    return lent;
}

static void
free_lent(_PyParcel_Lent *lent)
{
    PyMem_RawFree(lent->description);
    PyMem_RawFree(lent);
}

/* The home is locked, or nobody else knows it. */
static void
unlist_lent(_PyParcel_Lent *lent)
{
    if (lent->after != NULL) {
        lent->after->before = lent->before;
    }
    if (lent->before != NULL) {
        lent->before->after = lent->after;
    }
    else {
        lent->home->lent = lent->after;
    }
}

void
_PyParcel_KeepLent(_PyParcel_Home *home, _PyMemHeap_Remains *remains)
{
    PyMutex_Lock(&home->mutex);
    for (_PyParcel_Lent *lent = home->lent; lent != NULL; lent = lent->after) {
        // The exporter is not asked again, but its memory is in use.  What has been taken
        // out of one is not the interpreter's any more: see take_memory().
        const Py_buffer *shown = &lent->shown;
        _PyMemHeap_KeepBlock(remains, shown->buf);
        if (shown->suboffsets != NULL) {
            // There are pointers in the memory, and perhaps behind them.
            _PyMemHeap_KeepFrom(remains, &shown->buf, &shown->buf + 1);
        }
    }
    PyMutex_Unlock(&home->mutex);
}

/* Show plain bytes. */
static void
show_bytes(_PyParcel_Lent *lent, const Py_buffer *view)
{
    (void)PyBuffer_FillInfo(&lent->shown, NULL, view->buf, view->len,
                            view->readonly, PyBUF_FULL_RO);
}

/* What is shown may be in the statics of private copies of extensions. */
static void
hold_statics(const Py_buffer *shown, int n)
{
    if (shown->len > 0) {
        _PyRWExt_Hold(shown->buf, n);
    }
}

void
_PyParcel_HoldLent(_PyParcel_Home *home)
{
    PyMutex_Lock(&home->mutex);
    for (_PyParcel_Lent *lent = home->lent; lent != NULL; lent = lent->after) {
        lent->holds = 1;
        hold_statics(&lent->shown, 1);
    }
    PyMutex_Unlock(&home->mutex);
}

_PyParcel_Lent *
_PyParcel_LendBuffer(_PyParcel_Home *home, PyObject *buffer, void *block,
                     _PyParcel_Lent *under)
{
    _PyParcel_Lent *lent = lend(home, buffer, block, under);
    if (lent != NULL) {
        show_bytes(lent, &lent->held);
    }
    return lent;
}

_PyParcel_Lent *
_PyParcel_CopyBuffer(const Py_buffer *view)
{
    _PyParcel_Lent *lent = PyMem_RawCalloc(1, sizeof(*lent));
    void *block = lent != NULL ? PyMem_RawMalloc(view->len) : NULL;
    if (block == NULL) {
        PyMem_RawFree(lent);
        PyErr_NoMemory();
        return NULL;
    }
    if (view->len > 0) {
        _PyMemHeap_WillFill(block, view->len);
        memcpy(block, view->buf, view->len);
    }
    lent->refs = 1;
    show_bytes(lent, view);
    lent->shown.buf = block;
    return lent;
}

const Py_buffer *
_PyParcel_LentBuffer(_PyParcel_Lent *lent)
{
    return &lent->shown;
}

int
_PyParcel_LentIsSingle(_PyParcel_Lent *lent)
{
    return _Py_atomic_load_ssize(&lent->refs) == 1;
}

static void
release_lent(_PyParcel_Lent *lent)
{
    PyObject *exc = PyErr_GetRaisedException();
    if (lent->held.obj == NULL && lent->block != NULL) {
        lent->free_block(lent->block);      // taken by _PyParcel_LeaveLent()
    }
    PyBuffer_Release(&lent->held);
    PyErr_SetRaisedException(exc);
    _PyParcel_Home *home = lent->home;
    PyMutex_Lock(&home->mutex);
    unlist_lent(lent);
    PyMutex_Unlock(&home->mutex);
    if (lent->under != NULL) {
        _PyParcel_LentDrop(lent->under);
    }
    free_lent(lent);
    _PyParcel_DropHome(home);
}

/* Takes the memory out of what exports it, if it is known how and nobody else can see
   it.  What stays there is empty.  The home is locked. */
static int
take_memory(_PyParcel_Lent *lent)
{
    PyObject *obj = find_exporter(lent->held.obj, 1);
    if (obj == NULL || lent->block != NULL) {
        return 0;
    }
    lent->free_block = PyMem_Free;
    if (lent->of_array) {
        lent->block = _PyParcel_EmptyArray(obj);
    }
    else if (PyByteArray_CheckExact(obj)) {
        PyByteArrayObject *bytes = (PyByteArrayObject *)obj;
        lent->block = bytes->ob_bytes;
        bytes->ob_bytes = bytes->ob_start = NULL;
        bytes->ob_alloc = 0;
        Py_SET_SIZE(bytes, 0);
    }
    else if (PyBytes_CheckExact(obj)) {
        // It is one block, and will be freed as one, without anybody's DECREF.
        lent->block = Py_NewRef(obj);
        lent->free_block = PyObject_Free;
#ifdef Py_REF_DEBUG
        _Py_DecRefTotal(_PyThreadState_GET());
#endif
    }
    else {
        return 0;
    }
    if (lent->block != NULL && _PyMemHeap_MustSayWhatGoes(1)) {
        _PyMemHeap_Goes(lent->block);
    }
    return 1;
}

/* Counts one more, unless the last one is just letting go of it. */
static int
try_share_lent(_PyParcel_Lent *lent)
{
    Py_ssize_t refs = _Py_atomic_load_ssize(&lent->refs);
    while (refs > 0) {
        if (_Py_atomic_compare_exchange_ssize(&lent->refs, &refs, refs + 1)) {
            return 1;
        }
    }
    return 0;
}

/* Can it do without its buffer?  `first` has, for each exporter, the first lent that has
   not got rid of it.  The home is locked. */
static int
can_let_go(_PyParcel_Lent *lent, _Py_hashtable_t *first)
{
    if (lent->held.obj == NULL) {
        return 0;
    }
    if (lent->under != NULL || _Py_atomic_load_ssize(&lent->refs) == 0
        || take_memory(lent))
    {
        return 1;
    }
    PyObject *exporter = find_exporter(lent->held.obj, 0);
    _PyParcel_Lent *other = exporter == NULL ? NULL : _Py_hashtable_get(first, exporter);
    if (other != NULL && try_share_lent(other)) {
        lent->under = other;
        return 1;
    }
    if (exporter != NULL && other == NULL) {
        (void)_Py_hashtable_set(first, exporter, lent);     // no memory: it stays
    }
    return 0;
}

/* Releases the buffers that are not needed.  How many. */
static Py_ssize_t
let_go(_PyParcel_Home *home)
{
    Py_ssize_t n = 0, nheld = 0;
    PyMutex_Lock(&home->mutex);
    for (_PyParcel_Lent *lent = home->lent; lent != NULL; lent = lent->after) {
        n++;
    }
    PyMutex_Unlock(&home->mutex);
    if (n == 0) {
        return 0;
    }
    Py_buffer *held = PyMem_RawMalloc(n * sizeof(*held));
    _Py_hashtable_t *first = _Py_hashtable_new(_Py_hashtable_hash_ptr,
                                               _Py_hashtable_compare_direct);
    if (held != NULL && first != NULL) {
        PyMutex_Lock(&home->mutex);
        for (_PyParcel_Lent *lent = home->lent; lent != NULL && nheld < n;
             lent = lent->after)
        {
            if (can_let_go(lent, first)) {
                held[nheld++] = lent->held;
                lent->held.obj = NULL;
            }
        }
        PyMutex_Unlock(&home->mutex);
    }
    for (Py_ssize_t i = 0; i < nheld; i++) {
        PyBuffer_Release(&held[i]);
    }
    PyMem_RawFree(held);
    if (first != NULL) {
        _Py_hashtable_destroy(first);
    }
    return nheld;
}

/* No other thread of the interpreter runs any more, so nobody else releases anything
   here; what receivers drop meanwhile is returned to the home. */
void
_PyParcel_LeaveLent(_PyParcel_Home *home)
{
    // Several that share an exporter first come to share one of them, which is then
    // the only one that has it.
    while (let_go(home) > 0) {
    }
}

void
_PyParcel_ReleaseReturned(_PyParcel_Home *home)
{
    PyMutex_Lock(&home->mutex);
    _PyParcel_Lent *lent = home->returned;
    home->returned = NULL;
    PyMutex_Unlock(&home->mutex);
    while (lent != NULL) {
        _PyParcel_Lent *next = lent->next;
        release_lent(lent);
        lent = next;
    }
}

static int
release_returned_later(void *arg)
{
    _PyParcel_Home *home = arg;
    _PyParcel_ReleaseReturned(home);
    _PyParcel_DropHome(home);
    return 0;
}

void
_PyParcel_LentDrop(_PyParcel_Lent *lent)
{
    if (_Py_atomic_add_ssize(&lent->refs, -1) != 1) {
        return;
    }
    _PyParcel_Home *home = lent->home;
    if (home == NULL) {
        PyMem_RawFree(lent->shown.buf);
        PyMem_RawFree(lent);
        return;
    }
    PyThreadState *tstate = _PyThreadState_GET();
    if (tstate != NULL && tstate->interp->id == home->interpid) {
        release_lent(lent);
        return;
    }
    // The home's mutex is the one of this file that is waited for detached:
    // asking for a pending call takes a mutex of the base that does so too.
    PyMutex_Lock(&home->mutex);
    if (home->interp == NULL) {
        // P-1: what exports it stays referenced.  Its memory is kept by KeepLent(), or
        // nobody looks at it any more.
        unlist_lent(lent);
        PyMutex_Unlock(&home->mutex);
        if (lent->holds) {
            hold_statics(&lent->shown, -1);
        }
        if (lent->block != NULL) {
            lent->free_block(lent->block);
        }
        if (lent->under != NULL) {
            _PyParcel_LentDrop(lent->under);
        }
        free_lent(lent);
        _PyParcel_DropHome(home);
        return;
    }
    int first = (home->returned == NULL);
    lent->next = home->returned;
    home->returned = lent;
    if (first) {
        // When there is no room for the call, the list waits for the next
        // buffer that comes back, or for the interpreter's end.
        _Py_atomic_add_ssize(&home->refs, 1);
        if (_PyEval_AddPendingCall(home->interp, release_returned_later,
                                   home, 0) != _Py_ADD_PENDING_SUCCESS)
        {
            _Py_atomic_add_ssize(&home->refs, -1);
        }
    }
    PyMutex_Unlock(&home->mutex);
}

/* One more handle for an interpreter, so that it isn't closed for want of any
   while the parcel is under way.  0 if it is gone: sending its id is no error. */
static int
count_interpreter(int64_t id)
{
    int counted = 0;
    if (_PyRWInterp_Enter(id, _PyRWInterp_GLANCE) == 0) {
        PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
        counted = (interp != NULL && _PyInterpreterState_IDIncref(interp) == 0);
        _PyRWInterp_Leave(id, _PyRWInterp_GLANCE);
    }
    PyErr_Clear();
    return counted;
}

/* As a handle does that goes away; that can close the interpreter. */
static void
uncount_interpreter(int64_t id)
{
    PyObject *exc = PyErr_GetRaisedException();
    PyInterpreterState *interp = _PyInterpreterState_LookUpID(id);
    if (interp != NULL) {
        _PyInterpreterState_IDDecref(interp);
    }
    PyErr_SetRaisedException(exc);
}

void
_PyParcel_ReleaseResources(_PyParcel_Resource *resources, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        void *what = resources[i].what;
        switch (resources[i].kind) {
        case RESOURCE_QUEUE:
            _PyParcel_QueueDrop(what);
            break;
        case RESOURCE_PARCEL:
            _PyParcel_Discard(what);
            break;
        case RESOURCE_LENT:
        case RESOURCE_BUFFER:
            _PyParcel_LentDrop(what);
            break;
        case RESOURCE_XIDATA: {
            PyObject *exc = PyErr_GetRaisedException();
            (void)_PyCrossInterpreterData_ReleaseAndRawFree(what);
            PyErr_SetRaisedException(exc);
            break;
        }
        case RESOURCE_INTERPRETER:
            uncount_interpreter((intptr_t)what);
            break;
        case RESOURCE_ARRAY:
            _PyParcel_FreeArray(what);
            break;
        case RESOURCE_NOTHING:
            break;
        }
    }
    PyMem_RawFree(resources);
}

int
_PyParcel_ShareResource(_PyParcel_Resource *resource)
{
    void *what = resource->what;
    switch (resource->kind) {
    case RESOURCE_QUEUE:
        _PyParcel_QueueShare(what);
        break;
    case RESOURCE_PARCEL:
        _PyParcel_Share(what);
        break;
    case RESOURCE_LENT:
    case RESOURCE_BUFFER:
        (void)share_lent(what);
        break;
    case RESOURCE_INTERPRETER:
        // One more, or one that need not be given back.
        if (!count_interpreter((intptr_t)what)) {
            resource->kind = RESOURCE_NOTHING;
        }
        break;
    case RESOURCE_ARRAY:
        resource->what = _PyParcel_CopyArray(what);
        if (resource->what == NULL) {
            resource->kind = RESOURCE_NOTHING;
            return -1;
        }
        break;
    case RESOURCE_XIDATA:
        // The original keeps it, and outlives its duplicates, which only make
        // an object of it.
        resource->kind = RESOURCE_NOTHING;
        break;
    case RESOURCE_NOTHING:
        break;
    }
    return 0;
}

/* After code that could see them has failed: what it has kept, if anything, is not
   what the next one gets. */
void
_PyParcel_UnshareBuffers(_PyParcel_Resource *resources, Py_ssize_t n)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        _PyParcel_Lent *lent = resources[i].what;
        if (resources[i].kind != RESOURCE_BUFFER
            || _PyParcel_LentIsSingle(lent))
        {
            continue;
        }
        PyObject *exc = PyErr_GetRaisedException();
        _PyParcel_Lent *copy = _PyParcel_CopyBuffer(&lent->shown);
        if (copy != NULL) {
            resources[i].what = copy;
            _PyParcel_LentDrop(lent);
        }
        PyErr_SetRaisedException(exc);
    }
}


/* --- Taking -------------------------------------------------------------- */

static int
sentinel_index(_PyParcel_Home *home, PyObject *obj)
{
    for (int i = 0; i < _PyParcel_NSENTINELS; i++) {
        if (home->sentinels[i] == obj) {
            return i;
        }
    }
    return -1;
}

int
_PyParcel_HandleKind(_PyParcel_Home *home, PyObject *obj)
{
    PyTypeObject *type = Py_TYPE(obj);
    if (type == &PyMemoryView_Type || type == &PyPickleBuffer_Type) {
        return RECORD_LENT;
    }
    if (type == home->queue_type) {
        return RECORD_QUEUE;
    }
    if (type == home->parcel_type) {
        return RECORD_PARCEL;
    }
    if (home->interpreter_type != NULL && type == home->interpreter_type) {
        return RECORD_INTERPRETER;
    }
    if (sentinel_index(home, obj) >= 0) {
        return RECORD_SENTINEL;
    }
    if (_PyCrossInterpreterData_Lookup(obj) != NULL) {
        return RECORD_XIDATA;
    }
    return -1;
}

static int
take_xidata(PyObject *obj, _PyParcel_Resource *resource)
{
    _PyCrossInterpreterData *data = PyMem_RawCalloc(1, sizeof(*data));
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (_PyObject_GetCrossInterpreterData(obj, data) < 0) {
        PyMem_RawFree(data);
        return -1;
    }
    *resource = (_PyParcel_Resource){RESOURCE_XIDATA, data};
    return 0;
}

static int
take_interpreter(PyObject *obj, int64_t *arg, _PyParcel_Resource *resource)
{
    // A slot: `id` is Python code.
    PyObject *idobj = PyObject_GetAttrString(obj, "_id");
    if (idobj == NULL) {
        return -1;
    }
    int64_t id = PyLong_AsLongLong(idobj);
    Py_DECREF(idobj);
    if (id == -1 && PyErr_Occurred()) {
        return -1;
    }
    *arg = id;
    if (count_interpreter(id)) {
        *resource = (_PyParcel_Resource){RESOURCE_INTERPRETER,
                                         (void *)(intptr_t)id};
    }
    return 0;
}

/* What this is a view of, if somebody has lent it to us; borrowed. */
static _PyParcel_Lent *
lent_to_us(_PyParcel_Home *home, PyObject *obj)
{
    while (obj != NULL && PyMemoryView_Check(obj)) {
        const _PyManagedBufferObject *buffer = ((PyMemoryViewObject *)obj)->mbuf;
        obj = buffer != NULL ? buffer->master.obj : NULL;
    }
    return (obj != NULL && Py_TYPE(obj) == home->lent_type
            ? ((_PyParcel_HandleObject *)obj)->what : NULL);
}

int
_PyParcel_TakeHandle(_PyParcel_Home *home, PyObject *obj, int kind,
                     int64_t *arg, _PyParcel_Resource *resource)
{
    switch (kind) {
    case RECORD_LENT: {
        _PyParcel_Lent *lent = lend(home, obj, NULL, lent_to_us(home, obj));
        if (lent == NULL) {
            return -1;
        }
        *resource = (_PyParcel_Resource){RESOURCE_LENT, lent};
        return 0;
    }
    case RECORD_QUEUE: {
        _PyParcel_Queue *queue = ((_PyParcel_HandleObject *)obj)->what;
        *resource = (_PyParcel_Resource){RESOURCE_QUEUE,
                                         _PyParcel_QueueShare(queue)};
        return 0;
    }
    case RECORD_PARCEL: {
        _PyParcel *parcel = ((_PyParcel_HandleObject *)obj)->what;
        *resource = (_PyParcel_Resource){RESOURCE_PARCEL,
                                         _PyParcel_Share(parcel)};
        return 0;
    }
    case RECORD_SENTINEL:
        *arg = sentinel_index(home, obj);
        return 0;
    case RECORD_INTERPRETER:
        return take_interpreter(obj, arg, resource);
    default:
        assert(kind == RECORD_XIDATA);
        return take_xidata(obj, resource);
    }
}


/* --- Giving -------------------------------------------------------------- */

static PyObject *
give_lent(_PyParcel_Home *home, void *what)
{
    _PyParcel_Lent *lent = share_lent(what);
    PyObject *exporter = home->new_lent(home, lent);
    if (exporter == NULL) {
        _PyParcel_LentDrop(lent);
        return NULL;
    }
    PyObject *view = PyMemoryView_FromObject(exporter);
    Py_DECREF(exporter);
    return view;
}

static PyObject *
give_queue(_PyParcel_Home *home, void *what)
{
    _PyParcel_Queue *queue = what;
    _PyParcel_QueueShare(queue);
    PyObject *obj = home->new_queue(home, queue);
    _PyParcel_QueueDrop(queue);
    return obj;
}

static PyObject *
give_parcel(_PyParcel_Home *home, void *what)
{
    _PyParcel *parcel = what;
    _PyParcel_Share(parcel);
    PyObject *obj = home->new_parcel(home, parcel);
    if (obj == NULL) {
        _PyParcel_Discard(parcel);
    }
    return obj;
}

static PyObject *
give_interpreter(_PyParcel_Home *home, int64_t id)
{
    if (home->interpreter_type == NULL) {
        // It registers the type.
        PyObject *codec = PyImport_ImportModule("interpreters._codec");
        if (codec == NULL) {
            return NULL;
        }
        Py_DECREF(codec);
    }
    if (home->interpreter_type == NULL) {
        PyErr_SetString(PyExc_RuntimeError,
                        "no type for interpreters is registered");
        return NULL;
    }
    return PyObject_CallFunction((PyObject *)home->interpreter_type,
                                 "L", (long long)id);
}

PyObject *
_PyParcel_GiveHandle(_PyParcel_Home *home, int kind, int64_t arg,
                     _PyParcel_Resource *resources)
{
    switch (kind) {
    case RECORD_LENT:
        return give_lent(home, resources[arg].what);
    case RECORD_QUEUE:
        return give_queue(home, resources[arg].what);
    case RECORD_PARCEL:
        return give_parcel(home, resources[arg].what);
    case RECORD_SENTINEL:
        return Py_NewRef(home->sentinels[arg]);
    case RECORD_INTERPRETER:
        return give_interpreter(home, arg);
    default:
        assert(kind == RECORD_XIDATA);
        return _PyCrossInterpreterData_NewObject(resources[arg].what);
    }
}

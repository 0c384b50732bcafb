/* Looks at the heaps of all interpreters for objects that are in two of them.
   For tests only.

   check_ownership() stops every interpreter in a write section over all heaps
   and walks everything that can be reached in each of them: from what its
   collector tracks, from its table of interned strings, and from the local
   variables of its threads; along what tp_traverse shows and along the references
   that it doesn't: types, keys of dicts, what code objects and ranges have,
   targets of weak references.  An object found in two heaps is a finding, unless
   it is process-wide.

   check_heap() walks the heap of the caller's interpreter alone: are the lists
   of the collector sound, and does no object have fewer references by its own
   count than were found?  (More is fine: C code and running frames have some.)

   Guarantees.  Only raw memory is allocated, and no object is changed, not even
   its reference count (RW-4).  What is wrong is reported, not asserted.

   Blind spots.  What only C code refers to and no collector tracks; references of
   untracked objects that are neither shown by tp_traverse nor known here (the
   tzinfo of a datetime, for one); evaluation stacks of running frames. */

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_code.h"          // PyCodeObject
#include "pycore_dict.h"          // DK_UNICODE_ENTRIES()
#include "pycore_frame.h"         // _PyInterpreterFrame
#include "pycore_gc.h"            // PyGC_Head
#include "pycore_global_objects.h"// _Py_INTERP_CACHED_OBJECT()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_lock.h"          // PyMutex_LockFast()
#include "pycore_object.h"        // _PyType_HasFeature()
#include "pycore_parcel.h"        // _PyParcel_QueueExpect()
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_runtime.h"       // _PyRuntime
#include "pycore_rwgil.h"

#include <stdarg.h>               // va_list

#define MAX_HEAPS 512
#define MAX_FINDINGS 100
#define MAX_PATH 12
#define TEXT_SIZE 1000

enum {
    TRACKED = 1,        // by the collector of the heap
    INTERNED = 2,       // is in the heap's table of interned strings
    WALKED = 4,         // its referents have been visited
    PUBLIC = 8,         // may be found in any heap
    REPORTED = 16,
};

/* What is known of an object. */
typedef struct {
    PyObject *obj;              // NULL: this place is free
    PyObject *holder;           // leads to it in its heap; NULL: a root does
    Py_ssize_t references;      // found so far
    int16_t heap;
    uint16_t flags;
} Entry;

typedef struct {
    PyObject *obj;
    char text[TEXT_SIZE];
} Finding;

/* A heap: the interpreters that run under one lock. */
typedef struct {
    int64_t id;                 // of the first of them
    void *gil;
} Heap;

typedef struct {
    int counting;               // check_heap()
    Entry *table;               // open addressing
    size_t mask;
    size_t used;
    PyObject **stack;           // objects to walk
    size_t depth;
    size_t room;
    Heap heaps[MAX_HEAPS];
    int nheaps;
    int heap;                   // the one that is walked
    PyObject *holder;           // the object that is walked
    int weak;                   // it refers only weakly
    Finding *findings;
    int nfindings;
    int no_memory;
} Walk;


/* --- The table of objects ------------------------------------------------ */

static size_t
place_of(const Walk *walk, PyObject *obj)
{
    size_t i = ((uintptr_t)obj >> 4) * (size_t)0x9E3779B97F4A7C15ull;
    for (i = (i >> 20) & walk->mask; ; i = (i + 1) & walk->mask) {
        if (walk->table[i].obj == obj || walk->table[i].obj == NULL) {
            return i;
        }
    }
}

static Entry *
look_up(const Walk *walk, PyObject *obj)
{
    Entry *entry = &walk->table[place_of(walk, obj)];
    return entry->obj != NULL ? entry : NULL;
}

static int
grow(Walk *walk)
{
    Entry *old = walk->table;
    size_t old_size = old != NULL ? walk->mask + 1 : 0;
    size_t size = old_size ? 2 * old_size : (size_t)1 << 17;
    walk->table = PyMem_RawCalloc(size, sizeof(Entry));
    if (walk->table == NULL) {
        walk->table = old;
        walk->no_memory = 1;
        return -1;
    }
    walk->mask = size - 1;
    for (size_t i = 0; i < old_size; i++) {
        if (old[i].obj != NULL) {
            walk->table[place_of(walk, old[i].obj)] = old[i];
        }
    }
    PyMem_RawFree(old);
    return 0;
}

/* The entry of `obj`; if it is new, as one of the heap that is walked.  NULL: no
   memory.  Valid until the next call. */
static Entry *
enter(Walk *walk, PyObject *obj)
{
    if (walk->used * 3 >= walk->mask * 2 && grow(walk) < 0) {
        return NULL;
    }
    Entry *entry = &walk->table[place_of(walk, obj)];
    if (entry->obj == NULL) {
        entry->obj = obj;
        entry->holder = walk->holder;
        entry->heap = (int16_t)walk->heap;
        walk->used++;
    }
    return entry;
}

static int
push(Walk *walk, PyObject *obj)
{
    if (walk->depth == walk->room) {
        size_t room = walk->room ? 2 * walk->room : 4096;
        PyObject **stack = PyMem_RawRealloc(walk->stack, room * sizeof(*stack));
        if (stack == NULL) {
            walk->no_memory = 1;
            return -1;
        }
        walk->stack = stack;
        walk->room = room;
    }
    walk->stack[walk->depth++] = obj;
    return 0;
}

static void
clear_walk(Walk *walk)
{
    PyMem_RawFree(walk->table);
    PyMem_RawFree(walk->stack);
    PyMem_RawFree(walk->findings);
}


/* --- Findings ------------------------------------------------------------ */

/* Like PyOS_snprintf() at the end of the text, which is cut when it's full. */
static void
append(Finding *finding, const char *format, ...)
{
    size_t len = strlen(finding->text);
    va_list args;
    va_start(args, format);
    PyOS_vsnprintf(finding->text + len, TEXT_SIZE - len, format, args);
    va_end(args);
}

/* Type and address, of a str also what it says. */
static void
append_object(Finding *finding, PyObject *obj)
{
    append(finding, "%.80s at %p", Py_TYPE(obj)->tp_name, (void *)obj);
    if (PyUnicode_Check(obj) && PyUnicode_IS_COMPACT_ASCII(obj)) {
        append(finding, " '%.40s'", (char *)PyUnicode_DATA(obj));
    }
    else if (PyModule_Check(obj) || PyType_Check(obj)) {
        if (PyType_Check(obj)) {
            append(finding, " (%.60s)", ((PyTypeObject *)obj)->tp_name);
        }
    }
    else if (PyFunction_Check(obj)) {
        PyObject *name = ((PyFunctionObject *)obj)->func_qualname;
        if (PyUnicode_IS_COMPACT_ASCII(name)) {
            append(finding, " (%.60s)", (char *)PyUnicode_DATA(name));
        }
    }
}

/* Who leads to it, up to a root. */
static void
append_path(Walk *walk, Finding *finding, PyObject *holder)
{
    for (int i = 0; i < MAX_PATH && holder != NULL; i++) {
        append(finding, " <- ");
        append_object(finding, holder);
        Entry *entry = look_up(walk, holder);
        holder = entry != NULL ? entry->holder : NULL;
    }
}

/* NULL when there are enough. */
static Finding *
new_finding(Walk *walk, PyObject *obj, const char *what)
{
    if (walk->nfindings == MAX_FINDINGS) {
        return NULL;
    }
    Finding *finding = &walk->findings[walk->nfindings++];
    finding->obj = obj;
    finding->text[0] = '\0';
    append(finding, "%s: ", what);
    append_object(finding, obj);
    return finding;
}

static void
report_stranger(Walk *walk, Entry *entry)
{
    const char *what = walk->weak ? "weakly referred to from another heap"
        : entry->flags & TRACKED ? "tracked in one heap, reachable in another"
        : "reachable in two heaps";
    Finding *finding = new_finding(walk, entry->obj, what);
    if (finding != NULL) {
        append(finding, "; in interpreter %lld",
               (long long)walk->heaps[entry->heap].id);
        append_path(walk, finding, entry->holder);
        append(finding, "; in interpreter %lld",
               (long long)walk->heaps[walk->heap].id);
        append_path(walk, finding, walk->holder);
    }
    entry->flags |= REPORTED;
}


/* --- What is process-wide ------------------------------------------------ */

static int
is_static_type(PyObject *obj)
{
    return PyType_Check(obj)
        && !_PyType_HasFeature((PyTypeObject *)obj, Py_TPFLAGS_HEAPTYPE);
}

static int
is_process_wide(PyObject *obj)
{
    // Small ints, latin-1 characters, identifiers, empty tuple and bytes.  Not
    // all of _PyRuntime: the main interpreter's state is in there, too.
    char *objects = (char *)&_PyRuntime.static_objects;
    if ((char *)obj >= objects
        && (char *)obj < objects + sizeof(_PyRuntime.static_objects)) {
        return 1;
    }
    if (!_Py_IsImmortalLoose(obj)) {
        return 0;
    }
    if (obj == Py_None || obj == Py_True || obj == Py_False
        || obj == Py_Ellipsis || obj == Py_NotImplemented) {
        return 1;
    }
    // Variables of C code: types; definitions of modules; bare objects, which
    // are sentinels (sys.monitoring's, for example); typing.NoDefault; the UTC
    // and the zero of datetime, if its module is not a private copy.
    PyTypeObject *type = Py_TYPE(obj);
    return is_static_type(obj)
        || type == &PyModuleDef_Type
        || type == &PyBaseObject_Type
        || strcmp(type->tp_name, "NoDefaultType") == 0
        || (is_static_type((PyObject *)type)
            && strncmp(type->tp_name, "datetime.", 9) == 0);
}

static int
make_public(Walk *walk, PyObject *obj)
{
    if (obj == NULL) {
        return 0;
    }
    Entry *entry = enter(walk, obj);
    if (entry == NULL) {
        return -1;
    }
    entry->flags |= PUBLIC;
    return 0;
}

/* The tuples of static types were made by the first interpreter and are read by
   all.  So are the dicts of those that an extension module made without the
   base's knowing. */
static int
static_type_found(Walk *walk, PyTypeObject *type)
{
    if (make_public(walk, type->tp_mro) < 0
        || make_public(walk, type->tp_bases) < 0) {
        return -1;
    }
    if (type->tp_flags & _Py_TPFLAGS_STATIC_BUILTIN) {
        return 0;
    }
    return make_public(walk, type->tp_dict);
}


/* --- The walk ------------------------------------------------------------ */

static int
visit(PyObject *obj, void *arg)
{
    Walk *walk = arg;
    if (is_process_wide(obj)) {
        if (is_static_type(obj)) {
            return static_type_found(walk, (PyTypeObject *)obj);
        }
        return 0;
    }
    Entry *entry = enter(walk, obj);
    if (entry == NULL) {
        return -1;
    }
    entry->references++;
    if (entry->heap != walk->heap) {
        if (!(entry->flags & REPORTED)) {
            report_stranger(walk, entry);
        }
        return 0;
    }
    if (entry->flags & WALKED) {
        return 0;
    }
    entry->flags |= WALKED;
    return push(walk, obj);
}

/* Is the target of a weak reference in this heap?  Called when all that is
   reachable has been visited: who is unknown by now is referred to by C code. */
static void
look_at_weak(Walk *walk, PyObject *target)
{
    Entry *entry = look_up(walk, target);
    if (entry != NULL && entry->heap != walk->heap
        && !(entry->flags & (PUBLIC | REPORTED))) {
        walk->weak = 1;
        report_stranger(walk, entry);
        walk->weak = 0;
    }
}

static int
visit_keys(Walk *walk, PyDictKeysObject *keys)
{
    if (!DK_IS_UNICODE(keys)) {
        return 0;               // dict_traverse() shows them
    }
    PyDictUnicodeEntry *entries = DK_UNICODE_ENTRIES(keys);
    for (Py_ssize_t i = 0; i < keys->dk_nentries; i++) {
        if (entries[i].me_key != NULL && visit(entries[i].me_key, walk) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
visit_code(Walk *walk, PyCodeObject *code)
{
    PyObject *parts[] = {
        code->co_consts, code->co_names, code->co_exceptiontable,
        code->co_localsplusnames, code->co_localspluskinds, code->co_filename,
        code->co_name, code->co_qualname, code->co_linetable,
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(parts); i++) {
        if (parts[i] != NULL && visit(parts[i], walk) < 0) {
            return -1;
        }
    }
    return 0;
}

/* A range has no tp_traverse; its members show what it has. */
typedef struct {
    PyObject_HEAD
    PyObject *parts[4];         // start, stop, step, length
} Range;

/* Some show their type themselves, so that it must not be counted again: those
   with a tp_traverse, and lru_cache() for the links of its list. */
static int
shows_type(PyObject *obj)
{
    return PyObject_IS_GC(obj)
        || strcmp(Py_TYPE(obj)->tp_name, "functools._lru_list_elem") == 0;
}

/* Visit what `obj` refers to, once. */
static int
walk_object(Walk *walk, PyObject *obj)
{
    walk->holder = obj;
    PyTypeObject *type = Py_TYPE(obj);
    if (!(walk->counting && shows_type(obj))
        && visit((PyObject *)type, walk) < 0) {
        return -1;
    }
    if (PyObject_IS_GC(obj) && type->tp_traverse(obj, visit, walk) < 0) {
        return -1;
    }
    if (PyDict_Check(obj)) {
        PyDictObject *dict = (PyDictObject *)obj;
        // Keys of a split table belong to a type.
        if (!(walk->counting && dict->ma_values != NULL)) {
            return visit_keys(walk, dict->ma_keys);
        }
    }
    else if (PyType_Check(obj)) {
        PyHeapTypeObject *heap_type = (PyHeapTypeObject *)obj;
        if (heap_type->ht_cached_keys != NULL) {
            return visit_keys(walk, heap_type->ht_cached_keys);
        }
    }
    else if (PyCode_Check(obj)) {
        return visit_code(walk, (PyCodeObject *)obj);
    }
    else if (PyRange_Check(obj)) {
        for (int i = 0; i < 4; i++) {
            if (visit(((Range *)obj)->parts[i], walk) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

static int
walk_on(Walk *walk)
{
    while (walk->depth > 0) {
        if (walk_object(walk, walk->stack[--walk->depth]) < 0) {
            return -1;
        }
    }
    walk->holder = NULL;
    return 0;
}

/* Enter what one list of the collector tracks. */
static int
enter_list(Walk *walk, PyGC_Head *head)
{
    PyGC_Head *prev = head;
    for (PyGC_Head *gc = _PyGCHead_NEXT(head); gc != head; prev = gc,
         gc = _PyGCHead_NEXT(gc)) {
        PyObject *obj = _Py_FROM_GC(gc);
        if (gc == NULL || _PyGCHead_PREV(gc) != prev) {
            // Nothing after this place can be relied upon.
            (void)new_finding(walk, prev == head ? Py_None : _Py_FROM_GC(prev),
                              "the collector's list is broken after");
            return 0;
        }
        Entry *entry = enter(walk, obj);
        if (entry == NULL) {
            return -1;
        }
        if (entry->flags & TRACKED) {
            (void)new_finding(walk, obj, "tracked twice");
            return 0;           // maybe a circle that doesn't lead to the head
        }
        entry->flags |= TRACKED;
        if (Py_REFCNT(obj) <= 0) {
            (void)new_finding(walk, obj, "tracked without any reference");
        }
    }
    if (_PyGCHead_PREV(head) != prev) {
        (void)new_finding(walk, prev == head ? Py_None : _Py_FROM_GC(prev),
                          "the collector's list does not end with");
    }
    return 0;
}

static int
enter_lists(Walk *walk, PyInterpreterState *interp)
{
    struct _gc_runtime_state *gc = &interp->gc;
    for (int i = 0; i < NUM_GENERATIONS; i++) {
        if (enter_list(walk, &gc->generations[i].head) < 0) {
            return -1;
        }
    }
    return enter_list(walk, &gc->permanent_generation.head);
}

/* The table itself is not counted: mortal strings in it don't own its
   references. */
static int
enter_interned(Walk *walk, PyInterpreterState *interp)
{
    PyObject *interned = _Py_INTERP_CACHED_OBJECT(interp, interned_strings);
    PyObject *key, *value;
    Py_ssize_t pos = 0;
    while (interned != NULL && PyDict_Next(interned, &pos, &key, &value)) {
        Entry *entry = enter(walk, key);
        if (entry == NULL) {
            return -1;
        }
        if (entry->heap != walk->heap && !(entry->flags & REPORTED)) {
            report_stranger(walk, entry);
        }
        else {
            entry->flags |= INTERNED;
        }
    }
    return 0;
}

/* Local variables of frames that run; the others are the collector's. */
static int
walk_frames(Walk *walk, PyInterpreterState *interp)
{
    for (PyThreadState *tstate = interp->threads.head; tstate != NULL;
         tstate = tstate->next) {
        for (_PyInterpreterFrame *frame = tstate->current_frame; frame != NULL;
             frame = frame->previous) {
            if (frame->owner != FRAME_OWNED_BY_THREAD) {
                continue;
            }
            PyCodeObject *code = _PyFrame_GetCode(frame);
            if (visit((PyObject *)code, walk) < 0) {
                return -1;
            }
            for (int i = 0; i < code->co_nlocalsplus; i++) {
                if (frame->localsplus[i] != NULL
                    && visit(frame->localsplus[i], walk) < 0) {
                    return -1;
                }
            }
        }
    }
    return 0;
}

static int
walk_tracked(Walk *walk)
{
    // The table may grow meanwhile: first put them all on the stack.
    for (size_t i = 0; i <= walk->mask; i++) {
        Entry *entry = &walk->table[i];
        if (entry->obj != NULL && entry->heap == walk->heap
            && !(entry->flags & WALKED)
            && (entry->flags & (TRACKED | INTERNED)))
        {
            entry->flags |= WALKED;
            if (push(walk, entry->obj) < 0) {
                return -1;
            }
        }
    }
    return walk_on(walk);
}

/* Is `str` where strings with its state have to be? */
static void
check_interned(Walk *walk, Entry *entry)
{
    PyObject *str = entry->obj;
    if (PyUnicode_CHECK_INTERNED(str) != SSTATE_NOT_INTERNED
        && PyUnicode_CHECK_INTERNED(str) != SSTATE_INTERNED_IMMORTAL_STATIC
        && !(entry->flags & (INTERNED | PUBLIC)))
    {
        Finding *finding = new_finding(
            walk, str, "claims to be interned, is not in the table");
        if (finding != NULL) {
            append(finding, "; in interpreter %lld",
                   (long long)walk->heaps[entry->heap].id);
            append_path(walk, finding, entry->holder);
        }
    }
}

static void
check_count(Walk *walk, Entry *entry)
{
    if (!_Py_IsImmortalLoose(entry->obj)
        && Py_REFCNT(entry->obj) < entry->references)
    {
        Finding *finding = new_finding(
            walk, entry->obj, "has fewer references than were found");
        if (finding != NULL) {
            append(finding, "; %zd instead of %zd", Py_REFCNT(entry->obj),
                   entry->references);
            append_path(walk, finding, entry->holder);
        }
    }
}

/* When all walks are done. */
static void
check_entries(Walk *walk)
{
    for (size_t i = 0; i <= walk->mask; i++) {
        Entry *entry = &walk->table[i];
        if (entry->obj == NULL) {
            continue;
        }
        if (PyUnicode_Check(entry->obj)) {
            check_interned(walk, entry);
        }
        else if (PyWeakref_Check(entry->obj)) {
            PyObject *target = ((PyWeakReference *)entry->obj)->wr_object;
            walk->heap = entry->heap;
            walk->holder = entry->obj;
            look_at_weak(walk, target);
        }
        if (walk->counting) {
            check_count(walk, entry);
        }
    }
}

static int
heap_of(Walk *walk, PyInterpreterState *interp)
{
    for (int i = 0; i < walk->nheaps; i++) {
        if (walk->heaps[i].gil == (void *)interp->ceval.gil) {
            return i;
        }
    }
    if (walk->nheaps == MAX_HEAPS) {
        return -1;
    }
    walk->heaps[walk->nheaps].id = interp->id;
    walk->heaps[walk->nheaps].gil = (void *)interp->ceval.gil;
    return walk->nheaps++;
}

/* Those that are being made or being taken down are skipped: what they have is
   in nobody's hands.  `only`: just this one. */
static PyInterpreterState *
next_interp(PyInterpreterState *interp, PyInterpreterState *only)
{
    for (; interp != NULL; interp = interp->next) {
        if (interp->_ready && _PyInterpreterState_GetFinalizing(interp) == NULL
            && (only == NULL || interp == only)) {
            break;
        }
    }
    return interp;
}

static void
walk_heaps(Walk *walk, PyInterpreterState *only)
{
    typedef int (*step)(Walk *, PyInterpreterState *);
    static const step steps[] = {enter_lists, enter_interned, walk_frames};

    walk->findings = PyMem_RawMalloc(MAX_FINDINGS * sizeof(Finding));
    if (walk->findings == NULL || grow(walk) < 0) {
        walk->no_memory = 1;
        return;
    }
    // Whose collector tracks an object is its owner: all lists come first.
    for (size_t i = 0; i < Py_ARRAY_LENGTH(steps); i++) {
        PyInterpreterState *interp = _PyRuntime.interpreters.head;
        while ((interp = next_interp(interp, only)) != NULL) {
            walk->heap = heap_of(walk, interp);
            if (walk->heap >= 0
                && (steps[i](walk, interp) < 0 || walk_on(walk) < 0)) {
                return;
            }
            interp = interp->next;
        }
    }
    for (walk->heap = 0; walk->heap < walk->nheaps; walk->heap++) {
        if (walk_tracked(walk) < 0) {
            return;
        }
    }
    check_entries(walk);
}

static PyObject *
findings_list(Walk *walk)
{
    if (walk->no_memory) {
        return PyErr_NoMemory();
    }
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < walk->nfindings; i++) {
        Finding *finding = &walk->findings[i];
        Entry *entry = look_up(walk, finding->obj);
        if (entry != NULL && entry->flags & PUBLIC) {
            continue;
        }
        PyObject *text = PyUnicode_DecodeUTF8(
            finding->text, strlen(finding->text), "replace");
        if (text == NULL || PyList_Append(list, text) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(text);
    }
    return list;
}


/* --- The module ---------------------------------------------------------- */

/* HEAD_LOCK() is not for shared modules.  Who holds it does so for a moment, and
   doesn't wait for us meanwhile. */
static void
lock_interpreters(void)
{
    while (!PyMutex_LockFast(&_PyRuntime.interpreters.mutex._bits)) {
        // Spin.
    }
}

static void
unlock_interpreters(void)
{
    PyMutex_Unlock(&_PyRuntime.interpreters.mutex);
}

PyDoc_STRVAR(check_ownership_doc,
"check_ownership() -> list of str\n\n"
"Stop all interpreters; return what is reachable in more than one of them, a\n"
"description each, at most 100.");

static PyObject *
check_ownership(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    Walk walk = {0};
    _PyRWGIL_Section section;
    if (_PyRWGIL_WriteAll(&section) < 0) {
        return NULL;
    }
    lock_interpreters();
    walk_heaps(&walk, NULL);
    unlock_interpreters();
    _PyRWGIL_WriteEnd(&section);
    PyObject *result = findings_list(&walk);
    clear_walk(&walk);
    return result;
}

PyDoc_STRVAR(check_heap_doc,
"check_heap() -> list of str\n\n"
"Return what is wrong in this interpreter's heap: lists of the collector that\n"
"are broken, objects with more references than they count, strings that are not\n"
"in the table of interned strings and say that they are.");

static PyObject *
check_heap(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    Walk walk = {.counting = 1};
    walk_heaps(&walk, _PyInterpreterState_GET());
    PyObject *result = findings_list(&walk);
    clear_walk(&walk);
    return result;
}

/* Two ways to break a heap, so that it can be seen that it is noticed. */

static PyObject *
object_at(PyObject *Py_UNUSED(module), PyObject *arg)
{
    PyObject *obj = PyLong_AsVoidPtr(arg);
    if (obj == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "there is no object at 0");
        }
        return NULL;
    }
    return Py_NewRef(obj);
}

static PyObject *
add_references(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *obj;
    int n;
    if (!PyArg_ParseTuple(args, "Oi", &obj, &n)) {
        return NULL;
    }
    for (; n > 0; n--) {
        Py_INCREF(obj);
    }
    for (; n < 0; n++) {
        Py_DECREF(obj);
    }
    Py_RETURN_NONE;
}

/* --- Queues --------------------------------------------------------------- */

static PyObject *
expect(PyObject *Py_UNUSED(module), PyObject *queue)
{
    if (strcmp(Py_TYPE(queue)->tp_name, "interpreters.Queue") != 0) {
        PyErr_SetString(PyExc_TypeError, "not a queue");
        return NULL;
    }
    return PyBool_FromLong(
        _PyParcel_QueueExpect(((_PyParcel_HandleObject *)queue)->what));
}

static PyObject *
count_roused(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(_PyParcel_CountRoused());
}

static PyMethodDef methods[] = {
    {"check_ownership", check_ownership, METH_NOARGS, check_ownership_doc},
    {"check_heap", check_heap, METH_NOARGS, check_heap_doc},
    {"object_at", object_at, METH_O,
     PyDoc_STR("The object with this id(), whoever owns it.")},
    {"add_references", add_references, METH_VARARGS,
     PyDoc_STR("Change what obj counts as its references by n.")},
    {"expect", expect, METH_O,
     PyDoc_STR("Rouse who sleeps until something is put; true if there is one.")},
    {"count_roused", count_roused, METH_NOARGS,
     PyDoc_STR("How many were roused in this process.")},
    {NULL, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testparcel",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__testparcel(void)
{
    return PyModuleDef_Init(&module);
}

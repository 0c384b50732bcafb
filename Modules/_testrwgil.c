/* Steps threads through the races of Python/rwgil.c.  For tests only.

   Events are numbers, so that they can be handed to other interpreters; they
   are set and waited for without any interpreter's lock.  A "heap word" is a
   plain counter per interpreter, touched by readers while they read and by
   writers in their sections, without atomics: it comes out right, and
   ThreadSanitizer stays silent, only if the RW-GIL does its work. */

#ifndef Py_BUILD_CORE_BUILTIN
#  define Py_BUILD_CORE_MODULE 1
#endif

#include "Python.h"
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_lock.h"          // _Py_HAS_PARKED
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_rwgil.h"

#define MAX_EVENTS 1024
#define MAX_WORDS 65536
#define MAX_SPIN_NS (60LL * 1000 * 1000 * 1000)

static uint32_t events[MAX_EVENTS];         // atomic
static uint32_t next_event;                 // atomic
static uint64_t heap_words[MAX_WORDS];      // indexed by slot; plain, see above
static uint64_t touches;                    // atomic; what they should add up to

static int64_t
now_ns(void)
{
    PyTime_t t;
    (void)PyTime_MonotonicRaw(&t);
    return t;
}

static PyObject *
event_new(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    uint32_t n = _Py_atomic_add_uint32(&next_event, 1);
    _Py_atomic_store_uint32(&events[n % MAX_EVENTS], 0);
    return PyLong_FromUnsignedLong(n % MAX_EVENTS);
}

static uint32_t *
event_arg(PyObject *arg)
{
    long n = PyLong_AsLong(arg);
    if (n < 0 || n >= MAX_EVENTS) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_ValueError, "no such event");
        }
        return NULL;
    }
    return &events[n];
}

static PyObject *
event_set(PyObject *Py_UNUSED(module), PyObject *arg)
{
    uint32_t *event = event_arg(arg);
    if (event == NULL) {
        return NULL;
    }
    _Py_atomic_store_uint32(event, 1);
    Py_RETURN_NONE;
}

static PyObject *
event_is_set(PyObject *Py_UNUSED(module), PyObject *arg)
{
    uint32_t *event = event_arg(arg);
    if (event == NULL) {
        return NULL;
    }
    return PyBool_FromLong(_Py_atomic_load_uint32(event));
}

/* Without detaching: busy C code from the lock's point of view. */
static int
spin_for(uint32_t *event)
{
    int64_t deadline = now_ns() + MAX_SPIN_NS;
    while (!_Py_atomic_load_uint32(event)) {
        if (now_ns() > deadline) {
            return -1;
        }
        struct timespec pause = {0, 20000};
        (void)nanosleep(&pause, NULL);
    }
    return 0;
}

static PyObject *
timed_out(void)
{
    PyErr_SetString(PyExc_TimeoutError, "the event was not set in time");
    return NULL;
}

static PyObject *
event_wait(PyObject *Py_UNUSED(module), PyObject *arg)
{
    uint32_t *event = event_arg(arg);
    if (event == NULL) {
        return NULL;
    }
    int err;
    Py_BEGIN_ALLOW_THREADS
    err = spin_for(event);
    Py_END_ALLOW_THREADS
    if (err) {
        return timed_out();
    }
    Py_RETURN_NONE;
}

static PyObject *
busy(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *begun, *end;
    if (!PyArg_ParseTuple(args, "OO", &begun, &end)) {
        return NULL;
    }
    uint32_t *events[2] = {event_arg(begun), event_arg(end)};
    if (events[0] == NULL || events[1] == NULL) {
        return NULL;
    }
    _Py_atomic_store_uint32(events[0], 1);
    if (spin_for(events[1])) {
        return timed_out();
    }
    Py_RETURN_NONE;
}

/* --- Sections ------------------------------------------------------------ */

static uint64_t *
heap_word(int32_t slot)
{
    return &heap_words[slot % MAX_WORDS];
}

static void
touch(const _PyRWGIL_Section *section)
{
    if (section->span == _PyRWGIL_SPAN_ALL) {
        _PyRWGIL_Stats stats;
        int32_t n;
        for (n = 0; _PyRWGIL_GetStats(n, &stats) >= 0; n++) {
            *heap_word(n) += 1;
        }
        _Py_atomic_add_uint64(&touches, (uint64_t)n);
        return;
    }
    for (int i = 0; i < section->span; i++) {
        *heap_word(section->slots[i]) += 1;
    }
    _Py_atomic_add_uint64(&touches, (uint64_t)section->span);
}

static int
enter(_PyRWGIL_Section *section, PyObject *which)
{
    if (which == Py_None) {
        return _PyRWGIL_WriteOwn(section);
    }
    if (PyUnicode_Check(which)) {
        if (PyUnicode_EqualToUTF8(which, "all")) {
            return _PyRWGIL_WriteAll(section);
        }
        PyErr_SetString(PyExc_ValueError, "None, 'all' or an interpreter's id");
        return -1;
    }
    long long id = PyLong_AsLongLong(which);
    if (id == -1 && PyErr_Occurred()) {
        return -1;
    }
    PyInterpreterState *other;
    return _PyRWGIL_WritePairID(section, id, &other);
}

PyDoc_STRVAR(write_doc,
"write(which, entered=None, leave=None, /) -> (wait_ns, words)\n\n\
Pass through a write section: over the own heap (None), that and another\n\
interpreter's (its id), or 'all'.  In it, set the event `entered` and wait for\n\
`leave`.  Returns how long it took to get in, and how many heap words were\n\
touched.");

static PyObject *
write_section(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *which, *entered = NULL, *leave = NULL;
    uint32_t *events[2] = {NULL, NULL};
    if (!PyArg_ParseTuple(args, "O|OO", &which, &entered, &leave)
        || (entered && !(events[0] = event_arg(entered)))
        || (leave && !(events[1] = event_arg(leave))))
    {
        return NULL;
    }
    _PyRWGIL_Section section;
    int64_t begun = now_ns();
    if (enter(&section, which) < 0) {
        return NULL;
    }
    int64_t wait = now_ns() - begun;
    touch(&section);
    if (events[0]) {
        _Py_atomic_store_uint32(events[0], 1);
    }
    int err = events[1] ? spin_for(events[1]) : 0;
    _PyRWGIL_WriteEnd(&section);
    return err ? timed_out() : Py_BuildValue("Li", (long long)wait, section.span);
}

static int32_t
own_slot(void)
{
    return (int32_t)_PyRWGIL_SlotIndex(_PyInterpreterState_GET()->ceval.gil);
}

static PyObject *
read_touch(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long n = PyLong_AsLong(arg);
    if (n == -1 && PyErr_Occurred()) {
        return NULL;
    }
    uint64_t *word = heap_word(own_slot());
    for (long i = 0; i < n; i++) {
        *word += 1;
    }
    _Py_atomic_add_uint64(&touches, (uint64_t)n);
    return PyLong_FromUnsignedLongLong(*word);
}

static PyObject *
word(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyLong_FromUnsignedLongLong(*heap_word(own_slot()));
}

/* In a section over all heaps, so that nobody is half way. */
static PyObject *
lost_updates(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    _PyRWGIL_Section section;
    if (_PyRWGIL_WriteAll(&section) < 0) {
        return NULL;
    }
    uint64_t sum = 0;
    for (int i = 0; i < MAX_WORDS; i++) {
        sum += heap_words[i];
    }
    uint64_t expected = _Py_atomic_load_uint64(&touches);
    _PyRWGIL_WriteEnd(&section);
    return PyLong_FromLongLong((long long)(expected - sum));
}

/* --- Looking inside ------------------------------------------------------ */

static int
slot_of(PyObject *arg, _PyRWGIL_Stats *stats)
{
    long long id = PyLong_AsLongLong(arg);
    if (id == -1 && PyErr_Occurred()) {
        return -1;
    }
    int found;
    for (int32_t i = 0; (found = _PyRWGIL_GetStats(i, stats)) >= 0; i++) {
        if (found && stats->interp == id) {
            return i;
        }
    }
    PyErr_Format(PyExc_LookupError, "no slot for interpreter %lld", id);
    return -1;
}

static PyObject *
state(PyObject *Py_UNUSED(module), PyObject *arg)
{
    _PyRWGIL_Stats stats;
    int index = slot_of(arg, &stats);
    if (index < 0) {
        return NULL;
    }
    _PyRWGIL_View view;
    _PyRWGIL_GetView(index, &view);
    return Py_BuildValue(
        "{s:i,s:N,s:N,s:N,s:N,s:I,s:K,s:K}",
        "slot", index,
        "reading", PyBool_FromLong(view.reading),
        "read_waiting", PyBool_FromLong(view.read_waiting),
        "wanted", PyBool_FromLong(view.wanted),
        "turn", PyBool_FromLong(view.turn),
        "ticket", (unsigned)view.ticket,
        "backoffs", (unsigned long long)stats.backoffs,
        "safepoints", (unsigned long long)stats.safepoints);
}

/* --- Interpreters that are born and die while all are written ------------ */

/* A thread without a thread state makes an interpreter.  A writer over all heaps
   does not stop it, unlike any Python code. */
typedef struct {
    uint32_t born;              // atomic events, in this order if `mortal`
    uint32_t dying;             // it has no reader any more, and won't have one
    uint32_t die;
    uint32_t dead;
    uint32_t over;              // the thread touches this no more
    int mortal;                 // end without the finalisation, in two steps
    int failed;
    int32_t slot;
} life;

static void
live(void *arg)
{
    life *self = arg;
    PyInterpreterConfig config = {
        .check_multi_interp_extensions = 1, .gil = PyInterpreterConfig_OWN_GIL};
    PyThreadState *tstate = NULL;
    PyStatus status = Py_NewInterpreterFromConfig(&tstate, &config);
    if (PyStatus_Exception(status) || tstate == NULL) {
        self->failed = 1;
        _Py_atomic_store_uint32(&self->born, 1);
        _Py_atomic_store_uint32(&self->over, 1);
        return;
    }
    self->slot = own_slot();
    *heap_word(self->slot) += 1;
    _Py_atomic_add_uint64(&touches, 1);
    _Py_atomic_store_uint32(&self->born, 1);
    if (self->mortal) {
        PyInterpreterState *interp = tstate->interp;
        PyInterpreterState_Clear(interp);
        (void)PyThreadState_Swap(NULL);
        _Py_atomic_store_uint32(&self->dying, 1);
        self->failed = spin_for(&self->die);
        PyInterpreterState_Delete(interp);
        _Py_atomic_store_uint32(&self->dead, 1);
    }
    else {
        Py_EndInterpreter(tstate);
    }
    _Py_atomic_store_uint32(&self->over, 1);
}

static int
begin_life(life *self, int mortal)
{
    *self = (life){.mortal = mortal, .slot = -1};
    if (PyThread_start_new_thread(live, self) == PYTHREAD_INVALID_THREAD_ID) {
        PyErr_SetString(PyExc_RuntimeError, "can't start a thread");
        return -1;
    }
    return 0;
}

static int64_t
newest_interp(int32_t *slot)
{
    _PyRWGIL_Stats stats;
    int64_t newest = -1;
    int found;
    for (int32_t i = 0; (found = _PyRWGIL_GetStats(i, &stats)) >= 0; i++) {
        if (found && stats.interp > newest) {
            newest = stats.interp;
            *slot = i;
        }
    }
    return newest;
}

/* In a section: wait until an interpreter newer than `before` has a slot and
   either waits to read, or reads.  Returns its slot, or -1. */
static int32_t
find_newborn(life *self, int64_t before, _PyRWGIL_View *view)
{
    int64_t deadline = now_ns() + MAX_SPIN_NS / 6;
    while (now_ns() < deadline) {
        int32_t slot = -1;
        if (newest_interp(&slot) > before) {
            _PyRWGIL_GetView(slot, view);
            if (view->read_waiting || _Py_atomic_load_uint32(&self->born)) {
                return slot;
            }
        }
    }
    return -1;
}

static int
end_life(life *self)
{
    int err;
    Py_BEGIN_ALLOW_THREADS
    err = spin_for(&self->over);
    Py_END_ALLOW_THREADS
    return err;
}

PyDoc_STRVAR(birth_doc,
"birth(/) -> dict\n\n\
In a section over all heaps, have an interpreter made.  Tells its slot, whether\n\
it waits for the end of the section, and who has claimed the slot meanwhile.");

static PyObject *
birth(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    static life self;           // the thread may outlive a call that times out
    _PyRWGIL_Section section;
    _PyRWGIL_View view = {0};
    int32_t unused;
    int64_t before = newest_interp(&unused);
    if (_PyRWGIL_WriteAll(&section) < 0) {
        return NULL;
    }
    int32_t slot = -1;
    int waits = 0;
    int err = begin_life(&self, 0);
    if (!err) {
        slot = find_newborn(&self, before, &view);
        waits = !_Py_atomic_load_uint32(&self.born);
    }
    if (slot >= 0) {
        *heap_word(slot) += 1;
        _Py_atomic_add_uint64(&touches, 1);
    }
    _PyRWGIL_WriteEnd(&section);
    if (err) {
        return NULL;
    }
    if (end_life(&self) || slot < 0 || self.failed) {
        return timed_out();
    }
    return Py_BuildValue("{s:i,s:N,s:I}", "slot", slot, "waits",
                         PyBool_FromLong(waits), "ticket", (unsigned)view.ticket);
}

PyDoc_STRVAR(death_doc,
"death(/) -> dict\n\n\
In a section over all heaps, have an interpreter deleted and then another one\n\
made.  Tells the slots of both, whether the first one's was free and who had\n\
claimed it after the death.  The end of the first one is not a proper one: the\n\
process is good for nothing else after this.");

static PyObject *
death(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    static life first, second;
    _PyRWGIL_Section section;
    _PyRWGIL_View view = {0};
    int err;
    if (begin_life(&first, 1)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    err = spin_for(&first.dying);
    Py_END_ALLOW_THREADS
    if (err) {
        return timed_out();
    }
    int32_t unused;
    int64_t before = newest_interp(&unused);
    if (_PyRWGIL_WriteAll(&section) < 0) {
        return NULL;
    }
    _Py_atomic_store_uint32(&first.die, 1);
    err = spin_for(&first.dead);
    _PyRWGIL_Stats stats;
    int live = _PyRWGIL_GetStats(first.slot, &stats);
    _PyRWGIL_GetView(first.slot, &view);
    int32_t slot = -1;
    if (!err && (err = begin_life(&second, 0)) == 0) {
        _PyRWGIL_View newborn;
        slot = find_newborn(&second, before, &newborn);
    }
    _PyRWGIL_WriteEnd(&section);
    if (err || slot < 0 || end_life(&second)) {
        return timed_out();
    }
    return Py_BuildValue("{s:i,s:i,s:N,s:I}", "slot", first.slot, "next", slot,
                         "free", PyBool_FromLong(!live),
                         "ticket", (unsigned)view.ticket);
}

static PyObject *
set_grace(PyObject *Py_UNUSED(module), PyObject *arg)
{
    long long ns = PyLong_AsLongLong(arg);
    if (ns == -1 && PyErr_Occurred()) {
        return NULL;
    }
    int64_t old = _PyRWGIL_grace_ns;
    _PyRWGIL_grace_ns = ns;
    return PyLong_FromLongLong(old);
}

static PyObject *
forked_quietly(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyBool_FromLong(_PyRWGIL_ForkedQuietly());
}

static PyObject *
mode(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyUnicode_FromString(
        _PyRWGIL_GetMode() == _PyRWGIL_MODE_GLOBAL ? "global" : "pair");
}

/* --- A mutex that all interpreters know ---------------------------------- */

static PyMutex mutex;

static PyObject *
mutex_lock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    PyMutex_Lock(&mutex);
    Py_RETURN_NONE;
}

static PyObject *
mutex_unlock(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    PyMutex_Unlock(&mutex);
    Py_RETURN_NONE;
}

static PyObject *
mutex_is_waited_for(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(arg))
{
    return PyBool_FromLong(_Py_atomic_load_uint8(&mutex._bits) & _Py_HAS_PARKED);
}

static PyMethodDef methods[] = {
    {"event_new", event_new, METH_NOARGS, NULL},
    {"event_set", event_set, METH_O, NULL},
    {"event_is_set", event_is_set, METH_O, NULL},
    {"event_wait", event_wait, METH_O, NULL},
    {"busy", busy, METH_VARARGS,
     PyDoc_STR("busy(begun, end, /): set one event, then keep the "
               "interpreter's lock in C code until the other is set.")},
    {"write", write_section, METH_VARARGS, write_doc},
    {"read_touch", read_touch, METH_O,
     PyDoc_STR("Add n to this interpreter's heap word, one by one.")},
    {"word", word, METH_NOARGS, NULL},
    {"lost_updates", lost_updates, METH_NOARGS,
     PyDoc_STR("How many additions to heap words were lost to races; 0.")},
    {"state", state, METH_O,
     PyDoc_STR("The slot of an interpreter, by id.")},
    {"birth", birth, METH_NOARGS, birth_doc},
    {"death", death, METH_NOARGS, death_doc},
    {"set_grace", set_grace, METH_O,
     PyDoc_STR("How long readers wait for a writer that has backed off, in ns; "
               "returns how long it was.")},
    {"forked_quietly", forked_quietly, METH_NOARGS,
     PyDoc_STR("In a forked child: did all other interpreters stand still?")},
    {"mode", mode, METH_NOARGS, NULL},
    {"mutex_lock", mutex_lock, METH_NOARGS, NULL},
    {"mutex_unlock", mutex_unlock, METH_NOARGS, NULL},
    {"mutex_is_waited_for", mutex_is_waited_for, METH_NOARGS, NULL},
    {NULL, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
    {0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_testrwgil",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__testrwgil(void)
{
    return PyModuleDef_Init(&module);
}

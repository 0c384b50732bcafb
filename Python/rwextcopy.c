/* Private copies of extension modules.  The contract is in pycore_rwextcopy.h.

   Terms
     source   a file with an extension module, or with a library that one needs
              and that calls Python, too: known by device, inode, size and time
     copy     a source's image in memory: what dlopen() made of a rewritten file.
              Never unloaded once a module was made from it: threads, exit
              functions and other libraries may know addresses in it.
     group    copies that were linked with each other: an extension and the
              libraries that had to be copied along.  Copies of one group belong
              to one interpreter, or wait for one, together.

   States of a copy

        make_copy()          wake()          _PyRWExt_Release()
     ─────────────> ASLEEP ─────────> LIVE ────────────────────> ASLEEP
                    owned              owned                      free
                      ▲                  │ unload()                │
                      │                  ▼                         │
                      │                 gone                       │
                      └────────────────────────────────────────────┘
                                      take_group()

   wake() makes the image as it was before any of its code ran, then runs its
   constructors.  So a new owner finds what a fresh dlopen() would give.  For that
   the rewritten file hides its constructors from the loader: they must not run
   before the image has been saved.

   Invariants
     EXT-1  at most one copy of a source belongs to an interpreter
     EXT-2  code of a copy runs only while it is LIVE (its threads excepted, see
            below)
     EXT-3  what a copy's code registers for the process's exit is forgotten: it
            would run after its interpreter's end, or twice
     EXT-4  no name, soname or inode of a copy is one under which the loader
            could find it when somebody asks for the source
     EXT-5  when an interpreter has ended, nothing that one of its copies has left for
            a thread's exit is run

   What an interpreter leaves in its heap
     Statics of its copies are the only way to it, and wake() makes them new.  So
     _PyRWExt_FreeRemains() has it given back, see "Remains" in pycore_memheap.h.  It
     is kept where that is not sure to be all:
     - what other interpreters have, or may get (parcels, lent buffers)
     - what statics of all other files lead to: those of the base, of modules that
       declare support, of libraries
     - everything, if a copy's code has made threads, or if what was lent is in the
       statics of a copy, which then isn't used again as long as it is lent
     A library that is not copied does not know Python.  What it was given is memory
     for the length of a call, or is there for a callback into the copy.

   What is not guaranteed
     - Memory that the module's C code allocated with malloc() and kept in its
       statics is lost when the interpreter ends.  (That of moved arrays is not:
       see rwextmem.c.)
     - A thread of C code that runs on after its interpreter's end may find its
       statics made new.  (A thread that comes back to Python does not get there:
       its interpreter is gone.)

   Locks: `mutex` guards everything here but the atomics.  It is held while a
   file is copied and loaded and while constructors run; nothing but the loader's
   own locks is taken then, and no Python runs.  Waiting for it detaches.  Readers
   of `copies` without it see a list that only grows at its head. */

#include "Python.h"
#include "pycore_dict.h"          // _PyDict_KeysSize()
#include "pycore_gc.h"            // PyGC_Head
#include "pycore_import.h"        // _PyImport_RunModInitFunc()
#include "pycore_initconfig.h"    // _PyStatus_OK()
#include "pycore_interp.h"        // PyInterpreterState
#include "pycore_interp_lifecycle.h"  // _PyInterp_IsZombie()
#include "pycore_lock.h"          // PyMutex
#include "pycore_memheap.h"       // _PyMemHeap_Watch()
#include "pycore_memoryobject.h"  // _PyManagedBuffer_Type
#include "pycore_moduleobject.h"  // _PyModule_GetDef()
#include "pycore_obmalloc.h"      // SMALL_REQUEST_THRESHOLD
#include "pycore_parcel.h"        // _PyParcel_KeepAllLent()
#include "pycore_pystate.h"       // _PyInterpreterState_GET()
#include "pycore_rwextcopy.h"
#include "pycore_rwextimage.h"
#include "pycore_weakref.h"       // _PyWeakref_ClearWeakRefsNoCallbacks()
#include "stdlib_module_names.h"  // _Py_stdlib_module_names

#ifdef _PyRWExt_SUPPORTED

#include <dlfcn.h>
#include <fcntl.h>
#include <gnu/libc-version.h>     // gnu_get_libc_version()
#include <link.h>                 // struct link_map
#include <pthread.h>
#ifdef _Py_ADDRESS_SANITIZER
#  include <sanitizer/asan_interface.h>
#endif
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* What the loader calls constructors with. */
typedef void (*constructor)(int, char **, char **);

typedef struct index_entry {
    struct index_entry *next;
    uint64_t offset;            // of the definition in the image
    Py_ssize_t index;
} index_entry;

typedef struct name_entry {
    struct name_entry *next;
    char name[];
} name_entry;

typedef struct source {
    struct source *next;
    char *path;
    struct stat id;
    int uses_python;
    int takes_capsules;         // gets C functions of other modules
    name_entry *declared;       // names of modules that need no copy
    index_entry *indexes;       // of module definitions
} source;

typedef struct group {
    int64_t owner;              // an interpreter's id; -1: free
} group;

/* A piece of writable memory, and what was in it; NULL: zeros. */
typedef struct {
    char *start;
    size_t size;
    char *saved;
} piece;

typedef struct copy {
    struct copy *next;          // read-only once it is listed
    source *source;
    group *group;
    _Atomic int64_t owner;      // the group's, for readers without the lock
    _Atomic uintptr_t start, end;
    void *handle;               // of dlopen()
    char *name;                 // by which the loader knows it
    int live;                   // see the states
    int used;                   // has ever been live
    uint64_t woken;             // order in which copies became live
    uint64_t reused;            // the same, if this was not the first time
    int made_threads;           // its code has, since it was woken
    Py_ssize_t modules;         // how many were made from it
    Py_ssize_t holds;           // atomic: _PyRWExt_Hold()
    PyGC_Head swept;            // among the owner's objects that are left
    size_t bytes;               // memory of its own
    _PyRWExtLayout layout;
    piece pieces[24];
    size_t npieces;
    struct copy **needs;        // copies that it is linked with
    size_t nneeds;
    pthread_key_t *keys;        // thread-specific data that its code asked for
    size_t nkeys;
} copy;

static PyMutex mutex;
static copy *_Atomic copies;
static source *sources;
static uint64_t serial;         // counts copies made, and copies woken


/* --- Settings ------------------------------------------------------------ */

enum mode {MODE_AUTO, MODE_OFF, MODE_ALL, MODE_NAMED};

static const char *const mode_names[] = {"auto", "off", "all"};

/* Set once, when the runtime starts. */
static struct {
    enum mode mode;
    char text[1024];
} settings;

static int
is_in_stdlib(const char *name)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(_Py_stdlib_module_names); i++) {
        if (strcmp(name, _Py_stdlib_module_names[i]) == 0) {
            return 1;
        }
    }
    return 0;
}

/* The standard library's modules that declare support are part of the machinery:
   some enter their functions in tables of the process.  Who wants copies of those
   must name them. */
static enum mode
mode_for(const char *module)
{
    enum mode mode = settings.mode;
    if (mode == MODE_ALL && is_in_stdlib(module)) {
        mode = MODE_AUTO;
    }
    const size_t len = strlen(module);
    for (const char *p = settings.text; *p != '\0'; p += *p == ',') {
        size_t n = strcspn(p, ",");
        // "+spam" is about spam and all that is in it.
        if (n > 1 && n - 1 <= len && memcmp(p + 1, module, n - 1) == 0
            && (module[n - 1] == '.' || module[n - 1] == '\0'))
        {
            mode = *p == '+' ? MODE_NAMED : MODE_OFF;
        }
        p += n;
    }
    return mode;
}

/* Checks and takes over a setting; 0 if it is no good. */
static int
set_mode(const char *text)
{
    enum mode mode = MODE_AUTO;
    for (const char *p = text; *p != '\0'; p += *p == ',') {
        size_t n = strcspn(p, ",");
        int named = 0;
        for (size_t i = 0; i < Py_ARRAY_LENGTH(mode_names); i++) {
            if (n == strlen(mode_names[i]) && memcmp(p, mode_names[i], n) == 0) {
                mode = (enum mode)i;
                named = 1;
            }
        }
        if (!named && (n < 2 || (*p != '+' && *p != '-'))) {
            return 0;
        }
        p += n;
    }
    settings.mode = mode;
    int n = PyOS_snprintf(settings.text, sizeof(settings.text), "%s", text);
    return n < (int)sizeof(settings.text);
}

PyStatus
_PyRWExt_ReadConfig(const PyConfig *config)
{
    static const char bad[] =
        "bad value for -X extcopy or PYTHON_EXTCOPY: use \"auto\", \"off\" or "
        "\"all\", then \",+module\" or \",-module\" for exceptions";
    const char *env = _Py_GetEnv(config->use_environment, "PYTHON_EXTCOPY");
    const wchar_t *option = _Py_get_xoption(&config->xoptions, L"extcopy");
    const wchar_t *value = option ? wcschr(option, L'=') : NULL;
    char text[sizeof(settings.text)] = "";
    if (value != NULL) {
        size_t n = wcstombs(text, value + 1, sizeof(text));
        if (n == (size_t)-1 || n == sizeof(text)) {
            return PyStatus_Error(bad);
        }
        env = text;
    }
    else if (option != NULL) {
        return PyStatus_Error(bad);
    }
    return set_mode(env ? env : "") ? PyStatus_Ok() : PyStatus_Error(bad);
}

PyObject *
_PyRWExt_GetMode(void)
{
    return PyUnicode_FromString(settings.text[0] ? settings.text
                                                 : mode_names[settings.mode]);
}

/* A bit of interp->feature_flags that the base has no name for. */
#define GETS_COPIES (1UL << 30)

void
_PyRWExt_Enable(PyInterpreterState *interp)
{
    interp->feature_flags |= GETS_COPIES;
}

/* Whether the interpreter is one of those that get copies.  Code written for the
   base may count on the base's check, in interpreters that it makes: they are left
   alone unless this is a program that embeds Python.  If somebody has overridden
   the check, they get what they asked for. */
static int
applies(PyInterpreterState *interp)
{
    if (_Py_IsMainInterpreter(interp) || !interp->ceval.own_gil
        || interp->imports.override_multi_interp_extensions_check != 0
        || !_PyInterpreterState_HasFeature(interp,
                                           Py_RTFLAGS_MULTI_INTERP_EXTENSIONS))
    {
        return 0;
    }
    const PyConfig *config =
        _PyInterpreterState_GetConfig(_PyInterpreterState_Main());
    return (interp->feature_flags & GETS_COPIES)
        // Nobody has given it a command line: it is embedded.
        || !config->parse_argv || config->orig_argv.length == 0;
}


/* --- What a copy's code asks of the process ------------------------------ */

/* All copies are between these, and perhaps other things.  Atomic. */
static uintptr_t lowest = UINTPTR_MAX, highest;

/* The mutex is held. */
static void
publish(copy *c)
{
    _Py_atomic_store_uintptr(&lowest, Py_MIN(lowest, c->start));
    _Py_atomic_store_uintptr(&highest, Py_MAX(highest, c->end));
    c->next = copies;
    copies = c;
}

static inline int
has_address(const copy *c, uintptr_t pc)
{
    return pc >= c->start && pc < c->end;
}

/* Without the mutex: copies stay where they are.  PyGILState_Ensure() and so each
   allocation of NumPy, which asks tracemalloc, comes here. */
static copy *
find_by_address(const void *address)
{
    static _Py_thread_local copy *latest;
    uintptr_t pc = (uintptr_t)address;
    if (pc < _Py_atomic_load_uintptr_relaxed(&lowest)
        || pc >= _Py_atomic_load_uintptr_relaxed(&highest))
    {
        return NULL;
    }
    if (latest != NULL && has_address(latest, pc)) {
        return latest;
    }
    for (copy *c = copies; c != NULL; c = c->next) {
        if (has_address(c, pc)) {
            latest = c;
            return c;
        }
    }
    return NULL;
}

int64_t
_PyRWExt_InterpreterOfAddress(const void *pc)
{
    copy *c = find_by_address(pc);
    if (c == NULL) {
        return -1;
    }
    int64_t owner = c->owner;
    return owner < 0 ? _PyRWExt_NOBODY : owner;
}

void
_PyRWExt_Hold(const void *address, int n)
{
    copy *c = find_by_address(address);
    for (size_t i = 0; c != NULL && i < c->npieces; i++) {
        const piece *p = &c->pieces[i];
        if ((uintptr_t)address - (uintptr_t)p->start < p->size) {
            _Py_atomic_add_ssize(&c->holds, n);
        }
    }
}

/* In place of __cxa_atexit(): EXT-3. */
static int
forget_exit_function(void (*function)(void *), void *arg, void *dso)
{
    (void)function, (void)arg, (void)dso;
    return 0;
}

/* Constructors run with the mutex held, and no other thread runs this code then. */
static int
lock_unless_waking(const copy *c)
{
    int lock = c->live;
    if (lock) {
        PyMutex_Lock(&mutex);
    }
    return lock;
}

static void
unlock_if(int locked)
{
    if (locked) {
        PyMutex_Unlock(&mutex);
    }
}

/* There are few of these in a process, and a copy that is used again asks
   again: so they are given back when their owner ends, with what threads have
   for them. */
static void
note_key(const void *caller, pthread_key_t key)
{
    copy *c = find_by_address(caller);
    if (c == NULL) {
        return;
    }
    int locked = lock_unless_waking(c);
    pthread_key_t *keys = PyMem_RawRealloc(c->keys,
                                           (c->nkeys + 1) * sizeof(*keys));
    if (keys != NULL) {
        c->keys = keys;
        c->keys[c->nkeys++] = key;
    }
    unlock_if(locked);
}

static int
create_key(pthread_key_t *key, void (*destructor)(void *))
{
    int res = pthread_key_create(key, destructor);
    if (res == 0) {
        note_key(__builtin_return_address(0), *key);
    }
    return res;
}

static int
create_tss(Py_tss_t *key)
{
    int created = !PyThread_tss_is_created(key);
    int res = PyThread_tss_create(key);
    if (res == 0 && created) {
        note_key(__builtin_return_address(0), key->_key);
    }
    return res;
}

static void
forget_key(pthread_key_t key, const void *caller)
{
    copy *c = find_by_address(caller);
    if (c == NULL) {
        return;
    }
    int locked = lock_unless_waking(c);
    for (size_t i = 0; i < c->nkeys; i++) {
        if (c->keys[i] == key) {
            c->keys[i] = c->keys[--c->nkeys];
            break;
        }
    }
    unlock_if(locked);
}

static int
delete_key(pthread_key_t key)
{
    forget_key(key, __builtin_return_address(0));
    return pthread_key_delete(key);
}

static void
delete_tss(Py_tss_t *key)
{
    if (PyThread_tss_is_created(key)) {
        forget_key(key->_key, __builtin_return_address(0));
    }
    PyThread_tss_delete(key);
}

/* A module that asks for the main interpreter wants to know whether it is in the
   only one that it is made for: a copy is.  (NumPy warns, others refuse.) */
static PyInterpreterState *
main_for_copy(void)
{
    copy *c = find_by_address(__builtin_return_address(0));
    PyThreadState *tstate = _PyThreadState_GET();
    if (c != NULL && tstate != NULL && tstate->interp->id == c->owner) {
        return tstate->interp;
    }
    return PyInterpreterState_Main();
}

extern int __cxa_thread_atexit_impl(void (*)(void *), void *, void *);

/* A destructor of a thread-local variable, for the thread's exit. */
typedef struct {
    void (*function)(void *);
    void *arg;
    copy *copy;
    uint64_t woken;             // the copy's, when it was asked for
} thread_exit;

static void
run_thread_exit(void *arg)
{
    thread_exit *e = arg;
    // EXT-5: the variable may have been made new, and what it had is gone.
    if (e->copy->owner >= 0 && e->copy->woken == e->woken) {
        e->function(e->arg);
    }
    free(e);
}

static int
note_thread_exit(void (*function)(void *), void *arg, void *dso)
{
    copy *c = find_by_address(__builtin_return_address(0));
    thread_exit *e = c != NULL ? malloc(sizeof(*e)) : NULL;
    if (e == NULL) {
        return __cxa_thread_atexit_impl(function, arg, dso);
    }
    *e = (thread_exit){function, arg, c, c->woken};
    return __cxa_thread_atexit_impl(run_thread_exit, e, dso);
}

/* Nobody knows what a copy's thread has in its hands, nor when it ends. */
static void
note_thread(const void *caller)
{
    copy *c = find_by_address(caller);
    if (c != NULL) {
        c->made_threads = 1;
    }
}

static int
create_thread(pthread_t *thread, const pthread_attr_t *attr,
              void *(*function)(void *), void *arg)
{
    note_thread(__builtin_return_address(0));
    return pthread_create(thread, attr, function, arg);
}

/* std::thread::_M_start_thread(unique_ptr<_State>, void (*)()), a method; a
   unique_ptr argument is a pointer to one. */
static const char start_thread_name[] =
    "_ZNSt6thread15_M_start_threadESt10unique_ptrINS_6_StateESt14default_deleteIS1_EE"
    "PFvvE";

static uintptr_t cxx_start_thread;      // what the loader has found

static void
start_thread(void *thread, void *state, void (*depend)(void))
{
    note_thread(__builtin_return_address(0));
    ((void (*)(void *, void *, void (*)(void)))cxx_start_thread)(thread, state,
                                                                 depend);
}

static const struct {
    const char *name;
    void *function;
} replaced[] = {
    {"PyInterpreterState_Main", (void *)main_for_copy},
    {"pthread_create", (void *)create_thread},
    {start_thread_name, (void *)start_thread},
    {"__cxa_thread_atexit", (void *)note_thread_exit},
    {"__cxa_thread_atexit_impl", (void *)note_thread_exit},
    {"__cxa_atexit", (void *)forget_exit_function},
    {"pthread_key_create", (void *)create_key},
    {"pthread_key_delete", (void *)delete_key},
    {"PyThread_tss_create", (void *)create_tss},
    {"PyThread_tss_delete", (void *)delete_tss},
};


/* --- Binding ------------------------------------------------------------- */

#ifdef __x86_64__
#  define IS_ADDRESS_OF_SYMBOL(type) \
    ((type) == R_X86_64_64 || (type) == R_X86_64_GLOB_DAT \
     || (type) == R_X86_64_JUMP_SLOT)
#else
#  define IS_ADDRESS_OF_SYMBOL(type) \
    ((type) == R_AARCH64_ABS64 || (type) == R_AARCH64_GLOB_DAT \
     || (type) == R_AARCH64_JUMP_SLOT)
#endif

/* The address of the symbol's definition that this interpreter's copies shall
   use: that of the copy that was first. */
static uintptr_t
find_shared_static(copy *user, const Elf64_Sym *sym, const char *name)
{
    copy *first = user;
    uintptr_t address = user->start + sym->st_value;
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->live && c->group->owner == user->group->owner
            && c->layout.shared_statics && c->woken < first->woken)
        {
            uintptr_t found = (uintptr_t)dlsym(c->handle, name);
            if (found >= c->start && found < c->end) {
                first = c;
                address = found;
            }
        }
    }
    return address;
}

/* The address that a symbol shall have in this copy; 0: the one that it has. */
static uintptr_t
rebind(copy *c, const Elf64_Sym *sym, int statics)
{
    const char *name = (char *)c->start + c->layout.dynstr + sym->st_name;
    if (statics) {
        return sym->st_shndx != SHN_UNDEF && (sym->st_other & _PyRWExt_WAS_UNIQUE)
               ? find_shared_static(c, sym, name) : 0;
    }
    if (sym->st_shndx != SHN_UNDEF) {
        return 0;
    }
    for (size_t i = 0; i < Py_ARRAY_LENGTH(replaced); i++) {
        if (strcmp(name, replaced[i].name) == 0) {
            return (uintptr_t)replaced[i].function;
        }
    }
    return (uintptr_t)_PyRWExt_Allocator(name);
}

static void
bind_table(copy *c, uint64_t offset, size_t n, int statics)
{
    const Elf64_Rela *rela = (Elf64_Rela *)(c->start + offset);
    const Elf64_Sym *symbols = (Elf64_Sym *)(c->start + c->layout.dynsym);
    for (size_t i = 0; i < n; i++) {
        uint64_t which = ELF64_R_SYM(rela[i].r_info);
        if (which == 0 || !IS_ADDRESS_OF_SYMBOL(ELF64_R_TYPE(rela[i].r_info))) {
            continue;
        }
        uintptr_t address = rebind(c, &symbols[which], statics);
        if (address != 0) {
            uintptr_t addend = (uintptr_t)rela[i].r_addend;
            uintptr_t *place = (uintptr_t *)(c->start + rela[i].r_offset);
            if (address == (uintptr_t)start_thread && *place != address) {
                cxx_start_thread = *place - addend;
            }
            *place = address + addend;
        }
    }
}

/* What the loader makes read-only after it has bound the symbols. */
static void
relro_span(const copy *c, uintptr_t *start, uintptr_t *end)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    *start = (c->start + c->layout.relro) & ~(page - 1);
    *end = (c->start + c->layout.relro + c->layout.relro_size) & ~(page - 1);
}

/* Binds symbols anew: either those that are replaced, or statics that C++ wants
   once.  Fails if the system does not let us write where the loader did. */
static const char *
bind_symbols(copy *c, int statics)
{
    uintptr_t start, end;
    relro_span(c, &start, &end);
    if (end > start
        && mprotect((void *)start, end - start, PROT_READ | PROT_WRITE) != 0)
    {
        return "can't write to its relocated part";
    }
    bind_table(c, c->layout.rela, c->layout.nrela, statics);
    bind_table(c, c->layout.jmprel, c->layout.njmprel, statics);
    if (end > start) {
        (void)mprotect((void *)start, end - start, PROT_READ);
    }
    return NULL;
}


/* --- Saving and restoring ------------------------------------------------ */

static const char *
add_piece(copy *c, uintptr_t start, uintptr_t end, int zero)
{
    if (start >= end) {
        return NULL;
    }
    if (c->npieces == Py_ARRAY_LENGTH(c->pieces)) {
        return "too many segments";
    }
    piece *p = &c->pieces[c->npieces];
    *p = (piece){.start = (char *)start, .size = end - start};
    if (!zero) {
        p->saved = PyMem_RawMalloc(p->size);
        if (p->saved == NULL) {
            return "out of memory";
        }
        memcpy(p->saved, p->start, p->size);
        c->bytes += p->size;
    }
    c->bytes += p->size;
    c->npieces++;
    return NULL;
}

/* Saves what is writable and not read-only since it was relocated. */
static const char *
save(copy *c)
{
    uintptr_t relro, relro_end;
    relro_span(c, &relro, &relro_end);
    for (size_t i = 0; i < c->layout.nloads; i++) {
        const Elf64_Phdr *load = &c->layout.loads[i];
        if (!(load->p_flags & PF_W)) {
            continue;
        }
        uintptr_t start = c->start + load->p_vaddr;
        uintptr_t file_end = start + load->p_filesz;
        uintptr_t end = start + load->p_memsz;
        const char *reason = NULL;
        if (relro < file_end && relro_end > start) {
            c->bytes += relro_end - relro;
            reason = add_piece(c, start, Py_MIN(relro, file_end), 0);
            start = Py_MIN(relro_end, file_end);
        }
        if (reason == NULL) {
            reason = add_piece(c, start, file_end, 0);
        }
        if (reason == NULL) {
            reason = add_piece(c, Py_MAX(file_end, relro_end), end, 1);
        }
        if (reason != NULL) {
            return reason;
        }
    }
    return NULL;
}

/* Fills with zeros, giving whole pages back to the system. */
static void
clear_memory(char *start, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)start + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)start + size) & ~(page - 1);
    if (begin < end
        && mmap((void *)begin, end - begin, PROT_READ | PROT_WRITE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
    {
        memset(start, 0, begin - (uintptr_t)start);
        memset((char *)end, 0, (uintptr_t)start + size - end);
    }
    else {
        memset(start, 0, size);
    }
}

/* AddressSanitizer guards memory around an image's variables until the image's
   destructors have run, and those of copies do not. */
static void
forget_red_zones(const copy *c)
{
    (void)c;
#ifdef _Py_ADDRESS_SANITIZER
    __asan_unpoison_memory_region((void *)c->start, c->end - c->start);
#endif
}

static void
restore(copy *c)
{
    forget_red_zones(c);
    for (size_t i = 0; i < c->npieces; i++) {
        piece *p = &c->pieces[i];
        if (p->saved != NULL) {
            memcpy(p->start, p->saved, p->size);
        }
        else {
            clear_memory(p->start, p->size);
        }
    }
}

/* What the program was called with: some constructors want to know. */
static int program_argc;
static char **program_argv;
static char **program_env;

static void __attribute__((constructor))
note_arguments(int argc, char **argv, char **env)
{
    program_argc = argc;
    program_argv = argv;
    program_env = env;
}

static void
run_constructors(copy *c)
{
    const _PyRWExtLayout *layout = &c->layout;
    if (layout->init != 0) {
        ((constructor)(c->start + layout->init))(program_argc, program_argv,
                                                 program_env);
    }
    // Relocated in the image, unlike the layout.
    uintptr_t *array = (uintptr_t *)(c->start + layout->init_array);
    for (size_t i = 0; i < layout->ninit; i++) {
        if (array[i] != 0 && array[i] != (uintptr_t)-1) {
            ((constructor)array[i])(program_argc, program_argv, program_env);
        }
    }
}

/* The number of the last reuse that this thread has taken note of. */
static _Py_thread_local uint64_t reuses_seen;

static uint64_t last_reuse;     // written with the mutex held, read without

/* Makes the thread-locals of copies that were used again since this thread looked
   what they are in a new thread. */
static void
renew_thread_locals(void)
{
    for (copy *c = copies; c != NULL; c = c->next) {
        void *block = NULL;
        if (c->reused > reuses_seen && c->layout.tls_size != 0
            && c->handle != NULL
            && dlinfo(c->handle, RTLD_DI_TLS_DATA, &block) == 0 && block != NULL)
        {
            size_t filled = c->layout.tls_filled;
            memcpy(block, (void *)(c->start + c->layout.tls), filled);
            memset((char *)block + filled, 0, c->layout.tls_size - filled);
        }
    }
    reuses_seen = last_reuse;
}

void
_PyRWExt_EnterThread(void)
{
    if (_Py_atomic_load_uint64_relaxed(&last_reuse) != reuses_seen) {
        PyMutex_Lock(&mutex);
        renew_thread_locals();
        PyMutex_Unlock(&mutex);
    }
}

static const char *
wake(copy *c)
{
    if (c->live) {
        return NULL;
    }
    for (size_t i = 0; i < c->nneeds; i++) {
        const char *reason = wake(c->needs[i]);
        if (reason != NULL) {
            return reason;
        }
    }
    c->woken = ++serial;
    c->made_threads = 0;
    if (c->used) {
        restore(c);
        c->reused = c->woken;
        _Py_atomic_store_uint64_relaxed(&last_reuse, c->reused);
        renew_thread_locals();
    }
    const char *reason = c->layout.shared_statics ? bind_symbols(c, 1) : NULL;
    if (reason == NULL) {
        c->used = 1;
        run_constructors(c);
        c->live = 1;
    }
    return reason;
}


/* --- Loading ------------------------------------------------------------- */

/* The folder of a file: what $ORIGIN means in it.  A new string, or NULL. */
static char *
folder_of(const char *path)
{
    char *whole = path[0] == '/' ? NULL : realpath(path, NULL);
    char *dir = _PyMem_RawStrdup(whole ? whole : path);
    free(whole);
    char *slash = dir ? strrchr(dir, '/') : NULL;
    if (slash != NULL) {
        *slash = '\0';
    }
    return dir;
}

/* An anonymous file. */
static int
open_nameless(const char *title)
{
    int fd = memfd_create(title, MFD_CLOEXEC);
    if (fd < 0) {
        const char *dir = getenv("TMPDIR");
        fd = open(dir ? dir : "/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0700);
    }
    return fd;
}

/* A name for the open file that the loader has not heard before: it would take
   two files for one.  The slashes count in binary. */
static void
name_open_file(char *name, size_t size, int fd)
{
    size_t n = (size_t)PyOS_snprintf(name, size, "/proc/self/fd");
    for (uint64_t bits = ++serial; bits != 0; bits >>= 1) {
        n += (size_t)PyOS_snprintf(name + n, size - n, bits & 1 ? "/." : "/");
    }
    PyOS_snprintf(name + n, size - n, "/%d", fd);
}

/* Maps what is the same as in the source from the source, so that all copies
   share its memory, and gives back the room in the nameless file. */
static void
share_text(copy *c, int source_fd, int fd)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), least = 8 * page;
    for (size_t i = 0; i < c->layout.nloads; i++) {
        const Elf64_Phdr *load = &c->layout.loads[i];
        if ((load->p_flags & PF_W) || load->p_offset % page != 0
            || load->p_vaddr % page != 0 || load->p_filesz < least)
        {
            continue;
        }
        size_t size = load->p_filesz & ~(page - 1);
        int prot = PROT_READ | (load->p_flags & PF_X ? PROT_EXEC : 0);
        char *mine = (char *)c->start + load->p_vaddr;
        char *theirs = mmap(NULL, size, PROT_READ, MAP_PRIVATE, source_fd,
                            (off_t)load->p_offset);
        if (theirs == MAP_FAILED) {
            continue;
        }
        for (size_t at = 0; at < size;) {
            size_t end = at;
            while (end < size && memcmp(mine + end, theirs + end, page) == 0) {
                end += page;
            }
            if (end - at >= least
                && mmap(mine + at, end - at, prot, MAP_PRIVATE | MAP_FIXED,
                        source_fd, (off_t)(load->p_offset + at)) != MAP_FAILED)
            {
                (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                (off_t)(load->p_offset + at), (off_t)(end - at));
                c->bytes -= end - at;
            }
            at = end + page;
        }
        munmap(theirs, size);
    }
}

/* Debuggers, profilers and dladdr() shall see the source's name; but not quite,
   or the loader would think that the source is loaded. */
static void
show_as(copy *c, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t size = strlen(path) + 5;
    char *shown = malloc(size);     // dlclose() frees it
    if (shown != NULL && slash != NULL) {
        PyOS_snprintf(shown, size, "%.*s/./%s", (int)(slash - path), path,
                      slash + 1);
        ((struct link_map *)c->handle)->l_name = shown;
    }
}

static const char *acquire(int64_t owner, const char *path, int fd, copy **res);

/* Finds out which of the needed libraries have to be copied, too, and makes the
   copies.  names gets what to call them. */
static const char *
copy_needed(copy *c, _PyRWExtImage *image, char **names, int64_t owner)
{
    const char *needed, *reason = NULL;
    for (size_t i = 0; reason == NULL
         && (needed = _PyRWExtImage_Needed(image, i)) != NULL; i++)
    {
        char *path = _PyRWExtImage_Find(image, needed);
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
        if (fd >= 0) {
            copy *other = NULL;
            reason = acquire(owner, path, fd, &other);
            if (reason == NULL && other != NULL) {
                names[i] = other->name;
                c->needs[c->nneeds++] = other;
            }
            close(fd);
        }
        PyMem_RawFree(path);
    }
    return reason;
}

/* Puts the copies that c is linked with, and theirs, into one group. */
static void
join(copy *c, int64_t owner)
{
    for (size_t i = 0; i < c->nneeds; i++) {
        group *gone = c->needs[i]->group;
        for (copy *p = copies; p != NULL; p = p->next) {
            if (p->group == gone) {
                p->group = c->group;
            }
        }
        if (gone != c->group) {
            PyMem_RawFree(gone);
        }
    }
    c->group->owner = owner;
    c->owner = owner;
}

static char last_error[400];    // guarded by mutex

/* Loads the rewritten file. */
static const char *
load(copy *c, int source_fd, int fd, const char *path)
{
    char name[256];
    name_open_file(name, sizeof(name), fd);
    c->name = _PyMem_RawStrdup(name);
    c->handle = c->name ? dlopen(name, RTLD_NOW | RTLD_LOCAL) : NULL;
    if (c->handle == NULL) {
        const char *text = dlerror();
        const char *colon = text ? strstr(text, ": ") : NULL;
        PyOS_snprintf(last_error, sizeof(last_error), "%s",
                      colon ? colon + 2 : "out of memory");
        return last_error;
    }
    c->start = (uintptr_t)((struct link_map *)c->handle)->l_addr;
    c->end = c->start + c->layout.end;
    for (size_t i = 0; i < c->layout.nloads; i++) {
        if (!(c->layout.loads[i].p_flags & PF_W)) {
            c->bytes += c->layout.loads[i].p_filesz;
        }
    }
    show_as(c, path);
    share_text(c, source_fd, fd);
    const char *reason = bind_symbols(c, 0);
    return reason ? reason : save(c);
}

/* For a copy of which nothing is in use.  The structure stays: a reader without
   the lock may have come to it. */
static void
unload(copy *c)
{
    forget_red_zones(c);
    c->owner = -1;
    c->start = c->end = 0;
    c->source = NULL;
    if (c->handle != NULL) {
        (void)dlclose(c->handle);
        c->handle = NULL;
    }
    for (size_t i = 0; i < c->npieces; i++) {
        PyMem_RawFree(c->pieces[i].saved);
    }
    c->npieces = 0;
}

static void
discard(copy *c)
{
    unload(c);
    PyMem_RawFree(c->name);
    PyMem_RawFree(c->needs);
    PyMem_RawFree(c->group);
    PyMem_RawFree(c);
}

static const char *
make_copy(source *src, _PyRWExtImage *image, int source_fd, int64_t owner,
          copy **res)
{
    size_t nneeded = 0;
    while (_PyRWExtImage_Needed(image, nneeded) != NULL) {
        nneeded++;
    }
    const char *title = strrchr(src->path, '/');
    int fd = -1;
    const char *reason = "out of memory";
    copy *c = PyMem_RawCalloc(1, sizeof(copy));
    char **names = PyMem_RawCalloc(nneeded + 1, sizeof(*names));
    if (c == NULL || names == NULL) {
        goto exit;
    }
    c->source = src;
    c->group = PyMem_RawCalloc(1, sizeof(group));
    c->needs = PyMem_RawCalloc(nneeded + 1, sizeof(copy *));
    if (c->group == NULL || c->needs == NULL) {
        goto exit;
    }
    reason = copy_needed(c, image, names, owner);
    if (reason == NULL) {
        fd = open_nameless(title ? title + 1 : src->path);
        reason = fd < 0 ? "can't make a nameless file" : NULL;
    }
    if (reason == NULL) {
        reason = _PyRWExtImage_Write(image, fd, names);
    }
    if (reason == NULL) {
        c->layout = image->layout;
        reason = load(c, source_fd, fd, src->path);
    }
    if (reason == NULL) {
        join(c, owner);
        publish(c);
        *res = c;
    }

exit:
    if (fd >= 0) {
        close(fd);
    }
    PyMem_RawFree(names);
    if (reason != NULL && c != NULL) {
        discard(c);
    }
    return reason;
}


/* --- Who has which copy -------------------------------------------------- */

static int
is_same_file(const struct stat *a, const struct stat *b)
{
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino
        && a->st_size == b->st_size
        && a->st_mtim.tv_sec == b->st_mtim.tv_sec
        && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static copy *
find_copy(const source *src, int64_t owner)
{
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->source == src && c->group->owner == owner) {
            return c;
        }
    }
    return NULL;
}

/* Whether a free group may go to the owner: nothing holds a copy of it, and the
   owner has none of its sources already (EXT-1). */
static int
may_take(const group *g, int64_t owner)
{
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->group == g && (_Py_atomic_load_ssize(&c->holds) != 0
                              || find_copy(c->source, owner)))
        {
            return 0;
        }
    }
    return 1;
}

/* A free copy of the source goes to the owner, with its group. */
static copy *
take_group(const source *src, int64_t owner)
{
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->source == src && c->group->owner == -1
            && may_take(c->group, owner))
        {
            c->group->owner = owner;
            for (copy *p = copies; p != NULL; p = p->next) {
                if (p->group == c->group) {
                    p->owner = owner;
                }
            }
            return c;
        }
    }
    return NULL;
}

static source *
find_source(const struct stat *id)
{
    for (source *src = sources; src != NULL; src = src->next) {
        if (is_same_file(&src->id, id)) {
            return src;
        }
    }
    return NULL;
}

static source *
add_source(const char *path, const struct stat *id, const _PyRWExtImage *image)
{
    source *src = PyMem_RawCalloc(1, sizeof(source));
    char *name = _PyMem_RawStrdup(path);
    if (src == NULL || name == NULL) {
        PyMem_RawFree(src);
        PyMem_RawFree(name);
        return NULL;
    }
    src->path = name;
    src->id = *id;
    src->uses_python = _PyRWExtImage_Calls(image, "Py")
                       || _PyRWExtImage_Calls(image, "_Py");
    src->takes_capsules = _PyRWExtImage_Calls(image, "PyCapsule_Import")
                          || _PyRWExtImage_Calls(image, "PyCapsule_GetPointer");
    src->next = sources;
    sources = src;
    return src;
}

/* The owner's copy of the file: one that it has, one that is free, or a new one.
   NULL in *res, and success, if the file does not call Python. */
static const char *
acquire(int64_t owner, const char *path, int fd, copy **res)
{
    struct stat id;
    if (fstat(fd, &id) != 0) {
        return "can't examine the file";
    }
    source *src = find_source(&id);
    if (src != NULL) {
        *res = find_copy(src, owner);
        if (*res == NULL && src->uses_python) {
            *res = take_group(src, owner);
        }
        if (*res != NULL || !src->uses_python) {
            return NULL;
        }
    }
    char *dir = folder_of(path);
    _PyRWExtImage image;
    const char *reason = dir == NULL ? "out of memory"
        : _PyRWExtImage_Open(&image, fd, (size_t)id.st_size, dir);
    if (reason == NULL) {
        if (src == NULL) {
            src = add_source(path, &id, &image);
        }
        if (src == NULL) {
            reason = "out of memory";
        }
        else if (src->uses_python) {
            reason = make_copy(src, &image, fd, owner, res);
        }
        _PyRWExtImage_Close(&image);
    }
    PyMem_RawFree(dir);
    return reason;
}

/* One of the copies that the interpreter uses: always the same one as long as it
   loads no other. */
static copy *
find_live_copy(int64_t owner)
{
    copy *found = NULL;
    PyMutex_Lock(&mutex);
    for (copy *c = copies; c != NULL && found == NULL; c = c->next) {
        if (c->owner == owner && c->live) {
            found = c;
        }
    }
    PyMutex_Unlock(&mutex);
    return found;
}

static void
link_tracked(PyGC_Head *list, PyGC_Head *gc)
{
    PyGC_Head *tail = _PyGCHead_PREV(list);
    _PyGCHead_SET_NEXT(tail, gc);
    _PyGCHead_SET_PREV(gc, tail);
    _PyGCHead_SET_NEXT(gc, list);
    _PyGCHead_SET_PREV(list, gc);
}

static void
unlink_tracked(PyGC_Head *gc)
{
    PyGC_Head *prev = _PyGCHead_PREV(gc), *next = _PyGCHead_NEXT(gc);
    _PyGCHead_SET_NEXT(prev, next);
    _PyGCHead_SET_PREV(next, prev);
}

static void
leave_alone(PyObject *Py_UNUSED(op))
{
}

/* Many modules never free the types that they make, so what their destructors do
   then has seldom been tried; pybind11's free string literals.  So objects of such
   types are left alone, with what they have. */
static void
spare_instances(PyObject *op)
{
    if (PyType_Check(op) && PyType_HasFeature((PyTypeObject *)op,
                                              Py_TPFLAGS_HEAPTYPE))
    {
        PyTypeObject *type = (PyTypeObject *)op;
        if (find_by_address((void *)type->tp_dealloc) != NULL) {
            type->tp_dealloc = leave_alone;
            type->tp_clear = NULL;
        }
    }
}

/* Memory that was lent stays valid when the lender is gone (P-1 in
   parcel_handles.c). */
static int
may_lend_memory(PyObject *op)
{
    PyBufferProcs *procs = Py_TYPE(op)->tp_as_buffer;
    return (procs != NULL && procs->bf_getbuffer != NULL)
        || Py_IS_TYPE(op, &_PyManagedBuffer_Type);
}

/* What statics hold is more than the statics: a function has its globals, and so
   a module, a type has all its methods.  Nobody will let go of it.  So everything
   that the collector knows is treated as garbage.  That differs from a collection
   in that an object whose references all come from outside is emptied, too, and
   stays behind.  Its users are C statics that no code will read again, or the
   finalisation of the interpreter, which just lets go. */
void
_PyRWExt_Sweep(PyInterpreterState *interp)
{
    copy *any = find_live_copy(interp->id);
    if (any == NULL) {
        return;
    }
    PyGC_Head left;
    _PyGCHead_SET_NEXT(&left, &left);
    _PyGCHead_SET_PREV(&left, &left);
    for (int i = 0; i < NUM_GENERATIONS; i++) {
        PyGC_Head *list = &interp->gc.generations[i].head;
        while (_PyGCHead_NEXT(list) != list) {
            PyGC_Head *gc = _PyGCHead_NEXT(list);
            PyObject *op = _Py_FROM_GC(gc);
            unlink_tracked(gc);
            link_tracked(&left, gc);
            spare_instances(op);
            // Neither finalisers nor callbacks: they would run Python code.
            _PyGC_SET_FINALIZED(op);
            if (_PyType_SUPPORTS_WEAKREFS(Py_TYPE(op))) {
                _PyWeakref_ClearWeakRefsNoCallbacks(op);
            }
        }
    }
    PyGC_Head *old = &interp->gc.generations[NUM_GENERATIONS - 1].head;
    while (_PyGCHead_NEXT(&left) != &left) {
        PyGC_Head *gc = _PyGCHead_NEXT(&left);
        PyObject *op = _Py_FROM_GC(gc);
        unlink_tracked(gc);
        link_tracked(old, gc);
        inquiry tp_clear = Py_TYPE(op)->tp_clear;
        if (tp_clear != NULL && op != interp->sysdict && op != interp->builtins
            && !may_lend_memory(op))
        {
            Py_INCREF(op);
            (void)tp_clear(op);
            PyErr_Clear();
            Py_DECREF(op);
        }
    }
    // The base will take the heads of its lists out of them.
    any->swept = (PyGC_Head){0};
    link_tracked(old, &any->swept);
}

/* Nothing of the interpreter's runs any more? */
static int
is_quiet(int64_t owner)
{
    int quiet = 1;
    PyMutex_Lock(&mutex);
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->owner == owner && (c->made_threads || _Py_atomic_load_ssize(&c->holds) != 0))
        {
            quiet = 0;
        }
    }
    PyMutex_Unlock(&mutex);
    return quiet;
}

static int
has_code(const struct dl_phdr_info *info, const void *address)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const Elf64_Phdr *ph = &info->dlpi_phdr[i];
        if (ph->p_type == PT_LOAD
            && (uintptr_t)address - (info->dlpi_addr + ph->p_vaddr) < ph->p_memsz)
        {
            return 1;
        }
    }
    return 0;
}

/* Main's free lists are no reason for anything to stay: what is in them has gone to
   main, and has its bit (REM-3); behind their ends are addresses of former entries. */
static void
keep_from_segment(_PyMemHeap_Remains *remains, const char *start, const char *end)
{
    const struct _Py_object_freelists *lists =
        &_PyInterpreterState_Main()->object_state.freelists;
    if (start <= (const char *)lists && (const char *)(lists + 1) <= end) {
        _PyMemHeap_KeepFrom(remains, start, lists);
        start = (const char *)(lists + 1);
    }
    _PyMemHeap_KeepFrom(remains, start, end);
}

/* What the statics of a file lead to stays.  Those of copies belong to one
   interpreter: this one, where that is no reason, or another one.  Those of the C
   library are its allocator's, and tell where free blocks begin, which is in the
   last bytes of ours. */
static int
keep_what_statics_have(struct dl_phdr_info *info, size_t Py_UNUSED(size),
                       void *remains)
{
    if (has_code(info, (void *)gnu_get_libc_version)) {
        return 0;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const Elf64_Phdr *ph = &info->dlpi_phdr[i];
        const char *start = (const char *)info->dlpi_addr + ph->p_vaddr;
        if (ph->p_type == PT_LOAD && (ph->p_flags & PF_W)
            && find_by_address(start) == NULL)
        {
            keep_from_segment(remains, start, start + ph->p_memsz);
        }
    }
    return 0;
}

/* The collector's lists lead from any object to all others. */
static void
forget_tracked(int64_t owner)
{
    copy *c = find_live_copy(owner);
    PyGC_Head *mark = c != NULL ? &c->swept : NULL;
    PyGC_Head *gc = mark;
    while (gc != NULL && gc->_gc_next != 0) {
        PyGC_Head *next = _PyGCHead_NEXT(gc);
        *gc = (PyGC_Head){0};
        gc = next;
    }
}

void
_PyRWExt_FreeRemains(PyInterpreterState *interp)
{
    _PyMemHeap_Remains *remains = NULL;
    if (find_live_copy(interp->id) != NULL) {
        _PyParcel_HoldAllLent(interp->id);
    }
    if (!_PyInterp_IsZombie(interp) && is_quiet(interp->id)) {
        remains = _PyMemHeap_BeginRemains(interp);
    }
    if (remains != NULL) {
        forget_tracked(interp->id);
        _PyParcel_KeepAllLent(interp->id, remains);
        (void)dl_iterate_phdr(keep_what_statics_have, remains);
        _PyMemHeap_FreeRemains(remains);
    }
}

void
_PyRWExt_Release(PyInterpreterState *interp)
{
    PyMutex_Lock(&mutex);
    for (copy *c = copies; c != NULL; c = c->next) {
        if (c->owner == interp->id) {
            for (size_t i = 0; i < c->nkeys; i++) {
                (void)pthread_key_delete(c->keys[i]);       // EXT-5
            }
            c->nkeys = 0;
            c->modules = 0;
            c->group->owner = -1;
            c->owner = -1;
            c->live = 0;
        }
    }
    PyMutex_Unlock(&mutex);
}

void
_PyRWExt_AfterForkChild(void)
{
    // What the other interpreters had stays with them: see the contract.
    _PyMutex_at_fork_reinit(&mutex);
}

Py_ssize_t
_PyRWExt_ModuleIndex(const PyModuleDef *def)
{
    copy *c = find_by_address(def);
    if (c == NULL) {
        return _PyImport_GetNextModuleIndex();
    }
    PyMutex_Lock(&mutex);
    uint64_t offset = (uintptr_t)def - c->start;
    index_entry *entry = c->source->indexes;
    while (entry != NULL && entry->offset != offset) {
        entry = entry->next;
    }
    if (entry == NULL) {
        entry = PyMem_RawMalloc(sizeof(*entry));
        if (entry != NULL) {
            *entry = (index_entry){c->source->indexes, offset,
                                   _PyImport_GetNextModuleIndex()};
            c->source->indexes = entry;
        }
    }
    PyMutex_Unlock(&mutex);
    return entry ? entry->index : _PyImport_GetNextModuleIndex();
}

static PyObject *
describe(const copy *c, const char *path, PyTypeObject *type)
{
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    int64_t owner = c->owner;
    PyObject *fields[] = {
        PyUnicode_DecodeFSDefaultAndSize(name, (Py_ssize_t)strcspn(name, ".")),
        PyUnicode_DecodeFSDefault(path),
        owner < 0 ? Py_NewRef(Py_None) : PyLong_FromLongLong(owner),
        PyLong_FromSize_t(c->bytes),
    };
    PyObject *item = PyStructSequence_New(type);
    for (size_t i = 0; i < Py_ARRAY_LENGTH(fields); i++) {
        if (fields[i] == NULL) {
            Py_CLEAR(item);
        }
        if (item == NULL) {
            Py_XDECREF(fields[i]);
        }
        else {
            PyStructSequence_SetItem(item, (Py_ssize_t)i, fields[i]);
        }
    }
    return item;
}

PyObject *
_PyRWExt_List(PyTypeObject *type)
{
    PyObject *list = PyList_New(0);
    for (copy *c = copies; list != NULL && c != NULL; c = c->next) {
        source *src = c->source;
        if (src == NULL) {
            continue;           // was unloaded
        }
        PyObject *item = describe(c, src->path, type);
        if (item == NULL || PyList_Append(list, item) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(item);
    }
    return list;
}


/* --- Importing ----------------------------------------------------------- */

int
_PyRWExt_CheckAllowed(const PyModuleDef *def, const char *name)
{
    int64_t id = _PyInterpreterState_GET()->id;
    int mine = _PyRWExt_InterpreterOfAddress(def) == id;
    // Code in Rust likes to have definitions on its heap; then its functions tell.
    PyModuleDef_Slot *slot = def->m_slots;
    for (; !mine && slot != NULL && slot->slot != 0; slot++) {
        mine = _PyRWExt_InterpreterOfAddress(slot->value) == id;
    }
    if (mine) {
        return 0;
    }
    return _PyImport_CheckSubinterpIncompatibleExtensionAllowed(name);
}

static int
is_declared(const char *path, const char *name)
{
    struct stat id;
    int found = 0;
    if (stat(path, &id) == 0) {
        PyMutex_Lock(&mutex);
        source *src = find_source(&id);
        name_entry *entry = src ? src->declared : NULL;
        while (entry != NULL && strcmp(entry->name, name) != 0) {
            entry = entry->next;
        }
        found = entry != NULL;
        PyMutex_Unlock(&mutex);
    }
    return found;
}

/* The module needs no copy.  If this one served to find that out only, it goes;
   an init function that returns a definition has not left traces elsewhere. */
static void
note_declared(copy *c, const char *name)
{
    size_t size = strlen(name) + 1;
    name_entry *entry = PyMem_RawMalloc(sizeof(*entry) + size);
    PyMutex_Lock(&mutex);
    if (entry != NULL) {        // else it asks again next time
        memcpy(entry->name, name, size);
        entry->next = c->source->declared;
        c->source->declared = entry;
    }
    if (c->modules == 0 && c->nneeds == 0) {
        unload(c);
    }
    PyMutex_Unlock(&mutex);
}

/* A module speaks for its own state.  But if it takes C functions of another one
   from a capsule, as users of NumPy do, it keeps pointers into that one's copy, in
   statics more often than not.  The standard library's are known to be good. */
static int
declares_support(const PyModuleDef *def, const source *src, const char *name)
{
    if (src->takes_capsules && !is_in_stdlib(name)) {
        return 0;
    }
    PyModuleDef_Slot *slot = def->m_slots;
    for (; slot != NULL && slot->slot != 0; slot++) {
        if (slot->slot == Py_mod_multiple_interpreters) {
            return slot->value == Py_MOD_PER_INTERPRETER_GIL_SUPPORTED;
        }
    }
    return 0;
}

/* Modules with m_size == -1 can't be made twice.  The base keeps a copy of their
   dict for the whole process; here it is kept for the interpreter.  The dict of
   those dicts; a borrowed reference, NULL without an exception if there's none. */
static PyObject *
kept_dicts(PyInterpreterState *interp, int create)
{
    static const char key[] = "_rwextcopy";
    PyObject *all = PyInterpreterState_GetDict(interp);
    PyObject *kept = NULL;
    if (all == NULL || PyDict_GetItemStringRef(all, key, &kept) < 0) {
        PyErr_Clear();
        return NULL;
    }
    if (kept == NULL && create) {
        kept = PyDict_New();
        if (kept == NULL || PyDict_SetItemString(all, key, kept) < 0) {
            PyErr_Clear();
            Py_XDECREF(kept);
            return NULL;
        }
    }
    Py_XDECREF(kept);           // `all` has it
    return kept;
}

static PyObject *
module_again(PyInterpreterState *interp, struct _Py_ext_module_loader_info *info)
{
    PyObject *kept = kept_dicts(interp, 0), *key = NULL, *dict = NULL;
    PyObject *mod = NULL;
    if (kept != NULL) {
        key = PyTuple_Pack(2, info->name, info->filename);
        if (key != NULL && PyDict_GetItemRef(kept, key, &dict) > 0) {
            mod = Py_XNewRef(PyImport_AddModuleObject(info->name));
            if (mod != NULL && PyDict_Update(PyModule_GetDict(mod), dict) < 0) {
                Py_CLEAR(mod);
            }
        }
        Py_XDECREF(key);
        Py_XDECREF(dict);
    }
    return mod;
}

static int
keep_dict(PyInterpreterState *interp, struct _Py_ext_module_loader_info *info,
          PyObject *mod)
{
    PyObject *kept = kept_dicts(interp, 1);
    PyObject *key = PyTuple_Pack(2, info->name, info->filename);
    PyObject *dict = PyDict_Copy(PyModule_GetDict(mod));
    int res = -1;
    if (kept != NULL && key != NULL && dict != NULL) {
        res = PyDict_SetItem(kept, key, dict);
    }
    Py_XDECREF(key);
    Py_XDECREF(dict);
    return res;
}

/* What the base does for a single-phase module, less the process-wide cache. */
static int
finish_single_phase(PyInterpreterState *interp, PyModuleDef *def,
                    struct _Py_ext_module_loader_info *info, PyObject *mod)
{
    if (PyModule_AddObjectRef(mod, "__file__", info->filename) < 0) {
        PyErr_Clear();
    }
    if (def->m_size == -1 && keep_dict(interp, info, mod) < 0) {
        return -1;
    }
    if (PyState_FindModule(def) != mod && PyState_AddModule(mod, def) < 0) {
        return -1;
    }
    return PyObject_SetItem(interp->imports.modules, info->name, mod);
}

static PyObject *
refuse(struct _Py_ext_module_loader_info *info, const char *reason)
{
    PyObject *msg = PyUnicode_FromFormat(
        "module %U needs a private copy in a subinterpreter, "
        "and it can't be made: %s", info->name, reason);
    if (msg != NULL) {
        PyErr_SetImportError(msg, info->name, info->filename);
        Py_DECREF(msg);
    }
    return NULL;
}

/* Runs the init function.  NULL without an exception: declares support. */
static PyObject *
run(PyInterpreterState *interp, copy *c, PyModInitFunction init, enum mode mode,
    struct _Py_ext_module_loader_info *info, PyObject *spec)
{
    const char *name = PyBytes_AS_STRING(info->name_encoded);
    struct _Py_ext_module_loader_result res;
    if (_PyImport_RunModInitFunc(init, info, &res) < 0) {
        _Py_ext_module_loader_result_apply_error(&res, name);
        return NULL;
    }
    PyObject *mod = res.module;
    PyModuleDef *def = res.def;
    int single_phase = res.kind == _Py_ext_module_kind_SINGLEPHASE;
    _Py_ext_module_loader_result_clear(&res);
    if (single_phase) {
        c->modules++;
        if (finish_single_phase(interp, def, info, mod) < 0) {
            Py_CLEAR(mod);
        }
        return mod;
    }
    // newcontext is the full name
    if (mode < MODE_ALL && declares_support(def, c->source, info->newcontext)) {
        note_declared(c, name);
        return NULL;
    }
    c->modules++;
    return PyModule_FromDefAndSpec(def, spec);
}

/* Classes are large, they are made before a package loads its first extension module,
   and that then keeps them. */
static void
watch_class(PyInterpreterState *interp, PyTypeObject *type)
{
    size_t before = _PyType_PreHeaderSize(Py_TYPE(type));
    _PyMemHeap_WatchLarge(interp, (char *)type - before,
                          before + _PyObject_VAR_SIZE(Py_TYPE(type), Py_SIZE(type)));
    size_t doc = type->tp_doc != NULL ? strlen(type->tp_doc) + 1 : 0;
    Dl_info info;
    // Some C code forgets that it has to be a copy.
    if (doc > SMALL_REQUEST_THRESHOLD && !dladdr(type->tp_doc, &info)) {
        _PyMemHeap_WatchLarge(interp, (void *)type->tp_doc, doc);
    }
    PyDictKeysObject *keys = ((PyHeapTypeObject *)type)->ht_cached_keys;
    if (keys != NULL) {
        _PyMemHeap_WatchLarge(interp, keys, _PyDict_KeysSize(keys));
    }
}

/* From now on the interpreter's memory may be in C statics that only it has. */
static void
watch(PyInterpreterState *interp)
{
    if (!_PyMemHeap_Watch(interp)) {
        return;
    }
    for (int i = 0; i < NUM_GENERATIONS; i++) {
        PyGC_Head *list = &interp->gc.generations[i].head;
        PyGC_Head *gc = _PyGCHead_NEXT(list);
        for (; gc != list; gc = _PyGCHead_NEXT(gc)) {
            PyObject *op = _Py_FROM_GC(gc);
            if (PyType_Check(op) && PyType_HasFeature((PyTypeObject *)op,
                                                      Py_TPFLAGS_HEAPTYPE))
            {
                watch_class(interp, (PyTypeObject *)op);
            }
        }
    }
}

PyObject *
_PyRWExt_Load(struct _Py_ext_module_loader_info *info, PyObject *spec)
{
    PyInterpreterState *interp = _PyInterpreterState_GET();
    const char *full_name = PyUnicode_AsUTF8(info->name);
    if (!applies(interp) || full_name == NULL) {
        return NULL;
    }
    enum mode mode = mode_for(full_name);
    const char *path = PyBytes_AS_STRING(info->filename_encoded);
    const char *name = PyBytes_AS_STRING(info->name_encoded);
    if (mode == MODE_OFF || (mode < MODE_ALL && is_declared(path, name))) {
        return NULL;
    }
    PyObject *mod = module_again(interp, info);
    if (mod != NULL || PyErr_Occurred()) {
        return mod;
    }
    if (PySys_Audit("import", "OOOOO", info->name, info->filename,
                    Py_None, Py_None, Py_None) < 0)
    {
        return NULL;
    }
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return NULL;            // the base says why
    }
    copy *c = NULL;
    char reason[sizeof(last_error)] = "";
    watch(interp);
    PyMutex_Lock(&mutex);
    const char *failed = acquire(interp->id, path, fd, &c);
    if (failed == NULL && c != NULL) {
        failed = wake(c);
    }
    if (failed != NULL) {
        PyOS_snprintf(reason, sizeof(reason), "%s", failed);
    }
    PyMutex_Unlock(&mutex);
    close(fd);
    if (failed != NULL) {
        return refuse(info, reason);
    }
    char symbol[300];
    PyOS_snprintf(symbol, sizeof(symbol), "%.20s_%.200s", info->hook_prefix, name);
    void *init = c ? dlsym(c->handle, symbol) : NULL;
    if (init == NULL) {
        return NULL;            // the base says so
    }
    return run(interp, c, (PyModInitFunction)init, mode, info, spec);
}

#else   // !_PyRWExt_SUPPORTED

void
_PyRWExt_EnterThread(void)
{
}

void
_PyRWExt_Sweep(PyInterpreterState *Py_UNUSED(interp))
{
}

void
_PyRWExt_Enable(PyInterpreterState *Py_UNUSED(interp))
{
}

PyStatus
_PyRWExt_ReadConfig(const PyConfig *Py_UNUSED(config))
{
    return PyStatus_Ok();
}

PyObject *
_PyRWExt_Load(struct _Py_ext_module_loader_info *Py_UNUSED(info),
              PyObject *Py_UNUSED(spec))
{
    return NULL;
}

int
_PyRWExt_CheckAllowed(const PyModuleDef *Py_UNUSED(def), const char *name)
{
    return _PyImport_CheckSubinterpIncompatibleExtensionAllowed(name);
}

Py_ssize_t
_PyRWExt_ModuleIndex(const PyModuleDef *Py_UNUSED(def))
{
    return _PyImport_GetNextModuleIndex();
}

void
_PyRWExt_FreeRemains(PyInterpreterState *Py_UNUSED(interp))
{
}

void
_PyRWExt_Release(PyInterpreterState *Py_UNUSED(interp))
{
}

void
_PyRWExt_AfterForkChild(void)
{
}

int64_t
_PyRWExt_InterpreterOfAddress(const void *Py_UNUSED(pc))
{
    return -1;
}

void
_PyRWExt_Hold(const void *Py_UNUSED(address), int Py_UNUSED(n))
{
}

PyObject *
_PyRWExt_List(PyTypeObject *Py_UNUSED(type))
{
    return PyList_New(0);
}

PyObject *
_PyRWExt_GetMode(void)
{
    return PyUnicode_FromString("off");
}

#endif

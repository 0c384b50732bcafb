// Memory heaps: a block that one interpreter allocated can be freed by another.
//
// This header is the whole contract; Objects/obmalloc_heaps.c has the protocol,
// its states and its races.
//
// Terms
//
//   heap      one pymalloc state (struct _obmalloc_state) with its arenas.  The
//             main interpreter has a static one, which legacy subinterpreters
//             share along with its lock.  Whoever has a lock of its own has a
//             heap of its own.
//   owner     the thread that holds the lock of the heap's interpreter, or the
//             one thread that opens or closes that interpreter
//   orphan    a heap whose interpreter has ended while blocks of it live
//
// What callers may rely on
//
//   - PyObject_Free, PyMem_Free and their realloc work on a block of any
//     interpreter, in whatever interpreter the caller is attached to.
//   - A block lives until it is freed: the end of the interpreter that
//     allocated it changes nothing.
//   - A block that was freed is no longer counted, wherever it was freed:
//     sys.getallocatedblocks() is right for the process as a whole.  Blocks
//     above SMALL_REQUEST_THRESHOLD come from malloc, which knows no heaps:
//     they are counted where they were allocated and discounted where they
//     were freed.
//
// What callers owe
//
//   - Hand a block over with synchronisation: what the giver wrote happens
//     before what the taker reads.  A queue or a write section does that.
//
// All of this is about pymalloc.  malloc and mimalloc, and so PYTHONMALLOC=malloc
// and the free-threaded build, free a block in any thread as it is.

#ifndef Py_INTERNAL_MEMHEAP_H
#define Py_INTERNAL_MEMHEAP_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

typedef struct _PyMemHeap _PyMemHeap;

typedef struct {
    Py_ssize_t opened;          // heaps made for interpreters, main's excepted
    Py_ssize_t adopted;         // times that an orphan went to a new interpreter
    Py_ssize_t released;        // heaps given back to the system
    Py_ssize_t orphans;         // orphans that wait to be adopted
    Py_ssize_t remote;          // blocks freed remotely that owners took back
    Py_ssize_t remains;         // blocks of ended interpreters that were given back
    Py_ssize_t arenas;          // that heaps hold
    Py_ssize_t spare;           // arenas that stay for whoever needs one next
    Py_ssize_t yielded;         // arenas that did, but made room for large blocks
} _PyMemHeap_Stats;

#ifdef WITH_PYMALLOC

/* Give a new interpreter a heap of its own: an orphan where there is one.
   The caller is the only one who knows `interp`; it needn't be attached.
   Returns 0, or -1 without an exception when memory has run out. */
extern int _PyMemHeap_Open(PyInterpreterState *interp);

/* Take the heap from an interpreter that has ended: give it back to the system
   or make it an orphan.  Leaves interp->obmalloc NULL.  Does nothing if that is
   NULL already, or is main's.  No thread of `interp` may run any more; after a
   fork, that is every other interpreter in the child. */
extern void _PyMemHeap_Close(PyInterpreterState *interp);

/* Around fork, innermost: nothing else is locked between Before and After. */
extern void _PyMemHeap_BeforeFork(void);
extern void _PyMemHeap_AfterForkParent(void);
extern void _PyMemHeap_AfterForkChild(void);

/* An immortal interned string has no owner who could free it, and extension
   modules keep such strings in C statics.  So at an interpreter's end they stay
   with its heap, and become the adopter's: without that, every interpreter
   would leave a set of the same strings behind.
   Keep is called while the dict of interned strings is being cleared, Inherit
   on the new dict of a new interpreter; -1 with an exception set on failure. */
extern void _PyMemHeap_KeepInterned(PyInterpreterState *interp, PyObject *str);
extern int _PyMemHeap_InheritInterned(PyInterpreterState *interp, PyObject *dict);

/* --- Remains ---

   An interpreter that has private copies of extension modules is *watched*: when it
   has ended, all blocks that are left of it are given back, without anything being
   run for the objects in them.  Not given back is
     - what was there before, or has gone to another interpreter: whoever gives
       something away says so
     - immortal interned strings
     - what one keeps, between Begin and Free
   If more of its memory is in others' hands than can be said, nothing is given back.
   Only what pymalloc manages counts: not what came from PyMem_RawMalloc or malloc. */

/* From now on, until its end.  The caller is attached to it.  Returns 1 if that is
   new and it has not given anything away yet; then large blocks of malloc that it
   has already can be named, the beginning of each and its size. */
extern int _PyMemHeap_Watch(PyInterpreterState *interp);
extern void _PyMemHeap_WatchLarge(PyInterpreterState *interp, void *block,
                                  size_t size);

/* The current interpreter gives away something of about so many blocks.  Does it
   have to be said what? */
extern int _PyMemHeap_MustSayWhatGoes(Py_ssize_t nblocks);

/* This: the block in which the address lies, of a pool, or at the head of which
   it lies, of malloc.  Blocks that others allocated are ignored. */
extern void _PyMemHeap_Goes(const void *address);

/* Something of the current interpreter's is shared, and it can't be said what. */
extern void _PyMemHeap_SharesUnknown(void);

/* In the table of large blocks there is room for some that are none of the above, and
   not freed with them: see rwextmem.c.  Forget returns whether it was there. */
extern void _PyMemHeap_NoteBlock(void *block, size_t size);
extern int _PyMemHeap_ForgetBlock(void *block);

/* Is PyMem_RawMalloc malloc, without any hooks? */
extern int _PyMemHeap_RawIsMalloc(void);

/* When the interpreter has ended and before its heap is closed.  NULL: nothing can
   be given back.  The caller is the only one who knows the interpreter, and has no
   lock. */
typedef struct _PyMemHeap_Remains _PyMemHeap_Remains;
extern _PyMemHeap_Remains *_PyMemHeap_BeginRemains(PyInterpreterState *interp);
/* Keep the block in which the address lies, if it is one of those. */
extern void _PyMemHeap_KeepBlock(_PyMemHeap_Remains *, const void *address);
/* Keep all blocks for which there is an address in this memory, and those for which
   there is one in them, and so on. */
extern void _PyMemHeap_KeepFrom(_PyMemHeap_Remains *, const void *from,
                                const void *to);
extern void _PyMemHeap_FreeRemains(_PyMemHeap_Remains *);

/* The heap that a live block belongs to; NULL if no pymalloc heap holds it.
   Any thread, attached or not. */
PyAPI_FUNC(_PyMemHeap *) _PyMemHeap_Find(const void *block);

/* The heap that the current thread allocates from. */
PyAPI_FUNC(_PyMemHeap *) _PyMemHeap_Current(void);

/* Blocks that others freed and the owner has not taken back yet.
   The heap is kept alive by the caller: through a block or the interpreter. */
PyAPI_FUNC(Py_ssize_t) _PyMemHeap_Pending(_PyMemHeap *heap);

PyAPI_FUNC(void) _PyMemHeap_GetStats(_PyMemHeap_Stats *stats);

/* As many blocks as PyObject_Malloc(nbytes) would give, up to n, all from one pool; each
   is for PyObject_Free().  0 if there are none at hand, if the blocks are not small,
   or if another allocator is in use: then PyObject_Malloc() has to do it. */
extern int _PyMemHeap_AllocRun(size_t nbytes, void **blocks, int n);

/* Called by the default raw allocator, with or without a thread state, when malloc()
   has made a block of `size` bytes that nobody has written to yet (calloc() clears only
   what malloc() had kept), and before `block` (NULL: a new one) grows to them: give as much of the arenas that stay back to the
   system as the block takes from it, so that they don't add to the peak. */
extern void _PyMemHeap_MadeLarge(const void *block, size_t size);
extern void _PyMemHeap_GrowsLarge(void *block, size_t size);

#define _PyMemHeap_LARGE    ((size_t)1 << 17)   // from here on glibc may ask the system for each

/* A message has large blocks, together of so many bytes, and more will come: malloc() is
   to keep the memory of a few.  Any thread. */
extern void _PyMemHeap_ExpectLarge(size_t size);

/* All of a block will be written to at once: its pages may come as large ones, if it is
   worth it and the system has any.  What takes the time when so much is copied is to get
   them one by one.  NULL: nothing to do. */
extern void _PyMemHeap_WillFill(void *block, size_t size);

static inline void *
_PyMemHeap_Made(void *block, size_t size)
{
    if (size >= _PyMemHeap_LARGE && block != NULL) {
        _PyMemHeap_MadeLarge(block, size);
    }
    return block;
}

static inline void
_PyMemHeap_Grows(void *block, size_t size)
{
    if (size >= _PyMemHeap_LARGE) {
        _PyMemHeap_GrowsLarge(block, size);
    }
}

#else   // !WITH_PYMALLOC

static inline int
_PyMemHeap_Open(PyInterpreterState *Py_UNUSED(interp)) { return 0; }
static inline void
_PyMemHeap_Close(PyInterpreterState *Py_UNUSED(interp)) {}
static inline void _PyMemHeap_BeforeFork(void) {}
static inline void _PyMemHeap_AfterForkParent(void) {}
static inline void _PyMemHeap_AfterForkChild(void) {}
static inline void
_PyMemHeap_KeepInterned(PyInterpreterState *Py_UNUSED(interp),
                        PyObject *Py_UNUSED(str)) {}
static inline int
_PyMemHeap_InheritInterned(PyInterpreterState *Py_UNUSED(interp),
                           PyObject *Py_UNUSED(dict)) { return 0; }
typedef struct _PyMemHeap_Remains _PyMemHeap_Remains;
static inline int
_PyMemHeap_Watch(PyInterpreterState *Py_UNUSED(interp)) { return 0; }
static inline void
_PyMemHeap_WatchLarge(PyInterpreterState *Py_UNUSED(interp),
                      void *Py_UNUSED(block), size_t Py_UNUSED(size)) {}
static inline int
_PyMemHeap_MustSayWhatGoes(Py_ssize_t Py_UNUSED(nblocks)) { return 0; }
static inline void _PyMemHeap_Goes(const void *Py_UNUSED(address)) {}
static inline void _PyMemHeap_SharesUnknown(void) {}
static inline void
_PyMemHeap_NoteBlock(void *Py_UNUSED(block), size_t Py_UNUSED(size)) {}
static inline int
_PyMemHeap_ForgetBlock(void *Py_UNUSED(block)) { return 0; }
static inline int _PyMemHeap_RawIsMalloc(void) { return 0; }
static inline _PyMemHeap_Remains *
_PyMemHeap_BeginRemains(PyInterpreterState *Py_UNUSED(interp)) { return NULL; }
static inline void
_PyMemHeap_KeepBlock(_PyMemHeap_Remains *Py_UNUSED(r),
                     const void *Py_UNUSED(address)) {}
static inline void
_PyMemHeap_KeepFrom(_PyMemHeap_Remains *Py_UNUSED(r), const void *Py_UNUSED(from),
                    const void *Py_UNUSED(to)) {}
static inline void
_PyMemHeap_FreeRemains(_PyMemHeap_Remains *Py_UNUSED(r)) {}
static inline _PyMemHeap *
_PyMemHeap_Find(const void *Py_UNUSED(block)) { return NULL; }
static inline _PyMemHeap *_PyMemHeap_Current(void) { return NULL; }
static inline Py_ssize_t
_PyMemHeap_Pending(_PyMemHeap *Py_UNUSED(heap)) { return 0; }
static inline int
_PyMemHeap_AllocRun(size_t Py_UNUSED(nbytes), void **Py_UNUSED(blocks),
                    int Py_UNUSED(n)) { return 0; }
static inline void
_PyMemHeap_GetStats(_PyMemHeap_Stats *stats)
{
    *stats = (_PyMemHeap_Stats){0};
}
static inline void *
_PyMemHeap_Made(void *block, size_t Py_UNUSED(size)) { return block; }
static inline void
_PyMemHeap_Grows(void *Py_UNUSED(block), size_t Py_UNUSED(size)) {}
static inline void
_PyMemHeap_ExpectLarge(size_t Py_UNUSED(size)) {}
static inline void
_PyMemHeap_WillFill(void *Py_UNUSED(block), size_t Py_UNUSED(size)) {}

#define _PyMemHeap_LARGE    PY_SSIZE_T_MAX

#endif  // !WITH_PYMALLOC

#endif  // !Py_INTERNAL_MEMHEAP_H

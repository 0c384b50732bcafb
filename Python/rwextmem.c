// Large blocks that private copies of extension modules get from malloc.
// The contract is in pycore_rwextcopy.h, under "Blocks".
//
// A moved NumPy array gives up its memory, and the array stays behind to give it back
// to its allocator.  If its interpreter ends before the receivers are done with it,
// nobody is left who could do that.  What can be known all the same is that the memory
// is a block of malloc: so the copies' calls of malloc and of its Python names come
// here, and blocks from _PyRWExt_LARGE bytes on are entered in the table that
// obmalloc_remains.c has for large blocks.  Below, nobody lends memory, and nothing is
// noted: what a small block costs is a comparison, and what a large one costs is little
// against filling it.
//
// Invariants
//
//   BLK-1  What is in the table is a block that free() takes, allocated by a copy's
//          code, and has not been freed by such code since.
//   BLK-2  What others have freed may still be there.  Until a copy gets the same
//          address again, nobody asks for it: who asks has memory of a NumPy array that
//          owns it, and that is live.
//
// The Python names are malloc's only as long as no hooks are set.  With hooks, nothing is
// noted or freed here, and the blocks stay.

#include "Python.h"
#include "pycore_memheap.h"       // _PyMemHeap_NoteBlock()
#include "pycore_rwextcopy.h"
#include "pycore_rwextimage.h"    // _PyRWExt_SUPPORTED

#ifdef _PyRWExt_SUPPORTED
#include <malloc.h>               // malloc_usable_size()

static void *
note(void *block, size_t size)
{
    if (size >= _PyRWExt_LARGE && block != NULL) {
        _PyMemHeap_NoteBlock(block, size);
    }
    return block;
}

/* Before it is given back. */
static void
forget(void *block)
{
    // A noted one has at least that size.
    if (block != NULL && malloc_usable_size(block) >= _PyRWExt_LARGE) {
        (void)_PyMemHeap_ForgetBlock(block);
    }
}

static void *
copy_malloc(size_t size)
{
    return note(malloc(size), size);
}

static void *
copy_calloc(size_t n, size_t size)
{
    return note(calloc(n, size), n * size);     // NULL if that is too much
}

static void *
copy_realloc(void *block, size_t size)
{
    forget(block);
    return note(realloc(block, size), size);
}

static void
copy_free(void *block)
{
    forget(block);
    free(block);
}

static void *
note_raw(void *block, size_t size)
{
    if (size >= _PyRWExt_LARGE && block != NULL && _PyMemHeap_RawIsMalloc()) {
        _PyMemHeap_NoteBlock(block, size);
    }
    return block;
}

static void
forget_raw(void *block)
{
    if (_PyMemHeap_RawIsMalloc()) {
        forget(block);
    }
    else if (block != NULL) {
        (void)_PyMemHeap_ForgetBlock(block);    // from before there were hooks
    }
}

static void *
copy_raw_malloc(size_t size)
{
    return note_raw(PyMem_RawMalloc(size), size);
}

static void *
copy_raw_calloc(size_t n, size_t size)
{
    return note_raw(PyMem_RawCalloc(n, size), n * size);
}

static void *
copy_raw_realloc(void *block, size_t size)
{
    forget_raw(block);
    return note_raw(PyMem_RawRealloc(block, size), size);
}

static void
copy_raw_free(void *block)
{
    forget_raw(block);
    PyMem_RawFree(block);
}

static const struct {
    const char *name;
    void *function;
} replaced[] = {
    {"malloc", (void *)copy_malloc},
    {"calloc", (void *)copy_calloc},
    {"realloc", (void *)copy_realloc},
    {"free", (void *)copy_free},
    {"PyMem_RawMalloc", (void *)copy_raw_malloc},
    {"PyMem_RawCalloc", (void *)copy_raw_calloc},
    {"PyMem_RawRealloc", (void *)copy_raw_realloc},
    {"PyMem_RawFree", (void *)copy_raw_free},
};

void *
_PyRWExt_Allocator(const char *name)
{
    for (size_t i = 0; i < Py_ARRAY_LENGTH(replaced); i++) {
        if (strcmp(name, replaced[i].name) == 0) {
            return replaced[i].function;
        }
    }
    return NULL;
}

void
_PyRWExt_FreeBlock(void *block)
{
    if (_PyMemHeap_RawIsMalloc() && _PyMemHeap_ForgetBlock(block)) {
        free(block);
    }
}

#else   // !_PyRWExt_SUPPORTED

void *
_PyRWExt_Allocator(const char *Py_UNUSED(name))
{
    return NULL;
}

void
_PyRWExt_FreeBlock(void *Py_UNUSED(block))
{
}

#endif

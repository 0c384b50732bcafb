// Callbacks whose interpreter ends before the C code that calls them.
//
// A function pointer that ctypes has made is memory of the whole process, but what it
// refers to belongs to an interpreter.  C code that goes on calling it (threads
// of a library, at exit) must find something.  So what C code gets is backed by a
// small record outside of all heaps.  When an interpreter ends, its pointers that
// are left are *retired*: they stay, call nothing, and a thread made by C ends in
// them, as PyGILState_Ensure() has it.  That costs some 100 bytes for each.
//
// A pointer whose object dies before that is freed, as in the base: to call it is
// an error of the program.
//
// Race: a thread is in the pointer's code while it is retired.  It looks at the
// record first, which has the owner, and at the rest when it has the owner's
// lock, which it never gets once the owner is finalizing.

#ifndef Py_CTYPES_RWCALLBACK_H
#define Py_CTYPES_RWCALLBACK_H

#include "pycore_interp.h"        // _PyInterpreterState_GetFinalizing()
#include "pycore_rwgilstate.h"    // _PyRWGILState_EnsureIn()

typedef struct _rwcallback {
    int64_t owner;              // the interpreter, by id
    CThunkObject *thunk;        // only for who has the owner's lock
    ffi_cif nothing;            // void (void), when retired
} rwcallback;

/* The record of a new thunk, or NULL with MemoryError. */
static inline rwcallback *
rwcallback_new(CThunkObject *thunk)
{
    rwcallback *record = PyMem_RawMalloc(sizeof(rwcallback));
    if (record == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    record->owner = PyInterpreterState_GetID(PyInterpreterState_Get());
    record->thunk = thunk;
    return record;
}

/* What a retired pointer runs.  It returns to code that the owner's last thread
   runs, and to nobody else; its result is undefined then. */
static void
rwcallback_retired(ffi_cif *Py_UNUSED(cif), void *Py_UNUSED(result),
                   void **Py_UNUSED(args), void *userdata)
{
    PyGILState_Release(_PyRWGILState_EnsureIn(((rwcallback *)userdata)->owner));
}

/* The thunk, whose fields are cleared, is about to be freed: free its pointer, or
   retire that if the interpreter is ending. */
static inline void
rwcallback_end(CThunkObject *thunk)
{
    rwcallback *record = thunk->record;
    if (thunk->pcl_write == NULL) {
        PyMem_RawFree(record);
        return;
    }
    if (_PyInterpreterState_GetFinalizing(PyInterpreterState_Get()) != NULL
        && ffi_prep_cif(&record->nothing, FFI_DEFAULT_ABI, 0, &ffi_type_void, NULL) == FFI_OK
        && ffi_prep_closure_loc(thunk->pcl_write, &record->nothing,
                                rwcallback_retired, record, thunk->pcl_exec) == FFI_OK)
    {
        record->thunk = NULL;
        return;
    }
    Py_ffi_closure_free(thunk->pcl_write);
    PyMem_RawFree(record);
}

#endif   // !Py_CTYPES_RWCALLBACK_H

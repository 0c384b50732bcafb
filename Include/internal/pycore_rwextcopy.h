// Private copies of extension modules: every extension in every interpreter.
//
// An extension module that keeps state in C statics is made for one interpreter
// per process.  In any other interpreter it is loaded from a private copy of its
// shared object, which has statics and types of its own.  This header is the
// whole contract; Python/rwextcopy.c has the protocol.
//
// What callers may rely on
//
//   - The main interpreter, legacy subinterpreters, and extensions that declare
//     support for a lock per interpreter are loaded as the base loads them.
//   - A copy's init function runs in the interpreter that the copy is for.
//   - A copy is used by one interpreter at a time.  Its code stays mapped for the
//     life of the process.
//
// What callers owe
//
//   - _PyRWExt_Release() when the last thread of an interpreter has left it and
//     everything in it is finalised.  Where that can't be known, its copies stay
//     with it for ever.

#ifndef Py_INTERNAL_RWEXTCOPY_H
#define Py_INTERNAL_RWEXTCOPY_H
#ifdef __cplusplus
extern "C" {
#endif

#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#include "pycore_importdl.h"      // struct _Py_ext_module_loader_info

/* Reads -X extcopy and PYTHON_EXTCOPY: a mode, auto, off or all, and exceptions
   from it, "+name" or "-name", separated by commas. */
extern PyStatus _PyRWExt_ReadConfig(const PyConfig *config);

/* From now on the interpreter gets copies.  Without this it does only if the
   runtime was not started by a command line: in programs that embed Python. */
PyAPI_FUNC(void) _PyRWExt_Enable(PyInterpreterState *interp);

/* Import an extension module into the current interpreter from a copy.
   Returns the module.  Returns NULL with an exception set, or NULL without one
   if the base shall load the module. */
extern PyObject *_PyRWExt_Load(struct _Py_ext_module_loader_info *info,
                               PyObject *spec);

/* The base's check whether a module may be made here that doesn't declare support;
   -1 with an exception set if it may not.  A definition in one of the current
   interpreter's copies is no danger to others. */
extern int _PyRWExt_CheckAllowed(const PyModuleDef *def, const char *name);

/* An index for a module definition, as _PyImport_GetNextModuleIndex() gives, but
   the same one in each copy: indexes are never given back. */
extern Py_ssize_t _PyRWExt_ModuleIndex(const PyModuleDef *def);

/* The interpreter is being finalised, nothing of Python runs in it any more:
   empty the objects that only the statics of its copies, or each other, keep
   alive.  Called with everything collected that the base can collect. */
extern void _PyRWExt_Sweep(PyInterpreterState *interp);

/* No thread is in the interpreter any more, and nothing will be freed by it:
   give back the memory to which only the statics of its copies lead. */
extern void _PyRWExt_FreeRemains(PyInterpreterState *interp);

/* The interpreter is gone: its copies may serve another one. */
extern void _PyRWExt_Release(PyInterpreterState *interp);

/* The calling thread got a thread state.  Thread-local variables of copies that
   changed hands meanwhile are made new for it. */
extern void _PyRWExt_EnterThread(void);

extern void _PyRWExt_AfterForkChild(void);

/* The id of the interpreter to whose copy this address, of code or of data,
   belongs; NOBODY, which is no interpreter's id, if that has ended; -1 if the
   address is in no copy.  Any thread, attached or not; takes no lock.  The
   interpreter is alive as long as its code runs, but nothing keeps it so
   afterwards. */
#define _PyRWExt_NOBODY INT64_MAX
PyAPI_FUNC(int64_t) _PyRWExt_InterpreterOfAddress(const void *pc);

/* If the address is in the statics of a copy: keep it from being used again, which
   would make them new, because somebody looks at them who outlives the interpreter
   (n = 1); not any more (n = -1).  Called from before the interpreter's memory is
   given back.  Any thread; takes no lock. */
extern void _PyRWExt_Hold(const void *address, int n);

/* --- Blocks ---

   What a copy's code gets from malloc and PyMem_RawMalloc, in blocks of so many bytes
   or more, is known to be such a block until it is given back. */
#define _PyRWExt_LARGE ((size_t)64 * 1024)

/* The function that copies call by this name; NULL: the one of that name. */
extern void *_PyRWExt_Allocator(const char *name);

/* Frees the block of this address, if it is known.  The caller knows that its owner's
   interpreter has ended, and that nobody uses it any more.  Any thread; takes no lock
   that is waited for detached. */
extern void _PyRWExt_FreeBlock(void *block);

/* What was copied: a new list of `type`, a struct sequence type with the fields
   name, file, interpreter (None: the copy waits for one), nbytes. */
PyAPI_FUNC(PyObject *) _PyRWExt_List(PyTypeObject *type);

/* The mode and its exceptions, as -X extcopy would have them: a new str. */
PyAPI_FUNC(PyObject *) _PyRWExt_GetMode(void);

#ifdef __cplusplus
}
#endif
#endif  // !Py_INTERNAL_RWEXTCOPY_H

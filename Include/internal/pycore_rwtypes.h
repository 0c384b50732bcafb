// Type state that all interpreters share, made fit for interpreters that run
// in parallel: version tags of static types, and the static types of extension
// modules (_datetime has the only ones).
//
// The base guards neither: its one lock did, until interpreters had their own.
// Objects/typeobject.c calls what is declared here; Python/rwtypes.c has it.

#ifndef Py_INTERNAL_RWTYPES_H
#define Py_INTERNAL_RWTYPES_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* Hand out a version tag for a static type.  No two calls in the process return
   the same one.  Returns 0 when all are used up; needs no thread state.

   Only static types, which interpreters share, need tags that are unique in the
   process.  A heap type is seen by one interpreter, immutable or not, so its
   tags come from that interpreter's own counter. */
extern unsigned int _PyRWTypes_NextStaticTag(void);

/* Bracket the initialisation of an extension's static type in an interpreter.
   Between the two calls the calling thread is the only one in the process that
   initialises or clears such types; it must not run Python code.

   _PyRWTypes_BeginExt returns whether the type has yet to be made ready, that is
   whether this is the first interpreter to use it; hand that on, together with
   the result of the initialisation (-1: failed), to _PyRWTypes_EndExt. */
extern int _PyRWTypes_BeginExt(PyTypeObject *);
extern void _PyRWTypes_EndExt(PyInterpreterState *, PyTypeObject *,
                              int initial, int result);

/* The same bracket around the clearing of all such types of an interpreter. */
extern void _PyRWTypes_LockExt(void);
extern void _PyRWTypes_UnlockExt(void);

/* An index that no extension's static type has.  Call it in the bracket. */
extern size_t _PyRWTypes_FreeExtIndex(void);

#endif   // !Py_INTERNAL_RWTYPES_H

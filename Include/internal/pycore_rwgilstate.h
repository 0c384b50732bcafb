// PyGILState_Ensure() with several interpreters.
//
// The base attaches a thread that it does not know to the main interpreter, and
// one that it knows to the interpreter in which it was last.  Both are wrong for
// code that belongs to another one: a callback of a ctypes function pointer, or
// code in an interpreter's private copy of an extension module.  It would handle
// its interpreter's objects under a lock that does not guard them.
//
// Here the code has an *owner*, the id of an interpreter, or -1 if nobody knows.
// Ensure attaches the thread to the owner, and the matching Release takes it back
// to where it was.  The algorithm is in Python/rwgilstate.c.

#ifndef Py_INTERNAL_RWGILSTATE_H
#define Py_INTERNAL_RWGILSTATE_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* The address of the code that has called the current function. */
#if defined(__GNUC__)
#  define _PyRWGILState_CALLER() __builtin_return_address(0)
#else
#  define _PyRWGILState_CALLER() NULL       // which has no owner
#endif

/* PyGILState_Ensure() for code of this owner, whoever calls; to be paired with
   PyGILState_Release().  The body is the base's, in Python/pystate.c.

   Does not return if the owner is ending or has ended.  A thread that C code made
   leaves then, as it does when the runtime ends (_PyInterp_ExitThread()); in a thread
   of another interpreter it is a fatal error, since that interpreter may wait for it. */
PyAPI_FUNC(PyGILState_STATE) _PyRWGILState_EnsureIn(int64_t owner);

/* In a thread that is not attached: does not return when the runtime is being finalised
   by another thread, or has been. */
extern void _PyRWGILState_BeforeEnsure(void);

/* The thread state that Ensure is to attach and count, given the thread's latest
   one, which may be NULL.  That is the same one unless the owner is another
   interpreter.  NULL: make one in the main interpreter. */
extern PyThreadState *_PyRWGILState_Enter(int64_t owner, PyThreadState *);

/* The end of a PyGILState_Release() that has detached or deleted the thread
   state: if that pairs with an Ensure that has changed interpreters, go back. */
extern void _PyRWGILState_Leave(void);

/* What code at this address gets from PyGILState_GetThisThreadState(), given the
   thread's latest state: that, or NULL if the code needs PyGILState_Ensure()
   to get a state that it can use. */
extern PyThreadState *_PyRWGILState_Visible(PyThreadState *, const void *pc);

/* What Py_IsInitialized() tells code at this address beside whether there is a runtime: 1
   if the thread is in the interpreter that the code belongs to, or that interpreter
   still lets threads in.  Careful destructors ask before they call Ensure. */
extern int _PyRWGILState_MayEnsure(const void *pc);

/* Is the calling thread in an interpreter only until it goes back to another? */
extern int _PyRWGILState_IsAway(void);

/* An interpreter is about to be closed: let threads do what they have come for that run
   code in it, or wait for its lock in Ensure, for half a second at most, and some time
   longer if its lock is not to be had; threads of other interpreters for 5 s.  Then set the
   finalizing flag, with the lock held.  Detaches. */
extern void _PyRWGILState_LastCall(PyThreadState *);

/* An interpreter's finalizing flag is set: from now on no thread gets in.  Wait,
   for an allocation or two, until nobody is about to add a thread state. */
extern void _PyRWGILState_WaitEntering(void);

/* In a forked child: threads that were about to do so don't exist there. */
extern void _PyRWGILState_AfterFork(void);

#endif   // !Py_INTERNAL_RWGILSTATE_H

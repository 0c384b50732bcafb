// How interpreters end when others still live: fork, exit, threads left behind.
//
// Guarantees
//   - fork: the child has the main interpreter and the forking thread, nothing
//     else; interpreters of the parent are forgotten there, not cleared.
//   - exit: every interpreter is ended, its non-daemon threads joined, while
//     the runtime is still whole.  For _PyInterp_EXIT_MAKING_NS, threads that run
//     on can make new ones, which are ended as well.  One whose thread stays in C
//     code for _PyInterp_EXIT_WAIT_NS is left behind with a message; Ctrl-C does
//     the same at once.
//   - an interpreter of the `_interpreters` module, or any at exit, can end
//     while threads are left in it: they exit when they next want its lock, or wait
//     for ever if their stack can't be unwound without harm.

#ifndef Py_INTERNAL_INTERP_LIFECYCLE_H
#define Py_INTERNAL_INTERP_LIFECYCLE_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

#define _PyInterp_EXIT_WAIT_NS (5LL * 1000 * 1000 * 1000)
#define _PyInterp_EXIT_MAKING_NS (1LL * 1000 * 1000 * 1000)

/* 0 if the current interpreter may fork, else -1 with RuntimeError set: the
   child of a subinterpreter's thread would have no main thread. */
extern int _PyInterp_CheckFork(void);

/* In the child, once HEAD_LOCK is usable: drop all interpreters but the main
   one from the runtime's books.  Their memory stays as the parent had it. */
extern void _PyInterp_ForgetOthers(void);

/* Around new_interpreter(), which needs no lock.  The first returns -1, with what
   new_interpreter() has to return, when it is too late to make one.  It does not
   return when the exit has ended all interpreters, except in the thread that
   finalises the runtime.  The second gets the interpreter if it is whole, or NULL
   if it is gone. */
extern int _PyInterp_BeginMaking(long whence, PyStatus *);
extern void _PyInterp_EndMaking(PyInterpreterState *);

/* To be called after a look-up by id: -1 with InterpreterNotFoundError set if
   somebody has begun to end this interpreter, else 0.  Always 0 for the current
   and the main interpreter. */
PyAPI_FUNC(int) _PyInterp_CheckOpen(PyInterpreterState *);

/* Make it the calling thread's business to end the interpreter, whoever may be in
   it.  NULL: somebody else's business, or done. */
extern PyInterpreterState *_PyInterp_TakeOver(int64_t id);

/* The same unless a thread is there to run code.  Returns -1
   with InterpreterError set if a thread is there to run code, or with
   InterpreterNotFoundError if it's somebody else's business or done. */
PyAPI_FUNC(int) _PyInterp_BeginEnd(int64_t id);

/* Py_FinalizeEx(), after the main interpreter's atexit callbacks and before
   the runtime counts as finalizing: end all subinterpreters. */
extern void _PyInterp_EndAll(PyThreadState *);

/* Does it do so right now? */
extern int _PyInterp_IsExiting(void);

/* Py_EndInterpreter() with other thread states than the caller's: may they be
   given up? */
extern int _PyInterp_MayPrune(PyInterpreterState *);

/* Py_EndInterpreter(), with the finalizing flag set: clear all other thread
   states.  Does nothing if there are none.  Does not return if the exit has
   left the interpreter behind. */
extern void _PyInterp_PruneThreads(PyThreadState *);

/* In a thread that has just been started for a thread state: bind it.  -1: it must not be
   touched, its interpreter or the runtime is being finalised. */
PyAPI_FUNC(int) _PyInterp_BindStarted(PyThreadState *);

/* With the finalizing flag set, before thread states are given up or freed: wait, for some
   instructions, until no thread is binding one. */
extern void _PyInterp_WaitStarting(void);

/* _PyParkingLot_Park() for a PyMutex.  A thread that exits when it attaches again leaves
   the mutex to others.  *handed_off is set if unlocking has given it the mutex. */
extern int _PyInterp_ParkForMutex(PyMutex *, const uint8_t *expected, PyTime_t timeout,
                                  void *entry, const int *handed_off, int detach);

/* Around the deletion of a thread state, from before it is unlinked until it is
   freed.  What the first returns is for the second. */
extern int *_PyInterp_BeginLeaving(PyInterpreterState *);
extern void _PyInterp_EndLeaving(int *);

/* PyInterpreterState_Delete(), with no thread state listed: wait, for some
   instructions, until the threads that had them have left. */
extern void _PyInterp_WaitLeaving(PyInterpreterState *);

/* PyInterpreterState_Delete(), last step: 1 if threads were given up, which
   will look for the finalizing flag, so that the state must not be freed. */
extern int _PyInterp_IsZombie(PyInterpreterState *);

/* 1 if the exit has left this interpreter behind, so that it is not listed.
   HEAD_LOCK is held, or the answer may come too early. */
extern int _PyInterp_IsLeftBehind(PyInterpreterState *);

/* What a thread does that must not have the lock it wants, and holds none: it exits, or
   waits for ever if code would run, or the process abort, when its stack is unwound. */
extern void _Py_NO_RETURN _PyInterp_ExitThread(void);

/* While HEAD_LOCK is held, tracemalloc must not see what this thread allocates: its
   hook of the raw allocator attaches, and so may wait for somebody who waits for
   HEAD_LOCK.  Resume gets what Pause has returned. */
extern int _PyInterp_PauseTracing(void);
extern void _PyInterp_ResumeTracing(int paused);

#endif   /* !Py_INTERNAL_INTERP_LIFECYCLE_H */

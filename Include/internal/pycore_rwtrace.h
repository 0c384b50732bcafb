// File names in tracemalloc's tables, which all interpreters share.
//
// The base keeps references to the str objects of whichever interpreter ran the
// code.  They are counted under different locks then, and freed by an interpreter
// that doesn't own them.  Here the tables hold names that no interpreter owns,
// and Python code gets copies of those.

#ifndef Py_INTERNAL_RWTRACE_H
#define Py_INTERNAL_RWTRACE_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* Return the process's own equal of a ready str of the current interpreter: an
   immortal one, the same for equal names, that lives as long as the process.
   For tracemalloc's tables only.  The caller holds their lock; nothing is
   allocated in Python's memory domains.  Returns NULL, without an exception, if
   there is no memory. */
extern PyObject *_PyRWTrace_Own(PyObject *filename);

/* Return a new str of the current interpreter that equals such a name. */
extern PyObject *_PyRWTrace_Expose(PyObject *own);

#endif   // !Py_INTERNAL_RWTRACE_H

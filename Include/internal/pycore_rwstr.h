// Strings that belong to no interpreter, for tables that all of them share.
//
// The base fills such tables with str objects of whichever interpreter comes by:
// tracemalloc's file names are then counted under different locks and freed by an
// interpreter that doesn't own them, and the keyword names of a C function have
// to be made in the main interpreter, under its lock.

#ifndef Py_INTERNAL_RWSTR_H
#define Py_INTERNAL_RWSTR_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* Return the process's own equal of a str: an immortal one, the same for equal
   strings, that lives as long as the process.  For tables in C only: it must not
   get into the hands of Python code, which might intern it.
   Needs an attached thread, allocates nothing in Python's memory domains, never
   detaches.  Returns NULL, without an exception, if there is no memory. */
extern PyObject *_PyRWStr_Own(PyObject *);

/* Return a new str of the current interpreter that equals such a string. */
extern PyObject *_PyRWStr_Expose(PyObject *own);

/* Return an immortal tuple of such strings that belongs to no interpreter either.
   Where the base has a static string, that is what is in the tuple.  Returns NULL
   with an exception set on failure. */
extern PyObject *_PyRWStr_Tuple(const char * const *strings, Py_ssize_t n);

#endif   // !Py_INTERNAL_RWSTR_H

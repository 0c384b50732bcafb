// ELF files of extension modules: read, and written again as a private copy.
//
// Only Python/rwextcopy.c uses this.  No function here needs a thread state or
// sets an exception: what can fail returns a reason, NULL being success.

#ifndef Py_INTERNAL_RWEXTIMAGE_H
#define Py_INTERNAL_RWEXTIMAGE_H
#ifndef Py_BUILD_CORE
#  error "an internal header: define Py_BUILD_CORE to use it"
#endif

/* Private copies need Linux, glibc (its link map, and a loader that takes what
   the writer below writes), and relocations of the kind that the binder knows. */
#if defined(__linux__) && defined(__GLIBC__) && defined(__LP64__) \
    && (defined(__x86_64__) || defined(__aarch64__))
#  define _PyRWExt_SUPPORTED 1

#include <elf.h>
#include <stddef.h>
#include <stdint.h>

/* Where things are in a file, as offsets from its first loaded byte. */
typedef struct {
    Elf64_Phdr loads[24];       // PT_LOAD
    size_t nloads;
    uint64_t end;               // of the last of them
    uint64_t relro, relro_size;
    uint64_t tls, tls_filled, tls_size;     // what thread-locals begin with
    uint64_t dynsym, dynstr;
    uint64_t rela, nrela;       // both tables of relocations
    uint64_t jmprel, njmprel;
    uint64_t init;              // 0: none
    uint64_t init_array, ninit;
    int shared_statics;         // has symbols with the mark below
} _PyRWExtLayout;

typedef struct {
    char *map;                  // the file, mapped privately: edits stay here
    size_t size;
    const char *dir;            // what $ORIGIN stands for; the caller's
    Elf64_Dyn *dyn;
    size_t ndyn;
    const char *strtab;
    size_t strsize;
    Elf64_Sym *sym;
    size_t nsym;
    _PyRWExtLayout layout;
} _PyRWExtImage;

/* Set in st_other of a symbol that had the binding STB_GNU_UNIQUE. */
#define _PyRWExt_WAS_UNIQUE 0x40

extern const char *_PyRWExtImage_Open(_PyRWExtImage *, int fd, size_t size,
                                      const char *dir);
extern void _PyRWExtImage_Close(_PyRWExtImage *);

/* Whether it calls a function whose name begins so. */
extern int _PyRWExtImage_Calls(const _PyRWExtImage *, const char *prefix);

/* The names of the libraries that it needs, by position; NULL: no more. */
extern const char *_PyRWExtImage_Needed(const _PyRWExtImage *, size_t i);

/* The path at which the image's own search path (DT_RPATH, DT_RUNPATH) has a
   library; NULL if it hasn't.  To be freed with PyMem_RawFree(). */
extern char *_PyRWExtImage_Find(const _PyRWExtImage *, const char *needed);

/* Write the copy.  names[i], unless NULL, replaces the i-th needed library.
   What differs from the file:
     - it has no constructors or destructors as far as the loader can see
     - it has no soname, so nobody else's needed library is taken for it
     - $ORIGIN is written out
     - symbols that would be one for the whole process are not, but for those
       of the C++ runtime, which it shares with all */
extern const char *_PyRWExtImage_Write(_PyRWExtImage *, int fd, char **names);

#endif  // supported platform
#endif  // !Py_INTERNAL_RWEXTIMAGE_H

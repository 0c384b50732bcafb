/* ELF files of extension modules.  The contract is in pycore_rwextimage.h.

   The copy is the file, byte by byte, with a few fields changed in place and one
   segment added at its end.  Strings of the dynamic section can't grow in place,
   so the added segment holds a new string table (the old one, then ours).  The
   table of segments can't grow in place either: it moves there as well.

        file:   ELF header | old segments ................ | pad | added segment
                  e_phoff ─────────────────────────────────────────┘  ▲
                               DT_STRTAB ─────────────────────────────┘

   Nothing that the file's code refers to changes its place, so all of it can be
   mapped from the file itself (share_text() in rwextcopy.c).

   The file was about to be loaded in any case, so it is not treated as an
   enemy.  But it may be cut short or no ELF file at all: everything that is read
   goes through at(). */

#include "Python.h"
#include "pycore_rwextimage.h"

#ifdef _PyRWExt_SUPPORTED

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef __x86_64__
#  define MACHINE EM_X86_64
#else
#  define MACHINE EM_AARCH64
#endif

/* A tag that loaders don't know and skip. */
#define TAG_NONE 0x6000000c

static const char not_loadable[] = "not a shared object of this platform";
static const char no_memory[] = "out of memory";

/* The bytes [vaddr, vaddr + len) as they are in the file, or NULL. */
static void *
at(const _PyRWExtImage *image, uint64_t vaddr, uint64_t len)
{
    for (size_t i = 0; i < image->layout.nloads; i++) {
        const Elf64_Phdr *load = &image->layout.loads[i];
        if (vaddr >= load->p_vaddr && vaddr - load->p_vaddr <= load->p_filesz
            && len <= load->p_filesz - (vaddr - load->p_vaddr))
        {
            return image->map + load->p_offset + (vaddr - load->p_vaddr);
        }
    }
    return NULL;
}

static const char *
string_at(const _PyRWExtImage *image, uint64_t offset)
{
    return offset < image->strsize ? image->strtab + offset : "";
}

static uint64_t
tag(const _PyRWExtImage *image, int64_t which)
{
    for (size_t i = 0; i < image->ndyn; i++) {
        if (image->dyn[i].d_tag == which) {
            return image->dyn[i].d_un.d_val;
        }
    }
    return 0;
}


/* --- Reading ------------------------------------------------------------- */

/* Symbols have no count of their own: the hash tables tell. */
static size_t
count_symbols(const _PyRWExtImage *image)
{
    uint32_t *hash = at(image, tag(image, DT_HASH), 8);
    if (hash != NULL && tag(image, DT_HASH) != 0) {
        return hash[1];
    }
    uint64_t where = tag(image, DT_GNU_HASH);
    uint32_t *gnu = where ? at(image, where, 16) : NULL;
    if (gnu == NULL) {
        return 0;
    }
    uint32_t nbuckets = gnu[0], first = gnu[1], last = 0;
    uint64_t buckets = where + 16 + (uint64_t)gnu[2] * 8;
    uint32_t *bucket = at(image, buckets, (uint64_t)nbuckets * 4);
    if (bucket == NULL) {
        return 0;
    }
    for (uint32_t i = 0; i < nbuckets; i++) {
        last = Py_MAX(last, bucket[i]);
    }
    if (last < first) {
        return first;           // exports nothing
    }
    uint64_t chains = buckets + (uint64_t)nbuckets * 4;
    for (;; last++) {
        uint32_t *chain = at(image, chains + (uint64_t)(last - first) * 4, 4);
        if (chain == NULL) {
            return 0;
        }
        if (*chain & 1) {       // the end of the last bucket's symbols
            return (size_t)last + 1;
        }
    }
}

static const char *
read_segments(_PyRWExtImage *image)
{
    const Elf64_Ehdr *header = (Elf64_Ehdr *)image->map;
    if (image->size < sizeof(*header)
        || memcmp(header->e_ident, ELFMAG, SELFMAG) != 0
        || header->e_ident[EI_CLASS] != ELFCLASS64
        || header->e_type != ET_DYN || header->e_machine != MACHINE
        || header->e_phentsize != sizeof(Elf64_Phdr)
        || header->e_phoff > image->size
        || header->e_phnum * sizeof(Elf64_Phdr) > image->size - header->e_phoff)
    {
        return not_loadable;
    }
    _PyRWExtLayout *layout = &image->layout;
    const Elf64_Phdr *ph = (Elf64_Phdr *)(image->map + header->e_phoff);
    const Elf64_Phdr *dynamic = NULL;
    for (int i = 0; i < header->e_phnum; i++, ph++) {
        if (ph->p_type == PT_LOAD) {
            if (layout->nloads == Py_ARRAY_LENGTH(layout->loads)
                || ph->p_offset > image->size
                || ph->p_filesz > image->size - ph->p_offset)
            {
                return not_loadable;
            }
            layout->loads[layout->nloads++] = *ph;
            layout->end = Py_MAX(layout->end, ph->p_vaddr + ph->p_memsz);
        }
        else if (ph->p_type == PT_DYNAMIC) {
            dynamic = ph;
        }
        else if (ph->p_type == PT_TLS) {
            layout->tls = ph->p_vaddr;
            layout->tls_filled = ph->p_filesz;
            layout->tls_size = ph->p_memsz;
        }
        else if (ph->p_type == PT_GNU_RELRO) {
            layout->relro = ph->p_vaddr;
            layout->relro_size = ph->p_memsz;
        }
    }
    if (dynamic == NULL || layout->nloads == 0
        || layout->loads[0].p_vaddr != 0)
    {
        return not_loadable;
    }
    image->dyn = at(image, dynamic->p_vaddr, dynamic->p_filesz);
    image->ndyn = dynamic->p_filesz / sizeof(Elf64_Dyn);
    return image->dyn == NULL ? not_loadable : NULL;
}

const char *
_PyRWExtImage_Open(_PyRWExtImage *image, int fd, size_t size, const char *dir)
{
    *image = (_PyRWExtImage){.size = size, .dir = dir};
    image->map = mmap(NULL, Py_MAX(size, 1), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE, fd, 0);
    if (image->map == MAP_FAILED) {
        image->map = NULL;
        return "can't map the file";
    }
    const char *reason = read_segments(image);
    if (reason != NULL) {
        _PyRWExtImage_Close(image);
        return reason;
    }
    for (size_t i = 0; i < image->ndyn; i++) {
        if (image->dyn[i].d_tag == DT_NULL) {
            image->ndyn = i;
        }
    }
    _PyRWExtLayout *layout = &image->layout;
    layout->dynstr = tag(image, DT_STRTAB);
    layout->dynsym = tag(image, DT_SYMTAB);
    layout->rela = tag(image, DT_RELA);
    layout->nrela = tag(image, DT_RELASZ) / sizeof(Elf64_Rela);
    layout->jmprel = tag(image, DT_JMPREL);
    layout->njmprel = tag(image, DT_PLTRELSZ) / sizeof(Elf64_Rela);
    layout->init = tag(image, DT_INIT);
    layout->init_array = tag(image, DT_INIT_ARRAY);
    layout->ninit = tag(image, DT_INIT_ARRAYSZ) / sizeof(uint64_t);
    image->strsize = tag(image, DT_STRSZ);
    image->strtab = at(image, layout->dynstr, image->strsize);
    image->nsym = count_symbols(image);
    image->sym = at(image, layout->dynsym, image->nsym * sizeof(Elf64_Sym));
    if (image->strtab == NULL || image->strsize == 0 || image->sym == NULL
        || image->strtab[image->strsize - 1] != '\0')
    {
        _PyRWExtImage_Close(image);
        return not_loadable;
    }
    return NULL;
}

void
_PyRWExtImage_Close(_PyRWExtImage *image)
{
    if (image->map != NULL) {
        munmap(image->map, Py_MAX(image->size, 1));
        image->map = NULL;
    }
}

int
_PyRWExtImage_Calls(const _PyRWExtImage *image, const char *prefix)
{
    for (size_t i = 0; i < image->nsym; i++) {
        if (image->sym[i].st_shndx == SHN_UNDEF) {
            const char *name = string_at(image, image->sym[i].st_name);
            if (strncmp(name, prefix, strlen(prefix)) == 0) {
                return 1;
            }
        }
    }
    return 0;
}

const char *
_PyRWExtImage_Needed(const _PyRWExtImage *image, size_t which)
{
    for (size_t i = 0; i < image->ndyn; i++) {
        if (image->dyn[i].d_tag == DT_NEEDED && which-- == 0) {
            return string_at(image, image->dyn[i].d_un.d_val);
        }
    }
    return NULL;
}


/* --- Search path --------------------------------------------------------- */

/* Copies `path` with $ORIGIN written out.  A new string, or NULL. */
static char *
write_out_origin(const _PyRWExtImage *image, const char *path)
{
    static const char *const marks[] = {"$ORIGIN", "${ORIGIN}"};
    size_t dir_len = strlen(image->dir), n = 0;
    // Each mark takes at least one byte less than it has.
    char *out = PyMem_RawMalloc((strlen(path) + 1) * (dir_len + 1));
    if (out == NULL) {
        return NULL;
    }
    while (*path != '\0') {
        size_t len = 0;
        for (size_t i = 0; i < Py_ARRAY_LENGTH(marks) && len == 0; i++) {
            if (strncmp(path, marks[i], strlen(marks[i])) == 0) {
                len = strlen(marks[i]);
            }
        }
        if (len != 0) {
            memcpy(out + n, image->dir, dir_len);
            n += dir_len;
            path += len;
        }
        else {
            out[n++] = *path++;
        }
    }
    out[n] = '\0';
    return out;
}

char *
_PyRWExtImage_Find(const _PyRWExtImage *image, const char *needed)
{
    uint64_t where = tag(image, DT_RUNPATH);
    where = where ? where : tag(image, DT_RPATH);
    if (where == 0 || strchr(needed, '/') != NULL) {
        return NULL;
    }
    char *path = write_out_origin(image, string_at(image, where));
    char *found = NULL;
    for (char *dir = path; dir != NULL && found == NULL;) {
        size_t len = strcspn(dir, ":");
        size_t size = len + strlen(needed) + 2;
        char *candidate = PyMem_RawMalloc(size);
        if (candidate == NULL) {
            break;
        }
        PyOS_snprintf(candidate, size, "%.*s/%s", (int)len, dir, needed);
        if (len != 0 && access(candidate, R_OK) == 0) {
            found = candidate;
        }
        else {
            PyMem_RawFree(candidate);
        }
        dir = dir[len] == ':' ? dir + len + 1 : NULL;
    }
    PyMem_RawFree(path);
    return found;
}


/* --- Writing ------------------------------------------------------------- */

/* Statics that the C++ runtime library has, too: the empty string of old, the
   ids of locale facets, tags that are compared by address.  An extension must
   have the same as the library, of which there is only one. */
static int
is_of_cxx_runtime(const char *name)
{
    static const char *const prefixes[] = {
        "_ZNSt", "_ZNKSt", "_ZZNSt", "_ZZNKSt", "_ZGVNSt", "_ZGVZNSt", "_ZGVZNKSt",
        "_ZSt", "_ZZSt", "_ZGVZSt", "_ZNSs", "_ZZNSs", "_ZNSb", "_ZNSo", "_ZNSi",
        "_ZN9__gnu_cxx", "_ZZN9__gnu_cxx", "_ZGVN9__gnu_cxx", "_ZGVZN9__gnu_cxx",
    };
    for (size_t i = 0; i < Py_ARRAY_LENGTH(prefixes); i++) {
        if (strncmp(name, prefixes[i], strlen(prefixes[i])) == 0) {
            return 1;
        }
    }
    return 0;
}

static void
make_statics_private(_PyRWExtImage *image)
{
    for (size_t i = 0; i < image->nsym; i++) {
        Elf64_Sym *sym = &image->sym[i];
        if (ELF64_ST_BIND(sym->st_info) == STB_GNU_UNIQUE
            && !is_of_cxx_runtime(string_at(image, sym->st_name)))
        {
            sym->st_info = ELF64_ST_INFO(STB_GLOBAL, ELF64_ST_TYPE(sym->st_info));
            sym->st_other |= _PyRWExt_WAS_UNIQUE;
            image->layout.shared_statics = 1;
        }
    }
}

/* The added segment while it is put together. */
typedef struct {
    char *bytes;
    size_t size;
    size_t strings;             // where the string table begins
} Tail;

/* Appends a string.  Returns its offset in the string table, 0 on failure. */
static uint64_t
add_string(Tail *tail, const char *text)
{
    size_t len = strlen(text) + 1, offset = tail->size - tail->strings;
    char *bytes = PyMem_RawRealloc(tail->bytes, tail->size + len);
    if (bytes == NULL) {
        return 0;
    }
    memcpy(bytes + tail->size, text, len);
    tail->bytes = bytes;
    tail->size += len;
    return offset;
}

/* Edits the dynamic section, all but what depends on the tail's place. */
static const char *
edit_dynamic(_PyRWExtImage *image, Tail *tail, char **names)
{
    for (size_t i = 0; i < image->ndyn; i++) {
        Elf64_Dyn *dyn = &image->dyn[i];
        char *text = NULL;
        switch (dyn->d_tag) {
        case DT_SONAME: case DT_INIT: case DT_FINI:
            dyn->d_tag = TAG_NONE;
            break;
        case DT_INIT_ARRAYSZ: case DT_FINI_ARRAYSZ:
            dyn->d_un.d_val = 0;
            break;
        case DT_NEEDED:
            text = *names++;
            if (text != NULL && (dyn->d_un.d_val = add_string(tail, text)) == 0) {
                return no_memory;
            }
            break;
        case DT_RPATH: case DT_RUNPATH:
            text = write_out_origin(image, string_at(image, dyn->d_un.d_val));
            if (text == NULL || (dyn->d_un.d_val = add_string(tail, text)) == 0) {
                PyMem_RawFree(text);
                return no_memory;
            }
            PyMem_RawFree(text);
            break;
        default:
            break;
        }
    }
    return NULL;
}

/* Gives the tail its place in the file and in memory. */
static uint64_t
place_tail(_PyRWExtImage *image, Tail *tail)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t offset = _Py_SIZE_ROUND_UP(image->size, page);
    uint64_t vaddr = _Py_SIZE_ROUND_UP(image->layout.end, page);
    Elf64_Ehdr *header = (Elf64_Ehdr *)image->map;
    Elf64_Phdr *ph = (Elf64_Phdr *)tail->bytes;
    memcpy(ph, image->map + header->e_phoff, header->e_phnum * sizeof(*ph));
    for (int i = 0; i < header->e_phnum; i++) {
        if (ph[i].p_type == PT_PHDR) {
            ph[i].p_offset = offset;
            ph[i].p_vaddr = ph[i].p_paddr = vaddr;
            ph[i].p_filesz = ph[i].p_memsz = tail->strings;
        }
    }
    ph[header->e_phnum] = (Elf64_Phdr){
        .p_type = PT_LOAD, .p_flags = PF_R, .p_align = page,
        .p_offset = offset, .p_vaddr = vaddr, .p_paddr = vaddr,
        .p_filesz = tail->size, .p_memsz = tail->size,
    };
    header->e_phoff = offset;
    header->e_phnum++;
    for (size_t i = 0; i < image->ndyn; i++) {
        Elf64_Dyn *dyn = &image->dyn[i];
        if (dyn->d_tag == DT_STRTAB) {
            dyn->d_un.d_ptr = vaddr + tail->strings;
        }
        else if (dyn->d_tag == DT_STRSZ) {
            dyn->d_un.d_val = tail->size - tail->strings;
        }
    }
    image->layout.end = vaddr + tail->size;
    return offset;
}

static const char *
write_at(int fd, const char *bytes, size_t size, uint64_t offset)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, bytes, size, (off_t)offset);
        if (n <= 0) {
            return "can't write the copy";
        }
        bytes += n;
        size -= (size_t)n;
        offset += (uint64_t)n;
    }
    return NULL;
}

const char *
_PyRWExtImage_Write(_PyRWExtImage *image, int fd, char **names)
{
    size_t phdrs = ((Elf64_Ehdr *)image->map)->e_phnum + 1;
    Tail tail = {.strings = phdrs * sizeof(Elf64_Phdr)};
    tail.size = tail.strings + image->strsize;
    tail.bytes = PyMem_RawMalloc(tail.size);
    if (tail.bytes == NULL) {
        return no_memory;
    }
    memcpy(tail.bytes + tail.strings, image->strtab, image->strsize);
    make_statics_private(image);
    const char *reason = edit_dynamic(image, &tail, names);
    if (reason == NULL) {
        uint64_t offset = place_tail(image, &tail);
        reason = write_at(fd, image->map, image->size, 0);
        if (reason == NULL) {
            reason = write_at(fd, tail.bytes, tail.size, offset);
        }
    }
    PyMem_RawFree(tail.bytes);
    return reason;
}

#endif  // _PyRWExt_SUPPORTED

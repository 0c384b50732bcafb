/* What an interpreter leaves behind: giving it back.

   This file is a part of obmalloc.c, which includes it.  The contract is in
   pycore_memheap.h, under "Remains".

   Purpose.  An extension module keeps objects in C statics, and frees few of them.
   When its interpreter has ended and its copy is to be made new, nobody can get at
   them any more.  No destructor may run for them then, but their memory can go.

   What must not go is told apart in two ways:

      stay    a bit for each block of a pool: it was there before this interpreter
              came, or has been given to another one
      large   a table of the blocks above SMALL_REQUEST_THRESHOLD, which are
              malloc's: those that are to go.  One table for all heaps, so that
              whoever frees such a block takes it out.

   Invariants

   REM-1  A bit of `stay` that is not set belongs to a block that is free, or was
          allocated by the heap's present interpreter.  Close sets the bits of all
          that lives; so the next interpreter begins with that.
   REM-2  What is in the table is live: allocated by an interpreter that was being
          watched then, and neither freed nor given away since.  It has the number
          of that watch: what an earlier one left is never taken for this one's.
   REM-3  If something has been given away without a bit (so much before the watch
          that nobody named it, or because there was no memory), then all that was
          allocated at the time stays, or nothing is freed at all.

   Bits that are set too often only keep memory, but for good.  So the bit of a block
   that comes back by the remote list is cleared, and when a watch begins that of any
   block that is free.  Others can be stale: of what came back in a parcel and was
   freed by its first owner, and of what REM-3 had to keep at the beginning of a watch.
   For that to be rare, what goes before a watch is named too, up to NAMED_EARLY blocks:
   most interpreters import their extensions after a message or two.  One that sends
   more first, and perhaps never imports any, is spared the walks.

   Races
   - The bits, and everything in the struct, belong to the heap's owner; after its
     end to the one thread that closes the interpreter.  Others only push blocks on
     the remote list, and only such as have their bit.
   - fork: the child makes orphans of the other heaps, so none may be half done.
     Freeing can't be under memheaps.mutex, which pymalloc takes to free an arena:
     it has a mutex of its own, the outermost of the heaps'.
   - An entry of the table is added by the thread that has just allocated the block
     and removed by the one that is about to free it.  Each shard has a mutex,
     innermost, never waited for detached. */

/* --- The table of large blocks -------------------------------------------- */

#define LARGE_SHARDS 64

// In place of the number of a watch: they are counted from 1.
#define ANY_WATCH 0
#define BLOCK_OF_COPY UINT64_MAX    // no watch's: see rwextmem.c

struct large_block {
    char *start;                    // NULL: nothing here
    size_t size;
    uint64_t watch;
};

static struct large_shard {
    PyMutex mutex;
    size_t n, mask;                 // mask + 1 entries; 0: there is no table
    struct large_block *blocks;
    char apart[32];                 // to a cache line
} large_shards[LARGE_SHARDS];

static int large_in_use;            // atomic: some heap is, or was, being watched

static inline size_t
large_hash(const void *p)
{
    return (size_t)(((uint64_t)(uintptr_t)p >> 4) * 0x9e3779b97f4a7c15u >> 16);
}

static inline struct large_shard *
large_shard_of(size_t hash)
{
    return &large_shards[(hash >> 32) % LARGE_SHARDS];
}

/* Where the block is, or an empty place for it. */
static struct large_block *
large_probe(struct large_block *blocks, size_t mask, const char *p)
{
    size_t i = large_hash(p) & mask;
    while (blocks[i].start != NULL && blocks[i].start != p) {
        i = (i + 1) & mask;
    }
    return &blocks[i];
}

/* Makes room for one more.  The shard is locked. */
static int
large_grow(struct large_shard *shard)
{
    if (shard->blocks != NULL && shard->n < shard->mask / 2) {
        return 0;
    }
    size_t mask = shard->blocks == NULL ? 31 : 2 * shard->mask + 1;
    struct large_block *blocks = _PyMem_RawCalloc(NULL, mask + 1, sizeof(*blocks));
    if (blocks == NULL) {
        return -1;
    }
    for (size_t i = 0; shard->blocks != NULL && i <= shard->mask; i++) {
        if (shard->blocks[i].start != NULL) {
            *large_probe(blocks, mask, shard->blocks[i].start) = shard->blocks[i];
        }
    }
    _PyMem_RawFree(NULL, shard->blocks);
    shard->blocks = blocks;
    shard->mask = mask;
    return 0;
}

/* Empties a place and closes the gap.  The shard is locked. */
static void
large_delete(struct large_shard *shard, struct large_block *block)
{
    struct large_block *blocks = shard->blocks;
    size_t mask = shard->mask, gap = block - blocks;
    for (size_t i = (gap + 1) & mask; blocks[i].start != NULL; i = (i + 1) & mask) {
        size_t home = large_hash(blocks[i].start) & mask;
        if (((i - home) & mask) >= ((i - gap) & mask)) {
            blocks[gap] = blocks[i];
            gap = i;
        }
    }
    blocks[gap].start = NULL;
    shard->n--;
}

static Py_NO_INLINE void
large_add(uint64_t watch, void *p, size_t size)
{
    struct large_shard *shard = large_shard_of(large_hash(p));
    PyMutex_LockFlags(&shard->mutex, _Py_LOCK_DONT_DETACH);
    if (large_grow(shard) == 0) {   // else it stays
        struct large_block *block = large_probe(shard->blocks, shard->mask, p);
        shard->n += (block->start == NULL);
        *block = (struct large_block){p, size, watch};
    }
    PyMutex_Unlock(&shard->mutex);
}

/* If it is there: as one of this watch, or of any if that is ANY_WATCH. */
static Py_NO_INLINE int
large_remove(const void *p, uint64_t watch)
{
    struct large_shard *shard = large_shard_of(large_hash(p));
    int found = 0;
    PyMutex_LockFlags(&shard->mutex, _Py_LOCK_DONT_DETACH);
    if (shard->n > 0) {
        struct large_block *block = large_probe(shard->blocks, shard->mask, p);
        if (block->start != NULL && (watch == ANY_WATCH || block->watch == watch)) {
            large_delete(shard, block);
            found = 1;
        }
    }
    PyMutex_Unlock(&shard->mutex);
    return found;
}

static void
large_lock_all(void)
{
    for (int i = 0; i < LARGE_SHARDS; i++) {
        PyMutex_LockFlags(&large_shards[i].mutex, _Py_LOCK_DONT_DETACH);
    }
}

static void
large_unlock_all(void)
{
    for (int i = 0; i < LARGE_SHARDS; i++) {
        PyMutex_Unlock(&large_shards[i].mutex);
    }
}

static void
large_unlock_in_child(void)
{
    for (int i = 0; i < LARGE_SHARDS; i++) {
        _PyMutex_at_fork_reinit(&large_shards[i].mutex);
    }
}

void
_PyMemHeap_NoteBlock(void *block, size_t size)
{
    large_add(BLOCK_OF_COPY, block, size);
}

int
_PyMemHeap_ForgetBlock(void *block)
{
    // Those of a watch are given back with the rest of it, and by nobody else.
    return large_remove(block, BLOCK_OF_COPY);
}

int
_PyMemHeap_RawIsMalloc(void)
{
    return _PyMem_Raw.malloc == _PyMem_RawMalloc;
}

/* Called by pymalloc for what it gets from malloc: when it has, and before it is
   given back or resized. */

static inline void
memheap_note_large(OMState *state, void *p, size_t size)
{
    struct _PyMemHeap *heap = heap_of(state);
    if (UNLIKELY(heap->watch != 0)) {
        large_add(heap->watch, p, size);
    }
}

static inline void
memheap_forget_large(void *p)
{
    if (UNLIKELY(_Py_atomic_load_int_relaxed(&large_in_use))) {
        (void)large_remove(p, ANY_WATCH);
    }
}

static inline void *
memheap_realloc_large(OMState *state, void *p, size_t size)
{
    memheap_forget_large(p);        // somebody else may have it before we are back
    void *block = PyMem_RawRealloc(p, size);
    if (block != NULL) {            // else the old one stays
        memheap_note_large(state, block, size);
    }
    return block;
}


/* --- Bits ------------------------------------------------------------------ */

#define STAY_UNIT       ALIGNMENT   // a bit for so many bytes: no block is smaller
#define STAY_BYTES      (ARENA_SIZE / STAY_UNIT / 8)

struct block_place {
    char *start;                    // NULL: no block
    size_t size;
    uint arena;                     // index
    uint bit;
};

/* The block, allocated or free, that the address lies in. */
static struct block_place
find_block(struct _PyMemHeap *heap, const void *address)
{
    OMState *state = heap->state;
    struct block_place place = {NULL, 0, 0, 0};
    if (map_get(address) != heap) {
        return place;
    }
    poolp pool = POOL_ADDR(address);
    // If that is no pool yet, what is there may be anything.
    uint i = pool->arenaindex;
    if (i >= maxarenas || allarenas[i].address == 0
        || (uintptr_t)pool < allarenas[i].address
        || (uintptr_t)pool >= (uintptr_t)allarenas[i].pool_address
        || pool->ref.count == 0)
    {
        return place;
    }
    uint size = INDEX2SIZE(pool->szidx);
    uint offset = (uint)((char *)address - (char *)pool);
    if (offset < POOL_OVERHEAD) {
        return place;
    }
    offset -= (offset - POOL_OVERHEAD) % size;
    if (offset >= pool->nextoffset || offset > pool->maxnextoffset) {
        return place;               // has never been used
    }
    place.start = (char *)pool + offset;
    place.size = size;
    place.arena = i;
    place.bit = (uint)(((uintptr_t)place.start - allarenas[i].address) / STAY_UNIT);
    return place;
}

static int
make_room_for_bits(struct _PyMemHeap *heap, uint arena)
{
    if (arena >= heap->nstay) {
        uint n = arena + 16;
        unsigned char **stay = _PyMem_RawRealloc(NULL, heap->stay, n * sizeof(*stay));
        if (stay == NULL) {
            return -1;
        }
        memset(stay + heap->nstay, 0, (n - heap->nstay) * sizeof(*stay));
        heap->stay = stay;
        heap->nstay = n;
    }
    if (heap->stay[arena] == NULL) {
        heap->stay[arena] = _PyMem_RawCalloc(NULL, 1, STAY_BYTES);
    }
    return heap->stay[arena] == NULL ? -1 : 0;
}

static inline int
stays(const struct _PyMemHeap *heap, uint arena, uint bit)
{
    return arena < heap->nstay && heap->stay[arena] != NULL
        && (heap->stay[arena][bit / 8] >> (bit % 8)) & 1;
}

static inline void
clear_stay(struct _PyMemHeap *heap, uint arena, uint bit)
{
    if (stays(heap, arena, bit)) {
        heap->stay[arena][bit / 8] &= (unsigned char)~(1 << (bit % 8));
    }
}

static void
set_stay(struct _PyMemHeap *heap, uint arena, uint bit)
{
    if (make_room_for_bits(heap, arena) < 0) {
        heap->unknown = 1;          // REM-3
        return;
    }
    heap->stay[arena][bit / 8] |= (unsigned char)(1 << (bit % 8));
}

/* A block that was given away has come back. */
static void
memheap_came_back(struct _PyMemHeap *heap, const void *block)
{
    if (heap->nstay > 0 && (heap->watch != 0 || !heap->gave)) {
        struct block_place place = find_block(heap, block);
        if (place.start != NULL) {
            clear_stay(heap, place.arena, place.bit);
        }
    }
}

/* Free blocks of a pool: a bit for each STAY_UNIT of it. */
typedef struct {
    unsigned char bits[POOL_SIZE / STAY_UNIT / 8];
} pool_bits;

#define LIVE 0
#define FREE 1

static void
find_free_blocks(poolp pool, pool_bits *free)
{
    memset(free, 0, sizeof(*free));
    for (pymem_block *p = pool->freeblock; p != NULL; p = *(pymem_block **)p) {
        uint unit = (uint)(p - (pymem_block *)pool) / STAY_UNIT;
        free->bits[unit / 8] |= (unsigned char)(1 << (unit % 8));
    }
}

static inline int
is_free_block(const pool_bits *free, uint offset)
{
    uint unit = offset / STAY_UNIT;
    return (free->bits[unit / 8] >> (unit % 8)) & 1;
}

/* Sets, or clears, the bits of the blocks of all pools that are free, or of those that
   are not. */
static void
mark_blocks(struct _PyMemHeap *heap, int wanted_free,
            void mark(struct _PyMemHeap *heap, uint arena, uint bit))
{
    OMState *state = heap->state;
    pool_bits free;
    for (uint i = 0; i < maxarenas; i++) {
        const struct arena_object *arena = &allarenas[i];
        if (arena->address == 0) {
            continue;
        }
        uintptr_t p = _Py_SIZE_ROUND_UP(arena->address, POOL_SIZE);
        for (; p < (uintptr_t)arena->pool_address; p += POOL_SIZE) {
            poolp pool = (poolp)p;
            if (pool->ref.count == 0) {
                continue;
            }
            find_free_blocks(pool, &free);
            uint size = INDEX2SIZE(pool->szidx);
            for (uint at = POOL_OVERHEAD;
                 at < pool->nextoffset && at <= pool->maxnextoffset; at += size)
            {
                if (is_free_block(&free, at) == wanted_free) {
                    mark(heap, i, (uint)((p + at - arena->address) / STAY_UNIT));
                }
            }
        }
    }
}

/* The watch is over: its blocks are nobody's business any more. */
static void
large_forget_watch(uint64_t watch)
{
    for (int i = 0; i < LARGE_SHARDS; i++) {
        struct large_shard *shard = &large_shards[i];
        PyMutex_LockFlags(&shard->mutex, _Py_LOCK_DONT_DETACH);
        for (size_t j = 0; shard->n > 0 && j <= shard->mask;) {
            struct large_block *block = &shard->blocks[j];
            if (block->start != NULL && block->watch == watch) {
                large_delete(shard, block);     // another may come in its place
            }
            else {
                j++;
            }
        }
        PyMutex_Unlock(&shard->mutex);
    }
}

/* The heap loses its interpreter: all that lives in it stays (REM-1). */
static void
memheap_end_watch(struct _PyMemHeap *heap)
{
    if (heap->watch != 0) {
        large_forget_watch(heap->watch);
    }
    for (uint i = 0; i < heap->nstay; i++) {
        if (heap->stay[i] != NULL) {
            memset(heap->stay[i], 0, STAY_BYTES);
        }
    }
    heap->unknown = 0;
    heap->gave = 0;
    heap->named_early = 0;
    heap->watch = 0;
    mark_blocks(heap, LIVE, set_stay);
}

static void
memheap_free_bits(struct _PyMemHeap *heap)
{
    for (uint i = 0; i < heap->nstay; i++) {
        _PyMem_RawFree(NULL, heap->stay[i]);
    }
    _PyMem_RawFree(NULL, heap->stay);
}


/* --- Watching --------------------------------------------------------------- */

static uint64_t watches;            // atomic: how many there have been

#define NAMED_EARLY 4096            // blocks that are named before there is a watch

int
_PyMemHeap_Watch(PyInterpreterState *interp)
{
    if (!_PyMem_obmalloc_state_on_heap(interp)) {
        return 0;
    }
    struct _PyMemHeap *heap = heap_of(interp->obmalloc);
    if (heap->watch != 0) {
        return 0;
    }
    mark_blocks(heap, FREE, clear_stay);
    if (heap->gave) {
        mark_blocks(heap, LIVE, set_stay);      // REM-3
    }
    _Py_atomic_store_int_relaxed(&large_in_use, 1);
    heap->watch = _Py_atomic_add_uint64(&watches, 1) + 1;
    return !heap->gave;
}

void
_PyMemHeap_WatchLarge(PyInterpreterState *interp, void *block, size_t size)
{
    // What the debug hooks put before it is not the caller's business.
    if (block != NULL && size > SMALL_REQUEST_THRESHOLD && map_get(block) == NULL
        && !_PyMem_DebugEnabled())
    {
        large_add(heap_of(interp->obmalloc)->watch, block, size);
    }
}

int
_PyMemHeap_MustSayWhatGoes(Py_ssize_t nblocks)
{
    struct _PyMemHeap *heap = heap_of(get_state());
    if (heap->watch != 0) {
        return 1;
    }
    if (heap->gave) {
        return 0;
    }
    if (nblocks > NAMED_EARLY - heap->named_early) {
        heap->gave = 1;
        return 0;
    }
    heap->named_early += nblocks;
    return 1;
}

// A block of malloc may have before the object: a header of the collector, two
// words of an instance, what the debug hooks put there.
#define LARGE_OFFSETS 4

void
_PyMemHeap_Goes(const void *address)
{
    struct _PyMemHeap *heap = heap_of(get_state());
    struct block_place place = find_block(heap, address);
    if (place.start != NULL) {
        set_stay(heap, place.arena, place.bit);
    }
    else if (heap->watch != 0 && map_get(address) == NULL) {
        for (int i = 0; i < LARGE_OFFSETS; i++) {
            if (large_remove((const char *)address - 16 * i, ANY_WATCH)) {
                break;
            }
        }
    }
}

void
_PyMemHeap_SharesUnknown(void)
{
    heap_of(get_state())->unknown = 1;
}


/* --- Freeing ---------------------------------------------------------------- */

/* Held from Begin to Free: see the races. */
static PyMutex remains_mutex;

struct _PyMemHeap_Remains {
    struct _PyMemHeap *heap;
    struct large_block *large;      // those of this watch, by address
    size_t nlarge;
    uintptr_t low, high;            // all blocks are between these
    struct {
        char *start;
        size_t size;
    } *found;                       // that stay, and have not been looked into
    size_t nfound, found_size;
};

static int
compare_large(const void *a, const void *b)
{
    const char *p = ((const struct large_block *)a)->start;
    const char *q = ((const struct large_block *)b)->start;
    return (p > q) - (p < q);
}

/* Copies the entries of this watch to `to`, unless NULL.  Returns their number. */
static size_t
large_of_watch(uint64_t watch, struct large_block *to)
{
    size_t n = 0;
    for (int i = 0; i < LARGE_SHARDS; i++) {
        struct large_shard *shard = &large_shards[i];
        PyMutex_LockFlags(&shard->mutex, _Py_LOCK_DONT_DETACH);
        for (size_t j = 0; shard->n > 0 && j <= shard->mask; j++) {
            const struct large_block *block = &shard->blocks[j];
            if (block->start != NULL && block->watch == watch) {
                if (to != NULL) {
                    to[n] = *block;
                }
                n++;
            }
        }
        PyMutex_Unlock(&shard->mutex);
    }
    return n;
}

static void
find_bounds(_PyMemHeap_Remains *r)
{
    OMState *state = r->heap->state;
    r->low = UINTPTR_MAX;
    for (uint i = 0; i < maxarenas; i++) {
        uintptr_t arena = allarenas[i].address;
        if (arena != 0) {
            r->low = Py_MIN(r->low, arena);
            r->high = Py_MAX(r->high, arena + ARENA_SIZE);
        }
    }
    if (r->nlarge > 0) {
        const struct large_block *last = &r->large[r->nlarge - 1];
        r->low = Py_MIN(r->low, (uintptr_t)r->large[0].start);
        r->high = Py_MAX(r->high, (uintptr_t)last->start + last->size);
    }
}

_PyMemHeap_Remains *
_PyMemHeap_BeginRemains(PyInterpreterState *interp)
{
    if (!_PyMem_obmalloc_state_on_heap(interp)) {
        return NULL;
    }
    struct _PyMemHeap *heap = heap_of(interp->obmalloc);
    _PyMemHeap_Remains *r = NULL;
    // Other allocators than pymalloc don't tell when they free a large block.
    if (heap->watch != 0 && !heap->unknown && !_PyRuntime.tracemalloc.config.tracing
        && _PyMem_PymallocEnabled())
    {
        r = _PyMem_RawCalloc(NULL, 1, sizeof(*r));
    }
    if (r == NULL) {
        return NULL;
    }
    r->heap = heap;
    PyMutex_LockFlags(&remains_mutex, _Py_LOCK_DONT_DETACH);
    heap_drain(heap);               // what is on that list must not be freed twice
    mark_blocks(heap, FREE, set_stay);
    // Nobody else can add or remove one of these.
    r->nlarge = large_of_watch(heap->watch, NULL);
    r->large = _PyMem_RawMalloc(NULL, (r->nlarge + 1) * sizeof(*r->large));
    if (r->large == NULL) {
        PyMutex_Unlock(&remains_mutex);
        _PyMem_RawFree(NULL, r);
        return NULL;
    }
    (void)large_of_watch(heap->watch, r->large);
    qsort(r->large, r->nlarge, sizeof(*r->large), compare_large);
    find_bounds(r);
    for (Py_ssize_t i = 0; i < heap->nkept; i++) {
        _PyMemHeap_KeepBlock(r, heap->kept[i]);
    }
    return r;
}

/* The large block that the address lies in; a size of 0: it stays anyway. */
static struct large_block *
find_large(_PyMemHeap_Remains *r, const char *address)
{
    size_t low = 0, high = r->nlarge;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r->large[middle].start <= address) {
            low = middle + 1;
        }
        else {
            high = middle;
        }
    }
    struct large_block *block = low > 0 ? &r->large[low - 1] : NULL;
    return block != NULL && address < block->start + block->size ? block : NULL;
}

/* The block stays.  Its size, if that is news. */
static size_t
keep(_PyMemHeap_Remains *r, const void *address, char **start)
{
    struct _PyMemHeap *heap = r->heap;
    struct block_place place = find_block(heap, address);
    if (place.start != NULL) {
        if (stays(heap, place.arena, place.bit)) {
            return 0;
        }
        set_stay(heap, place.arena, place.bit);
        *start = place.start;
        return place.size;
    }
    struct large_block *block = find_large(r, address);
    if (block == NULL) {
        return 0;
    }
    size_t size = block->size;
    *start = block->start;
    block->size = 0;
    return size;
}

void
_PyMemHeap_KeepBlock(_PyMemHeap_Remains *r, const void *address)
{
    char *start;
    (void)keep(r, address, &start);
}

/* It reads what others write, and between the globals of AddressSanitizer. */
_Py_NO_SANITIZE_THREAD
_Py_NO_SANITIZE_ADDRESS
static Py_NO_INLINE void
look_at_words(_PyMemHeap_Remains *r, const char *from, const char *to)
{
    from = (const char *)_Py_SIZE_ROUND_UP((uintptr_t)from, sizeof(void *));
    for (; from + sizeof(void *) <= to; from += sizeof(void *)) {
        uintptr_t word = *(const uintptr_t *)from;
        char *start;
        size_t size;
        if (word < r->low || word >= r->high
            || (size = keep(r, (void *)word, &start)) == 0)
        {
            continue;
        }
        if (r->nfound == r->found_size) {
            size_t n = r->found_size ? 2 * r->found_size : 256;
            void *found = _PyMem_RawRealloc(NULL, r->found, n * sizeof(*r->found));
            if (found == NULL) {
                r->heap->unknown = 1;       // REM-3
                return;
            }
            r->found = found;
            r->found_size = n;
        }
        r->found[r->nfound].start = start;
        r->found[r->nfound++].size = size;
    }
}

void
_PyMemHeap_KeepFrom(_PyMemHeap_Remains *r, const void *from, const void *to)
{
    look_at_words(r, from, to);
    while (r->nfound > 0) {
        r->nfound--;
        char *start = r->found[r->nfound].start;
        look_at_words(r, start, start + r->found[r->nfound].size);
    }
}

/* Nobody shall find anything in what is given back. */
static inline void
spoil(void *p, size_t size)
{
#ifdef Py_DEBUG
    memset(p, PYMEM_DEADBYTE, size);
#else
    (void)p, (void)size;
#endif
}

static Py_ssize_t
free_blocks_of_pool(struct _PyMemHeap *heap, uint arena, poolp pool)
{
    OMState *state = heap->state;
    uintptr_t base = allarenas[arena].address;
    uint size = INDEX2SIZE(pool->szidx);
    uint end = Py_MIN(pool->nextoffset, pool->maxnextoffset + 1);
    Py_ssize_t n = 0, left = pool->ref.count;
    for (uint at = POOL_OVERHEAD; at < end && left > 0; at += size) {
        char *block = (char *)pool + at;
        if (stays(heap, arena, (uint)(((uintptr_t)block - base) / STAY_UNIT))) {
            continue;
        }
        n++;
        left--;
        spoil(block, size);
        // With the last block, the pool may be given back with its arena.
        (void)pymalloc_free(state, NULL, block);
    }
    return n;
}

static Py_ssize_t
free_small(struct _PyMemHeap *heap)
{
    OMState *state = heap->state;
    Py_ssize_t n = 0;
    for (uint i = 0; i < maxarenas; i++) {
        uintptr_t p = _Py_SIZE_ROUND_UP(allarenas[i].address, POOL_SIZE);
        for (; allarenas[i].address != 0
               && p < (uintptr_t)allarenas[i].pool_address; p += POOL_SIZE)
        {
            if (((poolp)p)->ref.count > 0) {
                n += free_blocks_of_pool(heap, i, (poolp)p);
            }
        }
    }
    return n;
}

static Py_ssize_t
free_large(_PyMemHeap_Remains *r, int really)
{
    OMState *state = r->heap->state;
    Py_ssize_t n = 0;
    for (size_t i = 0; i < r->nlarge; i++) {
        struct large_block *block = &r->large[i];
        (void)large_remove(block->start, ANY_WATCH);
        if (really && block->size > 0) {
            spoil(block->start, block->size);
            PyMem_RawFree(block->start);
            n++;
        }
    }
    raw_allocated_blocks -= n;
    return n;
}

void
_PyMemHeap_FreeRemains(_PyMemHeap_Remains *r)
{
    struct _PyMemHeap *heap = r->heap;
    int known = !heap->unknown;
    Py_ssize_t n = free_large(r, known);
    if (known) {
        n += free_small(heap);
    }
    (void)_Py_atomic_add_ssize(&memheaps.stats.remains, n);
    heap->watch = 0;                // there is nothing left to be forgotten
    PyMutex_Unlock(&remains_mutex);
    _PyMem_RawFree(NULL, r->large);
    _PyMem_RawFree(NULL, r->found);
    _PyMem_RawFree(NULL, r);
}

/* Memory heaps: blocks that any interpreter can free.

   This file is a part of obmalloc.c, which includes it, since it needs
   pymalloc's static functions.  The contract is in pycore_memheap.h.

   Purpose.  Each isolated interpreter has a pymalloc state of its own and works
   on it under its own lock.  That is fast and stays as it is: a block that the
   freeing interpreter's own state holds never gets here.  Any other address
   used to be taken for malloc's.  Now a map of the whole address space tells
   which heap, if any, holds it, and the block goes on that heap's remote list,
   from which the heap's owner takes it back.

   States of a heap, and the functions that move it:

                      _PyMemHeap_Open                   _PyMemHeap_Close,
                                                         nothing lives
      (not there) ---------------------->  OWNED  ----------------------> (freed)
                                           |   ^
                         _PyMemHeap_Close, |   | _PyMemHeap_Open
                          something lives  v   |  (adoption)
                                          ORPHAN

   Main's heap is OWNED for ever.

   Who may touch what:

      pools, arenas, usage      the owner; in ORPHAN nobody
      the vector of arenas,     written by the owner with `memheaps.mutex` held
       arenas[i].address         and so read by whoever holds that
      interp->obmalloc          the same
      remote, pending           atomic; see MEM-3 and MEM-4
      inherited, kept           the owner; in ORPHAN whoever holds the mutex
      next, memheaps, the map   written with the mutex held; map slots are read
                                 without it

   Invariants (code and asserts cite the numbers):

   MEM-1  While an arena is in the vector of a heap, each pool-aligned address in
          it that begins a whole pool is mapped to that heap; no other address is
          mapped.  So as long as a block lives, the map leads from it to its heap,
          and both stay where they are.
   MEM-2  A heap is freed only by its owner at its end, and only if no block in it
          is live.  A block on a remote list is live to its heap.
   MEM-3  Anyone pushes on `remote`; only the owner takes from it, attached, and
          takes all of it at once.  So no block can leave the list and come back
          behind a pusher's back (the ABA problem).
   MEM-4  `pending` is raised before a push and lowered after a take: it is never
          less than the length of the list.
   MEM-5  Map nodes are never freed.  A node is filled with zeros before it is
          linked (release, paired with the acquire in map_slot).
   MEM-6  The sum of a process' blocks is, over all interpreters' heaps,
          counts in pools - inherited - pending + raw_allocated_blocks, less
          what is pending at orphans, plus interpreter_leaks.
   MEM-7  `memheaps.mutex` is the innermost lock but for those of
          obmalloc_remains.c: what runs under them takes no other lock and never
          detaches or attaches.  So it allocates with _PyMem_RawMalloc() and its
          kin, which have no hooks: tracemalloc's attaches.  The mutex may be taken
          under HEAD_LOCK and in a write section: whoever holds it, attached or not,
          comes to its end without waiting for anybody.

   Races:

   - Push against the owner's take: the exchange either sees the block or leaves
     it for the next time.  Its contents are the owner's through the acquire of
     that exchange, paired with the pusher's compare-and-swap.
   - Push against the owner's end or an adoption: the block that is being pushed
     is live until the push succeeds, so the heap stays (MEM-2).  After that the
     pusher doesn't touch the heap any more: that is why `pending` is raised first.
     The list works the same whoever the owner is.
   - Two interpreters that open at once, or open and close: the mutex.
   - A lookup against new and freed arenas of any heap: the address that is looked
     up is the caller's live block, so its slot doesn't change meanwhile if it is
     pymalloc's, and is NULL for good as long as malloc holds that address.
   - Counting another interpreter's blocks while it runs: the mutex keeps arenas
     where they are; the counts in pools may be a moment old.
   - fork: taken with the mutex held, so that the child has whole lists.  All other
     interpreters are stopped where none is in pymalloc, so their heaps are whole
     too: that is why only an attached owner takes from a remote list, and
     opening and closing, which nothing stops, do all of their work under the
     mutex.  In the child each other heap is closed, and so becomes an orphan that
     the child's interpreters adopt; blocks of it that main holds stay valid.

   What is not guaranteed: when a block that was freed remotely can be used again.
   The owner looks when a size class has run out of room, and an idle owner never
   looks.  What waits is bounded by what that owner allocated. */

/* pymalloc's own, further down in obmalloc.c */
static inline int pymalloc_free(OMState *state, void *ctx, void *p);
static void pymalloc_pool_extend(poolp pool, uint size);
static void free_obmalloc_arenas(PyInterpreterState *interp);
static void init_obmalloc_pools(PyInterpreterState *interp);
static void *allocate_from_new_pool(OMState *state, uint size);
#if WITH_PYMALLOC_RADIX_TREE
static int arena_map_mark_used(OMState *state, uintptr_t arena_base, int is_used);
#endif

struct _PyMemHeap;
static void heap_drain(struct _PyMemHeap *heap);

struct _PyMemHeap {
    OMState *state;             // read-only

    // On a cache line apart, since other interpreters' threads write here.
    char apart_before[64];
    void *remote;               // list linked through each block's first word
    Py_ssize_t pending;
    char apart_after[64];

    Py_ssize_t inherited;       // live blocks that earlier interpreters left,
                                // counted in interpreter_leaks
    PyObject **kept;            // immortal interned strings, see KeepInterned
    Py_ssize_t nkept;
    Py_ssize_t kept_size;
    struct _PyMemHeap *next;    // next orphan

    // See obmalloc_remains.c.
    uint64_t watch;             // number of the watch over the owner, or 0
    unsigned char **stay;       // by arena: which blocks are not the owner's
    uint nstay;
    Py_ssize_t named_early;     // blocks that were named before the watch
    int gave;                   // the owner has given away more than was named
    int unknown;                // nothing can be said about what stays
};

/* What interp->obmalloc points to where it isn't main's. */
struct own_heap {
    OMState state;              // must be first
    struct _PyMemHeap heap;
};

static struct _PyMemHeap main_heap = {
    .state = &obmalloc_state_main,
    .gave = 1,                  // it is never watched
};

static struct {
    PyMutex mutex;
    int several;                // set for good with the first heap besides main's
    struct _PyMemHeap *orphans;
    _PyMemHeap_Stats stats;     // but `remote` and `remains` are atomic
} memheaps;

static inline void
memheaps_lock(void)
{
    PyMutex_LockFlags(&memheaps.mutex, _Py_LOCK_DONT_DETACH);
}

static inline void
memheaps_unlock(void)
{
    PyMutex_Unlock(&memheaps.mutex);
}

static inline struct _PyMemHeap *
heap_of(OMState *state)
{
    if (state == &obmalloc_state_main) {
        return &main_heap;
    }
    return &((struct own_heap *)state)->heap;
}


/*-------------------------------------------------------------------------
   The map: pool address -> heap

   A radix tree over the whole address space.  A node is 64 KiB on a 64-bit
   system, of which only the pages in use cost memory; the last level's covers
   128 MiB.  Pools are what it tells apart, not arenas, since an arena may lie at
   any address. */

#define MAP_KEY_BITS        (SIZEOF_VOID_P * 8 - POOL_BITS)
#define MAP_NODE_BITS       13
#define MAP_NODE_LENGTH     (1 << MAP_NODE_BITS)
#define MAP_NODE_MASK       (MAP_NODE_LENGTH - 1)
#define MAP_LEVELS          ((MAP_KEY_BITS + MAP_NODE_BITS - 1) / MAP_NODE_BITS)

struct map_node {
    void *slots[MAP_NODE_LENGTH];
};

static struct map_node map_root;

/* All zeros, or NULL; never given back. */
static struct map_node *
map_new_node(void)
{
#ifdef ARENAS_USE_MMAP
    // calloc() would touch it all, to clear it, where malloc() has memory at hand.
    return _PyMem_ArenaAlloc(NULL, sizeof(struct map_node));
#else
    return _PyMem_RawCalloc(NULL, 1, sizeof(struct map_node));
#endif
}

/* Return the slot of the pool that holds `address`.  If there is none, make it
   where `create` is true (the mutex is held then), else return NULL. */
static void **
map_slot(uintptr_t address, int create)
{
    const uintptr_t key = address >> POOL_BITS;
    struct map_node *node = &map_root;
    for (int level = MAP_LEVELS - 1; level > 0; level--) {
        int i = (int)(key >> (level * MAP_NODE_BITS)) & MAP_NODE_MASK;
        struct map_node *child = _Py_atomic_load_ptr_acquire(&node->slots[i]);
        if (child == NULL) {
            if (!create) {
                return NULL;
            }
            child = map_new_node();
            if (child == NULL) {
                return NULL;
            }
            _Py_atomic_store_ptr_release(&node->slots[i], child);   // MEM-5
        }
        node = child;
    }
    return &node->slots[key & MAP_NODE_MASK];
}

static struct _PyMemHeap *
map_get(const void *p)
{
    void **slot = map_slot((uintptr_t)p, 0);
    // Acquire: pairs with the store in map_set_arena(), so that the heap's
    // `state` can be read.
    return slot == NULL ? NULL : _Py_atomic_load_ptr_acquire(slot);
}

/* Map an arena's pools to `heap`, or to nothing if that is NULL.
   Return -1 if there is no memory for the map. */
static int
map_set_arena(uintptr_t arena, struct _PyMemHeap *heap)
{
    uintptr_t pool = _Py_SIZE_ROUND_UP(arena, POOL_SIZE);
    for (; pool + POOL_SIZE <= arena + ARENA_SIZE; pool += POOL_SIZE) {
        void **slot = map_slot(pool, heap != NULL);
        if (slot != NULL) {
            _Py_atomic_store_ptr_release(slot, heap);
        }
        else if (heap != NULL) {
            (void)map_set_arena(arena, NULL);
            return -1;
        }
    }
    return 0;
}


/*-------------------------------------------------------------------------
   Arenas

   An arena that is given back to the system and asked for again costs a system
   call, and a page fault and the clearing of each of its pages.  Messages do that
   all the time: a graph is built, sent, used and dropped.  So in a process that does
   so some arenas stay, for any heap.  Once there is a second heap, new ones come in
   pairs, aligned so that the system can map a pair as one huge page (2 MiB on most
   machines): fewer faults, and fewer misses in the TLB.  Programs with one interpreter
   do without: a virtual machine whose host takes back free memory can need milliseconds
   for the first touch of a huge page, and they pay for nothing that they don't use.

   What stays, and a huge page of which little is used, must not add to a peak that
   the process would have had without it:
   - It begins when a process that has given back a number of arenas asks for one
     again.  Most programs never do; theirs are handled as in the base.
   - What large blocks, which come from malloc, take from the system comes first from
     what stays.  Where malloc() gives memory that it had kept, nothing is taken.

   None of this is done for arenas of an allocator that somebody has set.

   Large blocks have the same trouble.  glibc's malloc returns to the system what is
   free at its end beyond a limit.  When it frees a block that it had mapped, it takes
   that as the sign of more to come, and raises the limit to twice the block's size.
   (mallopt() would set it, too, and end all such adjusting.)  Messages of several
   blocks can be far above the limit that any one of them leads to.  So a block gives
   the sign that makes it keep as much as four of the largest message, and no more
   than it ever does: 64 MiB. */

#define SPARE_ARENAS        64      // so many stay: glibc's malloc has the same limit
#define MANY_GIVEN_BACK     8       // who takes more after so many, does so again and again

static struct {
    Py_ssize_t taken;               // arenas that heaps hold
    int given_back;                 // arenas, until some stay
    bool stay;
    int n;
    void *spare[SPARE_ARENAS];
    size_t large;                   // bytes of large blocks that took nothing yet
    Py_ssize_t yielded;             // arenas that they have taken
} arenas_kept;                      // guarded by memheaps.mutex

#ifdef ARENAS_USE_MMAP

#ifdef __linux__
#  include <malloc.h>                           // malloc_usable_size()
#endif

static inline int
arenas_are_ours(void)
{
    return (_PyObject_Arena.alloc == _PyMem_ArenaAlloc
            && _PyObject_Arena.free == _PyMem_ArenaFree);
}

/* Two arenas, aligned to their size.  NULL if there is no memory. */
static void *
alloc_pair(void)
{
    const size_t size = 2 * ARENA_SIZE;
    char *room = _PyMem_ArenaAlloc(NULL, size);
    if (room != NULL && ((uintptr_t)room & (size - 1)) != 0) {
        _PyMem_ArenaFree(NULL, room, size);
        room = _PyMem_ArenaAlloc(NULL, 2 * size);
        if (room != NULL) {
            char *pair = (char *)_Py_SIZE_ROUND_UP((uintptr_t)room, size);
            if (pair != room) {
                _PyMem_ArenaFree(NULL, room, pair - room);
            }
            _PyMem_ArenaFree(NULL, pair + size, size - (pair - room));
            room = pair;
        }
    }
#ifdef MADV_HUGEPAGE
    if (room != NULL) {
        // It is advice: whether it is taken doesn't matter.
        (void)madvise(room, size, MADV_HUGEPAGE);
    }
#endif
    return room;
}

/* How many bytes of a block have no memory yet?  Counts no further than `enough`. */
static size_t
count_untouched(const void *block, size_t size, size_t enough)
{
#ifdef __linux__
    enum { PAGES = 512 };
    unsigned char resident[PAGES];
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uintptr_t at = _Py_SIZE_ROUND_DOWN((uintptr_t)block, page);
    uintptr_t end = _Py_SIZE_ROUND_UP((uintptr_t)block + size, page);
    size_t untouched = 0;
    while (at < end && untouched < enough) {
        size_t n = Py_MIN((end - at) / page, PAGES);
        if (mincore((void *)at, n * page, resident) < 0) {
            return size;
        }
        for (size_t i = 0; i < n; i++) {
            untouched += (resident[i] & 1) ? 0 : page;
        }
        at += n * page;
    }
    return untouched;
#else
    return size;
#endif
}

/* Both with the mutex held. */

static void *
memheap_alloc_arena(void)
{
    if (!arenas_are_ours()) {
        return _PyObject_Arena.alloc(_PyObject_Arena.ctx, ARENA_SIZE);
    }
    void *arena = NULL;
    if (arenas_kept.n > 0) {
        arena = arenas_kept.spare[--arenas_kept.n];
    }
    else if (arenas_kept.stay || arenas_kept.given_back >= MANY_GIVEN_BACK) {
        arenas_kept.stay = true;
        if (_Py_atomic_load_int_relaxed(&memheaps.several)) {
            arena = alloc_pair();
        }
        if (arena != NULL) {
            arenas_kept.spare[arenas_kept.n++] = (char *)arena + ARENA_SIZE;
        }
    }
    if (arena == NULL) {
        arena = _PyMem_ArenaAlloc(NULL, ARENA_SIZE);
    }
    arenas_kept.taken += (arena != NULL);
    return arena;
}

static void
memheap_free_arena(void *arena)
{
    if (!arenas_are_ours()) {
        _PyObject_Arena.free(_PyObject_Arena.ctx, arena, ARENA_SIZE);
    }
    else if (arena != NULL) {
        arenas_kept.taken--;
        if (arenas_kept.stay && arenas_kept.n < SPARE_ARENAS) {
            arenas_kept.spare[arenas_kept.n++] = arena;
        }
        else {
            arenas_kept.given_back += !arenas_kept.stay;
            _PyMem_ArenaFree(NULL, arena, ARENA_SIZE);
        }
    }
}

/* Give so many bytes of spare arenas back to the system.  Or, if `block` is one that
   malloc() has just made so large, as many as it will take from the system when
   it is used: not what malloc() had kept. */
static void
make_room(const void *block, size_t size)
{
    // new_arena() comes here with the mutex held when its own table is large.
    if (_PyMutex_LockTimed(&memheaps.mutex, 0, _Py_LOCK_DONT_DETACH) != PY_LOCK_ACQUIRED) {
        return;
    }
    size_t spare = arenas_kept.n * ARENA_SIZE;
    if (spare > 0 && block != NULL) {
        memheaps_unlock();
        size = count_untouched(block, size, spare);
        memheaps_lock();
    }
    void *unused[SPARE_ARENAS];
    int n = 0;
    arenas_kept.large += size;
    while (arenas_kept.n > 0 && arenas_kept.large >= ARENA_SIZE) {
        arenas_kept.large -= ARENA_SIZE;
        unused[n++] = arenas_kept.spare[--arenas_kept.n];
    }
    arenas_kept.yielded += n;
    if (arenas_kept.n == 0) {
        arenas_kept.large = 0;
    }
    memheaps_unlock();
    while (n > 0) {
        _PyMem_ArenaFree(NULL, unused[--n], ARENA_SIZE);
    }
}

void
_PyMemHeap_MadeLarge(const void *block, size_t size)
{
    make_room(block, size);
}

void
_PyMemHeap_GrowsLarge(void *block, size_t size)
{
#ifdef __linux__
    size_t had = malloc_usable_size(block);
#else
    size_t had = block != NULL ? size : 0;      // it isn't known
#endif
    if (size > had) {
        make_room(NULL, size - had);
    }
}

void
_PyMemHeap_ExpectLarge(size_t size)
{
#ifdef __GLIBC__
    static Py_ssize_t expected;
    // The largest that it takes as a sign, less its header and the rest of a page.
    const size_t most = 4 * 1024 * 1024 * sizeof(long) - 128 * 1024;
    Py_ssize_t n = (Py_ssize_t)(size < most / 2 ? 2 * size : most);
    if (n > _Py_atomic_load_ssize_relaxed(&expected)) {
        _Py_atomic_store_ssize_relaxed(&expected, n);
        void *volatile block = malloc(n);           // volatile: it is to happen
        free(block);
    }
#endif
}

#else

void
_PyMemHeap_ExpectLarge(size_t Py_UNUSED(size))
{
}

void
_PyMemHeap_MadeLarge(const void *Py_UNUSED(block), size_t Py_UNUSED(size))
{
}

void
_PyMemHeap_GrowsLarge(void *Py_UNUSED(block), size_t Py_UNUSED(size))
{
}

static void *
memheap_alloc_arena(void)
{
    return _PyObject_Arena.alloc(_PyObject_Arena.ctx, ARENA_SIZE);
}

static void
memheap_free_arena(void *arena)
{
    _PyObject_Arena.free(_PyObject_Arena.ctx, arena, ARENA_SIZE);
}

#endif

#define LARGE_PAGE ((size_t)2 << 20)
#define WORTH_LARGE_PAGES (2 * LARGE_PAGE)

void
_PyMemHeap_WillFill(void *block, size_t size)
{
#ifdef MADV_HUGEPAGE
    if (block != NULL && size >= WORTH_LARGE_PAGES) {
        char *end = (char *)block + size;
        char *first = (char *)_Py_ALIGN_UP(block, LARGE_PAGE);
        (void)madvise(first, (size_t)(end - first) & ~(LARGE_PAGE - 1), MADV_HUGEPAGE);
    }
#else
    (void)block;
    (void)size;
#endif
}


#include "obmalloc_remains.c"


/*-------------------------------------------------------------------------
   Called by pymalloc */

/* A new arena, with the mutex held.  Return its address, or NULL after having
   given it back if it can't be entered in the map. */
static void *
memheap_enter_arena(OMState *state, void *arena)
{
    if (arena == NULL || map_set_arena((uintptr_t)arena, heap_of(state)) == 0) {
        return arena;
    }
#if WITH_PYMALLOC_RADIX_TREE
    arena_map_mark_used(state, (uintptr_t)arena, 0);
#endif
    memheap_free_arena(arena);
    return NULL;
}

/* An arena that is about to be freed, with the mutex held. */
static void
memheap_leave_arena(uintptr_t arena)
{
    (void)map_set_arena(arena, NULL);
}

/* Is `p`, which isn't in `state`, a live block of another heap? */
static Py_NO_INLINE int
memheap_is_foreign(OMState *state, const void *p)
{
    if (!_Py_atomic_load_int_relaxed(&memheaps.several)) {
        return 0;
    }
    struct _PyMemHeap *heap = map_get(p);
    assert(heap != heap_of(state));
    return heap != NULL;
}

/* The blocks of a remote list are in another core's cache.  So that the owner does not
   wait for one after the other, each block has, behind the link, the address of one that
   the same thread freed some time before.  It is only ever prefetched: whether it is
   still in the list, or a block at all, does not matter. */
#define HINT_DISTANCE 16        // a power of 2

static _Py_thread_local struct {
    void *blocks[HINT_DISTANCE];
    unsigned int n;
} freed_before;

static inline void
write_hint(void *block)
{
    void **before = &freed_before.blocks[freed_before.n++ % HINT_DISTANCE];
    ((void **)block)[1] = *before;
    *before = block;
}

static inline void
follow_hint(void *block)
{
#ifdef __GNUC__
    __builtin_prefetch(((void **)block)[1], 1);
#endif
}

static Py_NO_INLINE int
memheap_free_foreign_Slow(OMState *state, void *p)
{
    Py_BUILD_ASSERT(ALIGNMENT >= 2 * sizeof(void *));
    struct _PyMemHeap *heap = map_get(p);
    if (heap == NULL) {
        return 0;
    }
    assert(heap != heap_of(state));
    write_hint(p);
    (void)_Py_atomic_add_ssize(&heap->pending, 1);      // MEM-4
    void *head = _Py_atomic_load_ptr_relaxed(&heap->remote);
    do {
        *(void **)p = head;
    } while (!_Py_atomic_compare_exchange_ptr(&heap->remote, &head, p));
    // The block is the owner's now, and with it went the claim on the heap.
    return 1;
}

/* Free a block of another heap than `state`.  Return 0 if it isn't one. */
static inline int
memheap_free_foreign(OMState *state, void *p)
{
    // Relaxed: whoever could hand over a foreign block has set it before.
    return (_Py_atomic_load_int_relaxed(&memheaps.several)
            && memheap_free_foreign_Slow(state, p));
}

/* The owner takes back what others have freed. */
static void
heap_drain(struct _PyMemHeap *heap)
{
    void *block = _Py_atomic_exchange_ptr(&heap->remote, NULL);     // MEM-3
    Py_ssize_t n = 0;
    while (block != NULL) {
        void *next = *(void **)block;
        follow_hint(block);
        memheap_came_back(heap, block);
        int freed = pymalloc_free(heap->state, NULL, block);
        assert(freed);
        (void)freed;
        n++;
        block = next;
    }
    if (n > 0) {
        (void)_Py_atomic_add_ssize(&heap->pending, -n);
        (void)_Py_atomic_add_ssize(&memheaps.stats.remote, n);
    }
}

static Py_NO_INLINE void *
memheap_reclaim_Slow(OMState *state, uint size)
{
    heap_drain(heap_of(state));
    poolp pool = usedpools[size + size];
    if (pool == pool->nextpool) {
        return NULL;
    }
    pymem_block *block = pool->freeblock;
    pymem_block *rest = *(pymem_block **)block;
    pool->ref.count++;
    pool->freeblock = rest;
    if (rest == NULL) {
        pymalloc_pool_extend(pool, size);
    }
    return block;
}

/* The size class `size` has run out: take back what others have freed.  Return
   a block if that helps, else NULL. */
static inline void *
memheap_reclaim(OMState *state, uint size)
{
    if (_Py_atomic_load_ptr_relaxed(&heap_of(state)->remote) == NULL) {
        return NULL;
    }
    return memheap_reclaim_Slow(state, size);
}

/* All blocks of a pool are free: as if none of them had ever been used.  Their list is
   in the order in which they were freed, and leads through memory that is in no cache. */
static void
forget_free_blocks(poolp pool, uint size)
{
    pool->ref.count = 0;
    // A pool in use has one in its list.
    pool->freeblock = (pymem_block *)pool + POOL_OVERHEAD;
    *(pymem_block **)pool->freeblock = NULL;
    pool->nextoffset = POOL_OVERHEAD + INDEX2SIZE(size);
}

int
_PyMemHeap_AllocRun(size_t nbytes, void **blocks, int n)
{
    if (_PyObject.malloc != _PyObject_Malloc || nbytes - 1 >= SMALL_REQUEST_THRESHOLD) {
        return 0;
    }
    OMState *state = get_state();
    uint size = (uint)(nbytes - 1) >> ALIGNMENT_SHIFT;
    poolp pool = usedpools[size + size];
    if (pool == pool->nextpool) {
        pymem_block *block = allocate_from_new_pool(state, size);
        if (block == NULL) {
            return 0;
        }
        pool = POOL_ADDR(block);
        if (pool->ref.count != 1) {
            // Others have freed it; the pool may have no other now.
            blocks[0] = block;
            return 1;
        }
        forget_free_blocks(pool, size);
    }
    int got = 0;
    // Blocks that have been freed, all but the last: a pool in use has one.
    while (got < n && *(pymem_block **)pool->freeblock != NULL) {
        blocks[got++] = pool->freeblock;
        pool->freeblock = *(pymem_block **)pool->freeblock;
    }
    // Those that have never been used need not be touched, but they will be written.
    uint step = INDEX2SIZE(size);
    uint offset = pool->nextoffset;
    while (got < n && offset <= pool->maxnextoffset) {
        blocks[got] = (pymem_block *)pool + offset;
#ifdef __GNUC__
        __builtin_prefetch(blocks[got], 1);
#endif
        got++;
        offset += step;
    }
    pool->nextoffset = offset;
    pool->ref.count += (uint)got;
    return got;
}

/* What has to be taken off the count of a heap's pools.  The mutex is held. */
static Py_ssize_t
memheap_not_counted(OMState *state)
{
    struct _PyMemHeap *heap = heap_of(state);
    return heap->inherited + _Py_atomic_load_ssize_relaxed(&heap->pending);
}

/* What has been freed since their interpreters ended.  The mutex is held. */
static Py_ssize_t
memheaps_orphans_pending(void)
{
    Py_ssize_t n = 0;
    for (struct _PyMemHeap *heap = memheaps.orphans; heap; heap = heap->next) {
        n += _Py_atomic_load_ssize_relaxed(&heap->pending);
    }
    return n;
}


/*-------------------------------------------------------------------------
   Opening and closing */

/* Blocks in pools that haven't come back yet, those on the remote list too. */
static Py_ssize_t
count_live(OMState *state)
{
    Py_ssize_t live = 0;
    for (uint i = 0; i < maxarenas; i++) {
        const struct arena_object *arena = &allarenas[i];
        if (arena->address == 0) {
            continue;
        }
        uintptr_t pool = _Py_SIZE_ROUND_UP(arena->address, POOL_SIZE);
        for (; pool < (uintptr_t)arena->pool_address; pool += POOL_SIZE) {
            live += ((poolp)pool)->ref.count;
        }
    }
    return live;
}

int
_PyMemHeap_Open(PyInterpreterState *interp)
{
    assert(!_Py_IsMainInterpreter(interp));
    assert(interp->obmalloc == NULL);
    _Py_atomic_store_int_relaxed(&memheaps.several, 1);

    memheaps_lock();
    struct _PyMemHeap *heap = memheaps.orphans;
    if (heap != NULL) {
        memheaps.orphans = heap->next;
        memheaps.stats.orphans--;
        memheaps.stats.adopted++;
        interp->obmalloc = heap->state;
    }
    memheaps_unlock();
    if (heap != NULL) {
        return 0;
    }

    struct own_heap *own = PyMem_RawCalloc(1, sizeof(struct own_heap));
    if (own == NULL) {
        return -1;
    }
    own->heap.state = &own->state;
    memheaps_lock();
    memheaps.stats.opened++;
    interp->obmalloc = &own->state;
    init_obmalloc_pools(interp);
    memheaps_unlock();
    return 0;
}

void
_PyMemHeap_Close(PyInterpreterState *interp)
{
    if (!_PyMem_obmalloc_state_on_heap(interp)) {
        return;
    }
    OMState *state = interp->obmalloc;
    struct _PyMemHeap *heap = heap_of(state);

    memheaps_lock();
    Py_ssize_t live = count_live(state);
    interp->runtime->obmalloc.interpreter_leaks +=
        live - heap->inherited + raw_allocated_blocks;
    raw_allocated_blocks = 0;
    heap->inherited = live;
    memheap_end_watch(heap);
    if (live == 0 && heap->nkept == 0) {
        assert(_Py_atomic_load_ptr_relaxed(&heap->remote) == NULL); // MEM-2
        memheaps.stats.released++;
        for (uint i = 0; i < maxarenas; i++) {
            if (allarenas[i].address != 0) {
                memheap_leave_arena(allarenas[i].address);
            }
        }
        free_obmalloc_arenas(interp);
        _PyMem_RawFree(NULL, heap->kept);
        memheap_free_bits(heap);
        PyMem_RawFree(state);
    }
    else {
        heap->next = memheaps.orphans;
        memheaps.orphans = heap;
        memheaps.stats.orphans++;
    }
    interp->obmalloc = NULL;
    memheaps_unlock();
}

void
_PyMemHeap_BeforeFork(void)
{
    PyMutex_LockFlags(&remains_mutex, _Py_LOCK_DONT_DETACH);
    memheaps_lock();
    large_lock_all();
}

void
_PyMemHeap_AfterForkParent(void)
{
    large_unlock_all();
    memheaps_unlock();
    PyMutex_Unlock(&remains_mutex);
}

void
_PyMemHeap_AfterForkChild(void)
{
    _PyMutex_at_fork_reinit(&memheaps.mutex);
    _PyMutex_at_fork_reinit(&remains_mutex);
    large_unlock_in_child();
}


/*-------------------------------------------------------------------------
   Interned strings that outlive their interpreter */

void
_PyMemHeap_KeepInterned(PyInterpreterState *interp, PyObject *str)
{
#ifndef Py_GIL_DISABLED
    if (!_PyMem_obmalloc_state_on_heap(interp)) {
        return;
    }
    struct _PyMemHeap *heap = heap_of(interp->obmalloc);
    if (heap->nkept == heap->kept_size) {
        Py_ssize_t size = heap->kept_size ? 2 * heap->kept_size : 1024;
        PyObject **kept = _PyMem_RawRealloc(NULL, heap->kept, size * sizeof(*kept));
        if (kept == NULL) {
            return;     // One string leaks.
        }
        heap->kept = kept;
        heap->kept_size = size;
    }
    heap->kept[heap->nkept++] = str;
#endif
}

int
_PyMemHeap_InheritInterned(PyInterpreterState *interp, PyObject *dict)
{
    if (!_PyMem_obmalloc_state_on_heap(interp)) {
        return 0;
    }
    struct _PyMemHeap *heap = heap_of(interp->obmalloc);
    while (heap->nkept > 0) {
        PyObject *str = heap->kept[heap->nkept - 1];
        assert(_Py_IsImmortal(str));
        if (PyDict_SetItem(dict, str, str) < 0) {
            return -1;  // The rest stays for the next one.
        }
        _PyASCIIObject_CAST(str)->state.interned = SSTATE_INTERNED_IMMORTAL;
        heap->nkept--;
    }
    return 0;
}


/*-------------------------------------------------------------------------
   Questions */

_PyMemHeap *
_PyMemHeap_Find(const void *block)
{
    return map_get(block);
}

_PyMemHeap *
_PyMemHeap_Current(void)
{
    return heap_of(get_state());
}

Py_ssize_t
_PyMemHeap_Pending(_PyMemHeap *heap)
{
    return _Py_atomic_load_ssize_relaxed(&heap->pending);
}

void
_PyMemHeap_GetStats(_PyMemHeap_Stats *stats)
{
    memheaps_lock();
    stats->opened = memheaps.stats.opened;
    stats->adopted = memheaps.stats.adopted;
    stats->released = memheaps.stats.released;
    stats->orphans = memheaps.stats.orphans;
    stats->remote = _Py_atomic_load_ssize_relaxed(&memheaps.stats.remote);
    stats->remains = _Py_atomic_load_ssize_relaxed(&memheaps.stats.remains);
    stats->arenas = arenas_kept.taken;
    stats->spare = arenas_kept.n;
    stats->yielded = arenas_kept.yielded;
    memheaps_unlock();
}

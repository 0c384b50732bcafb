/* What the machine itself takes: the limits that the benchmarks stand against.

   Built and run by limits.py.  Prints a line for each limit: its name, the seconds that
   each of a few repetitions came to, for one operation.  Linux, C11.

   The argument is the share of the usual work to do, 1 unless it is for a smoke test. */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { REPETITIONS = 5, PAGE = 4096 };

static double share = 1;

static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static long
scaled(long n)
{
    long m = (long)(n * share);
    return m > 10 ? m : 10;
}

static void *
checked(void *p)
{
    if (p == NULL || p == MAP_FAILED) {
        perror("limits");
        exit(1);
    }
    return p;
}

/* --- Two threads take turns ---------------------------------------------- */

static _Atomic uint32_t turn;
static long turns;

static void
wait_by_futex(uint32_t until)
{
    uint32_t seen;
    while ((seen = atomic_load(&turn)) != until) {
        syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
    }
}

static void
pass_by_futex(uint32_t next)
{
    atomic_store(&turn, next);
    syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void
wait_by_spinning(uint32_t until)
{
    while (atomic_load(&turn) != until) {
    }
}

static void
pass_by_spinning(uint32_t next)
{
    atomic_store(&turn, next);
}

static int there[2], back[2];

static void
wait_by_pipe(uint32_t until)
{
    char c;
    if (read(until ? there[0] : back[0], &c, 1) != 1) {
        exit(1);
    }
}

static void
pass_by_pipe(uint32_t next)
{
    if (write(next ? there[1] : back[1], "x", 1) != 1) {
        exit(1);
    }
}

typedef struct {
    void (*wait)(uint32_t until);
    void (*pass)(uint32_t next);
    long turns;
} Meeting;

static const Meeting by_futex = {wait_by_futex, pass_by_futex, 20000};
static const Meeting by_spinning = {wait_by_spinning, pass_by_spinning, 200000};
static const Meeting by_pipe = {wait_by_pipe, pass_by_pipe, 20000};

static void *
other_side(void *arg)
{
    const Meeting *meeting = arg;
    for (long i = 0; i < turns; i++) {
        meeting->wait(1);
        meeting->pass(0);
    }
    return NULL;
}

static double
meet(const void *arg)
{
    const Meeting *meeting = arg;
    pthread_t thread;
    turns = scaled(meeting->turns);
    atomic_store(&turn, 0);
    if (pthread_create(&thread, NULL, other_side, (void *)meeting)) {
        exit(1);
    }
    double start = now();
    for (long i = 0; i < turns; i++) {
        meeting->pass(1);
        meeting->wait(0);
    }
    double seconds = now() - start;
    pthread_join(thread, NULL);
    return seconds / turns;
}

/* --- A thread that has slept for some time is woken ----------------------- */

/* In a virtual machine its core may have gone to sleep with it, which a thread that was
   woken a moment ago does not show. */

static const double slept = 2e-3;               // at least, in seconds
// When the clock stops.
static const int it_runs = 0, waker_goes_on = 1;

static void *
sleeper(void *arg)
{
    for (long i = 0; i < turns; i++) {
        wait_by_futex(1);
        atomic_store(&turn, 0);
    }
    return arg;
}

static double
wake_sleeper(const void *arg)
{
    int until = *(const int *)arg;
    pthread_t thread;
    turns = scaled(200);
    atomic_store(&turn, 0);
    if (pthread_create(&thread, NULL, sleeper, NULL)) {
        exit(1);
    }
    double seconds = 0;
    for (long i = 0; i < turns; i++) {
        double end = now() + slept;
        while (now() < end) {
        }
        double start = now();
        pass_by_futex(1);
        double passed = now();
        wait_by_spinning(0);
        seconds += (until == waker_goes_on ? passed : now()) - start;
    }
    pthread_join(thread, NULL);
    return seconds / turns;
}

/* --- Threads and processes ------------------------------------------------ */

static void *
nothing(void *arg)
{
    return arg;
}

static double
create_thread(const void *arg)
{
    long n = scaled(2000);
    double start = now();
    for (long i = 0; i < n; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL)) {
            exit(1);
        }
        pthread_join(thread, NULL);
    }
    return (now() - start) / n;
}

static double
create_process(const void *arg)
{
    long n = scaled(300);
    double start = now();
    for (long i = 0; i < n; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            _exit(0);
        }
        waitpid(pid, NULL, 0);
    }
    return (now() - start) / n;
}

static double
call_system(const void *arg)
{
    long n = scaled(1000000);
    double start = now();
    for (long i = 0; i < n; i++) {
        syscall(SYS_getppid);
    }
    return (now() - start) / n;
}

/* --- Memory ---------------------------------------------------------------- */

static char *
fresh(size_t size, int advice)
{
    char *p = checked(mmap(NULL, size, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    madvise(p, size, advice);
    return p;
}

/* For each 4 KiB. */
static double
fault(const void *arg)
{
    size_t pages = scaled(32768), size = pages * PAGE;
    char *p = fresh(size, *(const int *)arg);
    double start = now();
    for (size_t i = 0; i < pages; i++) {
        ((volatile char *)p)[i * PAGE] = 1;
    }
    double seconds = now() - start;
    munmap(p, size);
    return seconds / pages;
}

/* For each byte; larger than the caches. */
static double
copy(const void *arg)
{
    size_t size = scaled(64 << 20);
    char *from = checked(malloc(size)), *to = checked(malloc(size));
    memset(from, 1, size);
    memset(to, 2, size);
    double start = now();
    memcpy(to, from, size);
    double seconds = now() - start;
    if (to[size / 2] != 1) {
        exit(1);
    }
    free(from);
    free(to);
    return seconds / size;
}

/* For each object: one field of 48 bytes each, by a pointer, in the order of addresses,
   as a walk over a graph finds objects that were made one after the other. */
static double
walk(const void *arg)
{
    typedef struct { long count, type, rest[4]; } Object;
    size_t n = scaled(1000000);
    Object **table = checked(malloc(n * sizeof(*table)));
    for (size_t i = 0; i < n; i++) {
        table[i] = checked(malloc(sizeof(Object)));
        table[i]->count = 1;
    }
    double start = now();
    for (size_t i = 0; i < n; i++) {
        table[i]->count++;
    }
    double seconds = now() - start;
    for (size_t i = 0; i < n; i++) {
        free(table[i]);
    }
    free(table);
    return seconds / n;
}

/* The least that it takes to copy a list of small objects: read each one, write another
   that looks like it to memory that is there already, and a pointer to that. */
static double
rewrite(const void *arg)
{
    typedef struct { long count, type, tag, digit; } Object;
    size_t n = scaled(1000000);
    Object **table = checked(malloc(n * sizeof(*table)));
    Object **copies = checked(malloc(n * sizeof(*copies)));
    Object *objects = checked(malloc(n * sizeof(*objects)));
    Object *room = checked(malloc(n * sizeof(*room)));
    for (size_t i = 0; i < n; i++) {
        table[i] = &objects[i];
        objects[i] = room[i] = (Object){1, 2, 3, (long)i};
        copies[i] = table[i];       // not NULL: the compiler would not touch the memory
    }
    double start = now();
    for (size_t i = 0; i < n; i++) {
        const Object *from = table[i];
        if (from->count == 1 && from->type == 2) {
            room[i] = (Object){1, from->type, from->tag, from->digit};
            copies[i] = &room[i];
        }
    }
    double seconds = now() - start;
    if (memcmp(room, objects, n * sizeof(*room)) != 0 || copies[n - 1] != &room[n - 1]) {
        exit(1);
    }
    free(table);
    free(copies);
    free(objects);
    free(room);
    return seconds / n;
}

/* --- All of them ----------------------------------------------------------- */

static void
report(const char *name, double (*measure)(const void *), const void *arg)
{
    printf("%s", name);
    measure(arg);
    for (int i = 0; i < REPETITIONS; i++) {
        printf(" %.4g", measure(arg));
    }
    printf("\n");
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    static const int small = MADV_NOHUGEPAGE, huge = MADV_HUGEPAGE;
    if (argc > 1) {
        share = atof(argv[1]);
    }
    if (pipe(there) || pipe(back)) {
        return 1;
    }
    report("syscall", call_system, NULL);
    if (sysconf(_SC_NPROCESSORS_ONLN) > 1) {
        report("spin", meet, &by_spinning);
        report("wake", wake_sleeper, &it_runs);
        report("waker", wake_sleeper, &waker_goes_on);
    }
    report("futex", meet, &by_futex);
    report("pipe", meet, &by_pipe);
    report("thread", create_thread, NULL);
    report("fork", create_process, NULL);
    report("fault", fault, &small);
    report("fault_huge", fault, &huge);
    report("copy", copy, NULL);
    report("walk", walk, NULL);
    report("rewrite", rewrite, NULL);
    return 0;
}

/* Drives a LLVMFuzzerTestOneInput where libFuzzer is missing.
 *
 *     fuzz_x [--seconds N] [--max BYTES] FILE_OR_DIRECTORY...
 *
 * Replays every file, directories with all below them.  With --seconds the
 * files are then changed at random and run for so long; TW_SEED repeats that.
 * A failing input is left in crash-SEED.bin, in the working directory. */
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
/* Optional, as with libFuzzer. */
__attribute__((weak)) size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size,
                        unsigned seed);
/* There when built with a sanitizer. */
__attribute__((weak)) void
__sanitizer_set_death_callback(void (*callback)(void));

struct input {
    char *path;
    uint8_t *data;
    size_t n;
};

static struct input *corpus;
static size_t corpus_len;
static unsigned long long seed;

/* -------------------------------------------------------- a failing input */

static const uint8_t *running;
static size_t running_len;
static char crash_path[64];

static void
save_running(void)
{
    const uint8_t *p = running;
    if (!p)
        return;
    running = NULL;
    FILE *f = fopen(crash_path, "wb");
    if (!f)
        return;
    fwrite(p, 1, running_len, f);
    fclose(f);
    fprintf(stderr, "the input is in %s\n", crash_path);
}

/* Not safe by the book, but the process is lost anyway. */
static void
on_signal(int number)
{
    save_running();
    signal(number, SIG_DFL);
    raise(number);
}

static void
watch_for_death(void)
{
    snprintf(crash_path, sizeof crash_path, "crash-%llu.bin", seed);
    signal(SIGABRT, on_signal);
    if (__sanitizer_set_death_callback) {
        __sanitizer_set_death_callback(save_running);
        return;
    }
    signal(SIGSEGV, on_signal);
    signal(SIGBUS, on_signal);
    signal(SIGFPE, on_signal);
    signal(SIGILL, on_signal);
}

/* ------------------------------------------------------------- the corpus */

static void
die(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void *
must_alloc(void *old, size_t n)
{
    void *p = realloc(old, n ? n : 1);
    if (!p)
        die("memory");
    return p;
}

static void
load_file(const char *path, size_t size)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        die(path);
    uint8_t *data = must_alloc(NULL, size);
    if (fread(data, 1, size, f) != size)
        die(path);
    fclose(f);
    corpus = must_alloc(corpus, (corpus_len + 1) * sizeof *corpus);
    corpus[corpus_len].path = must_alloc(NULL, strlen(path) + 1);
    strcpy(corpus[corpus_len].path, path);
    corpus[corpus_len].data = data;
    corpus[corpus_len].n = size;
    corpus_len++;
}

static void
load(const char *path)
{
    struct stat st;
    if (stat(path, &st) != 0)
        die(path);
    if (!S_ISDIR(st.st_mode)) {
        load_file(path, (size_t)st.st_size);
        return;
    }
    DIR *d = opendir(path);
    if (!d)
        die(path);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.')
            continue;
        size_t room = strlen(path) + strlen(e->d_name) + 2;
        char *inner = must_alloc(NULL, room);
        snprintf(inner, room, "%s/%s", path, e->d_name);
        load(inner);
        free(inner);
    }
    closedir(d);
}

static int
by_path(const void *a, const void *b)
{
    const struct input *x = a, *y = b;
    return strcmp(x->path, y->path);
}

static void
unload(void)
{
    for (size_t i = 0; i < corpus_len; i++) {
        free(corpus[i].path);
        free(corpus[i].data);
    }
    free(corpus);
}

/* ---------------------------------------------------------------- running */

static int64_t
now_ns(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* In processor time: the machine may be busy with others. */
static int64_t slowest_ns;

static void
run(const uint8_t *data, size_t n)
{
    int64_t start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    running = data;
    running_len = n;
    LLVMFuzzerTestOneInput(data, n);
    running = NULL;
    int64_t took = now_ns(CLOCK_PROCESS_CPUTIME_ID) - start;
    if (took > slowest_ns)
        slowest_ns = took;
}

/* --------------------------------------------------------------- changing */

static size_t
below(size_t bound)
{
    return bound ? (size_t)(check_random(&seed) >> 11) % bound : 0;
}

/* Short lengths and offsets are the likelier ones. */
static size_t
some(size_t bound)
{
    return below(2) ? below(bound) : below(bound < 16 ? bound : 16);
}

static uint64_t
edge(void)
{
    static const uint64_t edges[] = {
        0, 1, 2, 7, 8, 0x0c, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff,
        0x10000, 0xfffff, 0x100000, 0x100001, 0x7fffffff, 0x80000000,
        0xfffffff4, 0xffffffff, 0x100000000, 0x7fffffffffffffff,
        0x8000000000000000, 0xffffffffffffffff};
    uint64_t value = edges[below(sizeof edges / sizeof *edges)];
    return below(4) ? value : value + below(5) - 2;
}

/* Makes room for `length` bytes at `at`; how many it got. */
static size_t
insert(uint8_t *data, size_t *size, size_t max_size, size_t at, size_t length)
{
    if (length > max_size - *size)
        length = max_size - *size;
    memmove(data + at + length, data + at, *size - at);
    *size += length;
    return length;
}

static size_t
change_once(uint8_t *data, size_t size, size_t max_size)
{
    size_t at = below(size + 1), length = 1 + some(size - at), i;
    uint64_t value;
    switch (below(11)) {
    case 0: /* a bit */
        if (at < size)
            data[at] ^= (uint8_t)(1 << below(8));
        break;
    case 1: /* a byte */
        if (at < size)
            data[at] = (uint8_t)check_random(&seed);
        break;
    case 2: /* a byte, a little off */
        if (at < size)
            data[at] = (uint8_t)(data[at] + below(9) - 4);
        break;
    case 3: /* a big-endian number of 1 to 8 bytes */
        value = edge();
        length = (size_t)1 << below(4);
        for (i = 0; i < length && at + i < size; i++)
            data[at + i] = (uint8_t)(value >> (8 * (length - 1 - i)));
        break;
    case 4: /* a varint, put in or over what is there */
        value = edge();
        for (length = 1; length < 10 && value >> (7 * length);)
            length++;
        length = below(8) ? length : 1 + below(11);
        if (below(2))
            length = insert(data, &size, max_size, at, length);
        for (i = 0; i < length && at + i < size; i++, value >>= 7)
            data[at + i] =
                (uint8_t)((value & 0x7f) | (i + 1 < length ? 0x80 : 0));
        break;
    case 5: /* less in the middle */
        if (at < size) {
            length = length > size - at ? size - at : length;
            memmove(data + at, data + at + length, size - at - length);
            size -= length;
        }
        break;
    case 6: /* less at the end */
        size = at;
        break;
    case 7: /* random bytes put in */
        length = insert(data, &size, max_size, at, 1 + below(16));
        for (i = 0; i < length; i++)
            data[at + i] = (uint8_t)check_random(&seed);
        break;
    case 8: /* a part of it twice */
        if (at < size) {
            size_t to = below(size + 1), n;
            length = length > size - at ? size - at : length;
            uint8_t part[64];
            n = length < sizeof part ? length : sizeof part;
            memcpy(part, data + at, n);
            n = insert(data, &size, max_size, to, n);
            memcpy(data + to, part, n);
        }
        break;
    case 9: /* a part of another input, put in */
        if (corpus_len) {
            const struct input *other = &corpus[below(corpus_len)];
            size_t from = below(other->n + 1);
            length = 1 + some(other->n - from);
            length = length > other->n - from ? other->n - from : length;
            length = insert(data, &size, max_size, at, length);
            if (length)
                memcpy(data + at, other->data + from, length);
        }
        break;
    case 10: /* one byte many times */
        length = insert(data, &size, max_size, at, 1 + some(64));
        if (length)
            memset(data + at, (int)below(256), length);
    }
    return size;
}

size_t
LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size)
{
    for (size_t times = 1 + some(8); times > 0; times--)
        size = change_once(data, size, max_size);
    return size;
}

static unsigned long long
change_and_run(long seconds, size_t max_size)
{
    int64_t end = now_ns(CLOCK_MONOTONIC) + (int64_t)seconds * 1000000000;
    uint8_t *data = must_alloc(NULL, max_size);
    unsigned long long runs = 0;
    size_t size = 0;
    for (; now_ns(CLOCK_MONOTONIC) < end; runs++) {
        /* From a file, or some steps further from the last one. */
        if (corpus_len && below(4)) {
            const struct input *from = &corpus[below(corpus_len)];
            size = from->n < max_size ? from->n : max_size;
            if (size)
                memcpy(data, from->data, size);
        }
        if (LLVMFuzzerCustomMutator)
            size = LLVMFuzzerCustomMutator(data, size, max_size,
                                           (unsigned)check_random(&seed));
        else
            size = LLVMFuzzerMutate(data, size, max_size);
        /* What is watched is a copy of the exact size. */
        uint8_t *exact = must_alloc(NULL, size);
        if (size)
            memcpy(exact, data, size);
        run(exact, size);
        free(exact);
    }
    free(data);
    return runs;
}

int
main(int argc, char **argv)
{
    long seconds = 0;
    size_t max_size = 4096;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--seconds") == 0 && i + 1 < argc)
            seconds = strtol(argv[++i], NULL, 10);
        else if (strcmp(argv[i], "--max") == 0 && i + 1 < argc)
            max_size = (size_t)strtoull(argv[++i], NULL, 10);
        else
            load(argv[i]);
    }
    if (corpus_len)
        qsort(corpus, corpus_len, sizeof *corpus, by_path);
    seed = check_seed();
    watch_for_death();
    for (size_t i = 0; i < corpus_len; i++)
        run(corpus[i].data, corpus[i].n);
    fprintf(stderr, "%zu files, slowest %lld us\n", corpus_len,
            (long long)slowest_ns / 1000);
    if (seconds > 0) {
        slowest_ns = 0;
        unsigned long long runs = change_and_run(seconds, max_size);
        fprintf(stderr, "%llu changed inputs in %ld s, slowest %lld us\n",
                runs, seconds, (long long)slowest_ns / 1000);
    }
    unload();
    return corpus_len || seconds > 0 ? 0 : 2;
}

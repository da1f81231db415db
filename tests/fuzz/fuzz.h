/* What the fuzzers share: the input as a script.  Their oracles are MUST of
 * check.h, which aborts. */
#ifndef FUZZ_H
#define FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Zeros once it is used up. */
struct script {
    const uint8_t *data;
    size_t n;
};

static inline uint8_t
next_byte(struct script *script)
{
    if (!script->n)
        return 0;
    script->n--;
    return *script->data++;
}

/* A size that is often small, sometimes at a power of two, at most `most`. */
static inline size_t
next_size(struct script *script, size_t most)
{
    uint8_t b = next_byte(script);
    size_t n = b < 128   ? (size_t)b
               : b < 224 ? (size_t)b << (b % 8)
                         : ((size_t)1 << (b % 18)) + next_byte(script) - 128;
    return n > most ? most : n;
}

#endif

/* Fuzzes the write stack in one thread with scripted I/O.  The input chooses
 * what is pushed, what every write answers, when what is parked is resumed,
 * when the owner connects or fails, and pushes that come while one is being
 * written.
 *
 * Oracles: the owner's (owner.h); a parked role is resumed by the reason it
 * waits for and by nothing else. */
#include "owner.h"

#include <errno.h>

#include "counters.h"
#include "fuzz.h"

enum {
    NODES = 512,
    WIRE = 4 << 20,
    OPS = 600,
    DEPTH = 3,
    PIECE = 5000, /* so that a message has several */
};

static struct script script;
static uint8_t wire[WIRE];
static size_t total; /* of all that was pushed */
static int depth;

static void
push(size_t size, int cork, int ending)
{
    if (o.pushed == NODES || total + size > WIRE || o.error)
        return;
    total += size;
    owner_push(size, cork, ending, PIECE);
}

/* What other threads do while this one writes or completes. */
static void
meanwhile(void)
{
    if (depth >= DEPTH || next_byte(&script) % 4)
        return;
    depth++;
    push(next_size(&script, 70000), next_byte(&script) & 1, 0);
    depth--;
}

static ssize_t
answer(void)
{
    uint8_t answer = next_byte(&script);
    meanwhile();
    if (answer >= 240)
        return answer == 255 ? -EPIPE : TWI_AGAIN;
    return answer >= 128 ? (ssize_t)next_size(&script, WIRE) : WIRE;
}

static int
unwanted(void)
{
    return next_byte(&script) == 77;
}

static const struct owner_hooks hooks = {
    .answer = answer, .unwanted = unwanted, .done = meanwhile};

static void
resume(enum twi_wstate state)
{
    uint32_t was = load_seq_cst(&o.ws.state);
    int taken = twi_wstack_take(&o.ws, state);
    MUST(taken == (was == state));
    if (taken)
        twi_wstack_run(&o.ws);
}

static void
step(void)
{
    uint8_t op = next_byte(&script);
    switch (op % 16) {
    case 10:
    case 11:
        o.armed = 0;
        resume(TWI_W_POLLOUT);
        break;
    case 12:
        o.readied = 0;
        resume(TWI_W_READY);
        break;
    case 13:
        resume(TWI_W_CORKED);
        break;
    case 14:
        o.connected = 1;
        resume(TWI_W_CONNECTING);
        break;
    case 15:
        if (op == 255 && !o.error) {
            o.error = ECONNRESET;
            twi_wstack_failed(&o.ws);
        } else
            push(next_size(&script, 70000), 0,
                 op == 239   ? CLOSES
                 : op == 223 ? LAST
                             : 0);
        break;
    default:
        push(next_size(&script, 70000), op & 16, 0);
    }
}

/* The rest of the world does what it has to. */
static void
settle(void)
{
    script.n = 0; /* every write takes all from here on */
    o.connected = 1;
    for (int i = 0; i < 4 * NODES && !twi_wstack_idle(&o.ws); i++) {
        enum twi_wstate state = (enum twi_wstate)load_seq_cst(&o.ws.state);
        MUST(state != TWI_W_RUNNING);
        MUST(state != TWI_W_POLLOUT || o.armed || o.error);
        MUST(state != TWI_W_READY || o.readied || o.error);
        resume(state);
    }
    MUST(twi_wstack_idle(&o.ws));
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    MUST(!twi_counters_open());
    script = (struct script){data, size};
    total = 0;
    owner_begin(&hooks, wire, WIRE);
    o.connected = !(next_byte(&script) & 1);
    for (int i = 0; i < OPS && script.n; i++)
        step();
    settle();
    owner_is_done();
    return 0;
}

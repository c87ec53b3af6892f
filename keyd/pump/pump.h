/* The native half of the tick: for the hottest commands on quiet connections it reads, decodes, computes, encodes and
 * writes, for all ready connections as one batch. Everything else it hands up, untouched, for Python to do.
 *
 * It knows the fixed shapes of three requests and their good answers. A request that is not exactly of such a shape,
 * whose key it has not been told, or whose answer would be a refusal, is not its business: the bytes go to Python, and
 * Python decides, answers, logs. So there is one set of rules, and this is a short cut through it.
 *
 * No answer leaves without a record: computing and sending are two calls, and between them Python writes the uses that
 * the first has collected into the journal. If it cannot, the second sends nothing, and all that was read is Python's.
 */
#ifndef KEYD_PUMP_H
#define KEYD_PUMP_H

#include <stddef.h>
#include <stdint.h>

#include "../crypto/native/card.h"
#include "seen.h"

/* As Python's MAX_CHUNK: what is read of a connection in a tick, and can be handed up at once. */
#define PUMP_READ_BYTES (64 * 1024)

/* More requests than one read can hold: the shortest of them has 80 bytes. */
#define PUMP_READ_REQUESTS 1024

/* Requests computed as one batch. Larger ticks are computed in parts. */
#define PUMP_MAX_TASKS 4096

/* Connections in one part of a tick; each may read PUMP_READ_BYTES. */
#define PUMP_MAX_PEERS 64

/* Readiness taken at once; the rest is reported again. */
#define PUMP_MAX_EVENTS 1024

/* One use record of the journal: method and status (2 bytes each), connection, terminal and key (4 bytes each), all
 * big-endian, and the card's identifier (16 bytes), as much of it as the journal is to have. */
#define PUMP_USE_BYTES 32
#define PUMP_CARD_ID_BYTES 16

/* The longest good answer: [1, msgid, nil, [reply 16, APDU 21, [REGION_MISMATCH]]]. */
#define PUMP_MAX_ANSWER 80

typedef enum { PUMP_INTERNAL_AUTHENTICATE = 0, PUMP_INTERNAL_CRYPTOGRAM, PUMP_EXTERNAL_AUTHENTICATE, PUMP_KINDS } pump_kind;

/* Numbers of sets of roles: 16 bits of what names a place. */
#define PUMP_ROLE_SETS (1u << 16)

/* What a request must name, exactly, and who must ask, for the pump to know its key. Generation and algorithm are at
 * most 3. */
typedef struct {
    uint16_t roles; /* The number of the asker's set of roles: what one set may, another may not. */
    uint8_t kind;
    uint8_t generation;
    uint16_t address;
    uint8_t algorithm;
    uint8_t region[3];
} pump_place;

typedef struct {
    arena_handle city;
    arena_algorithm algorithm;
    uint8_t key_id;      /* P2 of EXTERNAL AUTHENTICATE. */
    uint32_t key_number; /* The key's in the journal. */
} pump_route;

/* Who is at the other end of a connection. The first two are the journal's numbers. */
typedef struct {
    uint32_t connection;
    uint32_t terminal;
    uint16_t roles;
    uint32_t region;    /* Where the terminal stands, in as many digits as are compared; 0 if that is not watched. */
    uint32_t allowance; /* How many answers it may have before Python must look at its rates again. */
} pump_asker;

/* Something for Python: an event that is not the pump's, or what a connection said beyond the hot requests. */
typedef struct {
    int fd;
    uint32_t mask;        /* An event as epoll gave it, or 0. */
    int is_reset;         /* The connection broke. */
    const uint8_t *data;  /* Read, and not the pump's; until the next part of the tick. */
    size_t length;
    const uint8_t *unsent; /* Answers that did not leave. */
    size_t unsent_length;
    size_t held; /* How many answers the unsent are, if they were to be held; else 0. */
} pump_rest;

/* What becomes of the answers of a part: they leave; or Python keeps them until the disk has their records; or there
 * are none, because they could not be recorded. */
typedef enum { PUMP_SEND = 0, PUMP_HOLD, PUMP_REFUSE } pump_verdict;

typedef struct pump pump;

/* How tasks are computed: card.h's functions, handed in because they live in another extension. */
typedef struct {
    void (*measure)(card_task *task);
    void (*compute)(card_task *tasks, size_t n);
} pump_cards;

pump *pump_new(int epoll_fd, pump_cards cards);
void pump_free(pump *p);

/* Collect uses from now on: the numbers of the methods by kind, and how many bytes of a card's identifier to keep, at
 * most PUMP_CARD_ID_BYTES; the others are zeros. */
void pump_record(pump *p, const uint16_t methods[PUMP_KINDS], size_t card_id_bytes);

/* Hand up requests for cards that were seen in another region within so many seconds, and note where all others are.
 * Without this call, or with NULL, nobody watches. */
void pump_watch(pump *p, seen *cards, uint32_t window_seconds);

/* Let the pump serve a connection, or no more. It is to be admitted only while Python holds nothing of it: no bytes
 * unparsed, no answers unsent (held ones are not in the way: a pump whose answers are held sends none), and an
 * authenticated terminal. Returns 0, or -1 without memory. */
int pump_admit(pump *p, int fd, pump_asker asker);
/* Returns what is left of its allowance. */
uint32_t pump_dismiss(pump *p, int fd);

/* Tell the pump a key. If it knows as many as it can, it lets go of all the others first and returns -1, else 0: most of
 * so many name keys that are long gone, and what is still asked for is soon learnt again. */
int pump_learn(pump *p, pump_place place, pump_route route);
void pump_forget(pump *p);

/* Take readiness from epoll without waiting. Returns the number of events. */
int pump_poll(pump *p);

/* Read, decode and compute the next part of what was polled. Returns the number of uses that are to be recorded, which
 * stand in *uses, in the order of the answers of each connection, until the next call; 0 without pump_record. With
 * `hands_up` no key is touched, and everything that is read will be handed up. */
size_t pump_part(pump *p, int hands_up, const uint8_t **uses);

/* Encode and send the answers of that part. Returns the number of rests, which stand in *rests until the next call of
 * pump_part; *is_done is set after the last part. */
size_t pump_finish(pump *p, pump_verdict verdict, const pump_rest **rests, int *is_done);

/* Counted since the last call of pump_poll, by kind, and how long was computed, in nanoseconds. */
const uint64_t *pump_counts(const pump *p);
uint64_t pump_compute_nanoseconds(const pump *p);

/* CLOCK_MONOTONIC nanoseconds when a descriptor was last served, 0 if never. It is kept while a connection is dismissed
 * for a while, and so may be an earlier connection's: then it lies before this one was opened. */
uint64_t pump_served_at(const pump *p, int fd);

/* The last request that was answered well and who asked it, for the sampled log; its length is 0 if there is none. */
const uint8_t *pump_last_request(const pump *p, size_t *length, int *fd);

#endif

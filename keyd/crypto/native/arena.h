/* Locked key memory: the only place where keyd keeps a block cipher key.
 *
 * One mapping of a size given once, with inaccessible pages on either side. It is locked in memory, left out of core
 * dumps and empty in a forked child. It holds cells, each a key with its schedule between two canaries, and a few
 * scratch regions for what a computation needs on its way. A cell is named by a handle with a generation that never
 * comes twice in a process or its children: a handle that outlived its key is refused, whoever has the cell now.
 *
 * Any thread may call anything here. A key is pinned while it is used; a key that is freed meanwhile takes no new
 * pins at once and is wiped with its last one. Nothing here needs Python or waits for it.
 */
#ifndef KEYD_ARENA_H
#define KEYD_ARENA_H

#include <stddef.h>
#include <stdint.h>

#include "des.h"
#include "sm4.h"

/* Room for some 12,000 keys (a ring has about 300 and 4,096 cached cities), and half of the 8 MiB that Linux lets
 * anybody lock. */
#define ARENA_DEFAULT_BYTES ((size_t)4 << 20)

/* The index is the lower 16 bits of a handle. */
#define ARENA_MAX_CELLS 65536

#define ARENA_KEY_BYTES 16

/* 14 KiB of lanes in card.c, rounded up to whole pages. */
#define ARENA_SCRATCH_BYTES 16384

/* One for each thread that may compute at once; one more thread waits. Few machines give keyd more cores. */
#define ARENA_SCRATCHES 8

typedef uint64_t arena_handle; /* 0 is never one. */

typedef enum {
    ARENA_OK = 0,
    ARENA_GONE,        /* The key was freed or wiped, or is the process's that forked this one. */
    ARENA_FULL,        /* No cell is free. */
    ARENA_CORRUPT,     /* A canary was overwritten; the cell is never used again. */
    ARENA_NOT_LOCKED,  /* mlock was refused: RLIMIT_MEMLOCK is too small. */
    ARENA_NO_MEMORY,   /* mmap, mprotect or madvise failed. */
    ARENA_IS_OPEN,     /* It is open already, with another size. */
    ARENA_BAD_SIZE,    /* The size has no room for a cell, or for more than ARENA_MAX_CELLS. */
    ARENA_NO_RANDOM    /* The kernel gave no random bytes. */
} arena_status;

typedef enum { ARENA_SM4 = 1, ARENA_TDES = 2, ARENA_DES = 3 } arena_algorithm;

typedef struct {
    _Alignas(64) uint64_t canary_before;
    uint64_t generation; /* 0: free, or freed while it was pinned. */
    uint32_t pins;
    uint32_t next_free;
    uint32_t algorithm;
    uint32_t is_lost; /* A canary was overwritten. */
    uint8_t key[ARENA_KEY_BYTES];
    union {
        sm4_schedule sm4;
        des_schedule des[2]; /* 3DES: left and right; DES: the first. */
    } schedule;
    uint64_t canary_after;
} arena_cell;

typedef struct {
    int is_open;
    uintptr_t address; /* Of the first cell; guards and scratch regions are not counted in. */
    size_t bytes;      /* Locked in all. */
    size_t cell_bytes;
    size_t used;
    size_t capacity;
} arena_counters;

/* Open the arena with so many bytes, rounded up to whole pages. Without this, the first key opens it with
 * ARENA_DEFAULT_BYTES. A second call with the same size changes nothing. */
arena_status arena_open(size_t bytes);

/* Open the arena with ARENA_DEFAULT_BYTES if it is not open: for what needs a scratch region before there is a key. */
arena_status arena_open_if_closed(void);

/* Put a key into a free cell and make its schedule: 16 bytes for SM4 and 3DES, 8 for DES. */
arena_status arena_take(arena_algorithm algorithm, const uint8_t *key, arena_handle *handle);

/* Wipe the key, at once or with its last pin. */
arena_status arena_free(arena_handle handle);

/* Hold a key for use; between pin and unpin the cell is there and does not change. Unpin soon, and without Python. */
arena_status arena_pin(arena_handle handle, const arena_cell **cell);
void arena_unpin(const arena_cell *cell);

/* The same for n handles at once. What is refused leaves NULL in cells and its reason in statuses. */
void arena_pin_each(const arena_handle *handles, const arena_cell **cells, arena_status *statuses, size_t n);
void arena_unpin_each(const arena_cell *const *cells, size_t n);

/* Borrow a scratch region of ARENA_SCRATCH_BYTES, all zero; waits for one. Giving it back wipes as many bytes as were
 * used: wiping all of them takes longer than one card's keys.
 * Returns NULL if the arena is not open, or being wiped. */
void *arena_scratch_take(void);
void arena_scratch_give(void *scratch, size_t used);

/* Wipe every key and the whole arena, waiting for running computations. Every handle is then gone; the arena stays
 * open for new keys. While it waits, nothing new begins: other threads are refused as if their key were gone. */
void arena_wipe_all(void);

arena_counters arena_count(void);

/* Fill with random bytes from the kernel. */
arena_status arena_random(void *memory, size_t bytes);

/* Overwrite with zeros, even if the compiler thinks that nobody will look. */
void arena_wipe(void *memory, size_t bytes);

size_t arena_key_bytes(arena_algorithm algorithm);

#endif

#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#define NO_CELL UINT32_MAX

#define INDEX_BITS 16
#define INDEX_MASK ((UINT64_C(1) << INDEX_BITS) - 1)

/* Generations have the other 48 bits: at a million keys a second they last nine years. Then the arena is full. */
#define MAX_GENERATION (UINT64_MAX >> INDEX_BITS)

_Static_assert(ARENA_MAX_CELLS - 1 <= INDEX_MASK, "a handle's index names every cell");
_Static_assert(ARENA_SCRATCHES < 32, "one bit each");
_Static_assert(ARENA_SCRATCH_BYTES % _Alignof(arena_cell) == 0, "cells begin behind the scratch regions");

/* What is here is no secret but must survive a fork; what must not survive it is in the mapping. */
static struct {
    pthread_mutex_t mutex;
    pthread_cond_t is_quieter; /* A scratch region came back, or the last pin went. */
    int has_handlers;
    int is_open;
    int is_inherited; /* Opened by the process that forked this one: empty, and of no use. */
    int is_wiped_by_kernel;
    uint8_t *mapping;
    size_t mapping_bytes;
    uint8_t *memory; /* Between the guards: scratch regions, then cells. */
    size_t bytes;
    arena_cell *cells;
    uint32_t capacity;
    uint32_t used;
    uint32_t first_free;
    uint32_t pins;
    uint32_t scratches_lent; /* One bit each. */
    uint32_t sealing;        /* How many threads are in arena_wipe_all. */
    uint64_t canary;
    uint64_t last_generation;
} arena = {.mutex = PTHREAD_MUTEX_INITIALIZER, .is_quieter = PTHREAD_COND_INITIALIZER};

void arena_wipe(void *memory, size_t bytes)
{
    explicit_bzero(memory, bytes);
}

arena_status arena_random(void *memory, size_t bytes)
{
    uint8_t *at = memory;

    /* More than 256 bytes may come in pieces, and a signal may come in between. */
    while (bytes) {
        ssize_t got = getrandom(at, bytes, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return ARENA_NO_RANDOM;
        at += got;
        bytes -= (size_t)got;
    }
    return ARENA_OK;
}

size_t arena_key_bytes(arena_algorithm algorithm)
{
    return algorithm == ARENA_DES ? 8 : 16;
}

static int is_ours(void)
{
    return arena.is_open && !arena.is_inherited;
}

/* While somebody seals, nothing new begins: with no pins and no keys to come, what runs is soon done. */
static int is_usable(void)
{
    return is_ours() && !arena.sealing;
}

/* Each cell has its own canary, so that one cell copied over another shows. */
static uint64_t canary_of(const arena_cell *cell)
{
    return arena.canary ^ (uint64_t)(uintptr_t)cell;
}

static int is_intact(const arena_cell *cell)
{
    return cell->canary_before == canary_of(cell) && cell->canary_after == ~canary_of(cell);
}

static void lay_out(void)
{
    for (uint32_t i = 0; i < arena.capacity; i++) {
        arena_cell *cell = &arena.cells[i];
        cell->canary_before = canary_of(cell);
        cell->canary_after = ~canary_of(cell);
        cell->next_free = i + 1 < arena.capacity ? i + 1 : NO_CELL;
    }
    arena.first_free = 0;
    arena.used = 0;
}

/* The mutex is held across a fork, so that the child never finds the arena half changed. */
static void before_fork(void)
{
    pthread_mutex_lock(&arena.mutex);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&arena.mutex);
}

static void after_fork_in_child(void)
{
    pthread_mutex_init(&arena.mutex, NULL);
    pthread_cond_init(&arena.is_quieter, NULL);
    if (is_ours() && !arena.is_wiped_by_kernel)
        arena_wipe(arena.memory, arena.bytes);
    arena.is_inherited = 1;
}

/* At exit nobody is waited for: what other threads still compute goes nowhere. */
static void at_exit(void)
{
    pthread_mutex_lock(&arena.mutex);
    if (is_ours()) {
        arena_wipe(arena.memory, arena.bytes);
        arena.is_open = 0;
    }
    pthread_mutex_unlock(&arena.mutex);
}

static arena_status register_handlers(void)
{
    if (arena.has_handlers)
        return ARENA_OK;
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) || atexit(at_exit))
        return ARENA_NO_MEMORY;
    arena.has_handlers = 1;
    return ARENA_OK;
}

static arena_status map_between_guards(size_t bytes, size_t page)
{
    arena.mapping_bytes = bytes + 2 * page;
    arena.mapping = mmap(NULL, arena.mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena.mapping == MAP_FAILED)
        return ARENA_NO_MEMORY;
    arena.memory = arena.mapping + page;
    if (mprotect(arena.memory, bytes, PROT_READ | PROT_WRITE))
        return ARENA_NO_MEMORY;
#ifdef MADV_DONTDUMP
    if (madvise(arena.memory, bytes, MADV_DONTDUMP))
        return ARENA_NO_MEMORY;
#endif
    /* Kernels before 4.14 refuse; then the child's handler wipes. */
    arena.is_wiped_by_kernel = 0;
#ifdef MADV_WIPEONFORK
    arena.is_wiped_by_kernel = !madvise(arena.memory, bytes, MADV_WIPEONFORK);
#endif
    /* Last, since it takes the pages in: whatever fails above costs nothing. */
    return mlock(arena.memory, bytes) ? ARENA_NOT_LOCKED : ARENA_OK;
}

static arena_status open_arena(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t scratch = (size_t)ARENA_SCRATCHES * ARENA_SCRATCH_BYTES;

    if (bytes > SIZE_MAX - 3 * page)
        return ARENA_BAD_SIZE;
    bytes = (bytes + page - 1) / page * page;
    if (is_ours())
        return bytes == arena.bytes ? ARENA_OK : ARENA_IS_OPEN;
    if (bytes < scratch + sizeof(arena_cell) || (bytes - scratch) / sizeof(arena_cell) > ARENA_MAX_CELLS)
        return ARENA_BAD_SIZE;
    if (arena.is_inherited) {
        if (arena.is_open)
            munmap(arena.mapping, arena.mapping_bytes);
        arena.is_open = arena.is_inherited = 0;
        arena.pins = arena.scratches_lent = arena.sealing = 0;
    }
    arena_status status = arena_random(&arena.canary, sizeof arena.canary);
    if (status == ARENA_OK)
        status = register_handlers();
    if (status == ARENA_OK) {
        status = map_between_guards(bytes, page);
        if (status != ARENA_OK && arena.mapping != MAP_FAILED)
            munmap(arena.mapping, arena.mapping_bytes);
    }
    if (status != ARENA_OK)
        return status;
    arena.bytes = bytes;
    arena.cells = (arena_cell *)(void *)(arena.memory + scratch);
    arena.capacity = (uint32_t)((bytes - scratch) / sizeof(arena_cell));
    lay_out();
    arena.is_open = 1;
    return ARENA_OK;
}

arena_status arena_open(size_t bytes)
{
    pthread_mutex_lock(&arena.mutex);
    arena_status status = open_arena(bytes);
    pthread_mutex_unlock(&arena.mutex);
    return status;
}

arena_status arena_open_if_closed(void)
{
    pthread_mutex_lock(&arena.mutex);
    arena_status status = is_ours() ? ARENA_OK : open_arena(ARENA_DEFAULT_BYTES);
    pthread_mutex_unlock(&arena.mutex);
    return status;
}

/* Empty a cell that nobody has pinned. A lost one is emptied too, but never handed out again. */
static void empty(arena_cell *cell)
{
    arena_wipe(cell->key, sizeof cell->key);
    arena_wipe(&cell->schedule, sizeof cell->schedule);
    cell->algorithm = 0;
    if (cell->is_lost)
        return;
    cell->next_free = arena.first_free;
    arena.first_free = (uint32_t)(cell - arena.cells);
}

static void retire(arena_cell *cell)
{
    cell->generation = 0;
    arena.used--;
    if (!cell->pins)
        empty(cell);
}

static arena_status find(arena_handle handle, arena_cell **found)
{
    uint64_t index = handle & INDEX_MASK, generation = handle >> INDEX_BITS;

    if (!is_usable() || index >= arena.capacity || !generation)
        return ARENA_GONE;
    arena_cell *cell = &arena.cells[index];
    if (cell->generation != generation)
        return ARENA_GONE;
    if (!is_intact(cell)) {
        cell->is_lost = 1;
        retire(cell);
        return ARENA_CORRUPT;
    }
    *found = cell;
    return ARENA_OK;
}

static void expand(arena_cell *cell)
{
    switch ((arena_algorithm)cell->algorithm) {
    case ARENA_SM4:
        sm4_current()->expand(cell->key, &cell->schedule.sm4, 1);
        break;
    case ARENA_TDES:
        des_expand(cell->key + 8, cell->schedule.des[1]);
        /* fall through */
    case ARENA_DES:
        des_expand(cell->key, cell->schedule.des[0]);
        break;
    }
}

arena_status arena_take(arena_algorithm algorithm, const uint8_t *key, arena_handle *handle)
{
    arena_cell *cell;

    *handle = 0;
    pthread_mutex_lock(&arena.mutex);
    arena_status status = is_ours() ? ARENA_OK : open_arena(ARENA_DEFAULT_BYTES);
    if (status != ARENA_OK)
        goto done;
    if (!is_usable()) {
        status = ARENA_GONE;
        goto done;
    }
    if (arena.first_free == NO_CELL || arena.last_generation == MAX_GENERATION) {
        status = ARENA_FULL;
        goto done;
    }
    cell = &arena.cells[arena.first_free];
    if (!is_intact(cell) || (cell->next_free >= arena.capacity && cell->next_free != NO_CELL)) {
        /* The list of free cells cannot be trusted any more. What is in use still can. */
        arena.first_free = NO_CELL;
        status = ARENA_CORRUPT;
        goto done;
    }
    arena.first_free = cell->next_free;
    cell->algorithm = (uint32_t)algorithm;
    memcpy(cell->key, key, arena_key_bytes(algorithm));
    expand(cell);
    cell->generation = ++arena.last_generation;
    arena.used++;
    *handle = cell->generation << INDEX_BITS | (uint64_t)(cell - arena.cells);
done:
    pthread_mutex_unlock(&arena.mutex);
    return status;
}

arena_status arena_free(arena_handle handle)
{
    arena_cell *cell;

    pthread_mutex_lock(&arena.mutex);
    arena_status status = find(handle, &cell);
    if (status == ARENA_OK)
        retire(cell);
    pthread_mutex_unlock(&arena.mutex);
    return status;
}

static arena_status pin(arena_handle handle, const arena_cell **pinned)
{
    arena_cell *cell;
    arena_status status = find(handle, &cell);

    *pinned = NULL;
    if (status == ARENA_OK) {
        cell->pins++;
        arena.pins++;
        *pinned = cell;
    }
    return status;
}

static void unpin(const arena_cell *pinned)
{
    arena_cell *cell = &arena.cells[pinned - arena.cells];

    if (!--cell->pins && !cell->generation)
        empty(cell);
    if (!--arena.pins)
        pthread_cond_broadcast(&arena.is_quieter);
}

arena_status arena_pin(arena_handle handle, const arena_cell **cell)
{
    pthread_mutex_lock(&arena.mutex);
    arena_status status = pin(handle, cell);
    pthread_mutex_unlock(&arena.mutex);
    return status;
}

void arena_unpin(const arena_cell *cell)
{
    arena_unpin_each(&cell, 1);
}

void arena_pin_each(const arena_handle *handles, const arena_cell **cells, arena_status *statuses, size_t n)
{
    pthread_mutex_lock(&arena.mutex);
    for (size_t i = 0; i < n; i++)
        statuses[i] = pin(handles[i], &cells[i]);
    pthread_mutex_unlock(&arena.mutex);
}

void arena_unpin_each(const arena_cell *const *cells, size_t n)
{
    pthread_mutex_lock(&arena.mutex);
    for (size_t i = 0; i < n; i++)
        if (cells[i])
            unpin(cells[i]);
    pthread_mutex_unlock(&arena.mutex);
}

void *arena_scratch_take(void)
{
    void *scratch = NULL;

    pthread_mutex_lock(&arena.mutex);
    while (is_usable() && arena.scratches_lent == (UINT32_C(1) << ARENA_SCRATCHES) - 1)
        pthread_cond_wait(&arena.is_quieter, &arena.mutex);
    if (is_usable()) {
        unsigned i = 0;
        while (arena.scratches_lent >> i & 1)
            i++;
        arena.scratches_lent |= UINT32_C(1) << i;
        scratch = arena.memory + (size_t)i * ARENA_SCRATCH_BYTES;
    }
    pthread_mutex_unlock(&arena.mutex);
    return scratch;
}

void arena_scratch_give(void *scratch, size_t used)
{
    arena_wipe(scratch, used);
    pthread_mutex_lock(&arena.mutex);
    arena.scratches_lent &= ~(UINT32_C(1) << ((size_t)((uint8_t *)scratch - arena.memory) / ARENA_SCRATCH_BYTES));
    pthread_cond_broadcast(&arena.is_quieter);
    pthread_mutex_unlock(&arena.mutex);
}

void arena_wipe_all(void)
{
    pthread_mutex_lock(&arena.mutex);
    if (is_ours()) {
        arena.sealing++;
        for (uint32_t i = 0; i < arena.capacity; i++)
            if (arena.cells[i].generation)
                retire(&arena.cells[i]);
        while (arena.pins || arena.scratches_lent)
            pthread_cond_wait(&arena.is_quieter, &arena.mutex);
        arena_wipe(arena.memory, arena.bytes);
        lay_out();
        arena.sealing--;
    }
    pthread_mutex_unlock(&arena.mutex);
}

arena_counters arena_count(void)
{
    arena_counters counters = {0};

    pthread_mutex_lock(&arena.mutex);
    if (is_ours()) {
        counters.is_open = 1;
        counters.address = (uintptr_t)arena.cells;
        counters.bytes = arena.bytes;
        counters.cell_bytes = sizeof(arena_cell);
        counters.used = arena.used;
        counters.capacity = arena.capacity;
    }
    pthread_mutex_unlock(&arena.mutex);
    return counters;
}

#include "card.h"

#include <string.h>

#include "key.h"
#include "verdict.h"

/* Lanes computed side by side: a multiple of every path's, and small enough that keys, schedules and blocks stay in the
 * first-level cache. */
#define LANES 64

/* A DES block takes as long as this many SM4 blocks in lanes, roughly. */
#define DES_WORK 20

typedef uint8_t block16[SM4_BLOCK];

typedef struct {
    block16 card_keys[LANES];
    block16 session_keys[LANES];
    block16 blocks[LANES];
    block16 results[LANES];
    block16 chains[LANES];
    sm4_schedule schedules[LANES]; /* Last: cryptograms do without. */
} sm4_scratch;

typedef struct {
    uint8_t card_key[ARENA_KEY_BYTES];
    uint8_t session_key[DES_BLOCK];
    uint8_t block[DES_BLOCK];
    uint8_t chain[DES_BLOCK];
    des_schedule card[2];
    des_schedule session;
} des_scratch;

_Static_assert(sizeof(sm4_scratch) <= ARENA_SCRATCH_BYTES, "a batch of lanes fits into a scratch region");
_Static_assert(sizeof(des_scratch) <= ARENA_SCRATCH_BYTES, "a card's keys fit into a scratch region");
_Static_assert(CARD_MAX_PROTECTED_DATA + CARD_MAC_BYTES <= 255, "Lc is one byte");

static int is_protect(const card_task *task)
{
    return task->kind == CARD_PROTECT || task->kind == CARD_PROTECT_ENCIPHERED;
}

/* LD ‖ data, padded only if that is not whole blocks. */
static size_t enciphered_length(const card_task *task)
{
    size_t size = key_block_bytes(task->algorithm);

    return (1 + task->data.length + size - 1) / size * size;
}

static size_t protected_length(const card_task *task)
{
    return task->kind == CARD_PROTECT_ENCIPHERED ? enciphered_length(task) : task->data.length;
}

static card_result measure(card_task *task)
{
    size_t factor = task->session_factor.length;

    if (task->diversifier.length != CARD_DIVERSIFIER_BYTES)
        return CARD_DIVERSIFIER_LENGTH;
    if (task->kind != CARD_TAC && factor != 4 && factor != 8 && !(factor == 16 && task->algorithm == ARENA_SM4))
        return CARD_SESSION_FACTOR_LENGTH;
    task->out_length = CARD_MAC_BYTES;
    switch (task->kind) {
    case CARD_CRYPTOGRAM:
        if (task->data.length != CARD_CHALLENGE_BYTES)
            return CARD_CHALLENGE_LENGTH;
        task->out_length = CARD_CRYPTOGRAM_BYTES;
        break;
    case CARD_PROTECT:
    case CARD_PROTECT_ENCIPHERED:
        if (task->header.length != CARD_HEADER_BYTES)
            return CARD_HEADER_LENGTH;
        if (task->data.length > CARD_MAX_PROTECTED_DATA)
            return CARD_DATA_TOO_LARGE;
        if (protected_length(task) > CARD_MAX_PROTECTED_DATA)
            return CARD_ENCIPHERED_TOO_LARGE;
        task->out_length = CARD_HEADER_BYTES + 1 + protected_length(task) + CARD_MAC_BYTES;
        break;
    case CARD_MAC:
    case CARD_TAC:
        break;
    }
    if (task->presented && task->presented->length != task->out_length)
        return CARD_PRESENTED_LENGTH;
    return CARD_DONE;
}

void card_measure(card_task *task)
{
    task->out_length = 0;
    task->result = measure(task);
}

size_t card_work(const card_task *task)
{
    size_t size = key_block_bytes(task->algorithm);
    size_t blocks = 4 + (task->data.length + (is_protect(task) ? protected_length(task) : 0)) / size;

    if (task->algorithm == ARENA_SM4)
        return blocks;
    /* Diversifying and deriving under a 3DES key are nine blocks and two schedules. */
    return (blocks + (task->algorithm == ARENA_TDES ? 8 : 0)) * DES_WORK;
}

/* --- What a MAC is made over, block by block */

/* Header, Lc and data of a command under secure messaging; out holds them already. Else the task's data. */
static card_bytes message_of(const card_task *task)
{
    if (is_protect(task))
        return (card_bytes){task->out, task->out_length - CARD_MAC_BYTES};
    return task->data;
}

/* Always padded: 80 00… */
static size_t message_blocks(const card_task *task, size_t size)
{
    return message_of(task).length / size + 1;
}

static void message_block_onto(const card_task *task, size_t index, size_t size, uint8_t *chain)
{
    card_bytes message = message_of(task);
    size_t at = index * size, whole = message.length - at < size ? message.length - at : size;

    for (size_t i = 0; i < whole; i++)
        chain[i] ^= message.at[at + i];
    if (whole < size)
        chain[whole] ^= 0x80;
}

/* Header ‖ Lc ‖ data into out; data that will be enciphered as LD ‖ data, padded. */
static void lay_out_command(const card_task *task)
{
    uint8_t *at = task->out;
    size_t length = protected_length(task);

    memcpy(at, task->header.at, CARD_HEADER_BYTES);
    at[CARD_HEADER_BYTES] = (uint8_t)(length + CARD_MAC_BYTES);
    at += CARD_HEADER_BYTES + 1;
    if (task->kind == CARD_PROTECT_ENCIPHERED) {
        *at++ = (uint8_t)task->data.length;
        size_t rest = length - 1 - task->data.length;
        if (rest) {
            memset(at + task->data.length, 0, rest);
            at[task->data.length] = 0x80;
        }
    }
    if (task->data.length)
        memcpy(at, task->data.at, task->data.length);
}

static uint8_t *enciphered_part(const card_task *task)
{
    return task->out + CARD_HEADER_BYTES + 1;
}

static uint8_t *mac_part(const card_task *task)
{
    return task->out + task->out_length - CARD_MAC_BYTES;
}

static void diversifier_block(const card_task *task, uint8_t *block)
{
    for (int i = 0; i < CARD_DIVERSIFIER_BYTES; i++) {
        block[i] = task->diversifier.at[i];
        block[i + CARD_DIVERSIFIER_BYTES] = (uint8_t)~task->diversifier.at[i];
    }
}

static void finish(card_task *task)
{
    if (task->presented && bytes_differ(task->out, task->presented->at, task->out_length))
        task->result = CARD_NOT_AUTHENTIC;
}

/* --- SM4, up to LANES tasks at once */

typedef struct {
    const sm4_path *path;
    sm4_scratch *scratch;
    card_task *tasks[LANES];
    size_t n;
    size_t cryptograms; /* These come first, the messages behind. */
} sm4_lanes;

static void sm4_session_keys(sm4_lanes *lanes, const arena_cell *const *cells)
{
    sm4_scratch *scratch = lanes->scratch;
    const sm4_schedule *schedules[LANES];

    for (size_t i = 0; i < lanes->n; i++) {
        diversifier_block(lanes->tasks[i], scratch->blocks[i]);
        schedules[i] = &cells[i]->schedule.sm4;
    }
    lanes->path->encrypt_scheduled(schedules, scratch->blocks[0], scratch->card_keys[0], lanes->n);
    memset(scratch->blocks, 0, lanes->n * SM4_BLOCK);
    for (size_t i = 0; i < lanes->n; i++)
        if (lanes->tasks[i]->kind != CARD_TAC)
            memcpy(scratch->blocks[i], lanes->tasks[i]->session_factor.at, lanes->tasks[i]->session_factor.length);
    lanes->path->encrypt_each(scratch->card_keys[0], scratch->blocks[0], scratch->session_keys[0], lanes->n);
    /* A TAC is made under the card key itself. */
    for (size_t i = lanes->cryptograms; i < lanes->n; i++)
        if (lanes->tasks[i]->kind == CARD_TAC)
            memcpy(scratch->session_keys[i], scratch->card_keys[i], SM4_BLOCK);
}

static void sm4_cryptograms(sm4_lanes *lanes)
{
    sm4_scratch *scratch = lanes->scratch;
    size_t n = lanes->cryptograms;

    memset(scratch->blocks, 0, n * SM4_BLOCK);
    for (size_t i = 0; i < n; i++)
        memcpy(scratch->blocks[i], lanes->tasks[i]->data.at, CARD_CHALLENGE_BYTES);
    lanes->path->encrypt_each(scratch->session_keys[0], scratch->blocks[0], scratch->results[0], n);
    for (size_t i = 0; i < n; i++)
        for (int j = 0; j < CARD_CRYPTOGRAM_BYTES; j++)
            lanes->tasks[i]->out[j] = scratch->results[i][j] ^ scratch->results[i][j + CARD_CRYPTOGRAM_BYTES];
}

/* Blocks under session keys, gathered from anywhere until the lanes are full. */
typedef struct {
    const sm4_lanes *lanes;
    const sm4_schedule *schedules[LANES];
    uint8_t *places[LANES];
    size_t n;
} gathering;

static void encipher_gathered(gathering *gathered)
{
    sm4_scratch *scratch = gathered->lanes->scratch;

    gathered->lanes->path->encrypt_scheduled(gathered->schedules, scratch->blocks[0], scratch->results[0],
                                             gathered->n);
    for (size_t i = 0; i < gathered->n; i++)
        memcpy(gathered->places[i], scratch->results[i], SM4_BLOCK);
    gathered->n = 0;
}

static void sm4_encipher(const sm4_lanes *lanes)
{
    gathering gathered = {.lanes = lanes};

    for (size_t i = lanes->cryptograms; i < lanes->n; i++) {
        const card_task *task = lanes->tasks[i];
        if (task->kind != CARD_PROTECT_ENCIPHERED)
            continue;
        for (size_t at = 0; at < enciphered_length(task); at += SM4_BLOCK) {
            gathered.schedules[gathered.n] = (const sm4_schedule *)&lanes->scratch->schedules[i];
            gathered.places[gathered.n] = enciphered_part(task) + at;
            memcpy(lanes->scratch->blocks[gathered.n], enciphered_part(task) + at, SM4_BLOCK);
            if (++gathered.n == LANES)
                encipher_gathered(&gathered);
        }
    }
    if (gathered.n)
        encipher_gathered(&gathered);
}

/* One block of every message that has one left, then the next. */
static void sm4_chains(const sm4_lanes *lanes)
{
    sm4_scratch *scratch = lanes->scratch;
    gathering gathered = {.lanes = lanes};
    size_t active[LANES], n = 0;

    for (size_t i = lanes->cryptograms; i < lanes->n; i++)
        active[n++] = i;
    for (size_t index = 0; n; index++) {
        for (size_t k = 0; k < n; k++) {
            size_t i = active[k];
            message_block_onto(lanes->tasks[i], index, SM4_BLOCK, scratch->chains[i]);
            memcpy(scratch->blocks[k], scratch->chains[i], SM4_BLOCK);
            gathered.schedules[k] = (const sm4_schedule *)&scratch->schedules[i];
            gathered.places[k] = scratch->chains[i];
        }
        gathered.n = n;
        encipher_gathered(&gathered);
        size_t left = 0;
        for (size_t k = 0; k < n; k++)
            if (index + 1 < message_blocks(lanes->tasks[active[k]], SM4_BLOCK))
                active[left++] = active[k];
        n = left;
    }
}

static void sm4_messages(const sm4_lanes *lanes)
{
    sm4_scratch *scratch = lanes->scratch;
    size_t first = lanes->cryptograms;

    lanes->path->expand(scratch->session_keys[first], &scratch->schedules[first], lanes->n - first);
    for (size_t i = first; i < lanes->n; i++)
        if (is_protect(lanes->tasks[i]))
            lay_out_command(lanes->tasks[i]);
    sm4_encipher(lanes);
    sm4_chains(lanes);
    for (size_t i = first; i < lanes->n; i++) {
        const uint8_t *last = scratch->chains[i];
        for (int j = 0; j < CARD_MAC_BYTES; j++)
            mac_part(lanes->tasks[i])[j] = last[j] ^ last[j + 4] ^ last[j + 8] ^ last[j + 12];
    }
}

static void refuse(card_task *task, arena_status status)
{
    task->result = status == ARENA_CORRUPT ? CARD_KEY_CORRUPT : CARD_KEY_GONE;
}

/* The task's algorithm decided its lengths; a handle of another algorithm is another key's. */
static int is_of_task(const arena_cell *cell, const card_task *task)
{
    return cell && cell->algorithm == (uint32_t)task->algorithm;
}

static void sm4_compute(card_task *const *tasks, size_t n)
{
    sm4_lanes lanes = {.path = sm4_current(), .scratch = arena_scratch_take()};
    card_task *ordered[LANES];
    arena_handle handles[LANES];
    const arena_cell *cells[LANES], *pinned[LANES];
    arena_status statuses[LANES];
    size_t count = 0;

    if (!lanes.scratch) {
        for (size_t i = 0; i < n; i++)
            tasks[i]->result = CARD_KEY_GONE;
        return;
    }
    for (size_t i = 0; i < n; i++)
        if (tasks[i]->kind == CARD_CRYPTOGRAM)
            ordered[count++] = tasks[i];
    for (size_t i = 0; i < n; i++)
        if (tasks[i]->kind != CARD_CRYPTOGRAM)
            ordered[count++] = tasks[i];
    for (size_t i = 0; i < n; i++)
        handles[i] = ordered[i]->city;
    arena_pin_each(handles, pinned, statuses, n);
    for (size_t i = 0; i < n; i++) {
        if (!is_of_task(pinned[i], ordered[i])) {
            refuse(ordered[i], statuses[i]);
            continue;
        }
        cells[lanes.n] = pinned[i];
        lanes.tasks[lanes.n++] = ordered[i];
        lanes.cryptograms += ordered[i]->kind == CARD_CRYPTOGRAM;
    }
    if (lanes.n)
        sm4_session_keys(&lanes, cells);
    arena_unpin_each(pinned, n);
    if (lanes.cryptograms)
        sm4_cryptograms(&lanes);
    if (lanes.n > lanes.cryptograms)
        sm4_messages(&lanes);
    arena_scratch_give(lanes.scratch,
                       lanes.n > lanes.cryptograms ? sizeof(sm4_scratch) : offsetof(sm4_scratch, schedules));
    for (size_t i = 0; i < lanes.n; i++)
        finish(lanes.tasks[i]);
}

/* --- DES and 3DES, one task at a time */

static void des_session_key(des_scratch *scratch, const card_task *task, const arena_cell *city)
{
    uint8_t diversifiers[2 * DES_BLOCK];

    diversifier_block(task, diversifiers);
    /* A single-length key takes the diversifier and leaves its complement. */
    key_encrypt(city, diversifiers, scratch->card_key, arena_key_bytes(task->algorithm));
    if (task->kind == CARD_TAC) {
        for (int i = 0; i < DES_BLOCK; i++)
            scratch->session_key[i] =
                scratch->card_key[i] ^ (task->algorithm == ARENA_TDES ? scratch->card_key[i + DES_BLOCK] : 0);
    } else {
        memcpy(scratch->block, task->session_factor.at, task->session_factor.length);
        des_expand(scratch->card_key, scratch->card[0]);
        if (task->algorithm == ARENA_TDES) {
            des_expand(scratch->card_key + DES_BLOCK, scratch->card[1]);
            tdes_encrypt((const des_schedule *)scratch->card, scratch->block, scratch->session_key, 1);
        } else {
            des_encrypt(scratch->card[0], scratch->block, scratch->session_key, 1);
        }
    }
    des_expand(scratch->session_key, scratch->session);
}

static void des_compute(card_task *task)
{
    des_scratch *scratch = arena_scratch_take();
    const arena_cell *city;

    if (!scratch) {
        task->result = CARD_KEY_GONE;
        return;
    }
    arena_status status = arena_pin(task->city, &city);
    if (is_of_task(city, task))
        des_session_key(scratch, task, city);
    else
        refuse(task, status);
    if (city)
        arena_unpin(city);
    if (task->result != CARD_DONE) {
        arena_scratch_give(scratch, sizeof *scratch);
        return;
    }
    if (task->kind == CARD_CRYPTOGRAM) {
        des_encrypt(scratch->session, task->data.at, task->out, 1);
    } else {
        if (is_protect(task))
            lay_out_command(task);
        if (task->kind == CARD_PROTECT_ENCIPHERED)
            des_encrypt(scratch->session, enciphered_part(task), enciphered_part(task),
                        enciphered_length(task) / DES_BLOCK);
        for (size_t index = 0; index < message_blocks(task, DES_BLOCK); index++) {
            message_block_onto(task, index, DES_BLOCK, scratch->chain);
            des_encrypt(scratch->session, scratch->chain, scratch->chain, 1);
        }
        memcpy(mac_part(task), scratch->chain, CARD_MAC_BYTES);
    }
    arena_scratch_give(scratch, sizeof *scratch);
    finish(task);
}

/* --- All of a batch */

void card_compute(card_task *tasks, size_t n)
{
    card_task *gathered[LANES];
    size_t count = 0;

    for (size_t i = 0; i < n; i++) {
        if (tasks[i].result != CARD_DONE)
            continue;
        if (tasks[i].algorithm != ARENA_SM4) {
            des_compute(&tasks[i]);
            continue;
        }
        gathered[count++] = &tasks[i];
        if (count == LANES) {
            sm4_compute(gathered, count);
            count = 0;
        }
    }
    if (count)
        sm4_compute(gathered, count);
}

arena_status card_diversify(arena_handle handle, const uint8_t *diversifier, arena_handle *made)
{
    card_task task = {.diversifier = {diversifier, CARD_DIVERSIFIER_BYTES}};
    uint8_t blocks[2 * CARD_DIVERSIFIER_BYTES];
    const arena_cell *cell;

    *made = 0;
    arena_status status = arena_pin(handle, &cell);
    if (status != ARENA_OK)
        return status;
    diversifier_block(&task, blocks);
    status = key_encrypt_to_key(cell, blocks, (arena_algorithm)cell->algorithm, made);
    arena_unpin(cell);
    return status;
}

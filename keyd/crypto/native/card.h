/* What cards are answered with, for a batch of them at once: diversify, derive, and then a cryptogram, a MAC, a command
 * under secure messaging, or a TAC.
 *
 * Each task names its city's key, which stays in the arena; its card's key and session key exist only in a scratch
 * region and only while the batch runs. SM4 goes through all lanes of the path in use; DES and 3DES card by card.
 * Lengths are checked before anything is computed, and one task's fault spoils no other.
 */
#ifndef KEYD_CARD_H
#define KEYD_CARD_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define CARD_DIVERSIFIER_BYTES 8
#define CARD_CHALLENGE_BYTES 8
#define CARD_HEADER_BYTES 4
#define CARD_CRYPTOGRAM_BYTES 8
#define CARD_MAC_BYTES 4

/* Lc is one byte and counts the MAC. */
#define CARD_MAX_PROTECTED_DATA (255 - CARD_MAC_BYTES)

typedef enum {
    CARD_CRYPTOGRAM = 1, /* data is the challenge. */
    CARD_MAC,
    CARD_PROTECT,            /* header and data become a ready command with its MAC. */
    CARD_PROTECT_ENCIPHERED, /* The same, the data enciphered. */
    CARD_TAC                 /* No session factor. */
} card_kind;

typedef enum {
    CARD_DONE = 0,
    CARD_KEY_GONE,
    CARD_KEY_CORRUPT,
    CARD_DIVERSIFIER_LENGTH,
    CARD_SESSION_FACTOR_LENGTH,
    CARD_CHALLENGE_LENGTH,
    CARD_HEADER_LENGTH,
    CARD_DATA_TOO_LARGE,
    CARD_ENCIPHERED_TOO_LARGE,
    CARD_PRESENTED_LENGTH,
    CARD_NOT_AUTHENTIC
} card_result;

typedef struct {
    const uint8_t *at;
    size_t length;
} card_bytes;

typedef struct {
    arena_handle city;
    arena_algorithm algorithm; /* The city key's; decides the lengths before the key is looked at. */
    card_kind kind;
    card_bytes diversifier;
    card_bytes session_factor;
    card_bytes header;
    card_bytes data;
    /* Room for what card_measure said. */
    uint8_t *out;
    size_t out_length;
    /* If not NULL, what the card presented: it is compared with out, and the result is CARD_NOT_AUTHENTIC if it
     * differs. */
    const card_bytes *presented;
    card_result result;
} card_task;

/* Check a task's lengths; set its result and out_length. */
void card_measure(card_task *task);

/* How much work a measured task is, in units of one SM4 block, as an estimate. */
size_t card_work(const card_task *task);

/* Compute all tasks whose result is CARD_DONE; each gets its own result. */
void card_compute(card_task *tasks, size_t n);

/* Diversify a key one level down and keep the result in the arena: national to provincial, provincial to city. */
arena_status card_diversify(arena_handle handle, const uint8_t *diversifier, arena_handle *made);

#endif

/* Sharing a key among people (Shamir, How to Share a Secret, 1979), over GF(2^128): any `threshold` shares give the
 * key back, and fewer say nothing of it. Compatible with Shamir of pycryptodome. In constant time but for what is no
 * secret: how many shares there are, and their numbers.
 */
#ifndef KEYD_SHAMIR_H
#define KEYD_SHAMIR_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define SHAMIR_SHARE_BYTES 16
#define SHAMIR_MAX_SHARES 255

/* Split a key of 16 bytes: share number i + 1 goes to shares[i]. 1 <= threshold <= count <= SHAMIR_MAX_SHARES. */
arena_status shamir_split(const arena_cell *cell, size_t threshold, size_t count, uint8_t *const *shares);

/* The opposite, straight into a cell, for n shares of different numbers from 1 on; n is the threshold that the key was
 * split with. Shares that do not belong together give another key: nothing here can tell. */
arena_status shamir_combine(arena_algorithm algorithm, const uint8_t *numbers, const uint8_t *const *shares, size_t n,
                            arena_handle *made);

#endif

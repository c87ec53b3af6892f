/* What may be known of secrets: whether two are different, and whether a key is weak. Each is found in constant time;
 * then the caller branches on it. Nowhere else does a branch depend on a secret, and the test that marks secrets as
 * undefined makes an exception for what comes from here only.
 */
#ifndef KEYD_VERDICT_H
#define KEYD_VERDICT_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

/* 1 if they are different, 0 if not, in a time that only n decides. */
int bytes_differ(const uint8_t *a, const uint8_t *b, size_t n);

/* Whether nobody would want the key: an SM4 key that is all zero; a DES key that is weak or semi-weak; a 3DES key with
 * such a half, or with equal halves, which make it plain DES. Parity does not count. */
int key_is_weak(arena_algorithm algorithm, const uint8_t *key);

#endif

/* GCM (NIST SP 800-38D) with SM4: data and keys under a key, with a header that is bound to them. The same time for
 * every key and every data of a length. Nonces have 12 bytes and never come twice under a key; the callers see to that,
 * to the lengths, and to it that the key is one for SM4.
 */
#ifndef KEYD_GCM_H
#define KEYD_GCM_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define GCM_NONCE_BYTES 12
#define GCM_TAG_BYTES 16

/* What keyd seals are keys, records of its store and pages of it; the wire's largest message is as long. */
#define GCM_MAX_BYTES 65536

typedef enum { GCM_AUTHENTIC = 0, GCM_NOT_AUTHENTIC } gcm_verdict;

/* Encrypt length bytes, 0 to GCM_MAX_BYTES; the ciphertext and the tag go to out. in and out may be the same. */
arena_status gcm_seal(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const uint8_t *in, size_t length, uint8_t *out);

/* The opposite: sealed has length bytes and the tag. Nothing is decrypted before the tag is found right; if it is not,
 * out stays as it was. */
arena_status gcm_open(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const uint8_t *sealed, size_t length, uint8_t *out, gcm_verdict *verdict);

/* Seal a key of any algorithm: its bytes and the tag go to out. */
arena_status gcm_wrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const arena_cell *key, uint8_t *out);

/* Open a sealed key straight into a cell. wrapped has the algorithm's key bytes and the tag. */
arena_status gcm_unwrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                        const uint8_t *wrapped, arena_algorithm algorithm, arena_handle *made, gcm_verdict *verdict);

#endif

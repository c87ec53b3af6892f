/* What one key can do: blocks, a CBC-MAC, another key in the arena, and wrapping (SM4-GCM). No key leaves the arena but
 * wrapped. Callers have checked lengths: whole blocks, and at least one.
 */
#ifndef KEYD_KEY_H
#define KEYD_KEY_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define KEY_MAX_BLOCK 16

#define GCM_NONCE_BYTES 12
#define GCM_TAG_BYTES 16

typedef enum { KEY_UNWRAPPED = 0, KEY_NOT_AUTHENTIC } key_verdict;

size_t key_block_bytes(arena_algorithm algorithm);

/* length bytes in whole blocks, each on its own (ECB). */
void key_encrypt(const arena_cell *cell, const uint8_t *in, uint8_t *out, size_t length);
arena_status key_decrypt(const arena_cell *cell, const uint8_t *in, uint8_t *out, size_t length);

/* The last block of a CBC encryption. */
void key_cbc_mac(const arena_cell *cell, const uint8_t *iv, const uint8_t *in, size_t length, uint8_t *mac);

/* Encrypt as many bytes as a key of the algorithm has, and keep the ciphertext as a key. */
arena_status key_encrypt_to_key(const arena_cell *cell, const uint8_t *in, arena_algorithm algorithm,
                                arena_handle *made);

/* Left half XOR right half of a 3DES key, as a DES key. */
arena_status key_xor_halves(const arena_cell *cell, arena_handle *made);

/* Encrypt a key under an SM4 key (GCM) and bind the header to it: its bytes and a tag of 16 into out. */
arena_status key_wrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                      const arena_cell *key, uint8_t *out);

/* The opposite, straight into a cell. wrapped has the algorithm's key bytes and the tag. Nothing is decrypted before
 * the tag is found right. */
arena_status key_unwrap(const arena_cell *kek, const uint8_t *nonce, const uint8_t *header, size_t header_length,
                        const uint8_t *wrapped, arena_algorithm algorithm, arena_handle *made, key_verdict *verdict);

/* 1 if they are different, 0 if not, in a time that only n decides. */
int bytes_differ(const uint8_t *a, const uint8_t *b, size_t n);

#endif

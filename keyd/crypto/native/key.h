/* What one key can do: blocks, a CBC-MAC, and another key in the arena; gcm.h and shamir.h have the rest. No key leaves
 * the arena but wrapped or split. Callers have checked lengths: whole blocks, and at least one.
 */
#ifndef KEYD_KEY_H
#define KEYD_KEY_H

#include <stddef.h>
#include <stdint.h>

#include "arena.h"

#define KEY_MAX_BLOCK 16

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

/* Decrypt as many bytes as a key of the algorithm has, and keep the plaintext as a key. */
arena_status key_decrypt_to_key(const arena_cell *cell, const uint8_t *in, arena_algorithm algorithm,
                                arena_handle *made);

/* The left half of a 3DES key, as a DES key. */
arena_status key_left_half(const arena_cell *cell, arena_handle *made);

/* The most that is decrypted around a key: a short APDU carries no more. */
#define KEY_MAX_AROUND 256

/* Decrypt length bytes, at most KEY_MAX_AROUND, in the midst of which, at that offset, a key of the algorithm stands.
 * Around gets the plaintext with zeros in the key's place. */
arena_status key_decrypt_key_within(const arena_cell *cell, const uint8_t *in, size_t length, size_t offset,
                                    arena_algorithm algorithm, uint8_t *around, arena_handle *made);

/* Another key's bytes, encrypted in whole blocks (ECB). Callers have seen to it that they are such. */
void key_encrypt_key(const arena_cell *cell, const arena_cell *key, uint8_t *out);

/* A random key that is not weak; DES's and 3DES's have odd parity. */
arena_status key_generate(arena_algorithm algorithm, arena_handle *made);

/* The XOR of two keys of one algorithm. A weak one is not made. */
arena_status key_xor(const arena_cell *cell, const arena_cell *other, arena_handle *made, int *is_weak);

#endif

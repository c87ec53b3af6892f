/* DES and two-key 3DES (FIPS 46-3), in constant time: no table lookup and no branch depends on a key or a block.
 *
 * Old cards still speak it. Blocks and DES keys have 8 bytes, 3DES keys 16 (left, right; parity is ignored).
 */
#ifndef KEYD_DES_H
#define KEYD_DES_H

#include <stddef.h>
#include <stdint.h>

#define DES_BLOCK 8
#define DES_ROUNDS 16

/* One number per round: 48 key bits as eight groups of six, each where des.c has the group that it meets. */
typedef uint64_t des_schedule[DES_ROUNDS];

void des_expand(const uint8_t *key, des_schedule schedule);

/* n blocks under one schedule (ECB). in and out may be the same. */
void des_encrypt(const des_schedule schedule, const uint8_t *in, uint8_t *out, size_t n);
void des_decrypt(const des_schedule schedule, const uint8_t *in, uint8_t *out, size_t n);

/* The same under two schedules, the left and the right half's: encrypt, decrypt, encrypt. */
void tdes_encrypt(const des_schedule *schedules, const uint8_t *in, uint8_t *out, size_t n);
void tdes_decrypt(const des_schedule *schedules, const uint8_t *in, uint8_t *out, size_t n);

/* Make every byte's parity odd by its last bit, as key bytes travel. */
void des_set_parity(uint8_t *key, size_t bytes);

/* 1 if a DES key of 8 bytes is one of the 4 weak or 12 semi-weak ones (NIST SP 800-67, 3.3.2), whatever its parity. */
int des_is_weak(const uint8_t *key);

#endif

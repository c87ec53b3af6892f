/* The field GF(2^128) of the polynomial x^128 + x^7 + x^2 + x + 1, in constant time. GCM's hash and the sharing of keys
 * compute in it; they differ only in how they write an element as bytes.
 */
#ifndef KEYD_GF128_H
#define KEYD_GF128_H

#include <stdint.h>

#define GF128_BYTES 16

/* Bit i of high:low is the coefficient of x^i. */
typedef struct {
    uint64_t high, low;
} gf128;

/* 16 bytes as one big-endian number: the last bit is the coefficient of 1. So sharing has it. */
gf128 gf128_load(const uint8_t *bytes);
void gf128_store(uint8_t *bytes, const gf128 *element);

/* The other way round: the first bit is the coefficient of 1. So GCM has it. */
gf128 gf128_load_reflected(const uint8_t *bytes);
void gf128_store_reflected(uint8_t *bytes, const gf128 *element);

/* element *= factor. Both may be the same. */
void gf128_multiply(gf128 *element, const gf128 *factor);

/* inverse = 1 / element; of 0 it is 0. They are not the same place. */
void gf128_invert(gf128 *inverse, const gf128 *element);

/* Overwrite the stack on which the functions here stood: the compiler spills there what no wipe in C can name. */
void gf128_burn(void);

#endif

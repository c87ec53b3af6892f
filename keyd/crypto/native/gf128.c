#include "gf128.h"

#include "arena.h"

/* No table, and no branch on an element. Integer multiplication takes the same time for all factors on x86-64, and on
 * AArch64, which lists it under DIT. */

static uint64_t load_64(const uint8_t *bytes)
{
    uint64_t number = 0;

    for (int i = 0; i < 8; i++)
        number = number << 8 | bytes[i];
    return number;
}

static void store_64(uint8_t *bytes, uint64_t number)
{
    for (int i = 7; i >= 0; i--, number >>= 8)
        bytes[i] = (uint8_t)number;
}

/* The 64 bits in the opposite order. */
static inline uint64_t reflected(uint64_t x)
{
    x = (x & UINT64_C(0x5555555555555555)) << 1 | (x >> 1 & UINT64_C(0x5555555555555555));
    x = (x & UINT64_C(0x3333333333333333)) << 2 | (x >> 2 & UINT64_C(0x3333333333333333));
    x = (x & UINT64_C(0x0F0F0F0F0F0F0F0F)) << 4 | (x >> 4 & UINT64_C(0x0F0F0F0F0F0F0F0F));
    return __builtin_bswap64(x);
}

gf128 gf128_load(const uint8_t *bytes)
{
    return (gf128){load_64(bytes), load_64(bytes + 8)};
}

void gf128_store(uint8_t *bytes, const gf128 *element)
{
    store_64(bytes, element->high);
    store_64(bytes + 8, element->low);
}

gf128 gf128_load_reflected(const uint8_t *bytes)
{
    return (gf128){reflected(load_64(bytes + 8)), reflected(load_64(bytes))};
}

void gf128_store_reflected(uint8_t *bytes, const gf128 *element)
{
    store_64(bytes, reflected(element->low));
    store_64(bytes + 8, reflected(element->high));
}

/* The lower 64 coefficients of the product of two polynomials, by the processor's multiplication of numbers. Each
 * factor is taken apart into four that have every fourth bit only. Of two such, at most sixteen ones meet in a place,
 * and fewer everywhere but in the topmost: what they carry stays in the three places that are masked away, or leaves
 * at the top. (The method is BearSSL's.) */
static inline uint64_t multiply_low(uint64_t x, uint64_t y)
{
    const uint64_t every = UINT64_C(0x1111111111111111);
    uint64_t x0 = x & every, x1 = x & every << 1, x2 = x & every << 2, x3 = x & every << 3;
    uint64_t y0 = y & every, y1 = y & every << 1, y2 = y & every << 2, y3 = y & every << 3;

    return (((x0 * y0) ^ (x1 * y3) ^ (x2 * y2) ^ (x3 * y1)) & every) |
           (((x0 * y1) ^ (x1 * y0) ^ (x2 * y3) ^ (x3 * y2)) & every << 1) |
           (((x0 * y2) ^ (x1 * y1) ^ (x2 * y0) ^ (x3 * y3)) & every << 2) |
           (((x0 * y3) ^ (x1 * y2) ^ (x2 * y1) ^ (x3 * y0)) & every << 3);
}

void gf128_multiply(gf128 *element, const gf128 *factor)
{
    uint64_t a1 = element->high, a0 = element->low, b1 = factor->high, b0 = factor->low;
    uint64_t a1r = reflected(a1), a0r = reflected(a0), b1r = reflected(b1), b0r = reflected(b0);

    /* Three products of 64 bits instead of four (Karatsuba). The upper half of each is the lower half of the product
     * of the reflected factors, reflected, and one place further down. */
    uint64_t low = multiply_low(a0, b0), low_up = multiply_low(a0r, b0r);
    uint64_t high = multiply_low(a1, b1), high_up = multiply_low(a1r, b1r);
    uint64_t middle = multiply_low(a0 ^ a1, b0 ^ b1) ^ low ^ high;
    uint64_t middle_up = multiply_low(a0r ^ a1r, b0r ^ b1r) ^ low_up ^ high_up;
    uint64_t v0 = low;
    uint64_t v1 = reflected(low_up) >> 1 ^ middle;
    uint64_t v2 = reflected(middle_up) >> 1 ^ high;
    uint64_t v3 = reflected(high_up) >> 1;

    /* x^128 is x^7 + x^2 + x + 1: v3 folds onto v1 and v2, then v2 onto v0 and v1. */
    v1 ^= v3 ^ v3 << 1 ^ v3 << 2 ^ v3 << 7;
    v2 ^= v3 >> 63 ^ v3 >> 62 ^ v3 >> 57;
    v0 ^= v2 ^ v2 << 1 ^ v2 << 2 ^ v2 << 7;
    v1 ^= v2 >> 63 ^ v2 >> 62 ^ v2 >> 57;
    element->high = v1;
    element->low = v0;
}

void gf128_invert(gf128 *inverse, const gf128 *element)
{
    gf128 power = *element;

    /* By the exponent 2^128 - 2, which is 2 + 4 + 8 + ... + 2^127: the same steps for every element. */
    *inverse = (gf128){0, 1};
    for (int i = 1; i < 128; i++) {
        gf128_multiply(&power, &power);
        gf128_multiply(inverse, &power);
    }
    arena_wipe(&power, sizeof power);
}

__attribute__((noinline)) void gf128_burn(void)
{
    uint8_t frame[1024];

    arena_wipe(frame, sizeof frame);
}

/* The instructions that sm4_gfni256.c and sm4_gfni512.c use, spelled in C for any x86-64.
 *
 * valgrind knows neither GFNI nor AVX-512. With this header in front of the compiler's own, the very same files run
 * under memcheck. So nothing here may hide what depends on a secret, and nothing may depend on one by itself: no table,
 * and branches on masks and counts only. A masked load or store does branch on its mask. That is meant: which bytes are
 * touched is an address, and a mask made from a secret has to be complained of.
 *
 * What is not here does not compile: a new instruction in those files needs a definition here, and a line in
 * intrinsics.c, which compares each definition with the processor.
 */
#ifndef KEYD_EMULATED_IMMINTRIN_H
#define KEYD_EMULATED_IMMINTRIN_H

#include <stdint.h>
#include <string.h>

/* Little-endian, as is all x86: element 0 is the lowest. */
typedef struct {
    uint64_t at[2];
} __m128i;

typedef struct {
    uint64_t at[4];
} __m256i;

typedef struct {
    uint64_t at[8];
} __m512i;

typedef uint16_t __mmask16;

/* Not inlined: sm4_lanes.h unrolls some thousand of them, and the compiler would take minutes. */
#define EMULATED static __attribute__((noinline, unused))
#define EMULATED_PART static inline __attribute__((unused))

/* --- Eight bytes at once, each in its place of a 64-bit number */

#define EACH_BYTE UINT64_C(0x0101010101010101)

/* 0xff for each byte whose lowest bit is set in `bits`, which has no others. */
EMULATED_PART uint64_t emulated_spread(uint64_t bits)
{
    return (bits << 8) - bits;
}

/* The product in AES's field, x^8 + x^4 + x^3 + x + 1. */
EMULATED_PART uint64_t emulated_multiply(uint64_t a, uint64_t b)
{
    uint64_t product = 0;
    for (int i = 0; i < 8; i++) {
        product ^= a & emulated_spread(b >> i & EACH_BYTE);
        const uint64_t carry = a >> 7 & EACH_BYTE;
        a = (a & 0x7f * EACH_BYTE) << 1 ^ carry ^ carry << 1 ^ carry << 3 ^ carry << 4;
    }
    return product;
}

/* x to the 254th: the inverse, and 0 of 0. */
EMULATED_PART uint64_t emulated_invert(uint64_t x)
{
    const uint64_t x2 = emulated_multiply(x, x), x3 = emulated_multiply(x2, x);
    const uint64_t x6 = emulated_multiply(x3, x3), x12 = emulated_multiply(x6, x6);
    uint64_t x240 = emulated_multiply(x12, x3);
    for (int i = 0; i < 4; i++)
        x240 = emulated_multiply(x240, x240);
    return emulated_multiply(emulated_multiply(x240, x12), x2);
}

/* Bit i of each byte is the parity of that byte and the matrix's byte 7 - i, and then bit i of `constant` on top. */
EMULATED_PART uint64_t emulated_affine(uint64_t x, uint64_t matrix, int constant)
{
    uint64_t y = ((uint64_t)constant & 0xff) * EACH_BYTE;
    for (int i = 0; i < 8; i++) {
        const uint64_t row = matrix >> (56 - 8 * i) & 0xff;
        uint64_t bits = row | row << 8;
        bits |= bits << 16;
        bits = x & (bits | bits << 32);
        bits ^= bits >> 4;
        bits ^= bits >> 2;
        bits ^= bits >> 1;
        y ^= (bits & EACH_BYTE) << i;
    }
    return y;
}

/* --- Two words at once */

EMULATED_PART uint64_t emulated_words(uint32_t high, uint32_t low)
{
    return (uint64_t)high << 32 | low;
}

EMULATED_PART uint32_t emulated_turn(uint32_t word, int by)
{
    return word << (by & 31) | word >> (-by & 31);
}

/* --- 128 bits at once: most instructions do the same in each 128-bit part */

EMULATED_PART void emulated_unpack_words(uint64_t *to, const uint64_t *a, const uint64_t *b, int half)
{
    const uint64_t first = a[half], second = b[half];
    to[0] = emulated_words((uint32_t)second, (uint32_t)first);
    to[1] = emulated_words((uint32_t)(second >> 32), (uint32_t)(first >> 32));
}

/* Byte i of the result is byte `places[i] % 16` of x, or 0 if the place's highest bit is set. Every byte of x is read
 * for every byte of the result: a place that is a secret is no address. */
EMULATED_PART void emulated_shuffle(uint64_t *to, const uint64_t *x, const uint64_t *places)
{
    uint64_t result[2] = {0, 0};
    for (int i = 0; i < 16; i++) {
        const uint64_t place = places[i / 8] >> 8 * (i % 8) & 0xff;
        uint64_t byte = 0;
        for (uint64_t j = 0; j < 16; j++) {
            /* All ones only if all four bits agree, and the highest bit of the place is not set. */
            const uint64_t differs = (place ^ j) & 0x8f;
            byte |= (x[j / 8] >> 8 * (j % 8)) & 0xff & ((differs - 1) >> 8);
        }
        result[i / 8] |= byte << 8 * (i % 8);
    }
    memcpy(to, result, sizeof result);
}

EMULATED __m128i _mm_set_epi8(char e15, char e14, char e13, char e12, char e11, char e10, char e9, char e8, char e7,
                              char e6, char e5, char e4, char e3, char e2, char e1, char e0)
{
    const char bytes[16] = {e0, e1, e2, e3, e4, e5, e6, e7, e8, e9, e10, e11, e12, e13, e14, e15};
    __m128i r;
    memcpy(&r, bytes, sizeof r);
    return r;
}

EMULATED __m128i _mm_loadu_si128(const __m128i *from)
{
    __m128i r;
    memcpy(&r, from, sizeof r);
    return r;
}

EMULATED void _mm_storeu_si128(__m128i *to, __m128i a)
{
    memcpy(to, &a, sizeof a);
}

/* --- 256 bits */

#define EACH_OF_256(expression)                                                                                        \
    do {                                                                                                               \
        __m256i r;                                                                                                     \
        for (int i = 0; i < 4; i++)                                                                                    \
            r.at[i] = (expression);                                                                                    \
        return r;                                                                                                      \
    } while (0)

EMULATED __m256i _mm256_setzero_si256(void)
{
    EACH_OF_256(0);
}

EMULATED __m256i _mm256_set1_epi32(int a)
{
    EACH_OF_256(emulated_words((uint32_t)a, (uint32_t)a));
}

EMULATED __m256i _mm256_set1_epi64x(long long a)
{
    EACH_OF_256((uint64_t)a);
}

EMULATED __m256i _mm256_setr_epi64x(long long e0, long long e1, long long e2, long long e3)
{
    return (__m256i){{(uint64_t)e0, (uint64_t)e1, (uint64_t)e2, (uint64_t)e3}};
}

EMULATED __m256i _mm256_xor_si256(__m256i a, __m256i b)
{
    EACH_OF_256(a.at[i] ^ b.at[i]);
}

EMULATED __m256i _mm256_or_si256(__m256i a, __m256i b)
{
    EACH_OF_256(a.at[i] | b.at[i]);
}

/* Counts below 32, as an instruction's own constants are here. */
EMULATED __m256i _mm256_slli_epi32(__m256i a, int by)
{
    EACH_OF_256(emulated_words((uint32_t)(a.at[i] >> 32) << by, (uint32_t)a.at[i] << by));
}

EMULATED __m256i _mm256_srli_epi32(__m256i a, int by)
{
    EACH_OF_256(emulated_words((uint32_t)(a.at[i] >> 32) >> by, (uint32_t)a.at[i] >> by));
}

/* Signed, and without a comparison that a compiler could branch on: a > b if b - a is negative, but for overflow. */
EMULATED __m256i _mm256_cmpgt_epi64(__m256i a, __m256i b)
{
    __m256i r;
    for (int i = 0; i < 4; i++) {
        const uint64_t x = b.at[i], y = a.at[i], d = x - y;
        r.at[i] = -((d ^ ((x ^ y) & (d ^ x))) >> 63);
    }
    return r;
}

EMULATED __m256i _mm256_shuffle_epi8(__m256i a, __m256i places)
{
    __m256i r;
    for (int part = 0; part < 4; part += 2)
        emulated_shuffle(r.at + part, a.at + part, places.at + part);
    return r;
}

EMULATED __m256i _mm256_unpacklo_epi32(__m256i a, __m256i b)
{
    __m256i r;
    for (int part = 0; part < 4; part += 2)
        emulated_unpack_words(r.at + part, a.at + part, b.at + part, 0);
    return r;
}

EMULATED __m256i _mm256_unpackhi_epi32(__m256i a, __m256i b)
{
    __m256i r;
    for (int part = 0; part < 4; part += 2)
        emulated_unpack_words(r.at + part, a.at + part, b.at + part, 1);
    return r;
}

EMULATED __m256i _mm256_unpacklo_epi64(__m256i a, __m256i b)
{
    return (__m256i){{a.at[0], b.at[0], a.at[2], b.at[2]}};
}

EMULATED __m256i _mm256_unpackhi_epi64(__m256i a, __m256i b)
{
    return (__m256i){{a.at[1], b.at[1], a.at[3], b.at[3]}};
}

EMULATED __m256i _mm256_broadcastsi128_si256(__m128i a)
{
    EACH_OF_256(a.at[i % 2]);
}

EMULATED __m128i _mm256_castsi256_si128(__m256i a)
{
    return (__m128i){{a.at[0], a.at[1]}};
}

EMULATED __m128i _mm256_extracti128_si256(__m256i a, int part)
{
    return (__m128i){{a.at[2 * part], a.at[2 * part + 1]}};
}

EMULATED __m256i _mm256_loadu_si256(const __m256i *from)
{
    __m256i r;
    memcpy(&r, from, sizeof r);
    return r;
}

EMULATED void _mm256_storeu_si256(__m256i *to, __m256i a)
{
    memcpy(to, &a, sizeof a);
}

EMULATED __m256i _mm256_loadu2_m128i(const __m128i *high, const __m128i *low)
{
    const __m128i h = _mm_loadu_si128(high), l = _mm_loadu_si128(low);
    return (__m256i){{l.at[0], l.at[1], h.at[0], h.at[1]}};
}

EMULATED __m256i _mm256_maskload_epi64(const long long *from, __m256i mask)
{
    __m256i r = {{0, 0, 0, 0}};
    for (int i = 0; i < 4; i++)
        if (mask.at[i] >> 63)
            memcpy(&r.at[i], from + i, sizeof r.at[i]);
    return r;
}

EMULATED void _mm256_maskstore_epi64(long long *to, __m256i mask, __m256i a)
{
    for (int i = 0; i < 4; i++)
        if (mask.at[i] >> 63)
            memcpy(to + i, &a.at[i], sizeof a.at[i]);
}

EMULATED __m256i _mm256_gf2p8affine_epi64_epi8(__m256i x, __m256i matrix, int constant)
{
    EACH_OF_256(emulated_affine(x.at[i], matrix.at[i], constant));
}

EMULATED __m256i _mm256_gf2p8affineinv_epi64_epi8(__m256i x, __m256i matrix, int constant)
{
    EACH_OF_256(emulated_affine(emulated_invert(x.at[i]), matrix.at[i], constant));
}

/* --- 512 bits */

#define EACH_OF_512(expression)                                                                                        \
    do {                                                                                                               \
        __m512i r;                                                                                                     \
        for (int i = 0; i < 8; i++)                                                                                    \
            r.at[i] = (expression);                                                                                    \
        return r;                                                                                                      \
    } while (0)

EMULATED __m512i _mm512_setzero_si512(void)
{
    EACH_OF_512(0);
}

EMULATED __m512i _mm512_set1_epi32(int a)
{
    EACH_OF_512(emulated_words((uint32_t)a, (uint32_t)a));
}

EMULATED __m512i _mm512_set1_epi64(long long a)
{
    EACH_OF_512((uint64_t)a);
}

EMULATED __m512i _mm512_xor_si512(__m512i a, __m512i b)
{
    EACH_OF_512(a.at[i] ^ b.at[i]);
}

/* Bit 4 a + 2 b + c of the table is the result for the bits a, b and c. The table is the instruction's own constant. */
EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table)
{
    __m512i r;
    for (int i = 0; i < 8; i++) {
        r.at[i] = 0;
        for (int k = 0; k < 8; k++)
            r.at[i] |= (k & 4 ? a.at[i] : ~a.at[i]) & (k & 2 ? b.at[i] : ~b.at[i]) & (k & 1 ? c.at[i] : ~c.at[i]) &
                       -((uint64_t)table >> k & 1);
    }
    return r;
}

EMULATED __m512i _mm512_rol_epi32(__m512i a, int by)
{
    EACH_OF_512(emulated_words(emulated_turn((uint32_t)(a.at[i] >> 32), by), emulated_turn((uint32_t)a.at[i], by)));
}

EMULATED __m512i _mm512_shuffle_epi8(__m512i a, __m512i places)
{
    __m512i r;
    for (int part = 0; part < 8; part += 2)
        emulated_shuffle(r.at + part, a.at + part, places.at + part);
    return r;
}

EMULATED __m512i _mm512_unpacklo_epi32(__m512i a, __m512i b)
{
    __m512i r;
    for (int part = 0; part < 8; part += 2)
        emulated_unpack_words(r.at + part, a.at + part, b.at + part, 0);
    return r;
}

EMULATED __m512i _mm512_unpackhi_epi32(__m512i a, __m512i b)
{
    __m512i r;
    for (int part = 0; part < 8; part += 2)
        emulated_unpack_words(r.at + part, a.at + part, b.at + part, 1);
    return r;
}

EMULATED __m512i _mm512_unpacklo_epi64(__m512i a, __m512i b)
{
    EACH_OF_512(i % 2 == 0 ? a.at[i] : b.at[i - 1]);
}

EMULATED __m512i _mm512_unpackhi_epi64(__m512i a, __m512i b)
{
    EACH_OF_512(i % 2 == 0 ? a.at[i + 1] : b.at[i]);
}

EMULATED __m512i _mm512_broadcast_i32x4(__m128i a)
{
    EACH_OF_512(a.at[i % 2]);
}

EMULATED __m128i _mm512_extracti32x4_epi32(__m512i a, int part)
{
    return (__m128i){{a.at[2 * part], a.at[2 * part + 1]}};
}

EMULATED __m512i _mm512_mask_broadcast_i32x4(__m512i otherwise, __mmask16 mask, __m128i a)
{
    __m512i r = otherwise;
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((char *)&r + 4 * i, (const char *)&a + 4 * (i % 4), 4);
    return r;
}

EMULATED __m512i _mm512_maskz_loadu_epi32(__mmask16 mask, const void *from)
{
    __m512i r = {{0, 0, 0, 0, 0, 0, 0, 0}};
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((char *)&r + 4 * i, (const char *)from + 4 * i, 4);
    return r;
}

EMULATED void _mm512_mask_storeu_epi32(void *to, __mmask16 mask, __m512i a)
{
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1)
            memcpy((char *)to + 4 * i, (const char *)&a + 4 * i, 4);
}

EMULATED __m512i _mm512_gf2p8affine_epi64_epi8(__m512i x, __m512i matrix, int constant)
{
    EACH_OF_512(emulated_affine(x.at[i], matrix.at[i], constant));
}

EMULATED __m512i _mm512_gf2p8affineinv_epi64_epi8(__m512i x, __m512i matrix, int constant)
{
    EACH_OF_512(emulated_affine(emulated_invert(x.at[i]), matrix.at[i], constant));
}

#endif

/* SM4 with GFNI and AVX-512: sixteen lanes to a vector.
 *
 * The S-box is two instructions. GF2P8AFFINEQB goes through the S-box's first affine map and on into AES's field, and
 * GF2P8AFFINEINVQB inverts there, comes back, and goes through the second affine map. Both fields have 2^8 elements,
 * so they are isomorphic: x of SM4's field goes to 0x23, which is a root of SM4's polynomial in AES's field. Rotations
 * and three-way XORs are single instructions. Nothing is looked up and nothing is branched on but n.
 *
 * Blocks are read and written under a mask, which keeps the processor from touching what is not the caller's.
 */
#include "sm4_common.h"

#if defined(__x86_64__) && defined(__GFNI__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)

#include <immintrin.h>

#define LANES 16
#define GROUPS 4
#define SM4_(name) name
#define FK SM4_FK
#define CK SM4_CK

typedef __m512i vec;

SM4_INLINE vec xor2(vec a, vec b)
{
    return _mm512_xor_si512(a, b);
}

SM4_INLINE vec xor3(vec a, vec b, vec c)
{
    return _mm512_ternarylogic_epi32(a, b, c, 0x96);
}

typedef uint32_t number;

SM4_INLINE vec broadcast(const number *one)
{
    return _mm512_set1_epi32((int)*one);
}

/* The matrices hold a row per byte, the row for bit 7 lowest: see the definition of GF2P8AFFINEQB. The check of the
 * whole S-box in the tests is what proves them. */
SM4_INLINE vec substitute(vec s)
{
    const vec into_aes = _mm512_set1_epi64(0x4c287db91a22505d);
    const vec back = _mm512_set1_epi64((long long)0xf3ab34a974a6b589);
    return _mm512_gf2p8affineinv_epi64_epi8(_mm512_gf2p8affine_epi64_epi8(s, into_aes, 0x3e), back, 0xd3);
}

/* To the left by 8, 16 or 24 bits. Two vector ports of these processors can shuffle bytes and do logic, or else rotate,
 * affine maps and logic; so some rotations are spelled as shuffles, until both ports have the same to do. */
SM4_INLINE vec turn8(vec b)
{
    return _mm512_shuffle_epi8(b, _mm512_broadcast_i32x4(_mm_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1,
                                                                      0, 3)));
}

SM4_INLINE vec turn24(vec b)
{
    return _mm512_shuffle_epi8(b, _mm512_broadcast_i32x4(_mm_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2,
                                                                      1)));
}

SM4_INLINE vec cipher_step(vec x, vec s)
{
    const vec b = substitute(s), b2 = _mm512_rol_epi32(b, 2), b18 = _mm512_rol_epi32(b, 18);
    x = xor3(x, b, turn24(b));
    return xor2(xor3(x, b2, b18), turn8(b2));
}

SM4_INLINE vec key_step(vec k, vec s)
{
    const vec b = substitute(s);
    return xor3(xor2(k, b), _mm512_rol_epi32(b, 13), _mm512_rol_epi32(b, 23));
}

/* Four vectors of four blocks each to four words of sixteen blocks each, and back. Within each 128-bit quarter it
 * transposes a 4 x 4 matrix; so block 4 v + q of the input becomes lane 4 q + v. */
SM4_INLINE void transpose(vec w[4])
{
    const vec a = _mm512_unpacklo_epi32(w[0], w[1]), b = _mm512_unpackhi_epi32(w[0], w[1]);
    const vec c = _mm512_unpacklo_epi32(w[2], w[3]), d = _mm512_unpackhi_epi32(w[2], w[3]);
    w[0] = _mm512_unpacklo_epi64(a, c);
    w[1] = _mm512_unpackhi_epi64(a, c);
    w[2] = _mm512_unpacklo_epi64(b, d);
    w[3] = _mm512_unpackhi_epi64(b, d);
}

SM4_INLINE vec swap_bytes(vec w)
{
    return _mm512_shuffle_epi8(w, _mm512_broadcast_i32x4(_mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1,
                                                                      2, 3)));
}

/* Which 32-bit words of vector v belong to the first n blocks. */
SM4_INLINE __mmask16 present(size_t n, size_t v)
{
    return (__mmask16)(n >= 4 * v + 4 ? 0xffff : n <= 4 * v ? 0 : (1u << 4 * (n - 4 * v)) - 1);
}

SM4_INLINE void load_blocks(vec w[4], const uint8_t *blocks, size_t n)
{
    for (size_t v = 0; v < 4; v++)
        w[v] = swap_bytes(_mm512_maskz_loadu_epi32(present(n, v), blocks + 64 * v));
    transpose(w);
}

SM4_INLINE void store_blocks(const vec w[4], uint8_t *blocks, size_t n)
{
    vec t[4] = {w[0], w[1], w[2], w[3]};
    transpose(t);
    for (size_t v = 0; v < 4; v++)
        _mm512_mask_storeu_epi32(blocks + 64 * v, present(n, v), swap_bytes(t[v]));
}

#define QUARTER(v, q, i)                                                                                          \
    _mm512_mask_broadcast_i32x4(v, 0xf << 4 * (q), _mm_loadu_si128((const __m128i *)&(*schedules[i])[at]))

/* Lanes without a schedule take the last one's: it is there to be read. */
SM4_INLINE void load_round_keys(vec rk[4], const sm4_schedule *const *schedules, size_t at, size_t n)
{
    const size_t last = n == 0 ? 0 : n - 1;
    for (size_t v = 0; v < 4; v++) {
        rk[v] = _mm512_setzero_si512();
        if (n == 0)
            continue;
#define NUMBER(q) (4 * v + (q) < n ? 4 * v + (q) : last)
        rk[v] = QUARTER(rk[v], 0, NUMBER(0));
        rk[v] = QUARTER(rk[v], 1, NUMBER(1));
        rk[v] = QUARTER(rk[v], 2, NUMBER(2));
        rk[v] = QUARTER(rk[v], 3, NUMBER(3));
#undef NUMBER
    }
    transpose(rk);
}

SM4_INLINE void store_round_keys(const vec rk[4], sm4_schedule *schedules, size_t at, size_t n)
{
    vec t[4] = {rk[0], rk[1], rk[2], rk[3]};
    transpose(t);
    for (size_t v = 0; v < 4; v++) {
#define STORE(q)                                                                                                       \
    if (4 * v + (q) < n)                                                                                               \
        _mm_storeu_si128((__m128i *)&schedules[4 * v + (q)][at], _mm512_extracti32x4_epi32(t[v], q))
        STORE(0);
        STORE(1);
        STORE(2);
        STORE(3);
#undef STORE
    }
}

#include "sm4_lanes.h"

static void encrypt_each(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n)
{
    each_worker(keys, in, out, n);
    sm4_burn();
}

static void expand(const uint8_t *keys, sm4_schedule *schedules, size_t n)
{
    expand_worker(keys, schedules, n);
    sm4_burn();
}

static void encrypt_scheduled(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, size_t n)
{
    scheduled_worker(schedules, in, out, n);
    sm4_burn();
}

static void encrypt_ecb(const sm4_schedule *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    ecb_worker(*schedule, in, out, n);
    sm4_burn();
}

const sm4_path sm4_gfni512 = {
    .name = "gfni512",
    .lanes = 64,
    .is_supported = sm4_has_gfni512,
    .encrypt_each = encrypt_each,
    .expand = expand,
    .encrypt_scheduled = encrypt_scheduled,
    .encrypt_ecb = encrypt_ecb,
};

#elif defined(__x86_64__)

const sm4_path sm4_gfni512 = {.name = "gfni512", .is_supported = sm4_has_none};

#endif

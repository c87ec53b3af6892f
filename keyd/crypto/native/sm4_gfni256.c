/* SM4 with GFNI and AVX2: eight lanes to a vector.
 *
 * The S-box is GFNI's affine map and inversion, as in sm4_gfni512.c. AVX2 has no rotation of words, but GFNI has more
 * affine maps: L takes B to B ^ B<<<24 ^ (B ^ B<<<8 ^ B<<<16)<<<2. Turning a word by 2 is turning each of its bytes by
 * 2 (call that R) and then moving two bits into the next byte; with H for the shift of each byte to the left by 2,
 *
 *   L(B) = (1 + H) B  ^  R B <<< 8  ^  R B <<< 16  ^  (1 + H + R) B <<< 24
 *
 * so that (1 + H) B and R B come straight out of the inversion, each with an affine map of its own, and the rest is
 * three shuffles of bytes. L' turns by 13 and 23; there shifts are no worse.
 *
 * AVX2's masked loads and stores keep the processor from touching what is not the caller's.
 */
#include "sm4_common.h"

#if defined(__x86_64__) && defined(__GFNI__) && defined(__AVX2__)

#include <immintrin.h>

#define LANES 8
#define GROUPS 4
#define SM4_(name) name
#define FK SM4_FK
#define CK SM4_CK

typedef __m256i vec;

SM4_INLINE vec xor2(vec a, vec b)
{
    return _mm256_xor_si256(a, b);
}

/* The first is added last: the rounds put there what was computed last. */
SM4_INLINE vec xor3(vec a, vec b, vec c)
{
    return _mm256_xor_si256(a, _mm256_xor_si256(b, c));
}

typedef uint32_t number;

SM4_INLINE vec broadcast(const number *one)
{
    return _mm256_set1_epi32((int)*one);
}

/* A matrix holds a row per byte, the row for bit 7 lowest: see the definition of GF2P8AFFINEQB. The check of the whole
 * S-box in the tests is what proves them. */
#define MATRIX(rows) _mm256_set1_epi64x((long long)(rows))

/* Through the S-box's first affine map and on into AES's field, where x of SM4's field is 0x23. */
SM4_INLINE vec into_aes(vec s)
{
    return _mm256_gf2p8affine_epi64_epi8(s, MATRIX(0x4c287db91a22505d), 0x3e);
}

/* Each word of four bytes rearranged: b3 says which byte becomes the most significant. */
SM4_INLINE vec turn_bytes(vec b, char b3, char b2, char b1, char b0)
{
    const __m128i four = _mm_set_epi8(12 + b3, 12 + b2, 12 + b1, 12 + b0, 8 + b3, 8 + b2, 8 + b1, 8 + b0, 4 + b3,
                                      4 + b2, 4 + b1, 4 + b0, b3, b2, b1, b0);
    return _mm256_shuffle_epi8(b, _mm256_broadcastsi128_si256(four));
}

SM4_INLINE vec cipher_step(vec x, vec s)
{
    const vec y = into_aes(s);
    const vec bh = _mm256_gf2p8affineinv_epi64_epi8(y, MATRIX(0xf3abc702400fc12f), 0x9f); /* (1 + H) S */
    const vec r = _mm256_gf2p8affineinv_epi64_epi8(y, MATRIX(0xb589f3ab34a974a6), 0x4f);  /* R S */
    x = xor2(x, bh);
    x = xor2(x, turn_bytes(r, 2, 1, 0, 3));
    return xor2(xor2(x, turn_bytes(r, 1, 0, 3, 2)), turn_bytes(xor2(bh, r), 0, 3, 2, 1));
}

SM4_INLINE vec key_step(vec k, vec s)
{
    const vec b = _mm256_gf2p8affineinv_epi64_epi8(into_aes(s), MATRIX(0xf3ab34a974a6b589), 0xd3);
    const vec b13 = _mm256_or_si256(_mm256_slli_epi32(b, 13), _mm256_srli_epi32(b, 19));
    const vec b23 = _mm256_or_si256(_mm256_slli_epi32(b, 23), _mm256_srli_epi32(b, 9));
    return xor2(xor2(k, b), xor2(b13, b23));
}

/* Within each 128-bit half it transposes a 4 x 4 matrix: block 2 v + q of the input becomes lane 4 q + v. */
SM4_INLINE void transpose(vec w[4])
{
    const vec a = _mm256_unpacklo_epi32(w[0], w[1]), b = _mm256_unpackhi_epi32(w[0], w[1]);
    const vec c = _mm256_unpacklo_epi32(w[2], w[3]), d = _mm256_unpackhi_epi32(w[2], w[3]);
    w[0] = _mm256_unpacklo_epi64(a, c);
    w[1] = _mm256_unpackhi_epi64(a, c);
    w[2] = _mm256_unpacklo_epi64(b, d);
    w[3] = _mm256_unpackhi_epi64(b, d);
}

SM4_INLINE vec swap_bytes(vec w)
{
    return turn_bytes(w, 0, 1, 2, 3);
}

/* A mask for vector v: the sign of each 64-bit element says whether its block is among the first n. */
SM4_INLINE vec present(size_t n, int v)
{
    const vec block = _mm256_setr_epi64x(2 * v, 2 * v, 2 * v + 1, 2 * v + 1);
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x((long long)n), block);
}

SM4_INLINE void load_blocks(vec w[4], const uint8_t *blocks, size_t n)
{
    SM4_UNROLL
    for (int v = 0; v < 4; v++) {
        const uint8_t *at = blocks + 32 * v;
        w[v] = swap_bytes(n == LANES ? _mm256_loadu_si256((const vec *)at)
                                     : _mm256_maskload_epi64((const long long *)at, present(n, v)));
    }
    transpose(w);
}

SM4_INLINE void store_blocks(const vec w[4], uint8_t *blocks, size_t n)
{
    vec t[4] = {w[0], w[1], w[2], w[3]};
    transpose(t);
    SM4_UNROLL
    for (int v = 0; v < 4; v++) {
        uint8_t *at = blocks + 32 * v;
        if (n == LANES)
            _mm256_storeu_si256((vec *)at, swap_bytes(t[v]));
        else
            _mm256_maskstore_epi64((long long *)at, present(n, v), swap_bytes(t[v]));
    }
}

/* Lanes without a schedule take the last one's: it is there to be read. */
SM4_INLINE void load_round_keys(vec rk[4], const sm4_schedule *const *schedules, size_t at, size_t n)
{
    SM4_UNROLL
    for (size_t v = 0; v < 4; v++) {
        const size_t low = 2 * v < n ? 2 * v : n - 1, high = 2 * v + 1 < n ? 2 * v + 1 : n - 1;
        rk[v] = _mm256_setzero_si256();
        if (n > 0)
            rk[v] = _mm256_loadu2_m128i((const __m128i *)&(*schedules[high])[at],
                                        (const __m128i *)&(*schedules[low])[at]);
    }
    transpose(rk);
}

SM4_INLINE void store_round_keys(const vec rk[4], sm4_schedule *schedules, size_t at, size_t n)
{
    vec t[4] = {rk[0], rk[1], rk[2], rk[3]};
    transpose(t);
    SM4_UNROLL
    for (size_t v = 0; v < 4; v++) {
        if (2 * v < n)
            _mm_storeu_si128((__m128i *)&schedules[2 * v][at], _mm256_castsi256_si128(t[v]));
        if (2 * v + 1 < n)
            _mm_storeu_si128((__m128i *)&schedules[2 * v + 1][at], _mm256_extracti128_si256(t[v], 1));
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

const sm4_path sm4_gfni256 = {
    .name = "gfni256",
    .lanes = 32,
    .is_supported = sm4_has_gfni256,
    .encrypt_each = encrypt_each,
    .expand = expand,
    .encrypt_scheduled = encrypt_scheduled,
    .encrypt_ecb = encrypt_ecb,
};

#elif defined(__x86_64__)

const sm4_path sm4_gfni256 = {.name = "gfni256", .is_supported = sm4_has_none};

#endif

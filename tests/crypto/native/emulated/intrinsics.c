/* Every instruction of immintrin.h on random bytes, printed line by line. Compiled once against the compiler's own
 * header and once against the emulation, it has to print the same.
 */
#include <immintrin.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static uint64_t state = 20261123;

static uint8_t any_byte(void)
{
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (uint8_t)(state >> 56);
}

static void fill(void *memory, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)memory)[i] = any_byte();
}

static void print(const char *name, const void *memory, size_t size)
{
    printf("%s ", name);
    for (size_t i = 0; i < size; i++)
        printf("%02x", ((const uint8_t *)memory)[i]);
    putchar('\n');
}

#define SHOW(type, ...)                                                                                                \
    do {                                                                                                               \
        const type shown = __VA_ARGS__;                                                                                \
        print(#__VA_ARGS__, &shown, sizeof shown);                                                                     \
    } while (0)

/* A store changes what was there, in part. */
#define SHOW_STORE(...)                                                                                                \
    do {                                                                                                               \
        memcpy(target, bytes, sizeof target);                                                                          \
        __VA_ARGS__;                                                                                                   \
        print(#__VA_ARGS__, target, sizeof target);                                                                    \
    } while (0)

static uint8_t bytes[64], target[64];

static void shared(void)
{
    __m128i x;
    fill(&x, sizeof x);
    fill(bytes, sizeof bytes);
#define AT(i) (char)bytes[i]
    SHOW(__m128i, _mm_set_epi8(AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9), AT(10), AT(11),
         AT(12), AT(13), AT(14), AT(15)));
    SHOW(__m128i, _mm_loadu_si128((const __m128i *)(bytes + 5)));
    SHOW_STORE(_mm_storeu_si128((__m128i *)(target + 7), x));
}

#ifdef __AVX2__
static void wide256(void)
{
    __m256i a, b;
    __m128i x;
    int word;
    long long number[4];
    fill(&a, sizeof a);
    fill(&b, sizeof b);
    fill(&x, sizeof x);
    fill(&word, sizeof word);
    fill(number, sizeof number);
    fill(bytes, sizeof bytes);
    SHOW(__m256i, _mm256_setzero_si256());
    SHOW(__m256i, _mm256_set1_epi32(word));
    SHOW(__m256i, _mm256_set1_epi64x(number[0]));
    SHOW(__m256i, _mm256_setr_epi64x(number[0], number[1], number[2], number[3]));
    SHOW(__m256i, _mm256_xor_si256(a, b));
    SHOW(__m256i, _mm256_or_si256(a, b));
    SHOW(__m256i, _mm256_slli_epi32(a, 13));
    SHOW(__m256i, _mm256_slli_epi32(a, 23));
    SHOW(__m256i, _mm256_srli_epi32(a, 19));
    SHOW(__m256i, _mm256_srli_epi32(a, 9));
    SHOW(__m256i, _mm256_cmpgt_epi64(a, b));
    SHOW(__m256i, _mm256_cmpgt_epi64(a, a));
    SHOW(__m256i, _mm256_shuffle_epi8(a, b));
    SHOW(__m256i, _mm256_unpacklo_epi32(a, b));
    SHOW(__m256i, _mm256_unpackhi_epi32(a, b));
    SHOW(__m256i, _mm256_unpacklo_epi64(a, b));
    SHOW(__m256i, _mm256_unpackhi_epi64(a, b));
    SHOW(__m256i, _mm256_broadcastsi128_si256(x));
    SHOW(__m128i, _mm256_castsi256_si128(a));
    SHOW(__m128i, _mm256_extracti128_si256(a, 0));
    SHOW(__m128i, _mm256_extracti128_si256(a, 1));
    SHOW(__m256i, _mm256_loadu_si256((const __m256i *)(bytes + 3)));
    SHOW_STORE(_mm256_storeu_si256((__m256i *)(target + 9), a));
    SHOW(__m256i, _mm256_loadu2_m128i((const __m128i *)(bytes + 1), (const __m128i *)(bytes + 30)));
    SHOW(__m256i, _mm256_maskload_epi64((const long long *)(bytes + 11), b));
    SHOW_STORE(_mm256_maskstore_epi64((long long *)(target + 11), b, a));
    SHOW(__m256i, _mm256_gf2p8affine_epi64_epi8(a, b, 0x3e));
    SHOW(__m256i, _mm256_gf2p8affine_epi64_epi8(a, b, 0xc1));
    SHOW(__m256i, _mm256_gf2p8affineinv_epi64_epi8(a, b, 0xd3));
    SHOW(__m256i, _mm256_gf2p8affineinv_epi64_epi8(a, b, 0x9f));
    SHOW(__m256i, _mm256_gf2p8affineinv_epi64_epi8(a, b, 0x4f));
    /* The inverse by itself, and that of zero. */
    SHOW(__m256i, _mm256_gf2p8affineinv_epi64_epi8(a, _mm256_set1_epi64x(0x0102040810204080), 0));
    SHOW(__m256i, _mm256_gf2p8affineinv_epi64_epi8(_mm256_setzero_si256(), b, 0x5a));
}
#endif

#ifdef __AVX512BW__
static void wide512(void)
{
    __m512i a, b, c;
    __m128i x;
    __mmask16 mask;
    int word;
    long long number;
    fill(&a, sizeof a);
    fill(&b, sizeof b);
    fill(&c, sizeof c);
    fill(&x, sizeof x);
    fill(&mask, sizeof mask);
    fill(&word, sizeof word);
    fill(&number, sizeof number);
    fill(bytes, sizeof bytes);
    SHOW(__m512i, _mm512_setzero_si512());
    SHOW(__m512i, _mm512_set1_epi32(word));
    SHOW(__m512i, _mm512_set1_epi64(number));
    SHOW(__m512i, _mm512_xor_si512(a, b));
    SHOW(__m512i, _mm512_ternarylogic_epi32(a, b, c, 0x96));
    SHOW(__m512i, _mm512_ternarylogic_epi32(a, b, c, 0xca));
    SHOW(__m512i, _mm512_ternarylogic_epi32(a, b, c, 0x1d));
    SHOW(__m512i, _mm512_rol_epi32(a, 2));
    SHOW(__m512i, _mm512_rol_epi32(a, 13));
    SHOW(__m512i, _mm512_rol_epi32(a, 18));
    SHOW(__m512i, _mm512_rol_epi32(a, 23));
    SHOW(__m512i, _mm512_shuffle_epi8(a, b));
    SHOW(__m512i, _mm512_unpacklo_epi32(a, b));
    SHOW(__m512i, _mm512_unpackhi_epi32(a, b));
    SHOW(__m512i, _mm512_unpacklo_epi64(a, b));
    SHOW(__m512i, _mm512_unpackhi_epi64(a, b));
    SHOW(__m512i, _mm512_broadcast_i32x4(x));
    SHOW(__m128i, _mm512_extracti32x4_epi32(a, 0));
    SHOW(__m128i, _mm512_extracti32x4_epi32(a, 1));
    SHOW(__m128i, _mm512_extracti32x4_epi32(a, 2));
    SHOW(__m128i, _mm512_extracti32x4_epi32(a, 3));
    SHOW(__m512i, _mm512_mask_broadcast_i32x4(a, mask, x));
    SHOW(__m512i, _mm512_mask_broadcast_i32x4(a, 0xf << 8, x));
    SHOW(__m512i, _mm512_maskz_loadu_epi32(mask, bytes));
    SHOW_STORE(_mm512_mask_storeu_epi32(target, mask, a));
    SHOW(__m512i, _mm512_gf2p8affine_epi64_epi8(a, b, 0x3e));
    SHOW(__m512i, _mm512_gf2p8affine_epi64_epi8(a, b, 0xc1));
    SHOW(__m512i, _mm512_gf2p8affineinv_epi64_epi8(a, b, 0xd3));
    SHOW(__m512i, _mm512_gf2p8affineinv_epi64_epi8(a, _mm512_set1_epi64(0x0102040810204080), 0));
    SHOW(__m512i, _mm512_gf2p8affineinv_epi64_epi8(_mm512_setzero_si512(), b, 0x5a));
}
#endif

int main(void)
{
    for (int round = 0; round < 200; round++) {
        shared();
#ifdef __AVX2__
        wide256();
#endif
#ifdef __AVX512BW__
        wide512();
#endif
    }
    return 0;
}

/* SM4 with AES-NI and SSE4.1.
 *
 * SM4's field and AES's field are isomorphic, and both S-boxes are an inversion between affine maps. So AESENCLAST
 * computes SM4's S-box, between an affine map from SM4 to AES and another back. A map of bytes that is linear in GF(2)
 * is two lookups by nibble in tables of sixteen, and PSHUFB looks sixteen bytes up in a register in constant time.
 * AESENCLAST also shifts rows, which one more PSHUFB takes back.
 *
 * There are two shapes. For a few blocks, a register holds a word of four lanes ("four_"). From SIXTEEN_FROM blocks
 * on, a register holds one byte of sixteen lanes ("sixteen_"): turning words by 8 costs nothing there, and the state
 * stays in AES's field, so that the map into it is paid once per block.
 */
#include "sm4_common.h"

#if defined(__x86_64__) && defined(__AES__) && defined(__SSSE3__) && defined(__SSE4_1__)

#include <immintrin.h>

/* With this many blocks in the last batch, sixteen lanes that are partly empty take no longer than groups of four. */
#define SIXTEEN_FROM 9

typedef __m128i bytes;

/* An affine map of bytes, by what it makes of zero and of the eight bits, lowest first; as two tables by nibble. */
typedef struct {
    uint8_t low[16], high[16];
} map;

#define NIBBLE(zero, a, b, c, d)                                                                                       \
    {                                                                                                                  \
        (zero), (zero) ^ (a), (zero) ^ (b), (zero) ^ (a) ^ (b), (zero) ^ (c), (zero) ^ (c) ^ (a), (zero) ^ (c) ^ (b),  \
            (zero) ^ (c) ^ (b) ^ (a), (zero) ^ (d), (zero) ^ (d) ^ (a), (zero) ^ (d) ^ (b), (zero) ^ (d) ^ (b) ^ (a),  \
            (zero) ^ (d) ^ (c), (zero) ^ (d) ^ (c) ^ (a), (zero) ^ (d) ^ (c) ^ (b), (zero) ^ (d) ^ (c) ^ (b) ^ (a)     \
    }
#define MAP(zero, a, b, c, d, e, f, g, h) {NIBBLE(zero, a, b, c, d), NIBBLE(0, e, f, g, h)}
#define ALIGNED static const __attribute__((aligned(16)))

/* Let Q be the S-box's first linear map and then the isomorphism that takes x of SM4's field to 0x23 in AES's, and P
 * what leads from AES's affine map back and through the S-box's second: S(x) = P(AES's S-box(Q x + 0x3e)) + 0x6c. The
 * check of the whole S-box in the tests is what proves the numbers. */
#define Q(zero) MAP(zero, 0x8c, 0x30, 0x85, 0x9f, 0xdc, 0x2e, 0xc5, 0x08)
#define Q_INVERSE(zero) MAP(zero, 0x85, 0xd9, 0x2e, 0x80, 0x55, 0x57, 0x44, 0xaf)
#define P(zero) MAP(zero, 0xb8, 0xca, 0x3e, 0x67, 0xe0, 0x50, 0x9d, 0xc0)
#define OFFSET 0x3e     /* what AES's S-box is due beside Q x */
#define OFFSET_BACK 0x75 /* Q^-1 OFFSET */

typedef struct {
    bytes low, high;
} nibbles;

SM4_INLINE nibbles split(bytes b)
{
    const bytes mask = _mm_set1_epi8(0x0f);
    return (nibbles){_mm_and_si128(b, mask), _mm_and_si128(_mm_srli_epi16(b, 4), mask)};
}

SM4_INLINE bytes look_up(const map *m, nibbles n)
{
    return _mm_xor_si128(_mm_shuffle_epi8(_mm_load_si128((const bytes *)m->low), n.low),
                         _mm_shuffle_epi8(_mm_load_si128((const bytes *)m->high), n.high));
}

/* What AESENCLAST did to the order of the bytes is taken back. */
SM4_INLINE bytes rows_back(bytes b)
{
    return _mm_shuffle_epi8(b, _mm_set_epi8(3, 6, 9, 12, 15, 2, 5, 8, 11, 14, 1, 4, 7, 10, 13, 0));
}

/* ---- A word of four lanes in a register ---- */

#define SM4_(name) four_##name
#define LANES 4
#define GROUPS 2

typedef __m128i four_vec;
typedef uint32_t four_number;
#define four_FK SM4_FK
#define four_CK SM4_CK

SM4_INLINE four_vec four_xor2(four_vec a, four_vec b)
{
    return _mm_xor_si128(a, b);
}

SM4_INLINE four_vec four_xor3(four_vec a, four_vec b, four_vec c)
{
    return _mm_xor_si128(a, _mm_xor_si128(b, c));
}

SM4_INLINE four_vec four_broadcast(const four_number *number)
{
    return _mm_set1_epi32((int)*number);
}

SM4_INLINE four_vec four_substitute(four_vec s)
{
    ALIGNED map into = Q(OFFSET);
    ALIGNED map back = P(0x6c);
    const bytes b = _mm_aesenclast_si128(look_up(&into, split(s)), _mm_setzero_si128());
    return look_up(&back, split(rows_back(b)));
}

SM4_INLINE four_vec turn(four_vec b, const int by)
{
    return _mm_or_si128(_mm_slli_epi32(b, by), _mm_srli_epi32(b, 32 - by));
}

SM4_INLINE four_vec turn8(four_vec b)
{
    return _mm_shuffle_epi8(b, _mm_set_epi8(14, 13, 12, 15, 10, 9, 8, 11, 6, 5, 4, 7, 2, 1, 0, 3));
}

SM4_INLINE four_vec turn24(four_vec b)
{
    return _mm_shuffle_epi8(b, _mm_set_epi8(12, 15, 14, 13, 8, 11, 10, 9, 4, 7, 6, 5, 0, 3, 2, 1));
}

/* L(b) = b ^ b<<<24 ^ (b ^ b<<<8 ^ b<<<16)<<<2. */
SM4_INLINE four_vec four_cipher_step(four_vec x, four_vec s)
{
    const four_vec b = four_substitute(s), d = _mm_xor_si128(b, turn8(b));
    return four_xor3(x, turn24(d), turn(_mm_xor_si128(b, turn8(d)), 2));
}

SM4_INLINE four_vec four_key_step(four_vec k, four_vec s)
{
    const four_vec b = four_substitute(s);
    return four_xor3(_mm_xor_si128(k, b), turn(b, 13), turn(b, 23));
}

SM4_INLINE void four_transpose(four_vec w[4])
{
    const four_vec a = _mm_unpacklo_epi32(w[0], w[1]), b = _mm_unpackhi_epi32(w[0], w[1]);
    const four_vec c = _mm_unpacklo_epi32(w[2], w[3]), d = _mm_unpackhi_epi32(w[2], w[3]);
    w[0] = _mm_unpacklo_epi64(a, c);
    w[1] = _mm_unpackhi_epi64(a, c);
    w[2] = _mm_unpacklo_epi64(b, d);
    w[3] = _mm_unpackhi_epi64(b, d);
}

SM4_INLINE four_vec swap_bytes(four_vec w)
{
    return _mm_shuffle_epi8(w, _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
}

/* A register takes one block, so what is not the caller's is simply not loaded. */
SM4_INLINE void four_load_blocks(four_vec w[4], const uint8_t *blocks, size_t n)
{
    for (size_t i = 0; i < 4; i++)
        w[i] = i < n ? swap_bytes(_mm_loadu_si128((const bytes *)(blocks + SM4_BLOCK * i))) : _mm_setzero_si128();
    four_transpose(w);
}

SM4_INLINE void four_store_blocks(const four_vec w[4], uint8_t *blocks, size_t n)
{
    four_vec t[4] = {w[0], w[1], w[2], w[3]};
    four_transpose(t);
    for (size_t i = 0; i < 4; i++)
        if (i < n)
            _mm_storeu_si128((bytes *)(blocks + SM4_BLOCK * i), swap_bytes(t[i]));
}

SM4_INLINE void four_load_round_keys(four_vec rk[4], const sm4_schedule *const *schedules, size_t at, size_t n)
{
    for (size_t i = 0; i < 4; i++)
        rk[i] = i < n ? _mm_loadu_si128((const bytes *)&(*schedules[i])[at]) : _mm_setzero_si128();
    four_transpose(rk);
}

SM4_INLINE void four_store_round_keys(const four_vec rk[4], sm4_schedule *schedules, size_t at, size_t n)
{
    four_vec t[4] = {rk[0], rk[1], rk[2], rk[3]};
    four_transpose(t);
    for (size_t i = 0; i < 4; i++)
        if (i < n)
            _mm_storeu_si128((bytes *)&schedules[i][at], t[i]);
}

#include "sm4_lanes.h"

/* ---- A byte of sixteen lanes in a register ----
 *
 * Byte j of a word is b[j], byte 0 the least significant. Blocks are held as Q x, and keys as Q k + OFFSET: three of
 * either, and the round key, add up to exactly one OFFSET.
 *
 * A word is a polynomial in y with bytes for coefficients: to turn it by 8 is to multiply it by y, modulo y^4 + 1. L
 * and L' are such polynomials as well, whose coefficients are maps of bytes. Modulo two, y^4 + 1 is (y + 1)^4. With
 * z = y + 1, the word b[0] + b[1] y + b[2] y^2 + b[3] y^3 is a[0] + a[1] z + a[2] z^2 + a[3] z^3, where
 *
 *   a[0] = b[0] + b[1] + b[2] + b[3]    a[1] = b[1] + b[3]    a[2] = b[2] + b[3]    a[3] = b[3]
 *
 * and z^4 = 0, so that half of the products in a multiplication vanish. */

#define SM4_(name) sixteen_##name
#define LANES 16
#define GROUPS 2
#define IN_HALVES
#define REST_GROUPS 1
#define SCHEDULED_GROUPS 1

typedef struct {
    bytes b[4];
} sixteen_vec;

/* A number's bytes, each sixteen times, so that it is added straight from memory. */
typedef struct {
    uint8_t b[4][16];
} sixteen_number;

#define SIXTEEN_TIMES(x) {x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}
#define BIT(x, i, then) (((x) >> (i) & 1) * (then))
#define Q_OF(x)                                                                                                        \
    (BIT(x, 0, 0x8c) ^ BIT(x, 1, 0x30) ^ BIT(x, 2, 0x85) ^ BIT(x, 3, 0x9f) ^ BIT(x, 4, 0xdc) ^ BIT(x, 5, 0x2e) ^       \
     BIT(x, 6, 0xc5) ^ BIT(x, 7, 0x08))
#define NUMBER(b3, b2, b1, b0)                                                                                         \
    {                                                                                                                  \
        {                                                                                                              \
            SIXTEEN_TIMES(b0), SIXTEEN_TIMES(b1), SIXTEEN_TIMES(b2), SIXTEEN_TIMES(b3)                                 \
        }                                                                                                              \
    }

#define KEY_BYTE(x) (Q_OF(x) ^ OFFSET)
ALIGNED sixteen_number sixteen_FK[4] = {
    NUMBER(KEY_BYTE(0xa3), KEY_BYTE(0xb1), KEY_BYTE(0xba), KEY_BYTE(0xc6)),
    NUMBER(KEY_BYTE(0x56), KEY_BYTE(0xaa), KEY_BYTE(0x33), KEY_BYTE(0x50)),
    NUMBER(KEY_BYTE(0x67), KEY_BYTE(0x7d), KEY_BYTE(0x91), KEY_BYTE(0x97)),
    NUMBER(KEY_BYTE(0xb2), KEY_BYTE(0x70), KEY_BYTE(0x22), KEY_BYTE(0xdc)),
};

#define CK_BYTE(i, j) Q_OF(SM4_CK_BYTE(i, j))
#define CK_ONE(i) NUMBER(CK_BYTE(i, 0), CK_BYTE(i, 1), CK_BYTE(i, 2), CK_BYTE(i, 3))
#define CK_FOUR(i) CK_ONE(i), CK_ONE((i) + 1), CK_ONE((i) + 2), CK_ONE((i) + 3)
ALIGNED sixteen_number sixteen_CK[SM4_ROUNDS] = {
    CK_FOUR(0), CK_FOUR(4), CK_FOUR(8), CK_FOUR(12), CK_FOUR(16), CK_FOUR(20), CK_FOUR(24), CK_FOUR(28),
};

SM4_INLINE sixteen_vec sixteen_xor2(sixteen_vec a, sixteen_vec b)
{
    SM4_UNROLL
    for (int j = 0; j < 4; j++)
        a.b[j] = _mm_xor_si128(a.b[j], b.b[j]);
    return a;
}

SM4_INLINE sixteen_vec sixteen_xor3(sixteen_vec a, sixteen_vec b, sixteen_vec c)
{
    return sixteen_xor2(a, sixteen_xor2(b, c));
}

SM4_INLINE sixteen_vec sixteen_broadcast(const sixteen_number *one)
{
    sixteen_vec v;
    SM4_UNROLL
    for (int j = 0; j < 4; j++)
        v.b[j] = _mm_load_si128((const bytes *)one->b[j]);
    return v;
}

SM4_INLINE bytes add(bytes a, bytes b)
{
    return _mm_xor_si128(a, b);
}

SM4_INLINE nibbles add_nibbles(nibbles a, nibbles b)
{
    return (nibbles){add(a.low, b.low), add(a.high, b.high)};
}

/* AES's S-box of each byte, in the coefficients of powers of z. AESENCLAST adds a round key when it has shifted the
 * rows, which makes some of the sums. */
typedef struct {
    bytes a[4];
} sixteen_half;

SM4_INLINE sixteen_half sixteen_first_half(sixteen_vec s)
{
    const bytes b3 = _mm_aesenclast_si128(s.b[3], _mm_setzero_si128());
    const bytes b1 = _mm_aesenclast_si128(s.b[1], _mm_setzero_si128());
    const bytes b23 = _mm_aesenclast_si128(s.b[2], b3);
    const bytes b01 = _mm_aesenclast_si128(s.b[0], b1);
    return (sixteen_half){{rows_back(add(b01, b23)), rows_back(add(b1, b3)), rows_back(b23), rows_back(b3)}};
}

/* Let G be the shift of a byte to the right by 6, H that to the left by 2, and R = G + H. Then
 *
 *   L = (1 + H) + R (y + y^2) + (1 + G) y^3 = (1 + y + y^2) (R + (1 + G) z)
 *
 * The coefficients of (R + (1 + G) z) a are c0 = R a[0], c1 = (1 + G) a[0] + R a[1], c2 = (1 + G) a[1] + R a[2] and
 * c3 = (1 + G) a[2] + R a[3]. As Karatsuba has it, c1 = (1 + G + R) (a[0] + a[1]) + R a[0] + (1 + G) a[1], where
 * 1 + G + R = 1 + H. Of (1 + y + y^2) (c0 + c1 z + c2 z^2 + c3 z^3), the coefficients of 1, y, y^2 and y^3 are
 * c0 + c1 + c3, c0 + c2 + c3, c0 + c3 and c1 + c2 + c3; some terms cancel out. */
SM4_INLINE sixteen_vec sixteen_cipher_step(sixteen_vec x, sixteen_half s)
{
    ALIGNED map r = MAP(0, 0xd3, 0x0d, 0xa0, 0x42, 0xb4, 0x49, 0x82, 0xbc);       /* Q R P */
    ALIGNED map last = MAP(0x76, 0xd3, 0x0d, 0xa0, 0x42, 0xb4, 0x49, 0x82, 0xbc); /* Q R P, and Q L(0x6c...) */
    ALIGNED map g = MAP(0, 0x55, 0xde, 0xd8, 0x5e, 0x5f, 0x95, 0x72, 0x71);       /* Q (1 + G) P */
    ALIGNED map h = MAP(0, 0x86, 0xd3, 0x78, 0x1c, 0xeb, 0xdc, 0xf0, 0xcd);       /* Q (1 + H) P */
    const nibbles a[4] = {split(s.a[0]), split(s.a[1]), split(s.a[2]), split(s.a[3])};
    const bytes c3 = add(look_up(&last, a[3]), look_up(&g, a[2]));
    const bytes r0 = look_up(&r, a[0]), g1 = look_up(&g, a[1]), r2 = look_up(&r, a[2]);
    const bytes h01 = look_up(&h, add_nibbles(a[0], a[1]));
    const bytes c03 = add(c3, r0), c03_r2 = add(c03, r2);
    x.b[0] = add(x.b[0], add(add(c3, h01), g1));
    x.b[1] = add(x.b[1], add(c03_r2, g1));
    x.b[2] = add(x.b[2], c03);
    x.b[3] = add(x.b[3], add(c03_r2, h01));
    return x;
}

/* Let M1 be the shift of a byte to the left by 5, M2 the sum of that to the right by 3 and that to the left by 7, and
 * M3 that to the right by 1. Then
 *
 *   L' = 1 + M1 y + M2 y^2 + M3 y^3 = N0 + N1 z + N2 z^2 + M3 z^3
 *
 * with N0 = 1 + M1 + M2 + M3, N1 = M1 + M3 and N2 = M2 + M3. The coefficients of L' a are
 *
 *   c0 = N0 a[0]                       c1 = N0 a[1] + N1 a[0] = (N0 + N1) (a[0] + a[1]) + N0 a[0] + N1 a[1]
 *   c2 = N0 a[2] + N1 a[1] + N2 a[0]   c3 = N0 a[3] + N1 a[2] + N2 a[1] + M3 a[0]
 *
 * and those of 1, y, y^2 and y^3 are c0 + c1 + c2 + c3, c1 + c3, c2 + c3 and c3; some terms cancel out. */
SM4_INLINE sixteen_vec sixteen_key_step(sixteen_vec k, sixteen_half s)
{
    ALIGNED map n0 = MAP(0, 0x83, 0x8a, 0x56, 0x6d, 0x12, 0x07, 0xe3, 0x65);  /* Q N0 P */
    ALIGNED map n1 = MAP(0, 0x03, 0x27, 0xb7, 0xad, 0x37, 0xb1, 0xc9, 0xeb);  /* Q N1 P */
    ALIGNED map n01 = MAP(0, 0x80, 0xad, 0xe1, 0xc0, 0x25, 0xb6, 0x2a, 0x8e); /* Q (N0 + N1) P */
    ALIGNED map n2 = MAP(0, 0xe6, 0x2d, 0x43, 0x5c, 0xf1, 0x1e, 0x87, 0xa8);  /* Q N2 P */
    ALIGNED map m3 = MAP(0x28, 0x03, 0xe2, 0x7a, 0x4e, 0x37, 0xb1, 0xef, 0xeb); /* Q M3 P, and Q L'(0x6c...) */
    const nibbles a[4] = {split(s.a[0]), split(s.a[1]), split(s.a[2]), split(s.a[3])};
    const bytes c3 = add(add(look_up(&n0, a[3]), look_up(&n1, a[2])), add(look_up(&n2, a[1]), look_up(&m3, a[0])));
    const bytes f0 = look_up(&n0, a[0]), f1 = look_up(&n1, a[1]);
    const bytes c23_f1 = add(c3, add(look_up(&n0, a[2]), look_up(&n2, a[0])));
    const bytes f01 = look_up(&n01, add_nibbles(a[0], a[1]));
    k.b[0] = add(k.b[0], add(c23_f1, f01));
    k.b[1] = add(k.b[1], add(add(add(c3, f01), f0), f1));
    k.b[2] = add(k.b[2], add(c23_f1, f1));
    k.b[3] = add(k.b[3], c3);
    return k;
}

/* Byte i of register r to byte r of register i: four perfect shuffles. */
SM4_INLINE void sixteen_transpose(bytes r[16])
{
    SM4_UNROLL
    for (int pass = 0; pass < 4; pass++) {
        bytes t[16];
        SM4_UNROLL
        for (int i = 0; i < 8; i++) {
            t[2 * i] = _mm_unpacklo_epi8(r[i], r[i + 8]);
            t[2 * i + 1] = _mm_unpackhi_epi8(r[i], r[i + 8]);
        }
        SM4_UNROLL
        for (int i = 0; i < 16; i++)
            r[i] = t[i];
    }
}

/* The sixteen registers of four words, in the order of memory: of a block, whose words are big-endian, byte 0 is the
 * most significant of the first word. */
SM4_INLINE void sixteen_load_blocks(sixteen_vec w[4], const uint8_t *blocks, size_t n)
{
    ALIGNED map into = Q(0);
    bytes r[16];
    SM4_UNROLL
    for (size_t i = 0; i < 16; i++)
        r[i] = i < n ? _mm_loadu_si128((const bytes *)(blocks + SM4_BLOCK * i)) : _mm_setzero_si128();
    sixteen_transpose(r);
    SM4_UNROLL
    for (int i = 0; i < 16; i++)
        w[i / 4].b[3 - i % 4] = look_up(&into, split(r[i]));
}

SM4_INLINE void sixteen_store_blocks(const sixteen_vec w[4], uint8_t *blocks, size_t n)
{
    ALIGNED map back = Q_INVERSE(0);
    bytes r[16];
    SM4_UNROLL
    for (int i = 0; i < 16; i++)
        r[i] = look_up(&back, split(w[i / 4].b[3 - i % 4]));
    sixteen_transpose(r);
    SM4_UNROLL
    for (size_t i = 0; i < 16; i++)
        if (i < n)
            _mm_storeu_si128((bytes *)(blocks + SM4_BLOCK * i), r[i]);
}

SM4_INLINE void sixteen_load_round_keys(sixteen_vec rk[4], const sm4_schedule *const *schedules, size_t at, size_t n)
{
    ALIGNED map into = Q(OFFSET);
    bytes r[16];
    SM4_UNROLL
    for (size_t i = 0; i < 16; i++)
        r[i] = i < n ? _mm_loadu_si128((const bytes *)&(*schedules[i])[at]) : _mm_setzero_si128();
    sixteen_transpose(r);
    SM4_UNROLL
    for (int i = 0; i < 16; i++)
        rk[i / 4].b[i % 4] = look_up(&into, split(r[i]));
}

SM4_INLINE void sixteen_store_round_keys(const sixteen_vec rk[4], sm4_schedule *schedules, size_t at, size_t n)
{
    ALIGNED map back = Q_INVERSE(OFFSET_BACK);
    bytes r[16];
    SM4_UNROLL
    for (int i = 0; i < 16; i++)
        r[i] = look_up(&back, split(rk[i / 4].b[i % 4]));
    sixteen_transpose(r);
    SM4_UNROLL
    for (size_t i = 0; i < 16; i++)
        if (i < n)
            _mm_storeu_si128((bytes *)&schedules[i][at], r[i]);
}

#include "sm4_lanes.h"

/* ---- The path ---- */

/* How many of n blocks go in sixteens. The rest go in fours. */
static size_t in_sixteens(size_t n)
{
    return n % 16 >= SIXTEEN_FROM ? n : n - n % 16;
}

static void encrypt_each(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n)
{
    const size_t i = in_sixteens(n);
    sixteen_each_worker(keys, in, out, i);
    four_each_worker(keys + SM4_BLOCK * i, in + SM4_BLOCK * i, out + SM4_BLOCK * i, n - i);
    sm4_burn();
}

static void expand(const uint8_t *keys, sm4_schedule *schedules, size_t n)
{
    const size_t i = in_sixteens(n);
    sixteen_expand_worker(keys, schedules, i);
    four_expand_worker(keys + SM4_BLOCK * i, schedules + i, n - i);
    sm4_burn();
}

static void encrypt_scheduled(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, size_t n)
{
    const size_t i = in_sixteens(n);
    sixteen_scheduled_worker(schedules, in, out, i);
    four_scheduled_worker(schedules + i, in + SM4_BLOCK * i, out + SM4_BLOCK * i, n - i);
    sm4_burn();
}

static SM4_NOINLINE void spread_schedule(sixteen_number numbers[SM4_ROUNDS], const sm4_schedule *schedule)
{
    ALIGNED map into = Q(OFFSET);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        const bytes four = look_up(&into, split(_mm_loadu_si128((const bytes *)&(*schedule)[i])));
        SM4_UNROLL
        for (int j = 0; j < 16; j++)
            _mm_store_si128((bytes *)numbers[i + j / 4].b[j % 4], _mm_shuffle_epi8(four, _mm_set1_epi8((char)j)));
    }
}

static void encrypt_ecb(const sm4_schedule *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    const size_t i = in_sixteens(n);
    if (i > 0) {
        __attribute__((aligned(16))) sixteen_number numbers[SM4_ROUNDS];
        spread_schedule(numbers, schedule);
        sixteen_ecb_worker(numbers, in, out, i);
        sm4_wipe(numbers, sizeof numbers);
    }
    four_ecb_worker(*schedule, in + SM4_BLOCK * i, out + SM4_BLOCK * i, n - i);
    sm4_burn();
}

const sm4_path sm4_aesni = {
    .name = "aesni",
    .lanes = 32,
    .is_supported = sm4_has_aesni,
    .encrypt_each = encrypt_each,
    .expand = expand,
    .encrypt_scheduled = encrypt_scheduled,
    .encrypt_ecb = encrypt_ecb,
};

#elif defined(__x86_64__)

const sm4_path sm4_aesni = {.name = "aesni", .is_supported = sm4_has_none};

#endif

/* SM4 for any 64-bit machine: bitsliced, in plain C with the vector extension that gcc and clang share.
 *
 * Thirty-two blocks go side by side. A word of the cipher, over all lanes, is held as eight planes: plane p has bit p
 * of each of the word's four bytes. A plane is four 32-bit elements: element k is for byte k (byte 0 the least
 * significant), and its bit l is for lane l. So the S-box, a Boolean circuit of 109 gates, serves all four bytes at
 * once; turning a word by 8 bits is one permutation of elements; and turning it by 2 renumbers planes. Compilers map
 * the elements to SSE2 and NEON, which every x86-64 and AArch64 has, and to plain registers elsewhere.
 *
 * Constant time is by construction: there are only Boolean operations, fixed shifts and fixed permutations. What is
 * branched on is n, and whether pointers to schedules are equal.
 */
#include "sm4_common.h"

#define LANES 32

typedef uint32_t plane __attribute__((vector_size(16)));

#if defined(__clang__) || __GNUC__ >= 12
#define PICK(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define PICK(a, b, i, j, k, l) __builtin_shuffle(a, b, (plane){i, j, k, l})
#endif

/* The word turned left by 8, 16, 24 bits: byte k comes from byte k - 1, k - 2, k - 3. */
#define TURN8(a) PICK(a, a, 3, 0, 1, 2)
#define TURN16(a) PICK(a, a, 2, 3, 0, 1)
#define TURN24(a) PICK(a, a, 1, 2, 3, 0)

typedef struct {
    plane p[8];
} word;

/* A schedule in planes, for LANES lanes. */
typedef struct {
    word rk[SM4_ROUNDS];
} sliced_schedule;

/* The S-box is S(x) = A inv(A x + C) + C, with A circulant (row 0 is 0xA7), C = 0xD3, and inv in GF(2^8) modulo
 * x^8 + x^7 + x^6 + x^5 + x^4 + x^2 + 1. This is A inv(A x): the constants are the callers' affair. Adding C after the
 * first A is adding A^-1 C = 0x75 before it.
 *
 * inv goes through the tower GF(((2^2)^2)^2) with normal bases {W^2, W}, {Z^4, Z}, {Y^16, Y}, for W = 0x5C, Z = 0x50,
 * Y = 0xBE, each of trace 1 over the field below. With x = g Y^16 + k Y, the norm is h = g k + (g + k)^2 Y^17, in
 * GF(2^4), and 1/x = (k / h) Y^16 + (g / h) Y. A product in GF(2^4) is nine products of bits and sums. Where an OR or
 * an AND-NOT stands for a product of bits, it takes in a linear term that is due there anyway. The two linear layers
 * were found by a greedy search for common sums over all 128 such bases. */
SM4_INLINE void substitute(word *w)
{
    plane x0 = w->p[0], x1 = w->p[1], x2 = w->p[2], x3 = w->p[3];
    plane x4 = w->p[4], x5 = w->p[5], x6 = w->p[6], x7 = w->p[7];

    /* A x in the tower's basis, and the sums of coordinates that the products need. */
    plane t1 = x6 ^ x2, t2 = x4 ^ x3, t3 = x7 ^ x1, t4 = t1 ^ x4, t5 = t4 ^ x0, t6 = t5 ^ x2;
    plane t7 = x7 ^ x2, t8 = t7 ^ x5, t9 = t8 ^ t3, t10 = t8 ^ t2, t11 = t10 ^ t4, t12 = t11 ^ t3;
    plane t13 = t9 ^ t4, t14 = t6 ^ x5, t15 = t13 ^ x6, t16 = t15 ^ t5, t17 = t16 ^ x5, t18 = t15 ^ t14;

    /* The norm. */
    plane p0 = x2 & ~t11, p1 = t6 | t3, p2 = t5 & t12;
    plane p3 = t18 | t4, p4 = t14 | t9, p5 = t15 | t13;
    plane p6 = t17 | t10, p7 = x5 | t8, p8 = t16 & t2;
    plane r1 = p7 ^ p8, r0 = p6 ^ p7;
    plane h1 = p0 ^ p2 ^ r1 ^ t1, h0 = p1 ^ p2 ^ r0;
    plane l1 = p3 ^ p5 ^ r1, l0 = p4 ^ p5 ^ r0 ^ t7;

    /* Its inverse, by the same formula one floor down, where the norm's inverse is its square: a swap. */
    plane hs = h1 ^ h0, ls = l1 ^ l0;
    plane e1 = (h0 & l0) ^ (hs | ls), e0 = (h1 | l1) ^ (hs & ls), es = e1 ^ e0;
    plane m = es & ls, d1 = (e1 & l1) ^ m, d0 = (e0 & l0) ^ m;
    plane n = es & hs, f1 = (e1 & h1) ^ n, f0 = (e0 & h0) ^ n;
    plane ds = d1 ^ d0, fs = f1 ^ f0, u1 = d1 ^ f1, u0 = d0 ^ f0, us = u1 ^ u0;

    /* k / h and g / h. */
    plane q0 = d1 & t11, q1 = d0 & t3, q2 = ds & t12, q3 = f1 & t4, q4 = f0 & t9, q5 = fs & t13;
    plane q6 = u1 & t10, q7 = u0 & t8, q8 = us & t2;
    plane q9 = d1 & x2, q10 = d0 & t6, q11 = ds & t5, q12 = f1 & t18, q13 = f0 & t14, q14 = fs & t15;
    plane q15 = u1 & t17, q16 = u0 & x5, q17 = us & t16;

    /* A times that, back in the standard's basis. */
    plane z1 = q16 ^ q15, z2 = q1 ^ q2, z3 = q6 ^ q7, z4 = z3 ^ z2, z5 = q14 ^ z1, z6 = q13 ^ z5;
    plane z7 = q12 ^ z5, z8 = q11 ^ z1, z9 = q9 ^ z4, z10 = z9 ^ z7, z11 = z10 ^ z8, z12 = q4 ^ z2;
    plane z13 = q3 ^ z12, z14 = q8 ^ q7, z15 = z14 ^ z6, z16 = z15 ^ z13, z17 = z11 ^ z16;
    plane z18 = q17 ^ q15, z19 = z18 ^ z7, z20 = q10 ^ z8, z21 = q0 ^ q2, z22 = z21 ^ z13;
    w->p[0] = z4;
    w->p[1] = q5 ^ z12 ^ z20;
    w->p[2] = z16;
    w->p[3] = z11 ^ z22;
    w->p[4] = z6 ^ z19 ^ z22;
    w->p[5] = z17 ^ z20;
    w->p[6] = z19;
    w->p[7] = z17;
}

/* Add a constant that is the same in all four bytes. */
SM4_INLINE void add_byte(word *w, unsigned byte)
{
    for (int p = 0; p < 8; p++)
        if (byte >> p & 1)
            w->p[p] = ~w->p[p];
}

#define BEFORE_A 0x75 /* A^-1 C */
#define AFTER_L 0x4f  /* L of C in every byte */
#define AFTER_LK 0x40 /* L' of C in every byte */

/* x ^= L(S(s)), and L(b) = b ^ b<<<2 ^ b<<<10 ^ b<<<18 ^ b<<<24. */
SM4_INLINE void cipher_step(word *x, word s)
{
    word near, far;
    add_byte(&s, BEFORE_A);
    substitute(&s);
    for (int p = 0; p < 8; p++) {
        plane d = s.p[p] ^ TURN8(s.p[p]);
        near.p[p] = TURN24(d);         /* b ^ b<<<24 */
        far.p[p] = s.p[p] ^ TURN8(d);  /* b ^ b<<<8 ^ b<<<16, still to be turned by 2 */
    }
    x->p[0] ^= near.p[0] ^ TURN8(far.p[6]);
    x->p[1] ^= near.p[1] ^ TURN8(far.p[7]);
    for (int p = 2; p < 8; p++)
        x->p[p] ^= near.p[p] ^ far.p[p - 2];
    add_byte(x, AFTER_L);
}

/* k ^= L'(S(s)), and L'(b) = b ^ b<<<13 ^ b<<<23: 13 is 8 + 5, and 23 is 24 - 1. */
SM4_INLINE void key_step(word *k, word s)
{
    add_byte(&s, BEFORE_A);
    substitute(&s);
    for (int p = 0; p < 8; p++) {
        plane b13 = p < 5 ? TURN16(s.p[(p + 3) & 7]) : TURN8(s.p[(p - 5) & 7]);
        plane b23 = p < 7 ? TURN24(s.p[(p + 1) & 7]) : TURN16(s.p[0]);
        k->p[p] ^= s.p[p] ^ b13 ^ b23;
    }
    add_byte(k, AFTER_LK);
}

SM4_INLINE word add(const word *a, const word *b)
{
    word sum;
    for (int p = 0; p < 8; p++)
        sum.p[p] = a->p[p] ^ b->p[p];
    return sum;
}

SM4_INLINE word add3(const word *a, const word *b, const word *c)
{
    word sum;
    for (int p = 0; p < 8; p++)
        sum.p[p] = a->p[p] ^ b->p[p] ^ c->p[p];
    return sum;
}

/* One number for all lanes. The bits may be secret, so they become masks by arithmetic. */
SM4_INLINE void broadcast(word *w, uint32_t number)
{
    plane bytes = {number, number >> 8, number >> 16, number >> 24};
    for (int p = 0; p < 8; p++)
        w->p[p] = -(bytes >> p & 1);
}

SM4_INLINE void exchange(plane rows[LANES], int distance, uint32_t low)
{
    for (int i = 0; i < LANES; i += 2 * distance)
        for (int j = i; j < i + distance; j++) {
            plane t = (rows[j] >> distance ^ rows[j + distance]) & low;
            rows[j + distance] ^= t;
            rows[j] ^= t << distance;
        }
}

/* Bit b of row l to bit l of row b: in each of the four columns a 32 x 32 matrix of bits is transposed. */
static SM4_NOINLINE void transpose(plane rows[LANES])
{
    exchange(rows, 16, 0x0000ffff);
    exchange(rows, 8, 0x00ff00ff);
    exchange(rows, 4, 0x0f0f0f0f);
    exchange(rows, 2, 0x33333333);
    exchange(rows, 1, 0x55555555);
}

/* Row 8k + p holds, for each of four words, bit p of memory's byte k: between that and four words in planes. Words are
 * numbers in the machine's order; where they come from a block, which is big-endian, a little-endian machine has
 * their bytes upside down. `turned` says so. It is its own inverse but for the direction of the copy. */
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define BLOCK_IS_TURNED 0
#else
#define BLOCK_IS_TURNED 1
#endif

SM4_INLINE void quarter_turn(plane *a, plane *b, plane *c, plane *d)
{
    plane ab_low = PICK(*a, *b, 0, 4, 1, 5), ab_high = PICK(*a, *b, 2, 6, 3, 7);
    plane cd_low = PICK(*c, *d, 0, 4, 1, 5), cd_high = PICK(*c, *d, 2, 6, 3, 7);
    *a = PICK(ab_low, cd_low, 0, 1, 4, 5);
    *b = PICK(ab_low, cd_low, 2, 3, 6, 7);
    *c = PICK(ab_high, cd_high, 0, 1, 4, 5);
    *d = PICK(ab_high, cd_high, 2, 3, 6, 7);
}

SM4_INLINE void rows_to_words(const plane rows[LANES], word *w0, word *w1, word *w2, word *w3, int turned)
{
    for (int p = 0; p < 8; p++) {
        plane a = rows[p + (turned ? 24 : 0)], b = rows[p + (turned ? 16 : 8)];
        plane c = rows[p + (turned ? 8 : 16)], d = rows[p + (turned ? 0 : 24)];
        quarter_turn(&a, &b, &c, &d);
        w0->p[p] = a;
        w1->p[p] = b;
        w2->p[p] = c;
        w3->p[p] = d;
    }
}

SM4_INLINE void words_to_rows(plane rows[LANES], const word *w0, const word *w1, const word *w2, const word *w3,
                              int turned)
{
    for (int p = 0; p < 8; p++) {
        plane a = w0->p[p], b = w1->p[p], c = w2->p[p], d = w3->p[p];
        quarter_turn(&a, &b, &c, &d);
        rows[p + (turned ? 24 : 0)] = a;
        rows[p + (turned ? 16 : 8)] = b;
        rows[p + (turned ? 8 : 16)] = c;
        rows[p + (turned ? 0 : 24)] = d;
    }
}

/* n blocks, at most LANES, to four words in planes; lanes without a block hold zeros. */
static SM4_NOINLINE void load_blocks(word w[4], const uint8_t *blocks, size_t n)
{
    plane rows[LANES];
    memcpy(rows, blocks, n * SM4_BLOCK);
    memset((uint8_t *)rows + n * SM4_BLOCK, 0, sizeof rows - n * SM4_BLOCK);
    transpose(rows);
    rows_to_words(rows, &w[0], &w[1], &w[2], &w[3], BLOCK_IS_TURNED);
    sm4_wipe(rows, sizeof rows);
}

/* Four rounds of n schedules, from round `at`. */
static SM4_NOINLINE void load_round_keys(word rk[4], const sm4_schedule *const *schedules, size_t at, size_t n)
{
    plane rows[LANES];
    for (size_t i = 0; i < n; i++)
        memcpy(&rows[i], &(*schedules[i])[at], sizeof rows[i]);
    memset(&rows[n], 0, (LANES - n) * sizeof rows[0]);
    transpose(rows);
    rows_to_words(rows, &rk[0], &rk[1], &rk[2], &rk[3], 0);
    sm4_wipe(rows, sizeof rows);
}

static SM4_NOINLINE void store_round_keys(const word rk[4], sm4_schedule *schedules, size_t at, size_t n)
{
    plane rows[LANES];
    words_to_rows(rows, &rk[0], &rk[1], &rk[2], &rk[3], 0);
    transpose(rows);
    for (size_t i = 0; i < n; i++)
        memcpy(&schedules[i][at], &rows[i], sizeof rows[i]);
    sm4_wipe(rows, sizeof rows);
}

static SM4_NOINLINE void expand_sliced(sliced_schedule *schedule, const uint8_t *keys, size_t n)
{
    word k[4], constant, t;
    load_blocks(k, keys, n);
    for (int i = 0; i < 4; i++) {
        broadcast(&constant, SM4_FK[i]);
        k[i] = add(&k[i], &constant);
    }
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        t = add(&k[2], &k[3]);
        broadcast(&constant, SM4_CK[i]);
        key_step(&k[0], add3(&k[1], &t, &constant));
        broadcast(&constant, SM4_CK[i + 1]);
        key_step(&k[1], add3(&k[0], &t, &constant));
        t = add(&k[0], &k[1]);
        broadcast(&constant, SM4_CK[i + 2]);
        key_step(&k[2], add3(&k[3], &t, &constant));
        broadcast(&constant, SM4_CK[i + 3]);
        key_step(&k[3], add3(&k[2], &t, &constant));
        memcpy(&schedule->rk[i], k, sizeof k);
    }
}

static SM4_NOINLINE void encrypt_sliced(const sliced_schedule *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    word x[4], t;
    plane rows[LANES];
    load_blocks(x, in, n);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        const word *rk = &schedule->rk[i];
        t = add(&x[2], &x[3]);
        cipher_step(&x[0], add3(&x[1], &t, &rk[0]));
        cipher_step(&x[1], add3(&x[0], &t, &rk[1]));
        t = add(&x[0], &x[1]);
        cipher_step(&x[2], add3(&x[3], &t, &rk[2]));
        cipher_step(&x[3], add3(&x[2], &t, &rk[3]));
    }
    words_to_rows(rows, &x[3], &x[2], &x[1], &x[0], BLOCK_IS_TURNED);
    transpose(rows);
    memcpy(out, rows, n * SM4_BLOCK);
}

static SM4_NOINLINE void broadcast_schedule(sliced_schedule *sliced, const sm4_schedule *schedule)
{
    for (int i = 0; i < SM4_ROUNDS; i++)
        broadcast(&sliced->rk[i], (*schedule)[i]);
}

static size_t at_most_lanes(size_t n)
{
    return n < LANES ? n : LANES;
}

static void encrypt_each(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n)
{
    sliced_schedule sliced;
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i += LANES) {
        size_t now = at_most_lanes(n - i);
        expand_sliced(&sliced, keys + i * SM4_BLOCK, now);
        encrypt_sliced(&sliced, in + i * SM4_BLOCK, out + i * SM4_BLOCK, now);
    }
    sm4_wipe(&sliced, sizeof sliced);
    sm4_burn();
}

static void expand(const uint8_t *keys, sm4_schedule *schedules, size_t n)
{
    sliced_schedule sliced;
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i += LANES) {
        size_t now = at_most_lanes(n - i);
        expand_sliced(&sliced, keys + i * SM4_BLOCK, now);
        for (size_t at = 0; at < SM4_ROUNDS; at += 4)
            store_round_keys(&sliced.rk[at], schedules + i, at, now);
    }
    sm4_wipe(&sliced, sizeof sliced);
    sm4_burn();
}

static void encrypt_scheduled(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, size_t n)
{
    sliced_schedule sliced;
    const sm4_schedule *broadcasted = NULL;
    if (n == 0)
        return;
    for (size_t i = 0; i < n; i += LANES) {
        size_t now = at_most_lanes(n - i), same = 1;
        while (same < now && schedules[i + same] == schedules[i])
            same++;
        if (same < now) {
            for (size_t at = 0; at < SM4_ROUNDS; at += 4)
                load_round_keys(&sliced.rk[at], schedules + i, at, now);
            broadcasted = NULL;
        } else if (schedules[i] != broadcasted) {
            broadcasted = schedules[i];
            broadcast_schedule(&sliced, broadcasted);
        }
        encrypt_sliced(&sliced, in + i * SM4_BLOCK, out + i * SM4_BLOCK, now);
    }
    sm4_wipe(&sliced, sizeof sliced);
    sm4_burn();
}

static void encrypt_ecb(const sm4_schedule *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    sliced_schedule sliced;
    if (n == 0)
        return;
    broadcast_schedule(&sliced, schedule);
    for (size_t i = 0; i < n; i += LANES)
        encrypt_sliced(&sliced, in + i * SM4_BLOCK, out + i * SM4_BLOCK, at_most_lanes(n - i));
    sm4_wipe(&sliced, sizeof sliced);
    sm4_burn();
}

static int always(void)
{
    return 1;
}

const sm4_path sm4_portable = {
    .name = "portable",
    .lanes = LANES,
    .is_supported = always,
    .encrypt_each = encrypt_each,
    .expand = expand,
    .encrypt_scheduled = encrypt_scheduled,
    .encrypt_ecb = encrypt_ecb,
};

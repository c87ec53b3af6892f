/* The four operations of sm4.h over vectors of lanes, written once.
 *
 * A path whose vector holds one 32-bit word for each of so many lanes includes this file after it has defined, each
 * name in SM4_():
 *
 *   LANES                                          how many words a vector holds (a macro, without SM4_())
 *   GROUPS                                         how many vectors are kept in flight: one, two or four (likewise)
 *   vec                                            the vector
 *   vec xor2(vec, vec); vec xor3(vec, vec, vec)
 *   number; vec broadcast(const number *)          what is the same for all lanes: usually a uint32_t
 *   number FK[], CK[]                              the standard's constants
 *   void load_blocks(vec w[4], const uint8_t *, size_t n)
 *                                                  n blocks, at most LANES, as four words each; nothing behind the
 *                                                  n-th is read, and the lanes without a block may hold anything
 *   void store_blocks(const vec w[4], uint8_t *, size_t n)
 *   void load_round_keys(vec rk[4], const sm4_schedule *const *, size_t at, size_t n)
 *                                                  four rounds, from round `at`
 *   void store_round_keys(const vec rk[4], sm4_schedule *, size_t at, size_t n)
 *   vec cipher_step(vec x, vec s)                  x ^ L(S(s))
 *   vec key_step(vec k, vec s)                     k ^ L'(S(s))
 *
 * and, if that is faster, macros without SM4_() that say
 *
 *   IN_HALVES                                      that the groups take turns within a step as well: there is a type
 *                                                  half, half first_half(vec s), and both steps take a half for s
 *   REST_GROUPS                                    how many vectors are kept in flight, at most, for what is left after
 *                                                  the full batches
 *   SCHEDULED_GROUPS                               how many with schedules that are given, and take registers, too
 *
 * It leaves behind each_worker, expand_worker, scheduled_worker and ecb_worker, in SM4_() too, and takes the macros
 * away, so that a file with two shapes of vector includes it twice.
 *
 * The order of the lanes is the path's own, as long as blocks and round keys agree on it.
 *
 * The rounds of one group are a chain of instructions that each wait for the one before. So the groups take turns
 * round by round, and the processor always has another group's instruction at hand. Fewer blocks than a full set of
 * groups go through one group if that holds them, or two.
 *
 * A round needs x1 ^ x2 ^ x3 and the next needs x2 ^ x3 ^ x4: `shared` is what they have in common.
 */
#include "sm4_common.h"

#define vec SM4_(vec)
#define number SM4_(number)
#define xor2 SM4_(xor2)
#define xor3 SM4_(xor3)
#define broadcast SM4_(broadcast)
#define load_blocks SM4_(load_blocks)
#define store_blocks SM4_(store_blocks)
#define load_round_keys SM4_(load_round_keys)
#define store_round_keys SM4_(store_round_keys)
#define cipher_step SM4_(cipher_step)
#define key_step SM4_(key_step)

#ifdef IN_HALVES
#define half SM4_(half)
#define first_half SM4_(first_half)
#endif
#ifndef REST_GROUPS
#define REST_GROUPS GROUPS
#endif
#ifndef SCHEDULED_GROUPS
#define SCHEDULED_GROUPS GROUPS
#endif

/* How many of n blocks fall to group g. */
SM4_INLINE size_t SM4_(share)(size_t n, int g)
{
    size_t before = (size_t)g * LANES;
    return n <= before ? 0 : n - before < LANES ? n - before : LANES;
}

SM4_INLINE void SM4_(load_groups)(vec w[][4], const uint8_t *blocks, size_t n, const int groups)
{
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        load_blocks(w[g], blocks + (size_t)g * LANES * SM4_BLOCK, SM4_(share)(n, g));
}

/* The last four words are stored in reverse: that is the standard's R. */
SM4_INLINE void SM4_(store_groups)(vec x[][4], uint8_t *out, size_t n, const int groups)
{
    SM4_UNROLL
    for (int g = 0; g < groups; g++) {
        const vec reversed[4] = {x[g][3], x[g][2], x[g][1], x[g][0]};
        store_blocks(reversed, out + (size_t)g * LANES * SM4_BLOCK, SM4_(share)(n, g));
    }
}

SM4_INLINE void SM4_(begin_keys)(vec k[][4], const int groups)
{
    for (int i = 0; i < 4; i++) {
        const vec fk = broadcast(&SM4_(FK)[i]);
        SM4_UNROLL
        for (int g = 0; g < groups; g++)
            k[g][i] = xor2(k[g][i], fk);
    }
}

/* Word r of four, r constant: 0 and 1 share words 2 and 3, and then 2 and 3 share the new 0 and 1. */
SM4_INLINE void SM4_(share_words)(vec shared[], vec w[][4], const int r, const int groups)
{
    if (r % 2 == 0) {
        SM4_UNROLL
        for (int g = 0; g < groups; g++)
            shared[g] = xor2(w[g][r ^ 2], w[g][r ^ 3]);
    }
}

SM4_INLINE void SM4_(key_round)(vec k[][4], vec shared[], const int i, const int r, const int groups)
{
    const vec ck = broadcast(&SM4_(CK)[i + r]);
    SM4_(share_words)(shared, k, r, groups);
#ifdef IN_HALVES
    half halves[GROUPS];
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        halves[g] = first_half(xor3(k[g][r ^ 1], shared[g], ck));
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        k[g][r] = key_step(k[g][r], halves[g]);
#else
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        k[g][r] = key_step(k[g][r], xor3(k[g][r ^ 1], shared[g], ck));
#endif
}

/* Group g takes its round key from rk[g][r]. */
SM4_INLINE void SM4_(cipher_round)(vec x[][4], vec shared[], vec rk[][4], const int r, const int groups)
{
    SM4_(share_words)(shared, x, r, groups);
#ifdef IN_HALVES
    half halves[GROUPS];
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        halves[g] = first_half(xor3(x[g][r ^ 1], shared[g], rk[g][r]));
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        x[g][r] = cipher_step(x[g][r], halves[g]);
#else
    SM4_UNROLL
    for (int g = 0; g < groups; g++)
        x[g][r] = cipher_step(x[g][r], xor3(x[g][r ^ 1], shared[g], rk[g][r]));
#endif
}

SM4_INLINE void SM4_(each_groups)(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n, const int groups)
{
    vec k[GROUPS][4], x[GROUPS][4], k_shared[GROUPS], x_shared[GROUPS];
    SM4_(load_groups)(k, keys, n, groups);
    SM4_(load_groups)(x, in, n, groups);
    SM4_(begin_keys)(k, groups);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        SM4_(key_round)(k, k_shared, i, 0, groups);
        SM4_(cipher_round)(x, x_shared, k, 0, groups);
        SM4_(key_round)(k, k_shared, i, 1, groups);
        SM4_(cipher_round)(x, x_shared, k, 1, groups);
        SM4_(key_round)(k, k_shared, i, 2, groups);
        SM4_(cipher_round)(x, x_shared, k, 2, groups);
        SM4_(key_round)(k, k_shared, i, 3, groups);
        SM4_(cipher_round)(x, x_shared, k, 3, groups);
    }
    SM4_(store_groups)(x, out, n, groups);
}

SM4_INLINE void SM4_(expand_groups)(const uint8_t *keys, sm4_schedule *schedules, size_t n, const int groups)
{
    vec k[GROUPS][4], shared[GROUPS];
    SM4_(load_groups)(k, keys, n, groups);
    SM4_(begin_keys)(k, groups);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        SM4_(key_round)(k, shared, i, 0, groups);
        SM4_(key_round)(k, shared, i, 1, groups);
        SM4_(key_round)(k, shared, i, 2, groups);
        SM4_(key_round)(k, shared, i, 3, groups);
        SM4_UNROLL
        for (int g = 0; g < groups; g++)
            store_round_keys(k[g], schedules + (size_t)g * LANES, (size_t)i, SM4_(share)(n, g));
    }
}

SM4_INLINE void SM4_(scheduled_groups)(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, size_t n,
                                 const int groups)
{
    vec x[GROUPS][4], rk[GROUPS][4], shared[GROUPS];
    SM4_(load_groups)(x, in, n, groups);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        SM4_UNROLL
        for (int g = 0; g < groups; g++)
            load_round_keys(rk[g], schedules + (size_t)g * LANES, (size_t)i, SM4_(share)(n, g));
        SM4_(cipher_round)(x, shared, rk, 0, groups);
        SM4_(cipher_round)(x, shared, rk, 1, groups);
        SM4_(cipher_round)(x, shared, rk, 2, groups);
        SM4_(cipher_round)(x, shared, rk, 3, groups);
    }
    SM4_(store_groups)(x, out, n, groups);
}

SM4_INLINE void SM4_(ecb_groups)(const number *schedule, const uint8_t *in, uint8_t *out, size_t n, const int groups)
{
    vec x[GROUPS][4], rk[GROUPS][4], shared[GROUPS];
    SM4_(load_groups)(x, in, n, groups);
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        for (int r = 0; r < 4; r++) {
            const vec one = broadcast(&schedule[i + r]);
            SM4_UNROLL
            for (int g = 0; g < groups; g++)
                rk[g][r] = one;
        }
        SM4_(cipher_round)(x, shared, rk, 0, groups);
        SM4_(cipher_round)(x, shared, rk, 1, groups);
        SM4_(cipher_round)(x, shared, rk, 2, groups);
        SM4_(cipher_round)(x, shared, rk, 3, groups);
    }
    SM4_(store_groups)(x, out, n, groups);
}

/* Full batches of so many groups first, then what is left. `work(n, groups)` does n blocks from `i` on. */
#define IN_BATCHES(work, most)                                                                                         \
    do {                                                                                                               \
        const size_t batch = (size_t)LANES * (most), rest = (size_t)LANES * REST_GROUPS;                               \
        size_t i = 0;                                                                                                  \
        for (; n - i >= batch; i += batch)                                                                             \
            work(batch, most);                                                                                         \
        for (; rest < batch && n - i >= rest; i += rest)                                                               \
            work(rest, REST_GROUPS);                                                                                   \
        if (n - i > 2 * LANES)                                                                                         \
            work(n - i, REST_GROUPS);                                                                                  \
        else if (n - i > LANES)                                                                                        \
            work(n - i, REST_GROUPS < 2 ? 1 : 2);                                                                      \
        else if (n - i > 0)                                                                                            \
            work(n - i, 1);                                                                                            \
    } while (0)

static SM4_NOINLINE void SM4_(each_worker)(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n)
{
#define WORK(count, groups)                                                                                            \
    SM4_(each_groups)(keys + i * SM4_BLOCK, in + i * SM4_BLOCK, out + i * SM4_BLOCK, count, groups)
    IN_BATCHES(WORK, GROUPS);
#undef WORK
}

static SM4_NOINLINE void SM4_(expand_worker)(const uint8_t *keys, sm4_schedule *schedules, size_t n)
{
#define WORK(count, groups) SM4_(expand_groups)(keys + i * SM4_BLOCK, schedules + i, count, groups)
    IN_BATCHES(WORK, GROUPS);
#undef WORK
}

static SM4_NOINLINE void SM4_(scheduled_worker)(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out,
                                          size_t n)
{
#define WORK(count, groups)                                                                                            \
    SM4_(scheduled_groups)(schedules + i, in + i * SM4_BLOCK, out + i * SM4_BLOCK, count, groups)
    IN_BATCHES(WORK, SCHEDULED_GROUPS);
#undef WORK
}

static SM4_NOINLINE void SM4_(ecb_worker)(const number *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
#define WORK(count, groups) SM4_(ecb_groups)(schedule, in + i * SM4_BLOCK, out + i * SM4_BLOCK, count, groups)
    IN_BATCHES(WORK, GROUPS);
#undef WORK
}

#undef vec
#undef number
#undef xor2
#undef xor3
#undef broadcast
#undef load_blocks
#undef store_blocks
#undef load_round_keys
#undef store_round_keys
#undef cipher_step
#undef key_step
#undef IN_BATCHES
#ifdef IN_HALVES
#undef half
#undef first_half
#undef IN_HALVES
#endif
#undef REST_GROUPS
#undef SCHEDULED_GROUPS
#undef GROUPS
#undef LANES
#undef SM4_

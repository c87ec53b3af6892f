/* SM4 with ARMv8's own instructions for it (FEAT_SM4).
 *
 * SM4E computes four rounds of one block, and SM4EKEY four rounds of one key's schedule, each in one register: eight
 * of either are the whole cipher. So a lane is a register here, and nothing is transposed.
 *
 * Either instruction waits for its predecessor's result, usually four cycles, while the processor could begin one in
 * every cycle. So LANES lanes take turns, instruction by instruction; they and all that they need fit into the 32
 * vector registers. What is left after the full batches goes in four, two and one.
 *
 * Constant time is by construction: there are only these two, which Arm lists among the instructions with
 * data-independent timing, exclusive or and fixed permutations of bytes. Nothing is looked up and nothing is branched
 * on but n.
 *
 * Registers hold numbers with the first word in the lowest place, as little-endian memory has a schedule. Big-endian
 * AArch64 would need other loads and stores; nobody runs keyd there, and it has the portable path.
 */
#include "sm4_common.h"

#if defined(__aarch64__) && defined(__AARCH64EL__) && defined(__ARM_FEATURE_SM4)

#include <arm_neon.h>

#define LANES 8

/* Four words: a block's, or four round keys. */
typedef uint32x4_t four;

/* Compilers do not know how long these instructions take, and would finish one lane after the other. A volatile
 * statement keeps its place among others of its kind, so the lanes stay in the order in which they are written. */
SM4_INLINE four in_turn(four v)
{
    __asm__ volatile("" : "+w"(v));
    return v;
}

/* A block's words are big-endian. */
SM4_INLINE four load_block(const uint8_t *block)
{
    return vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(block)));
}

/* The last four words are stored in reverse (the standard's R), and each is big-endian: so all bytes are reversed. */
SM4_INLINE void store_block(four x, uint8_t *block)
{
    const uint8x16_t halves_reversed = vrev64q_u8(vreinterpretq_u8_u32(x));
    vst1q_u8(block, vextq_u8(halves_reversed, halves_reversed, 8));
}

SM4_INLINE void load_blocks(four x[], const uint8_t *blocks, const int lanes)
{
    SM4_UNROLL
    for (int l = 0; l < lanes; l++)
        x[l] = load_block(blocks + SM4_BLOCK * l);
}

SM4_INLINE void store_blocks(const four x[], uint8_t *blocks, const int lanes)
{
    SM4_UNROLL
    for (int l = 0; l < lanes; l++)
        store_block(x[l], blocks + SM4_BLOCK * l);
}

SM4_INLINE void begin_keys(four k[], const uint8_t *keys, const int lanes)
{
    const four fk = vld1q_u32(SM4_FK);
    load_blocks(k, keys, lanes);
    SM4_UNROLL
    for (int l = 0; l < lanes; l++)
        k[l] = veorq_u32(k[l], fk);
}

/* The next four round keys of each lane, which are rounds `at` to `at` + 3. */
SM4_INLINE void key_rounds(four k[], const int at, const int lanes)
{
    const four ck = vld1q_u32(&SM4_CK[at]);
    SM4_UNROLL
    for (int l = 0; l < lanes; l++)
        k[l] = in_turn(vsm4ekeyq_u32(k[l], ck));
}

SM4_INLINE void each_lanes(const uint8_t *keys, const uint8_t *in, uint8_t *out, const int lanes)
{
    four k[LANES], x[LANES];
    begin_keys(k, keys, lanes);
    load_blocks(x, in, lanes);
    SM4_UNROLL
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        key_rounds(k, i, lanes);
        SM4_UNROLL
        for (int l = 0; l < lanes; l++)
            x[l] = in_turn(vsm4eq_u32(x[l], k[l]));
    }
    store_blocks(x, out, lanes);
}

SM4_INLINE void expand_lanes(const uint8_t *keys, sm4_schedule *schedules, const int lanes)
{
    four k[LANES];
    begin_keys(k, keys, lanes);
    SM4_UNROLL
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        key_rounds(k, i, lanes);
        SM4_UNROLL
        for (int l = 0; l < lanes; l++)
            vst1q_u32(&schedules[l][i], k[l]);
    }
}

SM4_INLINE void scheduled_lanes(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out, const int lanes)
{
    four x[LANES];
    load_blocks(x, in, lanes);
    SM4_UNROLL
    for (int i = 0; i < SM4_ROUNDS; i += 4) {
        SM4_UNROLL
        for (int l = 0; l < lanes; l++)
            x[l] = in_turn(vsm4eq_u32(x[l], vld1q_u32(&(*schedules[l])[i])));
    }
    store_blocks(x, out, lanes);
}

SM4_INLINE void ecb_lanes(const four rk[SM4_ROUNDS / 4], const uint8_t *in, uint8_t *out, const int lanes)
{
    four x[LANES];
    load_blocks(x, in, lanes);
    SM4_UNROLL
    for (int i = 0; i < SM4_ROUNDS / 4; i++) {
        SM4_UNROLL
        for (int l = 0; l < lanes; l++)
            x[l] = in_turn(vsm4eq_u32(x[l], rk[i]));
    }
    store_blocks(x, out, lanes);
}

/* `work(lanes)` does so many blocks from `i` on. */
#define IN_BATCHES(work)                                                                                               \
    do {                                                                                                               \
        size_t i = 0;                                                                                                  \
        for (; n - i >= LANES; i += LANES)                                                                             \
            work(LANES);                                                                                               \
        if (n & 4) {                                                                                                   \
            work(4);                                                                                                   \
            i += 4;                                                                                                    \
        }                                                                                                              \
        if (n & 2) {                                                                                                   \
            work(2);                                                                                                   \
            i += 2;                                                                                                    \
        }                                                                                                              \
        if (n & 1)                                                                                                     \
            work(1);                                                                                                   \
    } while (0)
_Static_assert(LANES == 8, "what full batches leave is a sum of four, two and one");

static SM4_NOINLINE void each_worker(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n)
{
#define WORK(lanes) each_lanes(keys + i * SM4_BLOCK, in + i * SM4_BLOCK, out + i * SM4_BLOCK, lanes)
    IN_BATCHES(WORK);
#undef WORK
}

static SM4_NOINLINE void expand_worker(const uint8_t *keys, sm4_schedule *schedules, size_t n)
{
#define WORK(lanes) expand_lanes(keys + i * SM4_BLOCK, schedules + i, lanes)
    IN_BATCHES(WORK);
#undef WORK
}

static SM4_NOINLINE void scheduled_worker(const sm4_schedule *const *schedules, const uint8_t *in, uint8_t *out,
                                          size_t n)
{
#define WORK(lanes) scheduled_lanes(schedules + i, in + i * SM4_BLOCK, out + i * SM4_BLOCK, lanes)
    IN_BATCHES(WORK);
#undef WORK
}

/* The whole schedule stays in registers: its eight and a batch's eight. */
static SM4_NOINLINE void ecb_worker(const uint32_t *schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    four rk[SM4_ROUNDS / 4];
    SM4_UNROLL
    for (int i = 0; i < SM4_ROUNDS / 4; i++)
        rk[i] = vld1q_u32(&schedule[4 * i]);
#define WORK(lanes) ecb_lanes(rk, in + i * SM4_BLOCK, out + i * SM4_BLOCK, lanes)
    IN_BATCHES(WORK);
#undef WORK
}

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

const sm4_path sm4_armv8 = {
    .name = "armv8",
    .lanes = LANES,
    .is_supported = sm4_has_armv8,
    .encrypt_each = encrypt_each,
    .expand = expand,
    .encrypt_scheduled = encrypt_scheduled,
    .encrypt_ecb = encrypt_ecb,
};

#elif defined(__aarch64__)

const sm4_path sm4_armv8 = {.name = "armv8", .is_supported = sm4_has_none};

#endif

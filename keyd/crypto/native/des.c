#include "des.h"

#include <pthread.h>
#include <string.h>

/* A key bit's place in all sixteen round keys: a round key is the OR of what its key bits contribute. Made once from
 * the standard's two permutations; nothing in it is secret. */
static uint64_t contributions[64][DES_ROUNDS];

static const uint8_t permuted_choice_1[56] = {
    57, 49, 41, 33, 25, 17, 9,  1,  58, 50, 42, 34, 26, 18, 10, 2,  59, 51, 43, 35, 27, 19, 11, 3,  60, 52, 44, 36,
    63, 55, 47, 39, 31, 23, 15, 7,  62, 54, 46, 38, 30, 22, 14, 6,  61, 53, 45, 37, 29, 21, 13, 5,  28, 20, 12, 4};

static const uint8_t permuted_choice_2[48] = {
    14, 17, 11, 24, 1,  5,  3,  28, 15, 6,  21, 10, 23, 19, 12, 4,  26, 8,  16, 7,  27, 20, 13, 2,
    41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32};

static const uint8_t rotations[DES_ROUNDS] = {1, 2, 4, 6, 8, 10, 12, 14, 15, 17, 19, 21, 23, 25, 27, 28};

/* Where the round function has the six-bit group of S-box s (0 to 7): the even ones in the upper half. */
static unsigned group_shift(unsigned s)
{
    return (s % 2 ? 26 : 58) - 8 * (s / 2);
}

static void make_contributions(void)
{
    for (unsigned round = 0; round < DES_ROUNDS; round++)
        for (unsigned i = 0; i < 48; i++) {
            unsigned place = permuted_choice_2[i] - 1u, half = place / 28 * 28;
            unsigned before_rotation = half + (place - half + rotations[round]) % 28;
            unsigned key_bit = permuted_choice_1[before_rotation] - 1u;
            contributions[key_bit][round] |= UINT64_C(1) << (group_shift(i / 6) + 5 - i % 6);
        }
}

static uint64_t load_block(const uint8_t *bytes)
{
    uint64_t number = 0;

    for (int i = 0; i < 8; i++)
        number = number << 8 | bytes[i];
    return number;
}

static void store_block(uint8_t *bytes, uint64_t number)
{
    for (int i = 7; i >= 0; i--, number >>= 8)
        bytes[i] = (uint8_t)number;
}

void des_expand(const uint8_t *key, des_schedule schedule)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    uint64_t bits = load_block(key);

    pthread_once(&once, make_contributions);
    memset(schedule, 0, sizeof(des_schedule));
    for (int i = 0; i < 64; i++) {
        uint64_t mask = -(bits >> (63 - i) & 1);
        for (int round = 0; round < DES_ROUNDS; round++)
            schedule[round] |= contributions[i][round] & mask;
    }
}

/* One S-box. Each of its four output bits is a truth table of 64 bits, and shifting the table by the six input bits
 * brings the answer down; the bit then goes where the permutation P has it. Shifting by a variable number takes the
 * same time for every number on x86-64 (shr, shrx) and AArch64 (lsr): both have barrel shifters and document no
 * dependence (AArch64 lists it under DIT). A table in memory would show its index in the cache. */
#define S(shift, table_1, to_1, table_2, to_2, table_3, to_3, table_4, to_4)                                          \
    do {                                                                                                              \
        unsigned x = (unsigned)(groups >> (shift)) & 63;                                                              \
        out |= (uint32_t)(UINT64_C(table_1) >> x & 1) << (to_1) | (uint32_t)(UINT64_C(table_2) >> x & 1) << (to_2) |  \
               (uint32_t)(UINT64_C(table_3) >> x & 1) << (to_3) | (uint32_t)(UINT64_C(table_4) >> x & 1) << (to_4);   \
    } while (0)

static inline uint32_t round_function(uint32_t half, uint64_t round_key)
{
    /* The expansion E: bit 32 in front, then the groups overlap by two bits. */
    uint32_t even = half >> 1 | half << 31, odd = even << 4 | even >> 28;
    uint64_t groups = ((uint64_t)even << 32 | odd) ^ round_key;
    uint32_t out = 0;

    S(58, 0x869D497A86E67619, 23, 0xB0C7871B497826BD, 15,
          0x27E9D492609F1F29, 9, 0x917BE9066F81B478, 1);
    S(26, 0xE196196E69C3A659, 19, 0x68F93C169346C3E9, 4,
          0x746A8B7462949FC3, 30, 0xCD235AD2B865168F, 14);
    S(50, 0x96692D696B9C90D3, 8, 0xD96A863526F4794A, 16,
          0x76B9960C39C2B749, 2, 0x4B8D9C63A965569A, 26);
    S(18, 0x92C3E719ED90583E, 6, 0xCB69718C74CA0E97, 12,
          0xACD1168F692CCE71, 22, 0x09B77C1AC34998E7, 31);
    S(42, 0x429DCD6A79E1348E, 24, 0x695B9CA191666B96, 18,
          0xC70B39C692F05D2B, 7, 0xA4CD96D24B76B948, 29);
    S(10, 0xB44AB695C9A4695B, 28, 0xC69938D615E69A69, 3,
          0x52CBE13C6D9216DA, 21, 0x95A36A597C3CA34C, 13);
    S(34, 0x92C761F82C96D966, 0, 0x869CD96699E643C3, 20,
          0x6A95F41A9E4B81F4, 10, 0x348E9679497969A6, 25);
    S( 2, 0xC17ABD2438C716B9, 27, 0x394E96B1596AA569, 5,
          0xA71658A7C8F13F0C, 17, 0x9F6281CD619C7C2B, 11);
    return out;
}

#undef S

/* Exchange the bits of b under the mask with those of a that stand so many places higher. */
static inline void exchange(uint32_t *a, uint32_t *b, int places, uint32_t mask)
{
    uint32_t differing = (*a >> places ^ *b) & mask;

    *b ^= differing;
    *a ^= differing << places;
}

static inline void initial_permutation(uint32_t *left, uint32_t *right)
{
    exchange(left, right, 4, 0x0F0F0F0F);
    exchange(left, right, 16, 0x0000FFFF);
    exchange(right, left, 2, 0x33333333);
    exchange(right, left, 8, 0x00FF00FF);
    exchange(left, right, 1, 0x55555555);
}

static inline void final_permutation(uint32_t *left, uint32_t *right)
{
    exchange(left, right, 1, 0x55555555);
    exchange(right, left, 8, 0x00FF00FF);
    exchange(right, left, 2, 0x33333333);
    exchange(left, right, 16, 0x0000FFFF);
    exchange(left, right, 4, 0x0F0F0F0F);
}

/* Sixteen rounds; backwards decrypts. Leaves the halves exchanged, as the next stage of 3DES wants them. */
static inline void rounds(uint32_t *left, uint32_t *right, const uint64_t *schedule, int is_backwards)
{
    uint32_t l = *left, r = *right;

    for (int i = 0; i < DES_ROUNDS; i += 2) {
        l ^= round_function(r, schedule[is_backwards ? 15 - i : i]);
        r ^= round_function(l, schedule[is_backwards ? 14 - i : i + 1]);
    }
    *left = r;
    *right = l;
}

/* One or three stages, the directions alternating. The permutations between stages would cancel out. */
static inline void crypt(const uint64_t *const *stages, int count, int is_backwards, const uint8_t *in, uint8_t *out,
                         size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint64_t block = load_block(in + i * DES_BLOCK);
        uint32_t left = (uint32_t)(block >> 32), right = (uint32_t)block;
        initial_permutation(&left, &right);
        for (int stage = 0; stage < count; stage++)
            rounds(&left, &right, stages[stage], is_backwards ^ (stage & 1));
        final_permutation(&left, &right);
        store_block(out + i * DES_BLOCK, (uint64_t)left << 32 | right);
    }
}

void des_encrypt(const des_schedule schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    const uint64_t *stages[] = {schedule};
    crypt(stages, 1, 0, in, out, n);
}

void des_decrypt(const des_schedule schedule, const uint8_t *in, uint8_t *out, size_t n)
{
    const uint64_t *stages[] = {schedule};
    crypt(stages, 1, 1, in, out, n);
}

void tdes_encrypt(const des_schedule *schedules, const uint8_t *in, uint8_t *out, size_t n)
{
    const uint64_t *stages[] = {schedules[0], schedules[1], schedules[0]};
    crypt(stages, 3, 0, in, out, n);
}

void tdes_decrypt(const des_schedule *schedules, const uint8_t *in, uint8_t *out, size_t n)
{
    const uint64_t *stages[] = {schedules[0], schedules[1], schedules[0]};
    crypt(stages, 3, 1, in, out, n);
}

void des_set_parity(uint8_t *key, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        unsigned folded = key[i] >> 1;
        folded ^= folded >> 4;
        folded ^= folded >> 2;
        folded ^= folded >> 1;
        key[i] = (uint8_t)((key[i] & 0xFE) | (~folded & 1));
    }
}

int des_is_weak(const uint8_t *key)
{
    static const uint64_t weak[16] = {
        0x0101010101010101, 0xFEFEFEFEFEFEFEFE, 0xE0E0E0E0F1F1F1F1, 0x1F1F1F1F0E0E0E0E,
        0x011F011F010E010E, 0x1F011F010E010E01, 0x01E001E001F101F1, 0xE001E001F101F101,
        0x01FE01FE01FE01FE, 0xFE01FE01FE01FE01, 0x1FE01FE00EF10EF1, 0xE01FE01FF10EF10E,
        0x1FFE1FFE0EFE0EFE, 0xFE1FFE1FFE0EFE0E, 0xE0FEE0FEF1FEF1FE, 0xFEE0FEE0FEF1FEF1};
    uint64_t number = load_block(key);
    /* volatile, so that no compiler finds out that it might stop early. */
    volatile uint64_t found = 0;

    for (int i = 0; i < 16; i++) {
        uint64_t differing = (number ^ weak[i]) & UINT64_C(0xFEFEFEFEFEFEFEFE);
        /* Its parity bits are clear, so less than 2^63 is left of it: minus 1, only 0 has the highest bit. */
        found |= ((differing >> 1) - 1) >> 63;
    }
    return (int)found;
}

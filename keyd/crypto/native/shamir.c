#include "shamir.h"

#include "gf128.h"

typedef struct {
    gf128 coefficients[SHAMIR_MAX_SHARES - 1]; /* Of x^1, x^2 ...; the key is that of 1. */
    gf128 secret;
    gf128 sum;
} split_state;

typedef struct {
    gf128 numerator, denominator, inverse;
    gf128 sum;
    uint8_t key[ARENA_KEY_BYTES];
} combine_state;

_Static_assert(sizeof(split_state) <= ARENA_SCRATCH_BYTES, "it is computed in a scratch region");
_Static_assert(sizeof(combine_state) <= ARENA_SCRATCH_BYTES, "it is computed in a scratch region");
_Static_assert(SHAMIR_SHARE_BYTES == GF128_BYTES && ARENA_KEY_BYTES == GF128_BYTES, "a key is one element");

arena_status shamir_split(const arena_cell *cell, size_t threshold, size_t count, uint8_t *const *shares)
{
    split_state *state = arena_scratch_take();

    if (!state)
        return ARENA_GONE;
    /* Every coefficient may be zero, the highest too. If it could not be, threshold - 1 shares would rule a key out. */
    arena_status status = arena_random(state->coefficients, (threshold - 1) * sizeof(gf128));
    if (status == ARENA_OK) {
        state->secret = gf128_load(cell->key);
        for (size_t i = 0; i < count; i++) {
            const gf128 x = {0, i + 1};
            state->sum = (gf128){0, 0};
            for (size_t j = threshold - 1; j-- > 0;) {
                state->sum.high ^= state->coefficients[j].high;
                state->sum.low ^= state->coefficients[j].low;
                gf128_multiply(&state->sum, &x);
            }
            state->sum.high ^= state->secret.high;
            state->sum.low ^= state->secret.low;
            gf128_store(shares[i], &state->sum);
        }
    }
    arena_scratch_give(state, sizeof *state);
    gf128_burn();
    return status;
}

arena_status shamir_combine(arena_algorithm algorithm, const uint8_t *numbers, const uint8_t *const *shares, size_t n,
                            arena_handle *made)
{
    combine_state *state = NULL;
    arena_status status = arena_open_if_closed();

    *made = 0;
    if (status == ARENA_OK && !(state = arena_scratch_take()))
        status = ARENA_GONE;
    if (status != ARENA_OK)
        return status;
    /* Lagrange's interpolation at 0, where x_m - 0 is x_m, and minus is plus. */
    for (size_t j = 0; j < n; j++) {
        state->numerator = gf128_load(shares[j]);
        state->denominator = (gf128){0, 1};
        for (size_t m = 0; m < n; m++) {
            const gf128 x = {0, numbers[m]}, difference = {0, numbers[m] ^ numbers[j]};
            if (m == j)
                continue;
            gf128_multiply(&state->numerator, &x);
            gf128_multiply(&state->denominator, &difference);
        }
        gf128_invert(&state->inverse, &state->denominator);
        gf128_multiply(&state->numerator, &state->inverse);
        state->sum.high ^= state->numerator.high;
        state->sum.low ^= state->numerator.low;
    }
    gf128_store(state->key, &state->sum);
    status = arena_take(algorithm, state->key, made);
    arena_scratch_give(state, sizeof *state);
    gf128_burn();
    return status;
}

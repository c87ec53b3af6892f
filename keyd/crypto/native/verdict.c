#include "verdict.h"

int bytes_differ(const uint8_t *a, const uint8_t *b, size_t n)
{
    /* volatile, so that no compiler finds out that it might stop early. */
    volatile uint8_t difference = 0;

    for (size_t i = 0; i < n; i++)
        difference = (uint8_t)(difference | (a[i] ^ b[i]));
    return (int)((0u - difference) >> 31);
}

int key_is_weak(arena_algorithm algorithm, const uint8_t *key)
{
    volatile uint8_t ones = 0, differing = 0;

    switch (algorithm) {
    case ARENA_SM4:
        for (size_t i = 0; i < ARENA_KEY_BYTES; i++)
            ones = (uint8_t)(ones | key[i]);
        return (int)((ones - 1u) >> 31);
    case ARENA_DES:
        return des_is_weak(key);
    case ARENA_TDES:
        for (size_t i = 0; i < DES_BLOCK; i++)
            differing = (uint8_t)(differing | ((key[i] ^ key[i + DES_BLOCK]) & 0xFE));
        return des_is_weak(key) | des_is_weak(key + DES_BLOCK) | (int)((differing - 1u) >> 31);
    }
    return 1;
}

/* A statistical look for secret-dependent time, after dudect (Reparaz, Balasch, Verbauwhede): time an operation on
 * inputs of two classes, one fixed and one random, and ask with Welch's t-test whether the two times differ.
 *
 * Inputs of both classes are made before, in one array, and chosen by a coin for each run, so that the machine's moods
 * fall on both alike. Slow runs are cut off at several percentiles, because interrupts hide small differences.
 */
#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#if defined(__x86_64__)
#include <x86intrin.h>
#endif

#include "sm4.h"

#define LANES 64
#define INPUTS 512
#define CUTS 10

typedef struct {
    double n, mean, m2;
} moments;

static void push(moments *m, double x) {
    double delta = x - m->mean;
    m->n += 1;
    m->mean += delta / m->n;
    m->m2 += delta * (x - m->mean);
}

static double welch(const moments *a, const moments *b) {
    if (a->n < 100 || b->n < 100) return 0;
    double error = sqrt(a->m2 / (a->n - 1) / a->n + b->m2 / (b->n - 1) / b->n);
    return error == 0 ? 0 : fabs(a->mean - b->mean) / error;
}

static uint64_t ticks(void) {
#if defined(__x86_64__)
    unsigned processor;
    return __rdtscp(&processor);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
#endif
}

/* Wait until everything before is done. */
static void settle(void) {
#if defined(__x86_64__)
    _mm_mfence();
    _mm_lfence();
#endif
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static int fill(void *at, size_t length) {
    for (size_t done = 0; done < length;) {
        ssize_t got = getrandom((uint8_t *)at + done, length - done, 0);
        if (got < 0) return -1;
        done += (size_t)got;
    }
    return 0;
}

/* A control that does leak: it stops at the first difference, as a careless comparison does. */
static void leaky(const uint8_t *keys, const uint8_t *in, uint8_t *out, size_t n) {
    (void)in;
    size_t same = 0;
    for (size_t i = 0; i < n * SM4_BLOCK && keys[i] == 0; i++) same += 1 + out[i] / 256;
    out[0] = (uint8_t)same;
}

/* Time so many runs of a path's encrypt_each over 64 keys; "leaky" is the control. Returns the largest |t| of all
 * cuts, or -1 if there is no such path or no memory. */
double timing_largest_t(const char *path, size_t runs) {
    int is_control = strcmp(path, "leaky") == 0;
    if (!is_control && sm4_select(path) != 0) return -1;
    const sm4_path *sm4 = sm4_current();
    size_t bytes = LANES * SM4_BLOCK;
    uint8_t *keys = malloc(2 * INPUTS * bytes), *blocks = malloc(2 * INPUTS * bytes), *coins = malloc(runs);
    double *times = malloc(runs * sizeof *times), *sorted = malloc(runs * sizeof *sorted), largest = -1;
    _Alignas(64) uint8_t key[LANES * SM4_BLOCK], block[LANES * SM4_BLOCK], out[LANES * SM4_BLOCK] = {0};
    if (!keys || !blocks || !coins || !times || !sorted) goto end;
    if (fill(keys, 2 * INPUTS * bytes) || fill(blocks, 2 * INPUTS * bytes) || fill(coins, runs)) goto end;
    /* The fixed class: all keys and blocks zero, at as many addresses as the random ones. */
    for (size_t i = 0; i < 2 * INPUTS; i += 2) {
        memset(keys + i * bytes, 0, bytes);
        memset(blocks + i * bytes, 0, bytes);
    }
    for (size_t run = 0; run < runs; run++) {
        size_t at = (2 * (run % INPUTS) + (coins[run] & 1)) * bytes;
        /* From one place, in the cache: where an input lay before must not be what is measured. */
        memcpy(key, keys + at, bytes);
        memcpy(block, blocks + at, bytes);
        settle();
        uint64_t started = ticks();
        if (is_control) {
            leaky(key, block, out, LANES);
        } else {
            sm4->encrypt_each(key, block, out, LANES);
        }
        settle();
        times[run] = (double)(ticks() - started);
    }
    memcpy(sorted, times, runs * sizeof *times);
    qsort(sorted, runs, sizeof *sorted, by_size);
    largest = 0;
    for (int cut = 0; cut < CUTS; cut++) {
        /* dudect's cuts: 1 - 0.5^(10 (cut + 1) / CUTS), from the faster half of the runs to all but a thousandth. */
        double share = 1 - pow(0.5, 10.0 * (cut + 1) / CUTS);
        double bound = sorted[(size_t)(share * (double)(runs - 1))];
        moments classes[2] = {{0, 0, 0}, {0, 0, 0}};
        /* The first tenth warms up. */
        for (size_t run = runs / 10; run < runs; run++) {
            if (times[run] <= bound) push(&classes[coins[run] & 1], times[run]);
        }
        double t = welch(&classes[0], &classes[1]);
        if (t > largest) largest = t;
    }
end:
    free(keys);
    free(blocks);
    free(coins);
    free(times);
    free(sorted);
    return largest;
}

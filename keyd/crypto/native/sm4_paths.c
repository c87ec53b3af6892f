/* The choice of a path. This file is compiled without ISA flags, because it runs before anything is known of the
 * machine.
 */
#include <stdatomic.h>

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "sm4_common.h"

const sm4_path *const sm4_paths[] = {
#if defined(__x86_64__)
    &sm4_gfni512,
    &sm4_gfni256,
    &sm4_aesni,
#elif defined(__aarch64__)
    &sm4_armv8,
#endif
    &sm4_portable,
    NULL,
};

int sm4_has_none(void)
{
    return 0;
}

#if defined(__x86_64__)
/* __builtin_cpu_supports() reads CPUID once, and asks XGETBV whether the operating system saves the registers: without
 * that it answers no to all that needs ymm or zmm. */
int sm4_has_gfni512(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("gfni") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}

int sm4_has_gfni256(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("gfni") && __builtin_cpu_supports("avx2");
}

int sm4_has_aesni(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("aes") && __builtin_cpu_supports("ssse3") && __builtin_cpu_supports("sse4.1");
}
#elif defined(__aarch64__)
/* What an ARM processor has, it tells only the kernel, which tells each program in its auxiliary vector. */
int sm4_has_armv8(void)
{
    return (getauxval(AT_HWCAP) & HWCAP_SM4) != 0;
}
#endif

/* NULL until somebody asks or chooses. Two threads that ask at once find the same answer, so it does not matter whose
 * is kept; a choice by name is never undone by somebody who was only asking. */
static _Atomic(const sm4_path *) chosen;

const sm4_path *sm4_current(void)
{
    const sm4_path *path = atomic_load_explicit(&chosen, memory_order_acquire);
    if (path == NULL) {
        const sm4_path *expected = NULL;
        const sm4_path *const *candidate = sm4_paths;
        while (!(*candidate)->is_supported())
            candidate++; /* The last one always is. */
        path = *candidate;
        if (!atomic_compare_exchange_strong(&chosen, &expected, path))
            path = expected;
    }
    return path;
}

int sm4_select(const char *name)
{
    for (const sm4_path *const *path = sm4_paths; *path != NULL; path++)
        if (strcmp((*path)->name, name) == 0) {
            if (!(*path)->is_supported())
                return -1;
            atomic_store_explicit(&chosen, *path, memory_order_release);
            return 0;
        }
    return -1;
}

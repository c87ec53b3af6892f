/* Kills its process with SIGKILL at the n-th call that changes a file below a folder, or speaks to a socket there.
 *
 * It is put before libc (LD_PRELOAD), so that production code needs no hook. A step is a call of the list below
 * whose file is below one of KEYD_CRASH_FOLDER (colons between), counted over all threads. KEYD_CRASH_AT is the step
 * at which to die, 0 for none, and KEYD_CRASH_WHEN is "before" the call, "after" it, or "half" way through a write.
 * KEYD_CRASH_TRACE names a file that is told every step. A process that has forked may arm itself instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { BEFORE, AFTER, HALF };
enum { NOT_COUNTED, COUNTED, THE_ONE };

static char folders[4096];
static long die_at;
static int die_when;
static int trace_fd = -1;
static atomic_long steps;

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Begin to count. `trace` may be empty. */
void keyd_crash_arm(const char *below, long at, const char *when, const char *trace)
{
    snprintf(folders, sizeof folders, "%s", below);
    die_at = at;
    die_when = !strcmp(when, "after") ? AFTER : !strcmp(when, "half") ? HALF : BEFORE;
    atomic_store(&steps, 0);
    /* By system call: the trace is no step. */
    if (*trace)
        trace_fd = (int)syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

__attribute__((constructor)) static void arm_by_environment(void)
{
    const char *below = getenv("KEYD_CRASH_FOLDER"), *at = getenv("KEYD_CRASH_AT");
    const char *when = getenv("KEYD_CRASH_WHEN"), *trace = getenv("KEYD_CRASH_TRACE");
    if (below)
        keyd_crash_arm(below, at ? atol(at) : 0, when ? when : "before", trace ? trace : "");
}

static int is_below(const char *path)
{
    for (const char *folder = folders; *folder;) {
        size_t length = strcspn(folder, ":");
        if (length && !strncmp(path, folder, length) && path[length] == '/')
            return 1;
        folder += length + (folder[length] == ':');
    }
    return 0;
}

/* Count a step and say whether it is the one; dies before it if that is wanted. */
static int begin(const char *call, const char *path)
{
    if (!*folders || !is_below(path))
        return NOT_COUNTED;
    long number = atomic_fetch_add(&steps, 1) + 1;
    if (trace_fd >= 0) {
        char line[4300];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path);
        syscall(SYS_write, trace_fd, line, (size_t)length);
    }
    if (number != die_at)
        return COUNTED;
    if (die_when == BEFORE)
        die();
    return THE_ONE;
}

static int begin_fd(const char *call, int fd)
{
    char name[64], path[4096];
    if (!*folders)
        return NOT_COUNTED;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length < 0)
        return NOT_COUNTED;
    path[length] = 0;
    return begin(call, path);
}

static int begin_peer(const char *call, int fd)
{
    struct sockaddr_un peer;
    socklen_t length = sizeof peer;
    if (!*folders || getpeername(fd, (struct sockaddr *)&peer, &length) || peer.sun_family != AF_UNIX)
        return NOT_COUNTED;
    return begin(call, peer.sun_path);
}

#define REAL(name) \
    static typeof(name) *real; \
    if (!real) \
        real = (typeof(name) *)dlsym(RTLD_NEXT, #name)

#define DONE(result) \
    do { \
        typeof(result) done = (result); \
        if (step == THE_ONE) \
            die(); \
        return done; \
    } while (0)

ssize_t write(int fd, const void *data, size_t size)
{
    REAL(write);
    int step = begin_fd("write", fd);
    DONE(real(fd, data, step == THE_ONE && die_when == HALF ? size / 2 : size));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite);
    int step = begin_fd("pwrite", fd);
    DONE(real(fd, data, step == THE_ONE && die_when == HALF ? size / 2 : size, at));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at)
{
    REAL(pwrite64);
    int step = begin_fd("pwrite", fd);
    DONE(real(fd, data, step == THE_ONE && die_when == HALF ? size / 2 : size, at));
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    REAL(writev);
    int step = begin_fd("writev", fd);
    DONE(real(fd, parts, step == THE_ONE && die_when == HALF ? (count + 1) / 2 : count));
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    REAL(send);
    int step = begin_peer("send", fd);
    DONE(real(fd, data, step == THE_ONE && die_when == HALF ? size / 2 : size, flags));
}

int fsync(int fd)
{
    REAL(fsync);
    int step = begin_fd("fsync", fd);
    DONE(real(fd));
}

int fdatasync(int fd)
{
    REAL(fdatasync);
    int step = begin_fd("fdatasync", fd);
    DONE(real(fd));
}

int ftruncate(int fd, off_t size)
{
    REAL(ftruncate);
    int step = begin_fd("ftruncate", fd);
    DONE(real(fd, size));
}

int ftruncate64(int fd, off64_t size)
{
    REAL(ftruncate64);
    int step = begin_fd("ftruncate", fd);
    DONE(real(fd, size));
}

int posix_fallocate(int fd, off_t at, off_t size)
{
    REAL(posix_fallocate);
    int step = begin_fd("fallocate", fd);
    DONE(real(fd, at, size));
}

int posix_fallocate64(int fd, off64_t at, off64_t size)
{
    REAL(posix_fallocate64);
    int step = begin_fd("fallocate", fd);
    DONE(real(fd, at, size));
}

int rename(const char *from, const char *to)
{
    REAL(rename);
    int step = begin("rename", from);
    DONE(real(from, to));
}

int renameat(int from_fd, const char *from, int to_fd, const char *to)
{
    REAL(renameat);
    int step = begin("rename", from);
    DONE(real(from_fd, from, to_fd, to));
}

int link(const char *from, const char *to)
{
    REAL(link);
    int step = begin("link", from);
    DONE(real(from, to));
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags)
{
    REAL(linkat);
    int step = begin("link", from);
    DONE(real(from_fd, from, to_fd, to, flags));
}

int unlink(const char *path)
{
    REAL(unlink);
    int step = begin("unlink", path);
    DONE(real(path));
}

int unlinkat(int fd, const char *path, int flags)
{
    REAL(unlinkat);
    int step = begin("unlink", path);
    DONE(real(fd, path, flags));
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    int step = begin("mkdir", path);
    DONE(real(path, mode));
}

/* Only a call that makes a file is a step, not one that finds it. */
static int begin_open(const char *path, int flags)
{
    if (!(flags & O_CREAT) || !*folders || !syscall(SYS_faccessat, AT_FDCWD, path, F_OK))
        return NOT_COUNTED;
    return begin("create", path);
}

#define MODE \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }

int open(const char *path, int flags, ...)
{
    REAL(open);
    MODE
    int step = begin_open(path, flags);
    DONE(real(path, flags, mode));
}

int open64(const char *path, int flags, ...)
{
    REAL(open64);
    MODE
    int step = begin_open(path, flags);
    DONE(real(path, flags, mode));
}

int openat(int fd, const char *path, int flags, ...)
{
    REAL(openat);
    MODE
    int step = begin_open(path, flags);
    DONE(real(fd, path, flags, mode));
}

int openat64(int fd, const char *path, int flags, ...)
{
    REAL(openat64);
    MODE
    int step = begin_open(path, flags);
    DONE(real(fd, path, flags, mode));
}

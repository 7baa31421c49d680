/* Preloaded into a server under test: at the Nth change that it makes below a directory it is killed,
 * or the call fails.
 *
 * FAULTS_UNDER names the directory. FAULTS_PLAN names a file; while it holds
 * "N ERRNO [COUNT]", changes are counted, and from the Nth on COUNT of them (1 if not given) fail with
 * ERRNO, or end the process when ERRNO is 0, or crash it when that is -1. How many were counted is kept in the file beside it,
 * PLAN.count; to write PLAN anew begins anew.
 *
 * With EMFILE and -1 it is not changes that are counted and fail, but files and directories that are opened. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char known[64];
static long counted;

static int is_below(const char *path)
{
    const char *under = getenv("FAULTS_UNDER");
    size_t length = under ? strlen(under) : 0;
    return length && path && !strncmp(path, under, length)
        && (path[length] == '/' || !path[length]);
}

/* Plain system calls from here on: the library's are those that are counted. */
static long plan(char *text, size_t size)
{
    const char *path = getenv("FAULTS_PLAN");
    int number = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (number < 0) return 0;
    long length = syscall(SYS_read, number, text, size - 1);
    syscall(SYS_close, number);
    text[length > 0 ? length : 0] = 0;
    return length > 0;
}

static void note_count(void)
{
    char path[PATH_MAX], text[32];
    snprintf(path, sizeof path, "%s.count", getenv("FAULTS_PLAN"));
    int length = snprintf(text, sizeof text, "%ld\n", counted);
    int number = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (number < 0) return;
    syscall(SYS_write, number, text, length);
    syscall(SYS_close, number);
}

enum kind { CHANGE = 1, OPENING = 2 };

/* Counts one call; the errno that it fails with, or 0. */
static int step_as(const char *path, int kinds)
{
    char text[64];
    int result = 0, kept = errno;
    if (!is_below(path)) return 0;
    pthread_mutex_lock(&lock);
    if (plan(text, sizeof text)) {
        long at = 0, number = 0, count = 1;
        if (strcmp(text, known)) {
            snprintf(known, sizeof known, "%s", text);
            counted = 0;
        }
        sscanf(text, "%ld %ld %ld", &at, &number, &count);
        int counts = kinds & (number == EMFILE || number == -1 ? OPENING : CHANGE);
        if (counts) {
            counted++;
            note_count();
        }
        if (counts && counted >= at && counted < at + count) {
            if (!number) {
                kill(getpid(), SIGKILL);
                pause();
            }
            if (number == -1) __builtin_trap();
            result = (int)number;
        }
    }
    pthread_mutex_unlock(&lock);
    errno = kept;
    return result;
}

static int step(const char *path) { return step_as(path, CHANGE); }

static int step_at_as(int directory, const char *path, int kinds)
{
    char whole[PATH_MAX], link[64];
    if (path[0] == '/' || directory == AT_FDCWD) return step_as(path, kinds);
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, whole, sizeof whole - 1);
    if (length < 0) return 0;
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return step_as(whole, kinds);
}

static int step_at(int directory, const char *path)
{
    return step_at_as(directory, path, CHANGE);
}

static int kinds_of(int flags)
{
    return flags & (O_CREAT | O_TRUNC) ? CHANGE | OPENING : OPENING;
}

static int step_of(int descriptor)
{
    char path[PATH_MAX], link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return step(path);
}

#define FAIL_IF(check) do { int failed = check; if (failed) { errno = failed; return -1; } } while (0)
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static mode_t mode_of(int flags, va_list rest)
{
    return flags & O_CREAT ? (mode_t)va_arg(rest, int) : 0;
}

#define OPEN(name)                                                                                  \
    int name(const char *path, int flags, ...)                                                      \
    {                                                                                               \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t mode = mode_of(flags, rest);                                                         \
        va_end(rest);                                                                               \
        FAIL_IF(step_as(path, kinds_of(flags)));                                                    \
        return NEXT(name)(path, flags, mode);                                                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                                \
    int name(int directory, const char *path, int flags, ...)                                       \
    {                                                                                               \
        va_list rest;                                                                               \
        va_start(rest, flags);                                                                      \
        mode_t mode = mode_of(flags, rest);                                                         \
        va_end(rest);                                                                               \
        FAIL_IF(step_at_as(directory, path, kinds_of(flags)));                                      \
        return NEXT(name)(directory, path, flags, mode);                                            \
    }
OPENAT(openat)
OPENAT(openat64)

DIR *opendir(const char *path)
{
    int failed = step_as(path, OPENING);
    if (!failed) return NEXT(opendir)(path);
    errno = failed;
    return NULL;
}

int rename(const char *from, const char *to)
{
    FAIL_IF(step(to));
    return NEXT(rename)(from, to);
}

int unlink(const char *path)
{
    FAIL_IF(step(path));
    return NEXT(unlink)(path);
}

int unlinkat(int directory, const char *path, int flags)
{
    FAIL_IF(step_at(directory, path));
    return NEXT(unlinkat)(directory, path, flags);
}

int rmdir(const char *path)
{
    FAIL_IF(step(path));
    return NEXT(rmdir)(path);
}

int remove(const char *path)
{
    FAIL_IF(step(path));
    return NEXT(remove)(path);
}

int mkdir(const char *path, mode_t mode)
{
    FAIL_IF(step(path));
    return NEXT(mkdir)(path, mode);
}

int fsync(int descriptor)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(fsync)(descriptor);
}

int fdatasync(int descriptor)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(fdatasync)(descriptor);
}

int ftruncate(int descriptor, off_t size)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(ftruncate)(descriptor, size);
}

int fallocate(int descriptor, int mode, off_t start, off_t count)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(fallocate)(descriptor, mode, start, count);
}

ssize_t write(int descriptor, const void *bytes, size_t count)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(write)(descriptor, bytes, count);
}

ssize_t pwrite(int descriptor, const void *bytes, size_t count, off_t position)
{
    FAIL_IF(step_of(descriptor));
    return NEXT(pwrite)(descriptor, bytes, count, position);
}

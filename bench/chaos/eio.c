/* Fails what a process writes to its journal: EIO while the file named by $CHAOS_EIO_WRITE or $CHAOS_EIO_SYNC is there.

   Preloaded into the daemon for the time of one fault of the chaos soak: an LD_PRELOAD shim, no failing disk. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int fails(int fd, const char *variable)
{
    char link[64], path[4096];
    const char *trigger = getenv(variable);
    ssize_t length;

    if (trigger == NULL || access(trigger, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, "journal.sqlite3") != NULL;
}

#define REFUSE(fd, variable)   \
    if (fails(fd, variable)) { \
        errno = EIO;           \
        return -1;             \
    }

ssize_t pwrite(int fd, const void *data, size_t count, off_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off_t);
    REFUSE(fd, "CHAOS_EIO_WRITE")
    if (real == NULL)
        real = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    return real(fd, data, count, at);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at)
{
    static ssize_t (*real)(int, const void *, size_t, off64_t);
    REFUSE(fd, "CHAOS_EIO_WRITE")
    if (real == NULL)
        real = (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    return real(fd, data, count, at);
}

ssize_t write(int fd, const void *data, size_t count)
{
    static ssize_t (*real)(int, const void *, size_t);
    REFUSE(fd, "CHAOS_EIO_WRITE")
    if (real == NULL)
        real = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return real(fd, data, count);
}

int fsync(int fd)
{
    static int (*real)(int);
    REFUSE(fd, "CHAOS_EIO_SYNC")
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return real(fd);
}

int fdatasync(int fd)
{
    static int (*real)(int);
    REFUSE(fd, "CHAOS_EIO_SYNC")
    if (real == NULL)
        real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}

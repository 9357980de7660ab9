/* Loaded into a process in front of libc: makes the disk below a folder slow or broken, and sets the clock. faults.py steers it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile int32_t *plan; /* milliseconds that a sync takes, error of a sync, error of a write, seconds of the clock */
static const char *folder;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_PLAN");
    folder = getenv("FAULTS_FOLDER");
    int fd = path && folder ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    plan = page == MAP_FAILED ? NULL : page;
}

static int ours(int fd)
{
    char link[64], path[4096];
    int known = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    errno = known;
    return length > (ssize_t)strlen(folder) && !memcmp(path, folder, strlen(folder));
}

static int sync_fails(int fd)
{
    if (!plan || !(plan[0] || plan[1]) || !ours(fd))
        return 0;
    if (plan[0])
        usleep((useconds_t)plan[0] * 1000);
    if (plan[1])
        errno = plan[1];
    return plan[1];
}

static int write_fails(int fd)
{
    if (!plan || !plan[2] || !ours(fd))
        return 0;
    errno = plan[2];
    return 1;
}

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

int fsync(int fd) { return sync_fails(fd) ? -1 : REAL("fsync", int (*)(int))(fd); }
int fdatasync(int fd) { return sync_fails(fd) ? -1 : REAL("fdatasync", int (*)(int))(fd); }
ssize_t write(int fd, const void *from, size_t count)
{
    return write_fails(fd) ? -1 : REAL("write", ssize_t (*)(int, const void *, size_t))(fd, from, count);
}
ssize_t pwrite(int fd, const void *from, size_t count, off_t at)
{
    return write_fails(fd) ? -1 : REAL("pwrite", ssize_t (*)(int, const void *, size_t, off_t))(fd, from, count, at);
}
ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at)
{
    return write_fails(fd) ? -1 : REAL("pwrite64", ssize_t (*)(int, const void *, size_t, off64_t))(fd, from, count, at);
}

/* what tells the time of day; monotonic clocks go on as they do when somebody sets it */
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = REAL("clock_gettime", int (*)(clockid_t, struct timespec *))(clock, now);
    if (!result && plan && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += plan[3];
    return result;
}
time_t time(time_t *where)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where)
        *where = now.tv_sec;
    return now.tv_sec;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int result = REAL("gettimeofday", int (*)(struct timeval *, void *))(now, zone);
    if (!result && plan)
        now->tv_sec += plan[3];
    return result;
}

/* a resolver that gets no answer from its servers: two tries of five seconds, for names that end so */
int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    static const char silent[] = ".silent.example";
    size_t length = name ? strlen(name) : 0;
    int asks = !hints || !(hints->ai_flags & AI_NUMERICHOST);
    if (plan && asks && length > sizeof silent && !strcmp(name + length - (sizeof silent - 1), silent)) {
        sleep(10);
        return EAI_AGAIN;
    }
    return REAL("getaddrinfo", int (*)(const char *, const char *, const struct addrinfo *, struct addrinfo **))(
        name, service, hints, found);
}

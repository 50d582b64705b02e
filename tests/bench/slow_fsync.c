/* A disk that takes two milliseconds more for every flush: preloaded by `python -m tests.bench fsync`. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static void wait_2_ms(void)
{
    struct timespec time = {0, 2000000};
    nanosleep(&time, 0);
}

int fsync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int done = real(file);
    wait_2_ms();
    return done;
}

int fdatasync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int done = real(file);
    wait_2_ms();
    return done;
}

/* The calls of Linux that a front-end of vhost-user needs and Swift's Glibc module does not show. */
#ifndef NBDPULL_FRONT_END_SHIM_H
#define NBDPULL_FRONT_END_SHIM_H
#include <features.h>
#ifndef __USE_GNU
#define __USE_GNU 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* A file in memory; with `sealed` it can neither shrink nor grow. */
static inline int front_end_memory_file(unsigned long long bytes, int sealed) {
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    if (ftruncate(fd, (off_t)bytes) != 0 ||
        (sealed && fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0)) {
        close(fd);
        return -1;
    }
    return fd;
}

/* A file on huge pages, whether or not there are any. */
static inline int front_end_huge_file(unsigned long long bytes) {
    int fd = memfd_create("guest", MFD_CLOEXEC | MFD_HUGETLB);
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* Takes pages out of a file; they are zeros when they are touched again. */
static inline int front_end_punch(int fd, long offset, long bytes) {
    return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes);
}

/* A connection whose last close waits for so many seconds, or until *peer is closed. */
static inline int front_end_lingering(int seconds, int *peer) {
    struct sockaddr_in place = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof place;
    struct linger linger = {1, seconds};
    static const char bytes[65536];
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    *peer = -1;
    if (listener >= 0 && fd >= 0 && bind(listener, (struct sockaddr *)&place, size) == 0 &&
        getsockname(listener, (struct sockaddr *)&place, &size) == 0 && listen(listener, 1) == 0 &&
        connect(fd, (struct sockaddr *)&place, size) == 0)
        *peer = accept4(listener, 0, 0, SOCK_CLOEXEC);
    close(listener);
    if (*peer < 0 || setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) != 0) {
        close(fd);
        return -1;
    }
    while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {}
    return fd;
}

/* Each read of it takes one. */
static inline int front_end_semaphore(void) {
    return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK | EFD_SEMAPHORE);
}
static inline int front_end_event(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* What tells of each signal to a counter, whether or not the counter is read. */
static inline int front_end_edge(int event) {
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET};
    int fd = epoll_create1(EPOLL_CLOEXEC);
    if (fd >= 0 && epoll_ctl(fd, EPOLL_CTL_ADD, event, &wanted) != 0) {
        close(fd);
        return -1;
    }
    return fd;
}
static inline void front_end_wait_for_edge(int fd) {
    struct epoll_event found;
    (void)epoll_wait(fd, &found, 1, -1);
}

static inline int front_end_connect(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof address) != 0) {
        int problem = errno;
        close(fd);
        errno = problem;
        return -1;
    }
    return fd;
}

/* Sends bytes with up to 16 descriptors. */
static inline long front_end_send(
    int fd, const void *bytes, size_t count, const int *descriptors, int descriptor_count) {
    union { char room[CMSG_SPACE(16 * sizeof(int))]; struct cmsghdr aligned; } control = {{0}};
    struct iovec vector = {(void *)bytes, count};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (descriptor_count > 0) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE((size_t)descriptor_count * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN((size_t)descriptor_count * sizeof(int));
        memcpy(CMSG_DATA(head), descriptors, (size_t)descriptor_count * sizeof(int));
    }
    return sendmsg(fd, &message, MSG_NOSIGNAL);
}

/* Receives bytes, and the descriptor that came with them, or -1. */
static inline long front_end_receive(int fd, void *bytes, size_t count, int *descriptor) {
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr aligned; } control = {{0}};
    struct iovec vector = {bytes, count};
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1,
        .msg_control = control.room, .msg_controllen = sizeof control.room};
    *descriptor = -1;
    long got = recvmsg(fd, &message, MSG_CMSG_CLOEXEC);
    struct cmsghdr *head = got > 0 ? CMSG_FIRSTHDR(&message) : 0;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS)
        memcpy(descriptor, CMSG_DATA(head), sizeof(int));
    return got;
}

/* Tells the processor that this is a loop that waits. */
static inline void front_end_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static inline int front_end_set_blocking(int fd, int is_blocking) {
    int flags = fcntl(fd, F_GETFL);
    return fcntl(fd, F_SETFL, is_blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
}
#endif

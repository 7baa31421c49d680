/* The Linux calls and constants that Swift's Glibc module does not show. */
#ifndef NBDPULL_CLINUX_SHIM_H
#define NBDPULL_CLINUX_SHIM_H
/* Features are settled before a header can; GNU calls are switched on alone. */
#include <features.h>
#ifndef __USE_GNU
#define __USE_GNU 1
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <sys/un.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

/* Macros that Swift cannot import, under names of our own. */
static const int nbdpull_RWF_DSYNC = RWF_DSYNC;
static const int nbdpull_RWF_NOWAIT = RWF_NOWAIT;
static const int nbdpull_O_DIRECT = O_DIRECT;
static const int nbdpull_F_OFD_GETLK = F_OFD_GETLK;
static const int nbdpull_F_OFD_SETLK = F_OFD_SETLK;
static const int nbdpull_SEEK_DATA = SEEK_DATA;
static const int nbdpull_SEEK_HOLE = SEEK_HOLE;
static const int nbdpull_FALLOC_FL_KEEP_SIZE = FALLOC_FL_KEEP_SIZE;
static const int nbdpull_FALLOC_FL_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE;
static const int nbdpull_FALLOC_FL_ZERO_RANGE = 0x10;
static const unsigned nbdpull_SYNC_FILE_RANGE_WAIT_BEFORE = SYNC_FILE_RANGE_WAIT_BEFORE;
static const int nbdpull_F_SETPIPE_SZ = F_SETPIPE_SZ;
static const int nbdpull_MSG_MORE = MSG_MORE;
static const int nbdpull_SO_SNDBUFFORCE = SO_SNDBUFFORCE;
static const int nbdpull_MSG_DONTWAIT = MSG_DONTWAIT;
static const int nbdpull_MSG_NOSIGNAL = MSG_NOSIGNAL;
static const short nbdpull_POLLRDHUP = 0x2000;
static const int nbdpull_MSG_WAITALL = MSG_WAITALL;
static const unsigned long nbdpull_BLKGETSIZE64 = 0x80081272UL;
static const unsigned long nbdpull_BLKSSZGET = 0x1268UL;
static const long nbdpull_TMPFS_MAGIC = 0x01021994L;
static const long nbdpull_EXT4_SUPER_MAGIC = 0xEF53L;
static const long nbdpull_BTRFS_SUPER_MAGIC = 0x9123683EL;
static const unsigned long nbdpull_FS_IOC_FIEMAP = 0xC020660BUL;
static const unsigned long nbdpull_FS_IOC_GETFLAGS = 0x80086601UL;
static const unsigned nbdpull_EXT4_EXTENTS_FL = 0x00080000U;

/* ioctl is variadic, which Swift does not import. */
static inline int nbdpull_ioctl_size(int fd, unsigned long request, unsigned long long *value) {
    return ioctl(fd, request, value);
}
static inline int nbdpull_ioctl_int(int fd, unsigned long request, int *value) {
    return ioctl(fd, request, value);
}
static inline int nbdpull_ioctl_memory(int fd, unsigned long request, void *memory) {
    return ioctl(fd, request, memory);
}
/* glibc declares the address as a transparent union, which Swift does not import. */
static inline int nbdpull_accept(int fd) {
    return accept4(fd, 0, 0, SOCK_NONBLOCK | SOCK_CLOEXEC);
}
/* The address of a socket's own or of its other side. */
static inline int nbdpull_socket_address(int fd, int of_peer, struct sockaddr_storage *address, socklen_t *length) {
    return of_peer ? getpeername(fd, (struct sockaddr *)address, length)
                   : getsockname(fd, (struct sockaddr *)address, length);
}
/* The port of a socket's own address; -1: it has none. */
static inline int nbdpull_socket_port(int fd) {
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    if (getsockname(fd, (struct sockaddr *)&own, &length) != 0) return -1;
    if (own.ss_family == AF_INET) return ntohs(((struct sockaddr_in *)&own)->sin_port);
    if (own.ss_family == AF_INET6) return ntohs(((struct sockaddr_in6 *)&own)->sin6_port);
    return -1;
}
/* Whether a socket of this machine could have the address of a socket's peer: 1 or 0. */
static inline int nbdpull_peer_is_local(int fd) {
    struct sockaddr_storage peer;
    socklen_t length = sizeof peer;
    if (getpeername(fd, (struct sockaddr *)&peer, &length) != 0) return 0;
    if (peer.ss_family == AF_INET) {
        ((struct sockaddr_in *)&peer)->sin_port = 0;
    } else if (peer.ss_family == AF_INET6) {
        ((struct sockaddr_in6 *)&peer)->sin6_port = 0;
    } else {
        return 0;
    }
    int probe = socket(peer.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (probe < 0) return 0;
    int result = bind(probe, (struct sockaddr *)&peer, length) == 0;
    close(probe);
    return result;
}
/* Process at the other end of a unix socket, its user and group, as they were when it connected. */
static inline int nbdpull_peer(int fd, int *process, unsigned *user, unsigned *group) {
    /* struct ucred is a GNU one. */
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0) return -1;
    *process = peer.pid;
    *user = peer.uid;
    *group = peer.gid;
    return 0;
}
static inline void nbdpull_name_thread(const char *name) {
    pthread_setname_np(pthread_self(), name);
}
/* Linux 6.12: a thread that asks for short slices is run soon after it wakes. Elsewhere without effect. */
static inline void nbdpull_ask_for_short_slices(unsigned long long nanoseconds) {
    struct {
        unsigned size, policy;
        unsigned long long flags;
        int nice;
        unsigned priority;
        unsigned long long runtime, deadline, period;
        unsigned clamp_min, clamp_max;
    } wish = {sizeof wish};
    if (syscall(SYS_sched_getattr, 0, &wish, sizeof wish, 0) != 0 || wish.policy != 0) return;
    wish.runtime = nanoseconds;
    syscall(SYS_sched_setattr, 0, &wish, 0);
}
/* Of the calling thread alone (process 0), as Linux has it. The call itself tells 20 less the niceness. */
static inline void nbdpull_be_nicer(int by) {
    const int of_process = 0;
    int nice = 20 - (int)syscall(SYS_getpriority, of_process, 0) + by;
    syscall(SYS_setpriority, of_process, 0, nice < 19 ? nice : 19);
}
static inline int nbdpull_lock_when_touched(void *memory, size_t bytes) {
    return mlock2(memory, bytes, MLOCK_ONFAULT);
}
/* Tells one btrfs from another, whatever subvolume a file lies in; 0 when it does not say. */
static inline unsigned long long nbdpull_btrfs_id(int fd) {
    unsigned long long facts[128] = {0}; /* struct btrfs_ioctl_fs_info_args, its uuid from byte 16 on */
    const unsigned long fs_info = 0x8400941FUL;
    return ioctl(fd, fs_info, facts) == 0 ? facts[2] ^ facts[3] : 0;
}
/* Whether a file system is the kernel's way to show itself: its files have no room of their own. */
static inline int nbdpull_is_interface(long type) {
    static const unsigned interfaces[] = {
        0x9FA0U,     /* proc */
        0x62656572U, /* sysfs */
        0x64626720U, /* debugfs */
        0x74726163U, /* tracefs */
        0x73636673U, /* securityfs */
        0x62656570U, /* configfs */
        0x0027E0EBU, /* cgroup */
        0x63677270U, /* cgroup 2 */
        0xCAFE4A11U, /* bpf */
        0x6165676CU, /* pstore */
        0xDE5E81E4U, /* efivarfs */
        0xF97CFF8CU, /* selinux */
        0x43415D53U, /* smack */
        0x5A3C69F0U, /* apparmor */
        0x42494E4DU, /* binfmt_misc */
        0x65735543U, /* fusectl */
        0x19800202U, /* mqueue */
        0x07655821U, /* resctrl */
        0x6E736673U, /* nsfs */
        0x50494446U, /* pidfs */
        0x1CD1U,     /* devpts */
        0x958458F6U, /* hugetlbfs, which takes no writes */
    };
    for (unsigned long i = 0; i < sizeof interfaces / sizeof *interfaces; i++)
        if ((unsigned)type == interfaces[i]) return 1;
    return 0;
}
/* The file offset alignment that O_DIRECT needs on a regular file; 0 when the file system does not say. */
static inline unsigned nbdpull_direct_alignment(int fd) {
    struct statx facts;
    if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) != 0) return 0;
    if (!(facts.stx_mask & STATX_DIOALIGN)) return 0;
    return facts.stx_dio_offset_align > facts.stx_dio_mem_align ? facts.stx_dio_offset_align
                                                                : facts.stx_dio_mem_align;
}
static inline long nbdpull_get_mark(int fd, const char *name, void *value, size_t bytes) {
    return fgetxattr(fd, name, value, bytes);
}
static inline int nbdpull_set_mark(int fd, const char *name, const void *value, size_t bytes) {
    return fsetxattr(fd, name, value, bytes, 0);
}
static inline int nbdpull_fcntl_lock(int fd, int command, struct flock *lock) {
    return fcntl(fd, command, lock);
}
static inline int nbdpull_pipe(int *reading, int *writing) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return -1;
    *reading = ends[0];
    *writing = ends[1];
    return 0;
}
static inline long nbdpull_splice_from_file(
    int file, unsigned long long position, int pipe, unsigned long count) {
    __off64_t offset = (__off64_t)position;
    return splice(file, &offset, pipe, 0, count, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
}
static inline long nbdpull_splice_to_socket(int pipe, int socket, unsigned long count, int more) {
    return splice(
        pipe, 0, socket, 0, count, SPLICE_F_NONBLOCK | SPLICE_F_MOVE | (more ? SPLICE_F_MORE : 0));
}
/* How a process crashed, in memory that outlives it. */
struct nbdpull_crash {
    unsigned taken; /* 1: by the first thread that crashed; 2: all of it is there */
    int signal, code;
    unsigned thread;
    unsigned long long address, program, seconds, nanoseconds;
    char name[16];
};
struct nbdpull_crash_state {
    struct nbdpull_crash *place;
    int is_noting;
    int chains; /* Whether those who were there before are asked, too. */
    struct sigaction before[65];
};
static inline struct nbdpull_crash_state *nbdpull_crash_state(void) {
    static struct nbdpull_crash_state state;
    return &state;
}
static inline unsigned long long nbdpull_program_counter(void *context) {
    ucontext_t *found = (ucontext_t *)context;
#if defined(__x86_64__)
    return (unsigned long long)found->uc_mcontext.gregs[16]; /* REG_RIP */
#elif defined(__aarch64__)
    return found->uc_mcontext.pc;
#else
    return 0;
#endif
}
/* Notes the crash, then lets it happen. Only what a signal handler may do. */
static inline void nbdpull_crashed(int number, siginfo_t *info, void *context) {
    struct nbdpull_crash_state *state = nbdpull_crash_state();
    struct nbdpull_crash *place = state->place;
    unsigned expected = 0;
    if (place && __atomic_compare_exchange_n(
            &place->taken, &expected, 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
        struct timespec now = {0, 0};
        clock_gettime(CLOCK_REALTIME, &now);
        place->signal = number;
        place->code = info->si_code;
        place->thread = (unsigned)syscall(SYS_gettid);
        place->address = (unsigned long long)info->si_addr;
        place->program = nbdpull_program_counter(context);
        place->seconds = (unsigned long long)now.tv_sec;
        place->nanoseconds = (unsigned long long)now.tv_nsec;
        prctl(PR_GET_NAME, place->name, 0, 0, 0);
        __atomic_store_n(&place->taken, 2, __ATOMIC_RELEASE);
    }
    /* The same fault when this returns, or a signal of our own, ends the process: at once, as whoever starts
     * it again waits for that. A backtrace of the language's runtime can take minutes, with disks held. */
    struct sigaction last = {0};
    last.sa_handler = SIG_DFL;
    sigaction(number, state->chains ? &state->before[number] : &last, 0);
    if (info->si_code <= 0) syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), number);
}
/* From now on a crash is noted there, if there is a place, and ends the process at once. */
static inline void nbdpull_note_crashes(struct nbdpull_crash *place) {
    static const int signals[] = {SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE, SIGSEGV};
    struct nbdpull_crash_state *state = nbdpull_crash_state();
    struct sigaction action = {0};
    const int is_first = !state->is_noting;
    state->place = place;
    if (!is_first) return;
    state->is_noting = 1;
    state->chains = getenv("SWIFT_BACKTRACE") != 0;
    action.sa_sigaction = nbdpull_crashed;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (unsigned long i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction found = {0};
        sigaction(signals[i], 0, &found);
        /* Mappings whose file may shrink are guarded already: without that handler they end the process. */
        if (signals[i] == SIGBUS && !state->chains && (found.sa_flags & SA_SIGINFO)) continue;
        sigaction(signals[i], &action, &state->before[signals[i]]);
    }
}
static inline unsigned nbdpull_thread(void) { return (unsigned)syscall(SYS_gettid); }
/* Where the program was loaded. */
static inline unsigned long long nbdpull_program_base(void) {
    return getauxval(AT_PHDR) & ~4095ULL;
}
/* cachestat (Linux 6.5): how many pages of the range the page cache has, or -1. */
static inline long nbdpull_cached_pages(
    int fd, unsigned long long position, unsigned long long count) {
    struct { unsigned long long offset, length; } range = {position, count};
    struct { unsigned long long cached, dirty, writeback, evicted, recent; } found;
    if (syscall(451, fd, &range, &found, 0) != 0) return -1;
    return (long)found.cached;
}
/* Has the kernel split the folio of the page cache that holds a page of a file: to call one page of a large
   folio cold is how it is asked to (Linux 5.14, for MADV_POPULATE_READ). A page that is not there is left alone,
   and nothing is loaded through the mapping, so no signal can come of it. 0 or an errno. */
static inline int nbdpull_split_folio(int fd, unsigned long long position, size_t page) {
    const int populate_read = 22;
    long cached = nbdpull_cached_pages(fd, position, page);
    if (cached != 1) return cached < 0 ? errno : 0;
    void *place = mmap(0, page, PROT_READ, MAP_SHARED, fd, (off_t)position);
    if (place == MAP_FAILED) return errno;
    int failed = madvise(place, page, populate_read) != 0 || madvise(place, page, MADV_COLD) != 0;
    int result = failed ? errno : 0;
    munmap(place, page);
    return result;
}
static inline int nbdpull_pidfd_open(int process) { return (int)syscall(SYS_pidfd_open, process, 0); }
static inline int nbdpull_pidfd_send_signal(int fd, int number) {
    return (int)syscall(SYS_pidfd_send_signal, fd, number, 0, 0);
}
/* The macros for what a message carries besides its bytes are none that Swift imports. */
enum { nbdpull_passed_max = 64 };
static inline long nbdpull_send_passing(
    int socket, const void *bytes, size_t count, const int *passed, int passed_count) {
    union {
        char room[CMSG_SPACE(sizeof(int) * nbdpull_passed_max)];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {(void *)bytes, count};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    if (passed_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * (size_t)passed_count);
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int) * (size_t)passed_count);
        memcpy(CMSG_DATA(head), passed, sizeof(int) * (size_t)passed_count);
    }
    return sendmsg(socket, &message, MSG_NOSIGNAL);
}
/* A message that does not fit whole is EMSGSIZE, and what it carried is closed. */
static inline long nbdpull_receive_passed(
    int socket, void *bytes, size_t room, int *passed, int *passed_count) {
    union {
        char room[CMSG_SPACE(sizeof(int) * nbdpull_passed_max)];
        struct cmsghdr aligned;
    } control;
    struct iovec part = {bytes, room};
    struct msghdr message = {0};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    *passed_count = 0;
    long count = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (count < 0) return count;
    for (struct cmsghdr *head = CMSG_FIRSTHDR(&message); head; head = CMSG_NXTHDR(&message, head)) {
        if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) continue;
        int found = (int)((head->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < found && *passed_count < nbdpull_passed_max; i++)
            memcpy(&passed[(*passed_count)++], CMSG_DATA(head) + sizeof(int) * (size_t)i, sizeof(int));
    }
    if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        for (int i = 0; i < *passed_count; i++) close(passed[i]);
        *passed_count = 0;
        errno = EMSGSIZE;
        return -1;
    }
    return count;
}
/* Starts a program with signals as the system has them by default, whatever this process ignores. */
static inline int nbdpull_spawn(int *process, const char *path, char *const *arguments, char *const *environment) {
    posix_spawnattr_t how;
    sigset_t all, none;
    int result = posix_spawnattr_init(&how);
    if (result != 0) return result;
    sigfillset(&all);
    sigemptyset(&none);
    posix_spawnattr_setsigdefault(&how, &all);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
    result = posix_spawn(process, path, 0, &how, arguments, environment);
    posix_spawnattr_destroy(&how);
    return result;
}
/* Starts a program that is killed when the thread that starts it ends, however that comes about. Between the
 * two calls the child does only what a signal handler may. An open file (not -1) is its file 3. */
static inline int nbdpull_spawn_bound(const char *path, char *const *arguments, int output, int file) {
    const int parent = getpid();
    const int child = fork();
    if (child != 0) return child;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, 0);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    const int nothing = open("/dev/null", O_RDWR);
    /* 3 itself would stay close-on-exec; `output` may be 3, and is used before. */
    if (getppid() != parent || nothing < 0 || dup2(nothing, 0) < 0 || dup2(output, 1) < 0
        || dup2(output, 2) < 0 || (file == 3 ? fcntl(3, F_SETFD, 0) : file >= 0 ? dup2(file, 3) : 0) < 0)
        _exit(126);
    execv(path, arguments);
    _exit(127);
}
/* The same for a program that serves: it ends in order (SIGINT) with the calling thread, does not hear the
   signals by which a service manager ends all processes of a service at once, keeps `lock` open, gets no
   rights by what it executes, and has of root's rights only those to open files. */
static inline int nbdpull_spawn_adapter(const char *path, char *const *arguments, int output, int lock) {
    const int parent = getpid();
    const int child = fork();
    if (child != 0) return child;
    sigset_t unheard;
    sigemptyset(&unheard);
    sigaddset(&unheard, SIGTERM);
    sigaddset(&unheard, SIGHUP);
    sigprocmask(SIG_SETMASK, &unheard, 0);
    signal(SIGPIPE, SIG_DFL);
    signal(SIGXFSZ, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGINT, 0, 0, 0);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    for (int right = 0; right < 64; right++)
        if (right != 1 && right != 2) prctl(PR_CAPBSET_DROP, right, 0, 0, 0); /* CAP_DAC_... */
    const int nothing = open("/dev/null", O_RDWR);
    if (getppid() != parent || nothing < 0 || dup2(nothing, 0) < 0 || dup2(output, 1) < 0
        || dup2(output, 2) < 0 || fcntl(lock, F_SETFD, 0) < 0)
        _exit(126);
    execv(path, arguments);
    _exit(127);
}
/* A descriptor that is readable when the process has ended. */
static inline int nbdpull_open_process(int process) {
    return (int)syscall(434, process, 0); /* pidfd_open */
}
/* Whether a child has ended, without waiting: 1 and how, 0 or -1. */
static inline int nbdpull_has_ended(int process, int *how) {
    int status = 0;
    const int result = waitpid(process, &status, WNOHANG);
    if (result <= 0) return result;
    *how = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return 1;
}
/* Waits for the end of a child, which keeps its number. */
static inline void nbdpull_await_end(int process) {
    siginfo_t how;
    while (waitid(P_PID, (id_t)process, &how, WEXITED | WNOWAIT) < 0)
        if (errno != EINTR) return;
}
/* Waits for the end of a child: its exit status, or 128 and the signal's number. */
static inline int nbdpull_await_child(int process) {
    int status = 0;
    while (waitpid(process, &status, 0) < 0)
        if (errno != EINTR) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Memory that a peer shares by descriptors. */
static const long nbdpull_HUGETLBFS_MAGIC = 0x958458F6L;
static inline int nbdpull_memory_file(const char *name) {
    return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
}
static inline int nbdpull_seal_size(int fd) { return fcntl(fd, 1033, 6); } /* F_ADD_SEALS: shrink, grow */
/* Asks no file system: only files in memory have seals. */
static inline int nbdpull_is_memory(int fd) { return fcntl(fd, 1034) >= 0; }
static inline int nbdpull_cannot_shrink(int fd) {
    int seals = fcntl(fd, 1034); /* F_GET_SEALS */
    return seals >= 0 && (seals & 2) != 0;
}
/* As many descriptors as the kernel lets one message have (SCM_MAX_FD). */
enum { nbdpull_rights_max = 253 };
/* Receives bytes and the descriptors that came with them; all that are in `descriptors`, which has room for
   nbdpull_rights_max, are the caller's to close, on failure too. There is room for as many as can come: the
   kernel would close others here and now, which may wait. EMFILE: it had to. */
static inline long nbdpull_receive(int fd, void *bytes, size_t room, int *descriptors, int *count) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int) * nbdpull_rights_max)];
    } control;
    struct iovec vector = {bytes, room};
    struct msghdr message = {0};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = &control;
    message.msg_controllen = sizeof control;
    *count = 0;
    long got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0) return got;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(&message); part; part = CMSG_NXTHDR(&message, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        int n = (int)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < n && *count < nbdpull_rights_max; i++)
            memcpy(&descriptors[(*count)++], CMSG_DATA(part) + (size_t)i * sizeof(int), sizeof(int));
    }
    if ((message.msg_flags & MSG_CTRUNC) != 0) {
        errno = EMFILE;
        return -1;
    }
    return got;
}
/* Sends bytes, with a descriptor unless it is negative. */
static inline long nbdpull_send_with(int fd, const void *bytes, size_t count, int descriptor) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {{0}};
    struct iovec vector = {(void *)bytes, count};
    struct msghdr message = {0};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *part = CMSG_FIRSTHDR(&message);
        part->cmsg_level = SOL_SOCKET;
        part->cmsg_type = SCM_RIGHTS;
        part->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(part), &descriptor, sizeof descriptor);
    }
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
}
/* Moves bytes between our memory and memory that may go away meanwhile: EFAULT then, no signal. Some
   containers forbid the call that is made for it; reads and writes of a file in memory do the same. */
static inline int nbdpull_is_forbidden(long result) {
    return result < 0 && (errno == EPERM || errno == ENOSYS);
}
static inline long nbdpull_copy_out(const struct iovec *to, unsigned long count, void *bytes, size_t n) {
    struct iovec vector = {bytes, n};
    long result = process_vm_writev(getpid(), &vector, 1, to, count, 0);
    if (!nbdpull_is_forbidden(result)) return result;
    int file = nbdpull_memory_file("nbdpull-copy");
    if (file < 0) return -1;
    result = pwrite(file, bytes, n, 0);
    if (result >= 0) result = preadv(file, to, (int)count, 0);
    close(file);
    return result;
}
static inline long nbdpull_copy_in(void *bytes, size_t n, const struct iovec *from, unsigned long count) {
    struct iovec vector = {bytes, n};
    long result = process_vm_readv(getpid(), &vector, 1, from, count, 0);
    if (!nbdpull_is_forbidden(result)) return result;
    int file = nbdpull_memory_file("nbdpull-copy");
    if (file < 0) return -1;
    result = pwritev(file, from, (int)count, 0);
    if (result >= 0) result = pread(file, bytes, n, 0);
    close(file);
    return result;
}

/* Mappings whose file may shrink under them. The kernel raises SIGBUS at a load or store behind its end;
   the handler puts zero pages in place of the mapping, notes that it is gone, and the access goes on.
   The compiler may copy what stands here into several modules: the table is made once, and everybody but
   the handler is handed its address. */
struct nbdpull_guard {
    uintptr_t start, end;
    int used, gone;
    /* Bytes of a page of the mapping. */
    uintptr_t page;
};
enum { nbdpull_guards_max = 32768 };
struct nbdpull_guards {
    unsigned long losses;
    struct nbdpull_guard entries[nbdpull_guards_max];
    /* What became of the signal before. */
    struct sigaction before;
};
static inline struct nbdpull_guards **nbdpull_guards_of_handler(void) {
    static struct nbdpull_guards *guards;
    return &guards;
}
static inline void nbdpull_on_bus_error(int number, siginfo_t *facts, void *context) {
    (void)context;
    const int before = errno;
    const uintptr_t address = (uintptr_t)facts->si_addr;
    struct nbdpull_guards *guards = *nbdpull_guards_of_handler();
    /* A signal that somebody sent has no address. */
    for (int i = 0; facts->si_code > 0 && i < nbdpull_guards_max; i++) {
        struct nbdpull_guard *guard = &guards->entries[i];
        const uintptr_t start = __atomic_load_n(&guard->start, __ATOMIC_ACQUIRE);
        const uintptr_t end = __atomic_load_n(&guard->end, __ATOMIC_ACQUIRE);
        /* An entry that is being made, or taken out, has an end and no start. */
        if (start == 0 || address < start || address >= end) continue;
        if (__atomic_load_n(&guard->start, __ATOMIC_ACQUIRE) != start) continue;
        void *place = mmap((void *)start, end - start, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
        if (place != (void *)start) {
            /* Where memory is not overcommitted all of it may be too much: a page is enough to go on, of the
               mapping's own size, for a huge one cannot be parted. */
            const uintptr_t size = __atomic_load_n(&guard->page, __ATOMIC_ACQUIRE);
            void *page = (void *)(address & ~(size - 1));
            place = mmap(page, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            if (place != page) break;
        }
        __atomic_store_n(&guard->gone, 1, __ATOMIC_RELEASE);
        __atomic_add_fetch(&guards->losses, 1, __ATOMIC_RELEASE);
        errno = before;
        return;
    }
    /* Not ours: the access is made again, and ends the process as it would have. */
    sigaction(number, &guards->before, 0);
    errno = before;
}
/* Called once. The table's address; 0 when there is no memory for it. */
static inline uintptr_t nbdpull_guards_install(void) {
    void *memory = mmap(0, sizeof(struct nbdpull_guards), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    *nbdpull_guards_of_handler() = (struct nbdpull_guards *)memory;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = nbdpull_on_bus_error;
    action.sa_flags = SA_SIGINFO | SA_RESTART;
    return sigaction(SIGBUS, &action, &((struct nbdpull_guards *)memory)->before) == 0 ? (uintptr_t)memory : 0;
}
/* The guard's number; -1 when there is no place. */
static inline int nbdpull_guard_add(uintptr_t table, uintptr_t start, uintptr_t end, uintptr_t page) {
    struct nbdpull_guards *guards = (struct nbdpull_guards *)table;
    for (int i = 0; guards && i < nbdpull_guards_max; i++) {
        struct nbdpull_guard *guard = &guards->entries[i];
        int expected = 0;
        if (!__atomic_compare_exchange_n(&guard->used, &expected, 1, 0, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        __atomic_store_n(&guard->gone, 0, __ATOMIC_RELEASE);
        __atomic_store_n(&guard->page, page, __ATOMIC_RELEASE);
        __atomic_store_n(&guard->end, end, __ATOMIC_RELEASE);
        __atomic_store_n(&guard->start, start, __ATOMIC_RELEASE);
        return i;
    }
    return -1;
}
static inline void nbdpull_guard_remove(uintptr_t table, int number) {
    struct nbdpull_guard *guard = &((struct nbdpull_guards *)table)->entries[number];
    __atomic_store_n(&guard->end, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&guard->start, 0, __ATOMIC_RELEASE);
    __atomic_store_n(&guard->used, 0, __ATOMIC_RELEASE);
}
static inline int nbdpull_guard_is_gone(uintptr_t table, int number) {
    return __atomic_load_n(&((struct nbdpull_guards *)table)->entries[number].gone, __ATOMIC_ACQUIRE);
}
static inline unsigned long nbdpull_guard_losses(uintptr_t table) {
    return table ? __atomic_load_n(&((struct nbdpull_guards *)table)->losses, __ATOMIC_ACQUIRE) : 0;
}
#endif

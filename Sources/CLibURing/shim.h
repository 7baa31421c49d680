/* liburing and the Linux calls and constants that glibc declares only under _GNU_SOURCE. */
#ifndef NBDPULL_CLIBURING_SHIM_H
#define NBDPULL_CLIBURING_SHIM_H
#include <liburing.h>
#include <sys/uio.h>
#include <sys/types.h>
#include <sys/socket.h>

extern ssize_t preadv2(int fd, const struct iovec *iov, int iovcnt, off_t offset, int flags);
extern int fallocate(int fd, int mode, off_t offset, off_t len);

static const int nbdpull_RWF_DSYNC = 0x2;
static const int nbdpull_RWF_NOWAIT = 0x8;
static const int nbdpull_O_DIRECT = 0x4000;
static const int nbdpull_F_OFD_GETLK = 36;
static const int nbdpull_F_OFD_SETLK = 37;
static const int nbdpull_SEEK_DATA = 3;
static const int nbdpull_SEEK_HOLE = 4;
static const int nbdpull_FALLOC_FL_KEEP_SIZE = 0x01;
static const int nbdpull_FALLOC_FL_PUNCH_HOLE = 0x02;
static const int nbdpull_FALLOC_FL_ZERO_RANGE = 0x10;
static const int nbdpull_SO_SNDBUFFORCE = 32;
static const unsigned long nbdpull_BLKGETSIZE64 = 0x80081272UL;
static const unsigned long nbdpull_BLKSSZGET = 0x1268UL;
static const unsigned long nbdpull_BLKPBSZGET = 0x127bUL;
#endif

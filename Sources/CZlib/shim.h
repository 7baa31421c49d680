/* zlib: compression of sealed layers, and CRC-32. */
#ifndef NBDPULL_CZLIB_SHIM_H
#define NBDPULL_CZLIB_SHIM_H
#include <zlib.h>
#endif

/* libnbd, the independent client that tests and benchmarks drive us with. */
#ifndef NBDPULL_CLIBNBD_SHIM_H
#define NBDPULL_CLIBNBD_SHIM_H
#include <libnbd.h>
#endif

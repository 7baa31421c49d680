/* liburing, and flags of it that Swift does not import. */
#ifndef NBDPULL_CLIBURING_SHIM_H
#define NBDPULL_CLIBURING_SHIM_H
/* liburing.h asks for the X/Open flavour of the C library, which lays out fd_set under other names
   than every other module does. Features are settled before it can; GNU calls are switched on alone. */
#include <features.h>
#ifndef __USE_GNU
#define __USE_GNU 1
#endif
#include <liburing.h>

static const unsigned char nbdpull_IOSQE_ASYNC = 1U << IOSQE_ASYNC_BIT;
static const unsigned char nbdpull_IOSQE_CQE_SKIP_SUCCESS = 1U << IOSQE_CQE_SKIP_SUCCESS_BIT;
#endif

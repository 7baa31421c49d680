/* The parts of GnuTLS that TLS uses: sessions over buffers, X.509 and PSK credentials. */
#ifndef NBDPULL_CGNUTLS_SHIM_H
#define NBDPULL_CGNUTLS_SHIM_H
#include <errno.h>
#include <string.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>

/* Numbers whose macros Swift cannot import. */
static const int nbdpull_EAGAIN = EAGAIN;
static const char *const nbdpull_KP_CLIENT = GNUTLS_KP_TLS_WWW_CLIENT;

/* A copy of a key that GnuTLS frees; gnutls_malloc is a variable, which Swift does not call. */
static inline int nbdpull_give_key(gnutls_datum_t *to, const void *bytes, unsigned size) {
    to->data = gnutls_malloc(size ? size : 1);
    if (to->data == NULL) return -1;
    memcpy(to->data, bytes, size);
    to->size = size;
    return 0;
}
static inline void nbdpull_free_datum(gnutls_datum_t *datum) {
    if (datum->data != NULL) gnutls_memset(datum->data, 0, datum->size);
    gnutls_free(datum->data);
    datum->data = NULL;
    datum->size = 0;
}
#endif

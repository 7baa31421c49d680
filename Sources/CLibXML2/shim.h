/* The parts of libxml2 that Control uses: parser, tree, RELAX NG validation. */
#ifndef NBDPULL_CLIBXML2_SHIM_H
#define NBDPULL_CLIBXML2_SHIM_H
#include <libxml/xmlversion.h>
/* Without this the headers declare the system's ICU, which clashes with the one inside Foundation.
   Only the tail of the encoding handler's structure depends on it, and we never look into one. */
#undef LIBXML_ICU_ENABLED
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/relaxng.h>
#include <libxml/xmlerror.h>
#include <libxml/xmlsave.h>
#endif

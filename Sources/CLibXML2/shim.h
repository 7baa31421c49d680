/* The parts of libxml2 that Control uses: parser, tree, RELAX NG validation. */
#ifndef NBDPULL_CLIBXML2_SHIM_H
#define NBDPULL_CLIBXML2_SHIM_H
#include <libxml/parser.h>
#include <libxml/tree.h>
#include <libxml/relaxng.h>
#include <libxml/xmlerror.h>
#include <libxml/xmlsave.h>
#endif

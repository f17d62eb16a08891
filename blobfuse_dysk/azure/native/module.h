/* What the files of the module share. */

#ifndef DYSK_MODULE_H
#define DYSK_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define MODULE "blobfuse_dysk.azure.native._exchange"

enum { MOST_BODY = 1 << 20 }; /* bytes of the longest range that is read this way */

extern PyTypeObject HeadsType, LineType, ReadyType;

#endif

/* The module: its types and its bounds. */

#include "module.h"

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = MODULE, .m_size = -1};

PyMODINIT_FUNC PyInit__exchange(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL || PyModule_AddType(module, &LineType) < 0 || PyModule_AddType(module, &ReadyType) < 0 ||
        PyModule_AddType(module, &HeadsType) < 0 || PyModule_AddIntConstant(module, "MOST_BODY", MOST_BODY) < 0) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}

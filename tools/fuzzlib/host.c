/* A program with Python in it, for what can only be fuzzed as the module that it is: under ASan and UBSan, and with
 * libFuzzer's eyes on what it covers. The module is linked in (INIT, NAME), in the place of the one that was built for use.
 * What is done to it, and what must hold then, says `run` of the module TARGET, in Python: whatever that raises is a find.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

PyMODINIT_FUNC INIT(void);

const char *__asan_default_options(void);

/* A built-in module with a dotted name is found by itself from some patch release of 3.11 on only. */
static const char LOAD[] = "import sys\n"
                           "sys.path.insert(0, '" ROOT "')\n"
                           "from importlib import machinery, util\n"
                           "spec = machinery.ModuleSpec('" NAME "', machinery.BuiltinImporter, origin='built-in')\n"
                           "sys.modules['" NAME "'] = util.module_from_spec(spec)\n"
                           "spec.loader.exec_module(sys.modules['" NAME "'])\n";

/* What Python has at its end is no leak. */
const char *__asan_default_options(void) { return "detect_leaks=0:quarantine_size_mb=16"; }

static void give_up(void)
{
    PyErr_Print();
    fflush(stderr);
    abort();
}

static PyObject *run_of_target(void)
{
    setenv("PYTHONMALLOC", "malloc", 1); /* ASan sees each object then */
    setenv("PYTHONHASHSEED", "0", 1);
    if (PyImport_AppendInittab(NAME, INIT) < 0)
        abort();
    PyConfig config;
    PyConfig_InitPythonConfig(&config);
    config.install_signal_handlers = 0;
    config.write_bytecode = 0;
    if (PyStatus_Exception(PyConfig_SetBytesString(&config, &config.program_name, PYTHON)) ||
        PyStatus_Exception(Py_InitializeFromConfig(&config)))
        abort();
    PyObject *module = PyRun_SimpleString(LOAD) == 0 ? PyImport_ImportModule(NAME) : NULL;
    PyObject *spec = module != NULL ? PyObject_GetAttrString(module, "__spec__") : NULL;
    PyObject *origin = spec != NULL ? PyObject_GetAttrString(spec, "origin") : NULL;
    if (origin == NULL || !PyUnicode_Check(origin) || PyUnicode_CompareWithASCIIString(origin, "built-in") != 0) {
        fprintf(stderr, "it is not the module that is linked in\n");
        give_up();
    }
    PyObject *target = PyImport_ImportModule(TARGET);
    PyObject *run = target != NULL ? PyObject_GetAttrString(target, "run") : NULL;
    if (run == NULL)
        give_up();
    return run;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static PyObject *run;
    if (run == NULL)
        run = run_of_target();
    PyObject *done = PyObject_CallFunction(run, "y#", (const char *)data, (Py_ssize_t)size);
    if (done == NULL)
        give_up();
    Py_DECREF(done);
    return 0;
}

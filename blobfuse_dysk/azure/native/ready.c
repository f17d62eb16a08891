/* Ready: the set of all Lines of a pool. See exchange.c. */

#include "exchange.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

enum { MOST_EVENTS = 256 };

static PyObject *ready_collect(Ready *ready, PyObject *Py_UNUSED(none))
{
    PyObject *tasks = PyList_New(0);
    if (tasks == NULL)
        return NULL;
    struct epoll_event events[MOST_EVENTS];
    const int count = epoll_wait(ready->fd, events, MOST_EVENTS, 0);
    if (count < 0 && errno != EINTR) {
        Py_DECREF(tasks);
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    for (int i = 0; i < count; i++) {
        const uint32_t slot = (uint32_t)events[i].data.u64;
        Line *line = ready->slots[slot].line;
        if (line == NULL || ready->slots[slot].generation != events[i].data.u64 >> 32)
            continue;
        Py_INCREF(line);
        receive(line);
        if (line->task != NULL && !is_waiting(line)) {
            if (PyList_Append(tasks, line->task) == 0)
                Py_CLEAR(line->task);
            else /* no memory for it: the time limit ends the wait */
                PyErr_Clear();
        }
        Py_DECREF(line);
    }
    return tasks;
}

static PyObject *ready_fileno(Ready *ready, PyObject *Py_UNUSED(none)) { return PyLong_FromLong(ready->fd); }

static PyObject *ready_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(keywords))
{
    Ready *ready = (Ready *)type->tp_alloc(type, 0);
    if (ready != NULL && (ready->fd = epoll_create1(EPOLL_CLOEXEC)) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(ready);
    }
    return (PyObject *)ready;
}

static void ready_dealloc(Ready *ready)
{
    if (ready->fd >= 0)
        close(ready->fd);
    Py_TYPE(ready)->tp_free(ready);
}

static PyMethodDef ready_methods[] = {
    {"collect", (PyCFunction)ready_collect, METH_NOARGS, NULL},
    {"fileno", (PyCFunction)ready_fileno, METH_NOARGS, NULL},
    {0},
};

PyTypeObject ReadyType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = MODULE ".Ready",
    .tp_basicsize = sizeof(Ready),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = ready_new,
    .tp_dealloc = (destructor)ready_dealloc,
    .tp_methods = ready_methods,
};

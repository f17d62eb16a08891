/* dyskctl: has a template (device/template) run `attach` and `detach`, of which the start of an interpreter, and loading
 * what they need, is the larger part. Everything else, and everything that does not go as it should before the template's
 * child has begun, is for dyskctl.py beside this program: the whole of dyskctl, which is executed in place of this one.
 *
 * cli/handed.py is the other side, and has the theory. What is sent, as packets of a Unix socket:
 *
 *   here:   "run 1 UMASK" with the descriptors 0, 1, 2 and the directory, then the words, then the environment, each
 *           ended by a 0
 *   there:  "ready", with a pidfd of the process that is to run it
 *   here:   "go"
 *   there:  "done STATUS" at its end
 *
 * Without "go" nothing is done, so until it is said the other side may fail, be late, or say that it is not for it. From
 * then on this program only hands on signals. Its own end, however it comes, is that of the process.
 * Where nothing listens, one of those who attach at the same time is the first: it runs the whole of dyskctl, which starts a
 * template. The others wait for that, since all of them together would take longer by far (at boot, with many disks). The
 * first one has a lock, which ends with it; if there still is no template then, another one is the first. Under systemd
 * there never is one (device/attacher/systemd.py).
 * Sources: unix(7), cmsg(3), signalfd(2), pidfd_send_signal(2), flock(2), inotify(7), sd_booted(3).
 */

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_RUN "/run/dysk"

enum {
    MOST_BYTES = 96 << 10, /* of words, and of the environment */
    START_MS = 10000,      /* for a template that another one starts, as long as that one runs, */
    LOOK_MS = 100,         /* which is seen this late at the most; the template at once */
    LISTENS_MS = 2,        /* from the making of its socket until it listens */
    READY_MS = 30000,      /* for the template to fork, and to do so for those before */
    FDS = 4,
    FAILED = 1,
    NOT_STARTED = 127,
};

extern char **environ;

static void run_whole(const char *self, char **argv) __attribute__((noreturn));

/* The whole of dyskctl, in place of this program. */
static void run_whole(const char *self, char **argv)
{
    char path[PATH_MAX + 8];
    snprintf(path, sizeof path, "%s.py", self);
    execv(path, argv);
    fprintf(stderr, "dyskctl: %s: %s\n", path, strerror(errno));
    exit(NOT_STARTED);
}

/* The verb, if it is one that may be understood there, or NULL; cli/quick.py looks at all of the words. */
static const char *handed_verb(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "-o") == 0 || strcmp(argv[i], "--output") == 0)
            i++;
        else
            return strcmp(argv[i], "attach") == 0 || strcmp(argv[i], "detach") == 0 ? argv[i] : NULL;
    }
    return NULL;
}

static uint32_t crc32_of(const char *data, size_t size)
{
    uint32_t crc = UINT32_MAX;
    for (size_t i = 0; i < size; i++) {
        crc ^= (unsigned char)data[i];
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return ~crc;
}

/* Where the template of the installation that `self` is of listens; false if that cannot be known. */
static bool find_socket(const char *self, struct sockaddr_un *found)
{
    const char *run = getenv("DYSK_RUN_DIR"), *slash = strrchr(self, '/');
    if (run == NULL || *run == 0)
        run = DEFAULT_RUN;
    if (*run != '/' || slash == NULL)
        return false;
    found->sun_family = AF_UNIX;
    int length = snprintf(found->sun_path, sizeof found->sun_path, "%s/.dyskctl-%08x", run,
                          (unsigned)crc32_of(self, (size_t)(slash - self)));
    return length < (int)sizeof found->sun_path;
}

/* A connection to it; -1 if there is none. */
static int connect_to(const struct sockaddr_un *address)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 &&
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && peer.uid == 0)
        return fd;
    if (fd >= 0)
        close(fd);
    return -1;
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* The same, for one who attaches when nothing listens: see above. */
static int wait_for_template(const struct sockaddr_un *address)
{
    char directory[sizeof address->sun_path], path[sizeof address->sun_path + 8], events[4096];
    if (access("/run/systemd/system", F_OK) == 0)
        return -1;
    strcpy(directory, address->sun_path);
    *strrchr(directory, '/') = 0;
    if (mkdir(directory, 0755) == 0)
        chmod(directory, 0755); /* whatever our umask is: make_run() of device/ipc/state.py */
    snprintf(path, sizeof path, "%s.first", address->sun_path);
    int lock = open(path, O_RDWR | O_CREAT | O_NOFOLLOW, 0600);
    if (lock < 0)
        return -1;
    if (flock(lock, LOCK_EX | LOCK_NB) == 0)
        return -1; /* the first; what is executed has the lock until it ends */
    int made = inotify_init1(IN_CLOEXEC | IN_NONBLOCK), fd = -1;
    inotify_add_watch(made, directory, IN_CREATE); /* without it there is a look each LOOK_MS */
    const int64_t end = now_ms() + START_MS;
    bool alone = false;
    while ((fd = connect_to(address)) < 0 && !alone && now_ms() < end) {
        struct pollfd wait = {made, POLLIN, 0};
        if (poll(&wait, 1, LOOK_MS) > 0) {
            while (read(made, events, sizeof events) > 0)
                continue;
            poll(NULL, 0, LISTENS_MS);
        } else {
            alone = flock(lock, LOCK_EX | LOCK_NB) == 0;
        }
    }
    close(made);
    if (!alone)
        close(lock);
    return fd;
}

/* Strings, each ended by a 0, as one packet. */
static bool send_strings(int fd, char **strings)
{
    static char data[MOST_BYTES];
    size_t size = 0;
    for (; *strings != NULL; strings++) {
        size_t more = strlen(*strings) + 1;
        if (more > sizeof data - size)
            return false;
        memcpy(data + size, *strings, more);
        size += more;
    }
    return size > 0 && send(fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool send_request(int fd, char **argv)
{
    int fds[FDS] = {0, 1, 2, open(".", O_PATH | O_DIRECTORY | O_CLOEXEC)};
    union {
        char room[CMSG_SPACE(sizeof fds)];
        struct cmsghdr aligned;
    } rights = {{0}};
    char order[32];
    mode_t mask = umask(0);
    umask(mask);
    int length = snprintf(order, sizeof order, "run 1 %o", (unsigned)mask);
    struct iovec part = {order, (size_t)length};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = rights.room, .msg_controllen = sizeof rights.room};
    struct cmsghdr *header = CMSG_FIRSTHDR(&packet);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(header), fds, sizeof fds);
    bool sent = sendmsg(fd, &packet, MSG_NOSIGNAL) == length && send_strings(fd, argv + 1) && send_strings(fd, environ);
    if (fds[FDS - 1] >= 0)
        close(fds[FDS - 1]);
    return sent;
}

/* One packet as text, and the descriptor that came with it, or -1. Its size; 0 when the other side is gone. */
static ssize_t receive(int fd, char *text, size_t size, int *with)
{
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } rights = {{0}};
    struct iovec part = {text, size - 1};
    struct msghdr packet = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = rights.room, .msg_controllen = sizeof rights.room};
    ssize_t count = recvmsg(fd, &packet, MSG_CMSG_CLOEXEC);
    struct cmsghdr *header = count > 0 ? CMSG_FIRSTHDR(&packet) : NULL;
    *with = -1;
    if (header != NULL && header->cmsg_type == SCM_RIGHTS)
        memcpy(with, CMSG_DATA(header), sizeof *with);
    text[count > 0 ? count : 0] = 0;
    return count > 0 ? count : 0;
}

/* End as a signal ends a program. */
static int die_by(int number, const sigset_t *before)
{
    signal(number, SIG_DFL);
    raise(number);
    sigprocmask(SIG_SETMASK, before, NULL);
    return 128 + number;
}

/* Wait for the end of what has begun; its exit status. */
static int follow(int fd, int process, int signals, const sigset_t *before)
{
    int last = 0;
    for (;;) {
        struct pollfd waits[] = {{fd, POLLIN, 0}, {signals, POLLIN, 0}};
        if (poll(waits, 2, -1) < 0)
            continue;
        if (waits[1].revents) {
            struct signalfd_siginfo found;
            if (read(signals, &found, sizeof found) == sizeof found) {
                last = (int)found.ssi_signo;
                syscall(SYS_pidfd_send_signal, process, last, NULL, 0);
            }
        }
        if (waits[0].revents) {
            char text[64];
            int with, status;
            if (receive(fd, text, sizeof text, &with) > 0 && sscanf(text, "done %d", &status) == 1)
                return status;
            if (last != 0 && last != SIGINT)
                return die_by(last, before);
            fputs("dyskctl: the process that ran this has ended: dyskctl list shows what is attached\n", stderr);
            return FAILED;
        }
    }
}

int main(int argc, char **argv)
{
    char self[PATH_MAX], text[64];
    struct sockaddr_un template;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) {
        fprintf(stderr, "dyskctl: /proc/self/exe: %s\n", strerror(errno));
        return NOT_STARTED;
    }
    self[length] = 0;
    bool has_all = fcntl(0, F_GETFD) >= 0 && fcntl(1, F_GETFD) >= 0 && fcntl(2, F_GETFD) >= 0;
    const char *verb = geteuid() == 0 && has_all ? handed_verb(argc, argv) : NULL;
    int fd = -1;
    if (verb != NULL && find_socket(self, &template)) {
        fd = connect_to(&template);
        if (fd < 0 && strcmp(verb, "attach") == 0)
            fd = wait_for_template(&template);
    }
    if (fd < 0)
        run_whole(self, argv);
    sigset_t handed, before;
    sigemptyset(&handed);
    for (size_t i = 0; i < 4; i++)
        sigaddset(&handed, ((int[]){SIGINT, SIGTERM, SIGHUP, SIGQUIT})[i]);
    int process = -1;
    if (send_request(fd, argv)) {
        struct pollfd wait = {fd, POLLIN, 0};
        if (poll(&wait, 1, READY_MS) == 0)
            unlink(template.sun_path); /* nobody is to wait for it again */
        else {
            sigprocmask(SIG_BLOCK, &handed, &before); /* one that comes before this line ends both */
            int signals = signalfd(-1, &handed, SFD_CLOEXEC);
            if (signals >= 0 && receive(fd, text, sizeof text, &process) > 0 && strcmp(text, "ready") == 0 && process >= 0 &&
                send(fd, "go", 2, MSG_NOSIGNAL) == 2)
                return follow(fd, process, signals, &before);
            if (signals >= 0)
                close(signals);
            sigprocmask(SIG_SETMASK, &before, NULL);
        }
    }
    close(fd); /* whoever is late sees that, and ends */
    run_whole(self, argv);
}

/* bin/NAME of a tree: runs native/bin/NAME of the same tree, or native/bin/NAME.py with Python's, with the C library and the other libraries that lie in
 * native/lib, wherever the tree is and whatever the machine has. A program's own interpreter line cannot say so: the
 * kernel takes an absolute path there, and a tree has none of its own (in the image it is /opt/dysk, on a node
 * /var/lib/dysk/ID).
 *
 * Built once, static; each bin/NAME is a hard link. /proc/self/exe is the name that was started, whatever argv[0] says.
 * The program sees itself as bin/NAME, so what it starts by that name (Python's sys.executable) comes through here too.
 * Nothing goes into its environment but SSL_CERT_FILE, if that is not set: OpenSSL looks for certificates where Debian
 * has them, and the machine may have them elsewhere, or not at all.
 *
 * Sources: ld.so(8): --library-path, --argv0; proc_pid_exe(5); path_resolution(7).
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const BUNDLES[] = {
    "/etc/ssl/certs/ca-certificates.crt", /* Debian, Ubuntu */
    "/etc/pki/tls/certs/ca-bundle.crt",   /* Fedora, RHEL, Azure Linux */
    "/etc/ssl/ca-bundle.pem",             /* SUSE */
};
enum { NOT_STARTED = 127, MORE_WORDS = 8 };

static int fail(const char *what) {
    fprintf(stderr, "%s: %s: %s\n", program_invocation_short_name, what, strerror(errno));
    return NOT_STARTED;
}

static void set_certificates(const char *root) {
    char own[PATH_MAX];
    if (getenv("SSL_CERT_FILE")) return;
    for (size_t i = 0; i < sizeof BUNDLES / sizeof *BUNDLES; i++)
        if (access(BUNDLES[i], R_OK) == 0) {
            setenv("SSL_CERT_FILE", BUNDLES[i], 0);
            return;
        }
    if (snprintf(own, sizeof own, "%s/etc/ca-certificates.crt", root) < (int)sizeof own) setenv("SSL_CERT_FILE", own, 0);
}

int main(int argc, char **argv) {
    char self[PATH_MAX], root[PATH_MAX], loader[PATH_MAX + 32], libraries[PATH_MAX + 32], program[2 * PATH_MAX], script[2 * PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length < 0) return fail("/proc/self/exe");
    self[length] = 0;
    strcpy(root, self);
    char *name = strrchr(root, '/');
    if (!name) return fail(self);
    *name++ = 0;
    char *bin = strrchr(root, '/');
    if (!bin) return fail(self);
    *bin = 0;
    snprintf(loader, sizeof loader, "%s/native/lib/ld.so", root);
    snprintf(libraries, sizeof libraries, "%s/native/lib", root);
    snprintf(program, sizeof program, "%s/native/bin/%s", root, name);
    snprintf(script, sizeof script, "%s/native/bin/%s.py", root, name);
    int runs_script = access(program, X_OK) != 0 && access(script, R_OK) == 0;
    if (runs_script) {
        snprintf(program, sizeof program, "%s/native/bin/python3", root);
        snprintf(self, sizeof self, "%s/bin/python3", root);
    }
    set_certificates(root);
    char **words = calloc((size_t)argc + MORE_WORDS + 1, sizeof *words);
    if (!words) return fail("calloc");
    int n = 0;
    words[n++] = loader;
    words[n++] = "--library-path";
    words[n++] = libraries;
    words[n++] = "--argv0";
    words[n++] = self;
    words[n++] = program;
    if (runs_script) {
        words[n++] = "-IB";
        words[n++] = script;
    }
    for (int i = 1; i < argc; i++) words[n++] = argv[i];
    execv(loader, words);
    return fail(loader);
}

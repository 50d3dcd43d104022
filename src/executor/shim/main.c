/* containerd's shim for one sandbox: what containerd (1.6 to 2) and an OCI runtime say to each other.
 *
 *   shim -namespace N -id I -address CONTAINERD'S-SOCKET ... start    in the bundle; prints an address
 *   shim -namespace N -id I ... delete                                removes what is left; prints how
 *
 * It does what containerd's own shim of runc does for a container without a terminal, for less: no
 * runtime of a language of its own, no second start of the runtime where nothing is left to delete,
 * no copying of output. Checkpoints, terminals, second processes and statistics it refuses. It tells
 * containerd nothing on its own: who wants to know of an end waits for it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "mounts.h"
#include "runtime.h"
#include "sha256.h"
#include "task.h"

#define SOCKETS "/run/containerd/s" /* where every shim has its own, and the executor looks for it */
#define ADDRESS "address"
#define FIRST_CONNECTION_MS_MAX 60000
#define OOM_SCORE_MAX 1000
#define SESSION_NICENESS "-5" /* as containerd's own, see launch.py */

struct arguments {
    const char *namespace, *id, *address, *action;
};

__attribute__((noreturn)) static void fail(const char *what)
{
    fprintf(stderr, "tickmesh's shim: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void read_arguments(struct arguments *arguments, int count, char **values)
{
    *arguments = (struct arguments){"", "", "", ""};
    for (int index = 1; index < count; index++) {
        const char *value = index + 1 < count ? values[index + 1] : "";
        if (values[index][0] != '-') {
            arguments->action = values[index];
            continue;
        }
        if (strcmp(values[index], "-debug") == 0)
            continue;
        if (strcmp(values[index], "-namespace") == 0)
            arguments->namespace = value;
        else if (strcmp(values[index], "-id") == 0)
            arguments->id = value;
        else if (strcmp(values[index], "-address") == 0)
            arguments->address = value;
        index++; /* of the others too: each has a value */
    }
    /* They become parts of paths and words of the runtime's command line. */
    bool good = *arguments->namespace && *arguments->id && strlen(arguments->id) < 200 &&
                strlen(arguments->namespace) < 200 && arguments->id[0] != '-' &&
                !strchr(arguments->id, '/') && !strchr(arguments->namespace, '/');
    errno = EINVAL;
    if (!good)
        fail("-namespace or -id");
}

static void socket_path(const struct arguments *arguments, struct sockaddr_un *address)
{
    char named[PATH_MAX + 512], digits[65];
    int length = snprintf(named, sizeof named, "%s/%s/%s", arguments->address,
                          arguments->namespace, arguments->id);
    errno = ENAMETOOLONG;
    if (length >= (int)sizeof named)
        fail("-address");
    sha256(named, length, digits);
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    snprintf(address->sun_path, sizeof address->sun_path, SOCKETS "/%s", digits);
}

/* After a start that fails containerd removes the bundle, and starts nothing that removes the rest. */
__attribute__((noreturn)) static void fail_to_start(const struct sockaddr_un *address,
                                                    const char *what)
{
    int error = errno;
    unlink(address->sun_path);
    unlink(ADDRESS);
    errno = error;
    fail(what);
}

static int listen_at(const struct sockaddr_un *address)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const struct sockaddr *generic = (const struct sockaddr *)address;
    if (listener < 0)
        fail("socket");
    if ((mkdir("/run/containerd", 0711) < 0 && errno != EEXIST) ||
        (mkdir(SOCKETS, 0700) < 0 && errno != EEXIST))
        fail(SOCKETS);
    umask(0177);
    int bound = bind(listener, generic, sizeof *address);
    if (bound < 0 && errno == EADDRINUSE) {
        int other = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(other, generic, sizeof *address) == 0) {
            errno = EADDRINUSE;
            fail("the container has a shim");
        }
        close(other);
        unlink(address->sun_path); /* one that was killed left it */
        bound = bind(listener, generic, sizeof *address);
    }
    umask(022);
    if (bound < 0)
        fail(address->sun_path);
    if (listen(listener, CONNECTIONS_MAX) < 0)
        fail_to_start(address, "listen");
    return listener;
}

/* One more than containerd's own: a host short of memory takes the shim before it. A wish. */
static void set_oom_score(void)
{
    char text[16] = "";
    int file = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);
    if (file < 0)
        return;
    if (read(file, text, sizeof text - 1) > 0 && atoi(text) < OOM_SCORE_MAX)
        dprintf(file, "%d", atoi(text) + 1);
    close(file);
}

/* Where the kernel schedules sessions as groups (sched(7), autogroup): ours makes sandboxes that are
 * due, though those that run want every processor. They are in a cgroup, and not of it. A wish. */
static void hurry(void)
{
    int file = open("/proc/self/autogroup", O_WRONLY | O_CLOEXEC);
    ssize_t ignored = write(file, SESSION_NICENESS, sizeof SESSION_NICENESS - 1);
    (void)ignored;
    close(file);
}

static void serve(int listener)
{
    sigset_t all;
    sigfillset(&all);
    /* Those that ask to end stay where they are: the shim ends with its container. */
    sigprocmask(SIG_SETMASK, &all, NULL);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    int ended = signalfd(-1, &child, SFD_CLOEXEC | SFD_NONBLOCK);
    if (ended < 0 || prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        return;
    bool met = false;
    while (!task_shut_down() && !(met && task_over() && ttrpc_connections() == 0)) {
        struct pollfd waited[CONNECTIONS_MAX + 2];
        ttrpc_waited(waited);
        waited[CONNECTIONS_MAX] = (struct pollfd){listener, POLLIN, 0};
        waited[CONNECTIONS_MAX + 1] = (struct pollfd){ended, POLLIN, 0};
        int count = poll(waited, CONNECTIONS_MAX + 2, met ? task_patience_ms() : FIRST_CONNECTION_MS_MAX);
        if (count == 0 && !met)
            return; /* who started it is gone */
        task_hurry();
        if (count <= 0)
            continue;
        if (waited[CONNECTIONS_MAX + 1].revents) {
            struct signalfd_siginfo infos[8];
            while (read(ended, infos, sizeof infos) > 0)
                ;
            task_reap();
        }
        for (int index = 0; index < CONNECTIONS_MAX && !task_shut_down(); index++)
            if (waited[index].revents)
                ttrpc_read(index, TASK_SERVICE, task_handle);
        if (waited[CONNECTIONS_MAX].revents) {
            ttrpc_accept(listener);
            met = true;
        }
    }
}

/* containerd reads the address to the end of what we were given. */
static bool leave_caller(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    bool left = null >= 0 && setsid() >= 0 && dup2(null, 0) == 0 && dup2(null, 1) == 1 &&
                dup2(null, 2) == 2;
    if (null > 2)
        close(null);
    return left;
}

static int start(const struct arguments *arguments)
{
    struct sockaddr_un address;
    socket_path(arguments, &address);
    int listener = listen_at(&address);
    if (!file_write(ADDRESS, "unix://%s", address.sun_path))
        fail_to_start(&address, ADDRESS);
    pid_t pid = fork();
    if (pid < 0)
        fail_to_start(&address, "fork");
    if (pid > 0) {
        printf("unix://%s", address.sun_path);
        return fflush(stdout) == 0 ? 0 : 1;
    }
    bool ready = leave_caller() && task_begin(arguments->id, arguments->namespace);
    if (ready) {
        set_oom_score();
        hurry();
        serve(listener);
    }
    unlink(address.sun_path);
    return 0;
}

/* After every shim, also one that has cleaned up after itself. */
static int delete(const struct arguments *arguments)
{
    struct runtime runtime;
    struct sockaddr_un address;
    struct timespec now;
    const int none[3] = {-1, -1, -1};
    uint8_t room[64];
    struct writer answer = {.data = room, .room = sizeof room};
    int status = 0;
    if (runtime_noted(&runtime)) {
        const char *words[] = {"delete", "--force", arguments->id, NULL};
        pid_t pid = runtime_start(&runtime, none, words);
        if (pid < 0 || waitpid(pid, &status, 0) != pid)
            fail("the runtime");
        char text[1024] = "";
        if (status)
            runtime_error(status, text, sizeof text);
        if (status && !runtime_knows_nothing(text))
            fprintf(stderr, "the runtime's delete failed: %s\n", text);
    }
    unmount_all("rootfs");
    socket_path(arguments, &address);
    unlink(address.sun_path);
    clock_gettime(CLOCK_REALTIME, &now);
    task_put_deleted(&answer, 0, 128 + SIGKILL, now);
    return write(1, answer.data, answer.length) == (ssize_t)answer.length ? 0 : 1;
}

int main(int count, char **values)
{
    struct arguments arguments;
    read_arguments(&arguments, count, values);
    if (strcmp(arguments.action, "start") == 0)
        return start(&arguments);
    if (strcmp(arguments.action, "delete") == 0)
        return delete(&arguments);
    errno = EINVAL;
    fail("start or delete, not");
}

/* The gate: a sandbox's first process. It waits, and starts the customer's command when told.
 *
 * `gate direct` is for a runtime that cannot share a FIFO: the sandbox itself is started when the
 * command is due, `go` is a file that is there by then, and a failure goes to standard error.
 *
 * It runs as the job's own user, inside all of the sandbox's limits, before any customer code.
 *   go       FIFO, read: one message, then never read again. End-of-file without one: exit 125.
 *   started  FIFO, written, close-on-exec: 'w' when waiting here; then either its end-of-file, which
 *            is the instant of the exec, or a letter for the step that failed and its errno.
 *   status   FIFO, written, close-on-exec: the command's wait status, 4 bytes, when it has ended. The
 *            recorder reads it; without one there, it is not told.
 *   payload  file: the command's standard input.
 * The message: u32 bytes that follow, u32 arguments, u32 variables, then that many strings and the
 * working directory, each ended by a NUL. Little-endian, as both machines we build for are.
 *
 * After the exec it stays as process 1 of its pid namespace, because a program that knows nothing of
 * that role would ignore SIGTERM and never reap: it collects orphans, passes signals on to
 * everything in the sandbox, and exits as the command did (128 + n when signal n ended it; which of
 * the two it was only `status` says, and nobody in the sandbox can reach that through /proc).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DIRECTORY "/.tickmesh/io/"
#define MESSAGE_BYTES_MAX (1 << 20) /* what one FIFO can hold: the executor writes it in one call */
#define STRINGS_MAX (1 << 14)
enum { STANDARD_ERROR = 2, EXIT_CLOSED = 125, EXIT_NOT_STARTED = 127 };

extern char **environ;
static char body[MESSAGE_BYTES_MAX];
static char *strings[STRINGS_MAX + 2]; /* one NULL ends the arguments, one the variables */

static void fail(int started, char step, int error)
{
    unsigned char report[5] = {step, error, error >> 8, error >> 16, error >> 24};
    char line[] = "tickmesh gate: x 000\n"; /* the step and the errno, for who reads the output */
    line[15] = step;
    line[17] += error / 100 % 10, line[18] += error / 10 % 10, line[19] += error % 10;
    ssize_t ignored = started == STANDARD_ERROR ? write(started, line, sizeof line - 1)
                                                : write(started, report, sizeof report);
    (void)ignored;
    _exit(EXIT_NOT_STARTED);
}

/* The next signal meant for this process. */
static int next_signal(int signals)
{
    struct signalfd_siginfo info;
    return read(signals, &info, sizeof info) == sizeof info ? (int)info.ssi_signo : 0;
}

/* Reads exactly `length` bytes; leaves by exit when the gate is closed or told to end. */
static void read_whole(int go, int signals, char *into, size_t length)
{
    while (length > 0) {
        struct pollfd waited[2] = {{go, POLLIN, 0}, {signals, POLLIN, 0}};
        if (poll(waited, 2, -1) < 0 && errno != EINTR)
            _exit(EXIT_CLOSED);
        if (waited[1].revents & POLLIN) {
            int number = next_signal(signals);
            if (number == SIGTERM || number == SIGINT || number == SIGHUP || number == SIGQUIT)
                _exit(128 + number);
        }
        if (!(waited[0].revents & (POLLIN | POLLHUP | POLLERR)))
            continue;
        ssize_t count = read(go, into, length);
        if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR))
            _exit(EXIT_CLOSED);
        if (count > 0) {
            into += count;
            length -= count;
        }
    }
}

/* Cuts the message into its strings. Answers the working directory, or NULL for a bad message. */
static char *parse(size_t length, char ***arguments, char ***variables)
{
    uint32_t counts[2];
    if (length < sizeof counts + 2)
        return NULL;
    memcpy(counts, body, sizeof counts);
    if (counts[0] < 1 || counts[0] > STRINGS_MAX || counts[1] > STRINGS_MAX - counts[0])
        return NULL;
    char *cursor = body + sizeof counts, *end = body + length, *directory = NULL;
    if (end[-1] != '\0')
        return NULL;
    char **slot = strings;
    *arguments = slot;
    for (uint32_t index = 0; index < counts[0] + counts[1] + 1; index++) {
        if (cursor >= end)
            return NULL;
        if (index == counts[0] + counts[1])
            directory = cursor;
        else
            *slot++ = cursor;
        cursor += strlen(cursor) + 1;
        if (index + 1 == counts[0]) {
            *slot++ = NULL;
            *variables = slot;
        }
    }
    *slot = NULL;
    return cursor == end ? directory : NULL;
}

/* Becomes the customer's command. Does not return. */
static void become(int started, char **arguments, char **variables, const char *directory)
{
    sigset_t none;
    sigemptyset(&none);
    setsid(); /* so that a command that signals its own group does not signal its process 1 */
    int payload = open(DIRECTORY "payload", O_RDONLY);
    if (payload < 0 || dup2(payload, 0) < 0)
        fail(started, 'p', errno);
    if (payload > 0)
        close(payload);
    if (*directory && chdir(directory) < 0)
        fail(started, 'c', errno);
    syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */); /* an old kernel has none */
    environ = variables;
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(arguments[0], arguments);
    fail(started, 'x', errno);
}

/* The rest of process 1's life. */
static void keep(pid_t command, int signals, int told)
{
    for (;;) {
        int number = next_signal(signals), status;
        if (number > 0 && number != SIGCHLD)
            kill(-1, number);
        for (pid_t ended; (ended = waitpid(-1, &status, WNOHANG)) > 0;) {
            if (ended != command)
                continue;
            ssize_t ignored = write(told, &status, sizeof status);
            (void)ignored;
            _exit(WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status));
        }
    }
}

int main(int count, char **values)
{
    if (count == 2 && strcmp(values[1], "probe") == 0)
        return 0; /* a runtime that gets this far works */
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    int signals = signalfd(-1, &all, SFD_CLOEXEC);
    /* Not blocking: without an executor at the other ends there is nothing to wait for. */
    int direct = count == 2 && strcmp(values[1], "direct") == 0;
    int started = direct ? STANDARD_ERROR
                         : open(DIRECTORY "started", O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    int go = open(DIRECTORY "go", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    int told = open(DIRECTORY "status", O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    /* Not dumpable: its descriptors in /proc are closed to the customer's processes too. */
    if (signals < 0 || started < 0 || go < 0 || prctl(PR_SET_DUMPABLE, 0) < 0)
        return EXIT_CLOSED;
    if (!direct && write(started, "w", 1) != 1)
        return EXIT_CLOSED;
    uint32_t length;
    read_whole(go, signals, (char *)&length, sizeof length);
    if (length > MESSAGE_BYTES_MAX)
        fail(started, 'm', EMSGSIZE);
    read_whole(go, signals, body, length);
    char **arguments = NULL, **variables = NULL, *directory = parse(length, &arguments, &variables);
    if (directory == NULL)
        fail(started, 'm', EBADMSG);
    pid_t command = fork();
    if (command < 0)
        fail(started, 'f', errno);
    if (command == 0)
        become(started, arguments, variables, directory);
    close(started);
    close(go);
    keep(command, signals, told);
}

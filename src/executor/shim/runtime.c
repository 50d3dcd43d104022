#define _GNU_SOURCE
#include "runtime.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "files.h"

#define OPTIONS_TYPE "containerd.runc.v1.Options"
#define DEFAULT_ROOT "/run/containerd/runc"
#define LOG "log.json"
#define LOG_BYTES_MAX (64 << 10) /* of its end */
#define NOTE "runtime"
#define CGROUPS "/sys/fs/cgroup"

bool runtime_options(struct runtime *runtime, struct bytes any, const char *namespace,
                     char trouble[256])
{
    struct bytes type = {0}, options = {0};
    char root[PATH_MAX] = DEFAULT_ROOT;
    struct field field;
    *runtime = (struct runtime){.binary = "runc"};
    while (wire_next(&any, &field)) {
        if (field.number == 1)
            type = field.bytes;
        else if (field.number == 2)
            options = field.bytes;
    }
    if (any.length || (type.length && !wire_equals(type, OPTIONS_TYPE))) {
        snprintf(trouble, 256, "options are not " OPTIONS_TYPE);
        return false;
    }
    while (wire_next(&options, &field)) {
        if (field.value == 0)
            continue; /* not set */
        bool supported = true;
        switch (field.number) {
        case 1:
            runtime->no_pivot_root = true;
            break;
        case 2:
            runtime->no_new_keyring = true;
            break;
        case 6:
            supported = wire_text(field.bytes, runtime->binary, sizeof runtime->binary);
            break;
        case 7:
            supported = wire_text(field.bytes, root, sizeof root);
            break;
        case 9:
            runtime->systemd_cgroup = true;
            break;
        case 1000:
            runtime->run_at_create = true;
            break;
        case 1001:
            runtime->plain = true;
            break;
        case 8:
        case 10:
        case 11:
            break; /* of checkpoints, which are refused where they are asked for */
        default:
            supported = false;
        }
        if (!supported) {
            snprintf(trouble, 256, "field %u of " OPTIONS_TYPE " is not supported", field.number);
            return false;
        }
    }
    int length = snprintf(runtime->root, sizeof runtime->root, "%s/%s", root, namespace);
    if (options.length || length >= (int)sizeof runtime->root) {
        snprintf(trouble, 256, "the options cannot be read");
        return false;
    }
    return true;
}

bool runtime_note(const struct runtime *runtime)
{
    return file_write(NOTE, "%s\n%s\n%d\n", runtime->binary, runtime->root,
                      runtime->systemd_cgroup);
}

static bool take_line(char **cursor, char *into, size_t room)
{
    char *end = strchr(*cursor, '\n');
    if (end == NULL || (size_t)(end - *cursor) >= room)
        return false;
    memcpy(into, *cursor, end - *cursor);
    into[end - *cursor] = '\0';
    *cursor = end + 1;
    return true;
}

bool runtime_noted(struct runtime *runtime)
{
    char text[2 * PATH_MAX + 16], flag[8], *cursor = text;
    *runtime = (struct runtime){0};
    int file = open(NOTE, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    if (length < 0)
        return false;
    text[length] = '\0';
    if (!take_line(&cursor, runtime->binary, sizeof runtime->binary) ||
        !take_line(&cursor, runtime->root, sizeof runtime->root) ||
        !take_line(&cursor, flag, sizeof flag))
        return false; /* half written by a shim that was killed: the runtime was not started */
    runtime->systemd_cgroup = flag[0] == '1';
    return true;
}

void runtime_forget(void)
{
    unlink(NOTE);
}

pid_t runtime_start(const struct runtime *runtime, const int stdio[3], const char *const *words)
{
    const char *arguments[8 + RUNTIME_ARGUMENTS_MAX] = {
        runtime->binary, "--root", runtime->root, "--log", LOG, "--log-format", "json"};
    int count = 7;
    if (runtime->systemd_cgroup)
        arguments[count++] = "--systemd-cgroup";
    for (int index = 0; words[index] && index < RUNTIME_ARGUMENTS_MAX - 1; index++)
        arguments[count++] = words[index];
    arguments[count] = NULL;
    unlink(LOG); /* what it says there is of this step alone */
    pid_t shim = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    /* With the shim it goes too: nobody would hear how the step ended. */
    sigset_t none;
    sigemptyset(&none);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0 || getppid() != shim)
        _exit(127);
    for (int number = 0; number < 3; number++) {
        int passed = stdio[number] >= 0 ? stdio[number] : open("/dev/null", O_RDWR | O_CLOEXEC);
        if (passed < 0 || dup2(passed, number) < 0)
            _exit(127);
        if (passed == number)
            fcntl(number, F_SETFD, 0);
    }
    sigprocmask(SIG_SETMASK, &none, NULL);
    execvp(arguments[0], (char **)arguments);
    int error = errno, file = open(LOG, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    dprintf(file, "{\"level\":\"error\",\"msg\":\"%s: %s\"}\n", arguments[0], strerror(error));
    _exit(127);
}

static bool remove_directory(const char *path)
{
    return rmdir(path) == 0 || errno == ENOENT || errno == ENOTDIR;
}

/* crun takes the directory of a hierarchy that is not mounted for one of its cgroups, and leaves a
 * file of its own there. */
static bool remove_cgroup(const char *path)
{
    char file[3 * PATH_MAX];
    if (remove_directory(path))
        return true;
    snprintf(file, sizeof file, "%s/cgroup.procs", path);
    return errno == ENOTEMPTY && unlink(file) == 0 && remove_directory(path);
}

static bool remove_state(const char *path)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        return errno == ENOENT;
    for (struct dirent *entry; (entry = readdir(directory));)
        if (entry->d_name[0] != '.')
            unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    return remove_directory(path);
}

bool runtime_remove(const struct runtime *runtime, const char *id, const char *cgroup)
{
    char path[2 * PATH_MAX];
    DIR *hierarchies = opendir(CGROUPS);
    if (hierarchies == NULL || cgroup[0] != '/' || cgroup[1] == '\0')
        return false;
    snprintf(path, sizeof path, CGROUPS "%s", cgroup); /* where there is but one hierarchy */
    bool removed = remove_cgroup(path);
    for (struct dirent *entry; (entry = readdir(hierarchies));) {
        if (entry->d_name[0] == '.' || entry->d_type == DT_LNK)
            continue;
        snprintf(path, sizeof path, CGROUPS "/%s%s", entry->d_name, cgroup);
        removed &= remove_cgroup(path);
    }
    closedir(hierarchies);
    snprintf(path, sizeof path, "%s/%s", runtime->root, id);
    return removed && remove_state(path);
}

/* The value of "msg" in one line of JSON, without its escapes. */
static bool message_of(const char *line, char *text, size_t room)
{
    const char *at = strstr(line, "\"msg\":");
    if (at == NULL)
        return false;
    at += strlen("\"msg\":");
    at += strspn(at, " ");
    if (*at++ != '"')
        return false;
    size_t length = 0;
    while (*at && *at != '"' && length + 1 < room) {
        char letter = *at++;
        if (letter == '\\' && *at) {
            letter = *at++;
            if (letter == 'u')
                letter = '?';
            else if (letter == 'n' || letter == 't' || letter == 'r')
                letter = ' ';
        }
        text[length++] = letter;
    }
    text[length] = '\0';
    return true;
}

void runtime_error(int status, char *text, size_t room)
{
    char log[LOG_BYTES_MAX + 1];
    int file = open(LOG, O_RDONLY | O_CLOEXEC);
    off_t size = file < 0 ? 0 : lseek(file, 0, SEEK_END);
    off_t begin = size > LOG_BYTES_MAX ? size - LOG_BYTES_MAX : 0;
    ssize_t length = file < 0 ? 0 : pread(file, log, LOG_BYTES_MAX, begin);
    if (file >= 0)
        close(file);
    log[length > 0 ? length : 0] = '\0';
    bool found = false;
    char *rest = NULL;
    for (char *line = strtok_r(log, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
        if (strstr(line, "\"error\"") || strstr(line, "\"fatal\"") || !found)
            found |= message_of(line, text, room);
    if (found)
        return;
    if (WIFSIGNALED(status))
        snprintf(text, room, "the runtime was ended by signal %d", WTERMSIG(status));
    else
        snprintf(text, room, "the runtime exited with %d and said nothing%s", WEXITSTATUS(status),
                 files_trouble());
}

bool runtime_knows_nothing(const char *text)
{
    return strstr(text, "does not exist") != NULL;
}

/* What changes a container takes the runtime, and one such step is under way at a time: it is started
 * here and ends in task_reap(), so that meanwhile all other calls are answered.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "files.h"
#include "mounts.h"
#include "runtime.h"
#include "streams.h"
#include "task.h"

#define ID_BYTES_MAX 256
#define WAITERS_MAX 64
#define PIDS_MAX 4096
#define STEP_NS_MAX 120000000000ull /* no runtime takes so long for a step; callers give up before */
#define ANSWER_BYTES 16384
#define ROOTFS "rootfs"
#define PID_FILE "init.pid"
enum { KILLED_BASE = 128, UNKNOWN_STATUS = 255 };

/* As containerd.v1.types.Status numbers them. */
enum state { NONE = 0, CREATED = 1, RUNNING = 2, STOPPED = 3 };
enum step { NO_STEP, CREATE, START, KILL_ALL, DELETE };

static const char *const step_names[] = {"", "create", "start", "kill", "delete"};

static struct {
    char id[ID_BYTES_MAX], namespace[ID_BYTES_MAX], home[PATH_MAX];
    enum state state;
    struct runtime runtime;
    struct streams streams;
    pid_t pid;
    char cgroup[PATH_MAX]; /* of plain containers; empty when it is not known */
    uint32_t exit_status;
    struct timespec exited;

    enum step step;
    pid_t stepping; /* the runtime */
    struct call caller;
    uint64_t step_until_ns;
    bool step_late;

    struct call waiters[WAITERS_MAX]; /* oldest first */
    int waiters_count;
    bool shut_down;
} task;

static uint64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
}

bool task_begin(const char *id, const char *namespace)
{
    snprintf(task.id, sizeof task.id, "%s", id);
    snprintf(task.namespace, sizeof task.namespace, "%s", namespace);
    for (int number = 0; number < 3; number++)
        task.streams.passed[number] = task.streams.held[number] = -1;
    return getcwd(task.home, sizeof task.home) != NULL;
}

bool task_over(void)
{
    return task.state == NONE && task.step == NO_STEP;
}

bool task_shut_down(void)
{
    return task.shut_down;
}

static void put_time(struct writer *writer, uint32_t number, struct timespec time)
{
    uint8_t room[32];
    struct writer message = {.data = room, .room = sizeof room};
    if (time.tv_sec == 0)
        return;
    wire_put_number(&message, 1, time.tv_sec);
    wire_put_number(&message, 2, time.tv_nsec);
    wire_put_bytes(writer, number, message.data, message.length);
}

void task_put_deleted(struct writer *writer, pid_t pid, uint32_t status, struct timespec exited)
{
    wire_put_number(writer, 1, pid);
    wire_put_number(writer, 2, status);
    put_time(writer, 3, exited);
}

static void answer_empty(const struct call *call)
{
    ttrpc_answer(call, &(struct writer){0});
}

static void answer_waiter(const struct call *call)
{
    uint8_t room[64];
    struct writer answer = {.data = room, .room = sizeof room};
    wire_put_number(&answer, 1, task.exit_status);
    put_time(&answer, 2, task.exited);
    ttrpc_answer(call, &answer);
}

/* Steps of the runtime. */

static void undo_create(void)
{
    streams_close(&task.streams);
    unmount_all(ROOTFS);
}

static void step_begin(const struct call *call, enum step step, const char *const *words)
{
    const int none[3] = {-1, -1, -1};
    pid_t pid = runtime_start(&task.runtime, step == CREATE ? task.streams.passed : none, words);
    if (pid < 0) {
        ttrpc_refuse(call, UNKNOWN, "no process for the runtime: %s", strerror(errno));
        if (step == CREATE) {
            undo_create();
            runtime_forget(); /* it was not started */
        }
        return;
    }
    task.step = step;
    task.stepping = pid;
    task.caller = *call;
    task.step_late = false;
    uint64_t patience_ns = call->timeout_ns ? call->timeout_ns : STEP_NS_MAX;
    task.step_until_ns =
        monotonic_ns() + (patience_ns < STEP_NS_MAX ? patience_ns : STEP_NS_MAX);
}

int task_patience_ms(void)
{
    if (task.step == NO_STEP || task.step_late)
        return -1;
    uint64_t now_ns = monotonic_ns();
    return now_ns >= task.step_until_ns ? 0 : (task.step_until_ns - now_ns) / 1000000 + 1;
}

void task_hurry(void)
{
    if (task.step == NO_STEP || task.step_late || monotonic_ns() < task.step_until_ns)
        return;
    task.step_late = true;
    kill(task.stepping, SIGKILL); /* its end is the step's */
}

static pid_t pid_in_file(void)
{
    char text[16] = "";
    int file = open(PID_FILE, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    return length > 0 ? atoi(text) : 0;
}

/* The container's cgroup in the hierarchy that counts processes; its path there begins at `group`,
 * which is NULL when there is none. `controller`: the hierarchy's directory, "" where there is one. */
static char *find_cgroup(char line[PATH_MAX + 64], char **controller)
{
    char path[64], *group = NULL;
    snprintf(path, sizeof path, "/proc/%d/cgroup", task.pid);
    FILE *groups = fopen(path, "re");
    while (groups && !group && fgets(line, PATH_MAX + 64, groups)) {
        line[strcspn(line, "\n")] = '\0';
        *controller = strchr(line, ':');
        char *last = *controller ? strchr(++*controller, ':') : NULL; /* "4:pids:/path" */
        if (last == NULL)
            continue;
        *last = '\0';
        if (**controller == '\0' || strcmp(*controller, "pids") == 0)
            group = last + 1;
    }
    if (groups)
        fclose(groups);
    return group;
}

static void created(void)
{
    pid_t pid = pid_in_file();
    if (pid <= 0) {
        undo_create();
        ttrpc_refuse(&task.caller, UNKNOWN, "the runtime wrote no " PID_FILE "%s",
                     files_trouble());
        return;
    }
    uint8_t room[16];
    struct writer answer = {.data = room, .room = sizeof room};
    streams_passed(&task.streams);
    task.state = task.runtime.run_at_create ? RUNNING : CREATED;
    task.pid = pid;
    char line[PATH_MAX + 64], *controller, *group = find_cgroup(line, &controller);
    snprintf(task.cgroup, sizeof task.cgroup, "%s", group ? group : "");
    wire_put_number(&answer, 1, pid);
    ttrpc_answer(&task.caller, &answer);
}

static void started(void)
{
    uint8_t room[16];
    struct writer answer = {.data = room, .room = sizeof room};
    if (task.state == CREATED) /* it may have ended by now */
        task.state = RUNNING;
    wire_put_number(&answer, 1, task.pid);
    ttrpc_answer(&task.caller, &answer);
}

static void deleted(void)
{
    uint8_t room[64];
    struct writer answer = {.data = room, .room = sizeof room};
    if (task.exited.tv_sec == 0) { /* created, never run: deleted by force */
        clock_gettime(CLOCK_REALTIME, &task.exited);
        task.exit_status = KILLED_BASE + SIGKILL;
    }
    unmount_all(ROOTFS);
    runtime_forget();
    streams_close(&task.streams);
    task_put_deleted(&answer, task.pid, task.exit_status, task.exited);
    for (int index = 0; index < task.waiters_count; index++)
        answer_waiter(&task.waiters[index]);
    task.waiters_count = 0;
    task.state = NONE;
    ttrpc_answer(&task.caller, &answer);
}

static void step_ended(int status)
{
    enum step step = task.step;
    char text[1024] = "";
    bool well = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    task.step = NO_STEP;
    if (!well && !task.step_late)
        runtime_error(status, text, sizeof text);
    if (step == DELETE && runtime_knows_nothing(text))
        well = true; /* nothing is left to delete */
    if (!well && step == CREATE)
        undo_create();
    if (task.step_late)
        ttrpc_refuse(&task.caller, DEADLINE_EXCEEDED, "the runtime's %s took too long",
                     step_names[step]);
    else if (!well && step == KILL_ALL && runtime_knows_nothing(text))
        ttrpc_refuse(&task.caller, NOT_FOUND, "process already finished");
    else if (!well)
        ttrpc_refuse(&task.caller, UNKNOWN, "OCI runtime %s failed: %s", step_names[step], text);
    else if (step == CREATE)
        created();
    else if (step == START)
        started();
    else if (step == DELETE)
        deleted();
    else
        answer_empty(&task.caller);
}

static void init_ended(int status)
{
    task.exit_status = WIFSIGNALED(status) ? KILLED_BASE + WTERMSIG(status) : WEXITSTATUS(status);
    clock_gettime(CLOCK_REALTIME, &task.exited);
    task.state = STOPPED;
    streams_close(&task.streams);
    for (int index = 0; index < task.waiters_count; index++)
        answer_waiter(&task.waiters[index]);
    task.waiters_count = 0;
}

void task_reap(void)
{
    int status;
    /* First the step: what else ends while the pid of the container is not known may be it. */
    if (task.step != NO_STEP && waitpid(task.stepping, &status, WNOHANG) == task.stepping)
        step_ended(status);
    if (task.state == CREATED || task.state == RUNNING) {
        pid_t pid = waitpid(task.pid, &status, WNOHANG);
        if (pid == task.pid)
            init_ended(status);
        /* It may have ended as a child of the runtime's; of one that lives it is not ours yet. */
        else if (pid < 0 && kill(task.pid, 0) < 0 && errno == ESRCH)
            init_ended(UNKNOWN_STATUS << 8);
    }
    if (task.step == NO_STEP) /* orphans of the runtime, the recorder */
        for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;)
            if (pid == task.pid && (task.state == CREATED || task.state == RUNNING))
                init_ended(status); /* it ended since the line above */
}

/* The calls. */

static void create(const struct call *call, struct bytes request)
{
    char trouble[256] = "", bundle[PATH_MAX] = "";
    struct bytes options = {0}, checkpoint = {0}, parsed = request;
    struct field field;
    bool readable = true, terminal = false, ours = false;
    if (task.state != NONE || task.step != NO_STEP) {
        ttrpc_refuse(call, ALREADY_EXISTS, "this shim has its container");
        return;
    }
    memset(task.streams.names, 0, sizeof task.streams.names);
    while (readable && wire_next(&parsed, &field)) {
        if (field.number == 1)
            ours = wire_equals(field.bytes, task.id);
        else if (field.number == 2)
            readable = wire_text(field.bytes, bundle, sizeof bundle);
        else if (field.number == 4)
            terminal = field.value;
        else if (field.number >= 5 && field.number <= 7)
            readable = wire_text(field.bytes, task.streams.names[field.number - 5], STREAM_URI_MAX);
        else if (field.number == 8)
            checkpoint = field.bytes;
        else if (field.number == 10)
            options = field.bytes;
    }
    if (!readable || parsed.length || !ours || strcmp(bundle, task.home) != 0)
        ttrpc_refuse(call, INVALID_ARGUMENT, "not a create of %s in %s", task.id, task.home);
    else if (terminal || checkpoint.length)
        ttrpc_refuse(call, UNIMPLEMENTED, "this shim gives no %s", terminal ? "terminal" : "checkpoint");
    else if (!runtime_options(&task.runtime, options, task.namespace, trouble))
        ttrpc_refuse(call, INVALID_ARGUMENT, "%s", trouble);
    else if (!runtime_note(&task.runtime))
        ttrpc_refuse(call, UNKNOWN, "the bundle cannot be written: %s", strerror(errno));
    else {
        bool made = mkdir(ROOTFS, 0711) == 0 || errno == EEXIST;
        if (!made)
            snprintf(trouble, sizeof trouble, "no " ROOTFS ": %s", strerror(errno));
        for (parsed = request; made && wire_next(&parsed, &field);)
            if (field.number == 3)
                made = mount_one(field.bytes, ROOTFS, task.home, trouble);
        if (!made || !streams_open(&task.streams, task.id, task.namespace, trouble)) {
            undo_create();
            runtime_forget();
            ttrpc_refuse(call, UNKNOWN, "%s", trouble);
            return;
        }
        const char *words[RUNTIME_ARGUMENTS_MAX] = {
            "create", "--bundle", task.home, "--pid-file", PID_FILE};
        int count = 5;
        if (task.runtime.run_at_create) {
            words[0] = "run";
            words[count++] = "--detach";
        }
        if (task.runtime.no_pivot_root)
            words[count++] = "--no-pivot";
        if (task.runtime.no_new_keyring)
            words[count++] = "--no-new-keyring";
        words[count] = task.id;
        task.pid = 0;
        task.exited = (struct timespec){0};
        step_begin(call, CREATE, words);
    }
}

static void start(const struct call *call)
{
    if (task.state != CREATED)
        ttrpc_refuse(call, FAILED_PRECONDITION, "it was started before");
    else
        step_begin(call, START, (const char *[]){"start", task.id, NULL});
}

static void delete(const struct call *call)
{
    if (task.state == RUNNING)
        ttrpc_refuse(call, FAILED_PRECONDITION, "cannot delete a running process");
    else if (task.state == STOPPED && !task.runtime.plain)
        step_begin(call, DELETE, (const char *[]){"delete", task.id, NULL});
    else if (task.state == STOPPED && runtime_remove(&task.runtime, task.id, task.cgroup)) {
        task.caller = *call;
        deleted();
    } else
        step_begin(call, DELETE, (const char *[]){"delete", "--force", task.id, NULL});
}

/* The container's first process is our child: its number cannot be another's while it lives. */
static void send_signal(const struct call *call, int number, bool all)
{
    char decimal[16];
    snprintf(decimal, sizeof decimal, "%d", number);
    if (task.state == STOPPED)
        ttrpc_refuse(call, NOT_FOUND, "process already finished");
    else if (all)
        step_begin(call, KILL_ALL, (const char *[]){"kill", "--all", task.id, decimal, NULL});
    else if (kill(task.pid, number) < 0)
        ttrpc_refuse(call, INVALID_ARGUMENT, "signal %d: %s", number, strerror(errno));
    else
        answer_empty(call);
}

static void wait_for_end(const struct call *call)
{
    if (task.state == STOPPED) {
        answer_waiter(call);
        return;
    }
    if (task.waiters_count == WAITERS_MAX) { /* most likely of a connection that is gone */
        ttrpc_refuse(&task.waiters[0], UNAVAILABLE, "too many wait");
        memmove(task.waiters, task.waiters + 1, --task.waiters_count * sizeof *task.waiters);
    }
    task.waiters[task.waiters_count++] = *call;
}

static void answer_state(const struct call *call)
{
    uint8_t room[ANSWER_BYTES];
    struct writer answer = {.data = room, .room = sizeof room};
    wire_put_text(&answer, 1, task.id);
    wire_put_text(&answer, 2, task.home);
    wire_put_number(&answer, 3, task.pid);
    wire_put_number(&answer, 4, task.state);
    for (int number = 0; number < 3; number++)
        wire_put_text(&answer, 5 + number, task.streams.names[number]);
    if (task.state == STOPPED) {
        wire_put_number(&answer, 9, task.exit_status);
        put_time(&answer, 10, task.exited);
    }
    ttrpc_answer(call, &answer);
}

/* The first process is among them even when it has ended: a containerd that starts again takes a
 * task without any for one that was never made. */
static void answer_processes(const struct call *call)
{
    static uint8_t rooms[2][PIDS_MAX * 8];
    struct writer answer = {.data = rooms[0], .room = sizeof rooms[0]};
    char line[PATH_MAX + 64], path[PATH_MAX + 128], *controller;
    char *group = task.state == STOPPED ? NULL : find_cgroup(line, &controller);
    if (group)
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s%s/cgroup.procs", controller, group);
    FILE *file = group ? fopen(path, "re") : NULL;
    bool seen = false;
    int pid;
    do {
        if (file == NULL || fscanf(file, "%d", &pid) != 1) {
            if (seen)
                break;
            pid = task.pid;
        }
        struct writer process = {.data = rooms[1], .room = sizeof rooms[1]};
        wire_put_number(&process, 1, pid);
        wire_put_bytes(&answer, 1, process.data, process.length);
        seen |= pid == task.pid;
    } while (!answer.full);
    if (file)
        fclose(file);
    ttrpc_answer(call, &answer);
}

static void connect_to(const struct call *call)
{
    uint8_t room[32];
    struct writer answer = {.data = room, .room = sizeof room};
    wire_put_number(&answer, 1, getpid());
    wire_put_number(&answer, 2, task.pid);
    ttrpc_answer(call, &answer);
}

/* A container keeps its shim; a runtime that hangs does not. */
static void shut_down(const struct call *call)
{
    if (task.step == CREATE || task.step == DELETE)
        kill(task.stepping, SIGKILL);
    task.shut_down = task.state == NONE || task.step == DELETE;
    answer_empty(call);
}

void task_handle(const struct call *call, const char *method, struct bytes request)
{
    struct bytes parsed = request, id = {0}, process = {0};
    uint64_t third = 0, fourth = 0;
    struct field field;
    if (strcmp(method, "Create") == 0) {
        create(call, request);
        return;
    }
    while (wire_next(&parsed, &field)) { /* the same fields in every other request */
        if (field.number == 1)
            id = field.bytes;
        else if (field.number == 2)
            process = field.bytes;
        else if (field.number == 3)
            third = field.value;
        else if (field.number == 4)
            fourth = field.value;
    }
    bool changes = strcmp(method, "Start") == 0 || strcmp(method, "Delete") == 0 ||
                   (strcmp(method, "Kill") == 0 && fourth);
    if (parsed.length)
        ttrpc_refuse(call, INVALID_ARGUMENT, "the request cannot be read");
    else if (strcmp(method, "Shutdown") == 0)
        shut_down(call);
    else if (!wire_equals(id, task.id) || task.state == NONE)
        ttrpc_refuse(call, NOT_FOUND, "container not created");
    else if (process.length && strcmp(method, "Update") != 0 && strcmp(method, "Exec") != 0)
        ttrpc_refuse(call, NOT_FOUND, "this shim runs no second process");
    else if (changes && task.step != NO_STEP)
        ttrpc_refuse(call, FAILED_PRECONDITION, "a %s is under way", step_names[task.step]);
    else if (strcmp(method, "Start") == 0)
        start(call);
    else if (strcmp(method, "Delete") == 0)
        delete(call);
    else if (strcmp(method, "Kill") == 0)
        send_signal(call, third, fourth);
    else if (strcmp(method, "Wait") == 0)
        wait_for_end(call);
    else if (strcmp(method, "State") == 0)
        answer_state(call);
    else if (strcmp(method, "Pids") == 0)
        answer_processes(call);
    else if (strcmp(method, "Connect") == 0)
        connect_to(call);
    else if (strcmp(method, "CloseIO") == 0) {
        if (third)
            streams_release(&task.streams, 0);
        answer_empty(call);
    } else
        ttrpc_refuse(call, UNIMPLEMENTED, "this shim has no %s", method);
}

/* A module that is well until it is told what to do, and where: settings at = "next", does = "segv". A request whose path has
 * "boom" sets it off; at = "always" is each load_balance; build, save and drop_balancer do it each time, the last two after a request for "/arm". Faults
 * before there are settings are compiled in: -DCONSTRUCTOR=segv, -DINFO=segv, -DDESTRUCTOR=segv. */
#define _GNU_SOURCE
#include "lb_module.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef ID
#define ID "fault"
#endif
#define TEXT(literal) ((struct lb_str){(const uint8_t *)(literal), sizeof(literal) - 1})

struct balancer {
    const struct lb_host_api *host;
    size_t n;
    unsigned turn;
    char at[32];
    void (*does)(void);
};

struct trylist {
    uint32_t first, boom;
};

static int armed;
static void *list_now;
static struct lb_answer *answer_now;
static const struct lb_host_api *host_now;
static uint32_t status_now;
static jmp_buf jump;

/* ---- ends of the process ------------------------------------------------------------------------------------------ */

static void segv(void) { *(volatile int *)8 = 1; }
static void bus(void) { raise(SIGBUS); }
static void ill(void) { raise(SIGILL); }
static void fpe(void) { raise(SIGFPE); }
static void abort_(void) { abort(); }
static void exit_0(void) { exit(0); }
static void _exit_0(void) { _exit(0); }
static void _exit_7(void) { _exit(7); }
static void kill_self(void) { kill(getpid(), SIGKILL); }
static void longjmp_(void) { longjmp(jump, 1); }
static void free_twice(void) { char *volatile p = malloc(40); free(p); char *volatile q = p; free(q); }
static int deep(int n) { volatile char a[4096]; a[0] = (char)n; return n < 0 ? 0 : deep(n + 1) + a[0]; }
static void overflow(void) { deep(1); }
static void no_altstack(void) { stack_t s = {.ss_flags = SS_DISABLE}; sigaltstack(&s, NULL); deep(1); }
static void ignore_segv(void) { signal(SIGSEGV, SIG_IGN); segv(); }
static void default_segv(void) { signal(SIGSEGV, SIG_DFL); segv(); }
static void exit_handler(int s) { (void)s; _exit(0); }
static void handled_segv(void) { signal(SIGSEGV, exit_handler); segv(); }
static void block_segv(void) { sigset_t s; sigfillset(&s); pthread_sigmask(SIG_BLOCK, &s, NULL); segv(); }
static void alarm_(void) { alarm(1); }

/* ---- threads of its own ------------------------------------------------------------------------------------------- */

/* When the call that started it has returned. */
static void *begin(void *does) { usleep(100000); ((void (*)(void))(uintptr_t)does)(); return NULL; }
static void thread(void (*does)(void)) { pthread_t t; pthread_create(&t, NULL, begin, (void *)(uintptr_t)does); pthread_detach(t); }
static void thread_segv(void) { thread(segv); }
static void thread_abort(void) { thread(abort_); }
static void thread_exit(void) { thread(exit_0); }
static void thread__exit(void) { thread(_exit_0); }

/* ---- no return ---------------------------------------------------------------------------------------------------- */

static void spin(void) { for (volatile int i = 1; i;) {} }
static void wait_(void) { for (;;) pause(); }
static void spin_handler(int s) { (void)s; spin(); }
static void spin_segv(void) { signal(SIGSEGV, spin_handler); segv(); }
static void back_handler(int s) { (void)s; }
static void refault(void) { signal(SIGSEGV, back_handler); segv(); }
static void stop_self(void) { raise(SIGSTOP); }
static void end_thread(void) { syscall(SYS_exit, 0); }
static void strict_seccomp(void) { prctl(PR_SET_SECCOMP, 1); }
static void log_loop(void) { for (;;) host_now->log(host_now->ctx, LB_LOG_INFO, TEXT("a line that is followed by others")); }

/* ---- slow, and more and more -------------------------------------------------------------------------------------- */

static void sleep_10ms(void) { usleep(10000); }
static void burn_10ms(void) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    do clock_gettime(CLOCK_MONOTONIC, &b); while ((b.tv_sec - a.tv_sec) * 1000000000L + b.tv_nsec - a.tv_nsec < 10000000L);
}
/* A memset would be left out: nobody reads the memory. */
static void leak_64m(void) { volatile char *p = malloc(64 << 20); for (int i = 0; i < 64 << 20; i += 4096) p[i] = 1; }
static void log_10000(void) { for (int i = 0; i < 10000; i++) host_now->log(host_now->ctx, LB_LOG_INFO, TEXT("one of many lines")); }

/* ---- processes, files and limits ---------------------------------------------------------------------------------- */

static void report(const char *what, long result) {
    /* In a constructor or destructor there is no host. */
    if (!host_now) return;
    char line[128];
    int n = snprintf(line, sizeof line, "%s: %s", what, result < 0 ? strerrorname_np(errno) : "done");
    host_now->log(host_now->ctx, LB_LOG_WARN, (struct lb_str){(const uint8_t *)line, (size_t)n});
}
static void fork_pause(void) { long pid = fork(); if (pid == 0) wait_(); report("fork", pid); }
static void fork_twice(void) {
    long pid = fork();
    if (pid == 0) { setsid(); if (fork() == 0) wait_(); _exit(0); }
    report("fork", pid);
}
static void system_(void) { int s = system("sleep 1000 & true"); errno = EPERM; report("system", s ? -1 : 0); }
static void exec_(void) { report("exec", execl("/bin/true", "true", NULL)); }
static void write_file(void) {
    char path[64];
    snprintf(path, sizeof path, "/tmp/trylist-fault-%d", (int)getpid());
    int file = open(path, O_CREAT | O_WRONLY, 0600);
    report("create", file);
    if (file >= 0) { close(file); unlink(path); }
}
static void read_file(void) { report("read", open("/etc/passwd", O_RDONLY)); }
static void trace_parent(void) { report("ptrace", ptrace(PTRACE_ATTACH, getppid(), NULL, NULL)); }
static void stop_parent(void) { report("kill", kill(getppid(), SIGSTOP)); }
static void term_group(void) { report("kill", kill(0, SIGTERM)); }
static void unshare_(void) { report("unshare", unshare(CLONE_NEWUSER)); }
static void close_all(void) { for (int i = 0; i < 200; i++) close(i); }
/* Without those by which it could say so. */
static void close_some(void) { for (int i = 3; i < 200; i++) close(i); }
static void no_files(void) { struct rlimit r = {3, 3}; report("setrlimit", setrlimit(RLIMIT_NOFILE, &r)); }
static void chdir_(void) { if (chdir("/tmp") || prctl(PR_SET_NAME, "innocent") || prctl(PR_SET_DUMPABLE, 0)) return; umask(0); clearenv(); }

/* ---- wrong answers ------------------------------------------------------------------------------------------------ */

static void odd_kind(void) { answer_now->kind = 99; }
static void far_index(void) { answer_now->kind = LB_NEXT_ENDPOINT; answer_now->endpoint = 0xfffffffe; }
static void odd_status(void) { status_now = 77; }
static void over_trylist(void) { memset(list_now, 0xff, 64); }
static void scribble(void) {
    /* Over all memory that it shares with others. */
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long from, to;
        char may[8];
        if (strstr(line, "memfd") && sscanf(line, "%lx-%lx %7s", &from, &to, may) == 3 && may[1] == 'w' && may[3] == 's')
            memset((void *)from, 0xee, to - from);
    }
}

/* To a pipe it is written when the process exits, behind all else. */
static void print_(void) { printf("{\n"); }

#define DOES(name) {#name, name}
static const struct { const char *name; void (*does)(void); } all[] = {
    DOES(segv), DOES(bus), DOES(ill), DOES(fpe), DOES(abort_), DOES(exit_0), DOES(_exit_0), DOES(_exit_7), DOES(kill_self),
    DOES(longjmp_), DOES(free_twice), DOES(overflow), DOES(no_altstack), DOES(ignore_segv), DOES(default_segv), DOES(handled_segv),
    DOES(block_segv), DOES(alarm_), DOES(thread_segv), DOES(thread_abort), DOES(thread_exit), DOES(thread__exit), DOES(spin),
    DOES(wait_), DOES(spin_segv), DOES(refault), DOES(stop_self), DOES(end_thread), DOES(strict_seccomp), DOES(log_loop),
    DOES(sleep_10ms), DOES(burn_10ms), DOES(leak_64m), DOES(log_10000), DOES(fork_pause), DOES(fork_twice), DOES(system_),
    DOES(exec_), DOES(write_file), DOES(read_file), DOES(trace_parent), DOES(stop_parent), DOES(term_group), DOES(unshare_),
    DOES(close_all), DOES(close_some), DOES(no_files), DOES(chdir_), DOES(odd_kind), DOES(far_index), DOES(odd_status), DOES(over_trylist),
    DOES(scribble), DOES(print_),
};

/* ---- the module --------------------------------------------------------------------------------------------------- */

static void hit(const struct balancer *b, const char *call, int when) {
    if (when && !strcmp(b->at, call)) b->does();
}

static uint32_t info(struct lb_info *i) {
    i->abi_major = LB_ABI_MAJOR;
    i->abi_minor = LB_ABI_MINOR;
    i->trylist_size = sizeof(struct trylist);
    i->trylist_align = 8;
    i->id = TEXT(ID);
    i->version = TEXT("1.0.0");
    i->summary = TEXT("well until it is told otherwise");
#ifdef INFO
    INFO();
#endif
    return LB_STATUS_OK;
}

static uint32_t build(const struct lb_build_cx *cx, void **out) {
    struct balancer *b = calloc(1, sizeof *b);
    b->n = cx->n_endpoints;
    b->host = host_now = cx->host;
    for (size_t i = 0; i < cx->n_settings; i++) {
        const struct lb_setting *s = lb_setting_at(cx, i);
        if (s->path.len == 2 && s->text.len < sizeof b->at) memcpy(b->at, s->text.ptr, s->text.len);
        if (s->path.len != 4) continue;
        for (size_t k = 0; k < sizeof all / sizeof *all; k++)
            if (strlen(all[k].name) == s->text.len && !memcmp(all[k].name, s->text.ptr, s->text.len)) b->does = all[k].does;
        if (!b->does) return LB_STATUS_REFUSED;
    }
    if (!strcmp(b->at, "observe")) cx->needs->events = 1 << LB_EVENT_CONNECTED | 1 << LB_EVENT_TRY_ENDED;
    *out = b;
    hit(b, "build", 1);
    return LB_STATUS_OK;
}

static uint32_t load_balance(const void *of, const struct lb_request *r, void *list) {
    struct balancer *b = (struct balancer *)(uintptr_t)of;
    struct trylist *t = list;
    t->first = __atomic_fetch_add(&b->turn, 1, __ATOMIC_RELAXED) % b->n;
    t->boom = memmem(r->path.ptr, r->path.len, "boom", 4) != NULL;
    if (memmem(r->path.ptr, r->path.len, "arm", 3)) armed = 1;
    list_now = list;
    status_now = 0;
    if (t->boom && setjmp(jump)) return LB_STATUS_OK;
    hit(b, "always", 1);
    hit(b, "load_balance", t->boom);
    return status_now;
}

static uint32_t next(const void *of, void *list, const struct lb_next_cx *cx, struct lb_answer *a) {
    const struct balancer *b = of;
    struct trylist *t = list;
    a->kind = LB_NEXT_EXHAUSTED;
    for (size_t k = 0; k < b->n; k++) {
        uint32_t e = (uint32_t)((t->first + k) % b->n);
        if (!lb_tried(cx, e)) {
            a->kind = LB_NEXT_ENDPOINT;
            a->endpoint = e;
            break;
        }
    }
    list_now = list;
    answer_now = a;
    status_now = 0;
    hit(b, "next", t->boom);
    return status_now;
}

#define OF_A_TRYLIST(call, parameters) \
    static uint32_t call parameters { \
        list_now = list; \
        hit(of, #call, ((struct trylist *)list)->boom); \
        return LB_STATUS_OK; \
    }
OF_A_TRYLIST(report_failure, (const void *of, void *list, const struct lb_failure *f __attribute__((unused))))
OF_A_TRYLIST(observe, (const void *of, void *list, const struct lb_event *e __attribute__((unused))))
OF_A_TRYLIST(finish, (const void *of, void *list, const struct lb_outcome *o __attribute__((unused))))
OF_A_TRYLIST(drop_trylist, (const void *of, void *list))

static uint32_t save(const void *of, const struct lb_sink *sink) {
    hit(of, "save", armed);
    sink->write(sink->ctx, TEXT("saved"));
    return LB_STATUS_OK;
}

static uint32_t explain(const void *of, void *list, const struct lb_sink *sink) {
    hit(of, "explain", ((struct trylist *)list)->boom);
    sink->write(sink->ctx, TEXT("as it was told"));
    return LB_STATUS_OK;
}

static uint32_t drop_balancer(void *of) {
    hit(of, "drop_balancer", armed);
    host_now = NULL;
    free(of);
    return LB_STATUS_OK;
}

#ifdef CONSTRUCTOR
__attribute__((constructor)) static void constructor(void) { CONSTRUCTOR(); }
#endif
#ifdef DESTRUCTOR
__attribute__((destructor)) static void destructor(void) { DESTRUCTOR(); }
#endif

static const struct lb_module table = {
    sizeof table, LB_ABI_MAJOR, LB_ABI_MINOR, 0, info, build, load_balance, next, report_failure,
    observe, finish, drop_trylist, save, explain, drop_balancer,
};
LB_EXPORT const struct lb_module *const lb_module = &table;

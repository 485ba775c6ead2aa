/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the programs that drive an engine without a broker share: machines with disks, networks and directories of their
 * own, questions to their agents, and a table of figures. Everything that goes wrong ends the program with status 1.
 */
#ifndef NB_TEST_ENGINE_RIG_H
#define NB_TEST_ENGINE_RIG_H

#include "base/cleanup.h"
#include "base/fd.h"
#include "base/log.h"
#include "base/loop.h"
#include "schema/agent.h"
#include "vmm/engines/engine.h"
#include "vmm/net/net.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define RIG_UID 790000
#define RIG_RUNS_MAX 400

struct rig_options {
	const char *engine, *qemu, *kernel, *initrd, *image, *overlay, *cmdline, *hello, *dir;
	uint32_t memory_mib, runs, boots;
};
extern struct rig_options opt;
extern struct loop *loop;
extern struct engine *engine;

struct machine {
	struct engine_vm *vm;
	struct net net;
	struct engine_spec spec;
	int dirfd;
	char dir[200];
	bool done, gone;
	enum rc rc;
	struct fault fault;
	char why[200];
};

_Noreturn __attribute__((format(printf, 1, 2))) void die(const char *fmt, ...);
#define MUST(call)                                                          \
	do {                                                                \
		struct fault f_ = { 0 };                                    \
		struct fault *f = &f_;                                      \
		if (call)                                                   \
			die("%s:%d %s: %s", __FILE__, __LINE__, #call, f_.text); \
	} while (0)

/* name: the program's, for messages. Reads the options, removes what an earlier run left, makes loop and engine. */
void rig_begin(const char *name, int argc, char **argv);
/* Frees both, prints the figures, and dies if a descriptor, a process or a file is left over. */
void rig_end(const char *name);
void engine_make(void);

uint64_t us(void);
/* One more value of the series with this name (a literal). */
void note(const char *name, uint64_t value);
/* The middle one so far; 0: none. */
uint64_t median(const char *name);

/* `disk_from`: the machine whose writable disks are copied (a restore or fork needs them as they were). */
void machine_make(struct machine *m, const char *id, uid_t uid, const struct machine *disk_from);
void machine_unmake(struct machine *m);
void machine_stop(struct machine *m);
/* Callbacks for the engine; arg is the machine. */
void on_done(void *arg, enum rc rc, const struct fault *f);
void on_exit_(void *arg, const char *reason);
void until(bool *flag, uint64_t ms);
void await(struct machine *m, const char *what);
int open_at(int dirfd, const char *name, int flags);
size_t count(const char *dir); /* its entries, "." and ".." too */

/* Makes a machine and boots it until its agent answers; a guest that panics meanwhile is booted anew, twice at most. */
void cold_boot(struct machine *m, const char *id, uid_t uid);
void pause_machine(struct machine *m);
void resume_machine(struct machine *m);
/* Saves a running machine into a new directory, which leaves it paused. */
void save_to(struct machine *m, const char *dir);
struct engine_snapshot *snap_open(const char *dir);
enum rc snap_open_try(const char *dir, struct engine_snapshot **ret, struct fault *f);
enum rc snap_check(struct engine_snapshot *snap, struct fault *f);
/* base: another snapshot's directory, or NULL. */
void snap_store(struct engine_snapshot *snap, const char *dir, const char *base);
void start_from(struct machine *m, struct engine_snapshot *snap);

/* One line to the agent's port, one line back. False: not yet there. */
bool ask_once(struct machine *m, const char *line, char *out, size_t size, uint64_t ms);
void ask(struct machine *m, const char *line, char *out, size_t size);
void hello(struct machine *m);
/* A connected agent service, its answer read; -1: answer says why not. The other dies then. */
int service_try(struct machine *m, const char *line, char *answer, size_t size);
int service(struct machine *m, const char *line);
/* A command in the guest to its end; its standard output. Dies unless it exits with 0. */
void guest_run(struct machine *m, const char *argv_json, char *out, size_t size);

#endif

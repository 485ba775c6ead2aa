/* SPDX-License-Identifier: Apache-2.0 */
/*
 * nestbox-agent, the guest's first process. Theory: one epoll loop serves every connection of the management link; a
 * connection reads its service line (agent_service.c), is handed over to that service's file and belongs to it from then on.
 * Whatever may block (mounting, syncing, tar, hooks) runs in a forked child that writes the answer itself. All
 * children are reaped by one SIGCHLD handler (agent_child.c), since orphans of the whole guest arrive here too.
 *
 * The agent is believed by nobody on the host and guards nothing against the guest's root user; it guards itself
 * against the guest's ordinary accidents: fork bombs and memory hunger (cgroup "user", oom_score_adj), clients
 * that never read or never write (bounded buffers, deadlines), a session process that dies (restarted).
 */
#ifndef NB_GUEST_AGENT_H
#define NB_GUEST_AGENT_H

#include "base/buf.h"
#include "base/fault.h"
#include "base/loop.h"
#include "guest/agent_line.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define AGENT_UID 1000
#define AGENT_GID 1000
#define AGENT_HOME "/home/app"
#define AGENT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define AGENT_WARM "/etc/nestbox/warm"
#define AGENT_CGROUP "/sys/fs/cgroup/user"

/* What is connected to the host. When the machine becomes a clone, the other end of each is gone. */
struct attached {
	struct attached *next, **prev;
	void (*inherited)(struct attached *);
};

struct agent {
	struct loop *loop;
	bool guest;          /* PID 1 of a machine; else a test on some host, where control changes nothing */
	int listen_fd;
	int upper_fd;        /* root of the writable disk's file system, -1 if there is none */
	int below_fd;        /* the initramfs, until a root is chosen for good; else -1 */
	int cgroup_fd;       /* cgroup.procs of the users' cgroup, -1 without */
	uint64_t generation; /* 0: a template; counts identities */
	char image[128];
	char **env;          /* of every process: from identity */
	bool has_ca;
	struct attached *attached;
	unsigned int n_connections;
};
extern struct agent agent;

void agent_attach(struct attached *a, void (*inherited)(struct attached *));
void agent_detach(struct attached *a);

/* --- agent_boot.c, agent_net.c: once ---------------------------------------------------------------------------- */
enum rc agent_boot(struct fault *ret_f);
enum rc agent_net_up(struct fault *ret_f);
enum rc agent_net_listen(int *ret_fd, struct fault *ret_f);
void agent_net_forget_neighbours(void);
/* "/dev/vdc" of the disk with this virtio serial. */
enum rc agent_disk_find(const char *serial, char *out, size_t size, struct fault *ret_f);
void agent_fs_grow(const char *disk, const char *path);
/* A volume's ext4, once the disk has its size; -1 and errno. */
int agent_volume_mount(const char *disk, const char *path, unsigned long flags);
/* Before the first identity: a volume or a snapshot takes the place of the template's root, for every process. */
enum rc agent_root_change(bool snapshot, struct fault *ret_f);
/* The start of a file of /proc or /sys, whose size nobody knows before; "" if it cannot be read. */
void agent_proc_read(const char *path, char *out, size_t size);
/* Overwrites a small file in place. */
enum rc agent_file_put(const char *path, const char *text, struct fault *ret_f);

/* --- agent_child.c ---------------------------------------------------------------------------------------------- */
typedef void agent_exit_fn(void *arg, int wait_status);
struct child; /* one process of ours that has not been reaped */
enum rc agent_child_init(struct fault *ret_f);
/* Forgets the callback; the process is still reaped. NULL is fine. */
void agent_child_forget(struct child *c);
pid_t agent_child_pid(const struct child *c);
void agent_child_kill(struct child *c, int signal); /* its process group */

struct spawn {
	const struct agent_spec *spec;
	int in, out, err; /* become 0, 1, 2; tty: all the same slave */
	bool tty;
};
/* *ret_error_fd becomes readable: end of file once the program runs, else an int (errno). Call agent_spawn_result(). */
enum rc agent_spawn(const struct spawn *s, agent_exit_fn *exited, void *arg, struct child **ret, int *ret_error_fd,
		    struct fault *ret_f);
enum rc agent_spawn_result(int error_fd, const char *program, struct fault *ret_f);
/* A child of the agent's own: runs fn(fd, arg), exits with its value. Root, no cgroup, signals as usual; of the agent's
 * descriptors it has the standard ones (std: replaced by these, -1 keeps one, NULL all), `fd` (-1: none) and those in
 * struct agent. The caller keeps its own copies. */
enum rc agent_fork(int (*fn)(int fd, void *arg), int fd, const int std[3], void *arg, agent_exit_fn *exited, void *exit_arg, struct child **ret,
		   struct fault *ret_f);
/* In a child before it becomes something else: user, groups, limits, cgroup, signals. */
void agent_become(bool root);
uint64_t agent_oom_kills(void);

/* --- agent_service.c: answers; false: the peer is gone ------------------------------------------------------------ */
enum rc agent_service_init(int listen_fd, struct fault *ret_f);
bool agent_answer(int fd, const char *line);
bool agent_answer_fault(int fd, const struct fault *f);
/* Ends a connection after its answer: closing with unread bytes would reset it and could take the answer along. Owns fd and
 * calls agent_connection_done(). */
void agent_connection_end(int fd);
void agent_connection_done(void); /* every service calls it once for a connection that it was handed */

/* --- services: each owns fd from the call on; req lives during the call ------------------------------------------- */
void agent_exec_start(int fd, const struct agent_request *req);
void agent_dial_start(int fd, const struct agent_request *req);
void agent_tar_out_start(int fd, const struct agent_request *req);
void agent_tar_in_start(int fd, const struct agent_request *req);
void agent_unit_start(int fd, const struct agent_request *req);
void agent_control_start(int fd, const struct agent_request *req);

/* --- agent_session.c -------------------------------------------------------------------------------------------- */
enum rc agent_session_init(struct fault *ret_f);
enum rc agent_session_send(char kind, int fd, const char *rest, struct fault *ret_f);
void agent_session_environment(void);
void agent_session_identity(void);

/* --- agent_identity.c ------------------------------------------------------------------------------------------- */
enum rc agent_identity(const struct agent_request *req, struct fault *ret_f);
enum rc agent_trust(const struct agent_request *req, struct fault *ret_f);
/* In a forked child: runs an executable to its end or the deadline; absent is fine. */
void agent_program_run(const char *path, bool root, uint64_t deadline_ms);
/* Runs in a forked child: /etc/nestbox/on-clone.d. */
void agent_identity_hooks(void);
/* Makes the files that identity changes writable beforehand, so that no clone waits for a copy-up. */
void agent_identity_prepare(void);

/* --- agent_env.c ------------------------------------------------------------------------------------------------ */
/* Into the machine's own; a name that is there gets the new value. */
enum rc agent_env_add(char **more, struct fault *ret_f);
/* Environment of a new process, NULL-terminated; agent_env_free(). */
enum rc agent_env_make(const struct agent_spec *s, char ***ret, struct fault *ret_f);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The broker protocol: what nestboxd may be asked, on <run_dir>/broker.sock. Encoding: schema/message.h. Peers are known
 * by SO_PEERCRED: API (uid user_api: workers, runner), GATEWAY (user_gateway), EGRESS (user_egress), ROOT.
 * Who may ask what in which state, and why granting it is safe, is the table in vmm/broker/ops.c.
 *
 * An id is [a-z0-9_]{1,40}. Times *_ms of the form stop_at_ms are Unix milliseconds (wall clock), 0: none.
 */
#ifndef NB_SCHEMA_BROKER_H
#define NB_SCHEMA_BROKER_H

#include "schema/message.h"

#define BROKER_ID_MAX 41
#define BROKER_NAME_MAX 128      /* image, volume, template names */
#define BROKER_HOST_MAX 256      /* an exposure's DNS name */
#define BROKER_ORG_MAX 64        /* whose it is: told on, never looked at */
#define BROKER_REASON_MAX 160
#define BROKER_CA_MAX 4096       /* a sandbox's own certificate authority, PEM */
#define BROKER_POLICY_MAX 65536  /* bytes, schema/policy.h */
#define BROKER_ENV_MAX 32768     /* "NAME=value\0" repeated */
#define BROKER_MOUNTS_MAX 4096   /* "volume\0path\0" repeated */
#define BROKER_LOGIN_KEY_MAX 65  /* SHA-256 of a login, in hex */
#define BROKER_LINE_MAX 4096     /* a service line of the agent protocol */
#define BROKER_LIST_MAX 32       /* rows in one answer */
#define BROKER_CAPTURE_MAX 65    /* a capture's name, [a-z0-9_-]{1,64} */
#define BROKER_FORK_MAX 16       /* children of one fork */
#define BROKER_CHILDREN_MAX 122880 /* bytes of all children's rows: their environments and policies together */

/*      op                 number  request                      reply */
#define BROKER_OPS(X)                                                                                            \
	X(HELLO,           1, broker_none,            broker_hello)          /* who answers */                    \
	X(VM_CREATE,       2, broker_vm_create,       broker_vm_created)     /* +fd lease if BROKER_VM_LEASE */   \
	X(VM_KILL,         3, broker_vm_kill,         broker_none)           /* answers when nothing is left */   \
	X(VM_STAT,         4, broker_vm_id,           broker_vm_stat)                                             \
	X(VM_LIST,         5, broker_cursor,          broker_vm_list)                                             \
	X(VM_EXTEND,       6, broker_vm_extend,       broker_vm_extend)      /* sets stop_at_ms */                \
	X(VM_DIAL,         7, broker_vm_dial,         broker_vm_dialed)      /* +fd agent connection [+fd lease] */ \
	X(EXPOSE_ADD,      8, broker_expose,          broker_none)           /* replaces what had that host */    \
	X(EXPOSE_DELETE,   9, broker_host,            broker_none)                                                \
	X(EXPOSE_LIST,    10, broker_cursor,          broker_expose_list)                                         \
	X(EXPOSE_DIAL,    11, broker_host,            broker_none)           /* +fd: agent connection, line sent */ \
	X(LOGIN_ADD,      40, broker_login,           broker_none)           /* a name by which SSH may reach the VM */ \
	X(LOGIN_CLEAR,    41, broker_vm_id,           broker_none)           /* none of them any more */          \
	X(LOGIN_DIAL,     42, broker_login_dial,      broker_none)           /* +fd agent connection, if connect */ \
	X(SUBSCRIBE,      12, broker_none,            broker_none)           /* from now on BROKER_EVENTs */      \
	X(VM_POLICY,      13, broker_vm_policy_set,   broker_none)           /* answers when it is in force */    \
	X(EGRESS_ATTACH,  14, broker_none,            broker_none)           /* egress only; then EGRESS_* events */ \
	X(VM_PAUSE,       15, broker_vm_id,           broker_none)                                                \
	X(VM_RESUME,      16, broker_vm_id,           broker_none)                                                \
	X(VM_FORK,        17, broker_vm_fork,         broker_vm_forked)      /* all children or none */           \
	X(VOLUME_CREATE,  18, broker_volume_create,   broker_volume)                                              \
	X(VOLUME_DELETE,  19, broker_volume_name,     broker_none)                                                \
	X(VOLUME_STAT,    20, broker_volume_name,     broker_volume)                                              \
	X(VOLUME_SNAPSHOT,21, broker_volume_snapshot, broker_volume)                                              \
	X(NODE_STAT,      22, broker_none,            broker_node)                                                \
	X(EGRESS_CA,      23, broker_egress_ca,       broker_none)           /* egress's answer to EGRESS_VM and _POLICY */ \
	X(VM_CAPTURE,     24, broker_vm_capture,      broker_vm_captured)    /* a running machine, kept on disk */  \
	X(CAPTURE_DELETE, 25, broker_capture_name,    broker_none)                                                \
	X(CAPTURE_LIST,   26, broker_cursor,          broker_capture_list)                                  \
	X(VM_POLICY_GET,  27, broker_vm_id,           broker_vm_policy)      /* as it was set */ \
	X(VOLUME_VERIFY,  28, broker_volume_name,     broker_none)           /* a snapshot is read, against its checksum */

enum broker_op {
#define X(name, number, request, reply) BROKER_##name = (number),
	BROKER_OPS(X)
#undef X
};

/* Events: op = kind | MESSAGE_EVENT, sequence 0. */
enum broker_event {
	BROKER_EVENT_VM = 1,          /* broker_vm_event: state changed; RUNNING or GONE */
	BROKER_EVENT_EXPOSE = 2,      /* broker_expose_event: a host appeared or went */
	BROKER_EVENT_EGRESS_VM = 3,   /* broker_egress_vm +3 fds: TCP listener, DNS over UDP, DNS over TCP listener */
	BROKER_EVENT_EGRESS_GONE = 4, /* broker_vm_id */
	BROKER_EVENT_EGRESS_POLICY = 5, /* broker_vm_policy */
	BROKER_EVENT_LOGIN_GONE = 40, /* broker_login_key: nobody may be logged in by it any more */
	BROKER_EVENT_WANTED = 6,      /* broker_host: EXPOSE_DIAL of a host whose VM is absent: wake it */
};

enum broker_vm_state { BROKER_VM_STARTING = 1, BROKER_VM_RUNNING, BROKER_VM_PAUSED, BROKER_VM_STOPPING, BROKER_VM_GONE };

/* VM_CREATE flags */
#define BROKER_VM_LEASE 1u  /* lives as long as the lease descriptor, then lease_grace_ms */

MESSAGE_DECLARE(broker_none, MESSAGE_EMPTY)

#define BROKER_VM_ID_FIELDS(F) F(STR, id, BROKER_ID_MAX)
MESSAGE_DECLARE(broker_vm_id, BROKER_VM_ID_FIELDS)

#define BROKER_HELLO_FIELDS(F)                                            \
	F(STR, version, 32)                                               \
	F(STR, engine, 16)   /* "kvm", "qemu-kvm", "qemu-tcg" */          \
	F(STR, tier, 32)     /* "hardware" or "emulated" isolation */     \
	F(STR, reason, BROKER_REASON_MAX) /* why this engine */           \
	F(U64, started_ms, 0)
MESSAGE_DECLARE(broker_hello, BROKER_HELLO_FIELDS)

#define BROKER_VM_CREATE_FIELDS(F)                                                                       \
	F(STR, id, BROKER_ID_MAX)                                                                        \
	F(U32, memory_mib, 0)                                                                            \
	F(U32, flags, 0)                                                                                 \
	F(U64, stop_at_ms, 0)                                                                            \
	F(STR, hostname, 64)                                                                             \
	F(STR, image, BROKER_NAME_MAX)       /* empty: configured default */                             \
	F(STR, root_volume, BROKER_NAME_MAX) /* empty: ephemeral overlay on the image */                 \
	F(BLOB, mounts, BROKER_MOUNTS_MAX)                                                               \
	F(BLOB, env, BROKER_ENV_MAX)         /* given to every process of the sandbox */                 \
	F(BLOB, policy, BROKER_POLICY_MAX)   /* egress policy; opaque to the broker */                   \
	F(STR, capture, BROKER_CAPTURE_MAX)  /* start from what VM_CAPTURE kept: image, root_volume and mounts empty */
MESSAGE_DECLARE(broker_vm_create, BROKER_VM_CREATE_FIELDS)

#define BROKER_VM_CREATED_FIELDS(F)                                                       \
	F(U32, restore_us, 0) /* engine: start of the VM process to running */            \
	F(U32, agent_us, 0)   /* then until the agent had taken its identity */           \
	F(U32, total_us, 0)
MESSAGE_DECLARE(broker_vm_created, BROKER_VM_CREATED_FIELDS)

#define BROKER_VM_KILL_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(STR, reason, BROKER_REASON_MAX)
MESSAGE_DECLARE(broker_vm_kill, BROKER_VM_KILL_FIELDS)

#define BROKER_VM_STAT_FIELDS(F)                                                                 \
	F(STR, id, BROKER_ID_MAX)                                                                \
	F(U32, state, 0)                                                                         \
	F(U32, flags, 0)                                                                         \
	F(U32, memory_mib, 0)                                                                    \
	F(U32, pid, 0)                                                                           \
	F(U64, created_ms, 0)                                                                    \
	F(U64, stop_at_ms, 0)                                                                    \
	F(U64, memory_private, 0) /* bytes, PSS of the VM process */                             \
	F(U64, cpu_us, 0)                                                                        \
	F(STR, reason, BROKER_REASON_MAX) /* GONE: why */
MESSAGE_DECLARE(broker_vm_stat, BROKER_VM_STAT_FIELDS)

#define BROKER_CURSOR_FIELDS(F) F(STR, after, BROKER_HOST_MAX) /* list what sorts after this; empty: all */
MESSAGE_DECLARE(broker_cursor, BROKER_CURSOR_FIELDS)

/* n rows of broker_vm_stat, encoded one after the other. Fewer than BROKER_LIST_MAX: the end. */
#define BROKER_VM_LIST_FIELDS(F) F(U32, n, 0) F(BLOB, rows, MESSAGE_MAX)
MESSAGE_DECLARE(broker_vm_list, BROKER_VM_LIST_FIELDS)

#define BROKER_VM_EXTEND_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(U64, stop_at_ms, 0)
MESSAGE_DECLARE(broker_vm_extend, BROKER_VM_EXTEND_FIELDS)

/* want_lease: if the VM is in its lease's grace, take the lease over. */
#define BROKER_VM_DIAL_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(U32, want_lease, 0)
MESSAGE_DECLARE(broker_vm_dial, BROKER_VM_DIAL_FIELDS)
#define BROKER_VM_DIALED_FIELDS(F) F(U32, has_lease, 0)
MESSAGE_DECLARE(broker_vm_dialed, BROKER_VM_DIALED_FIELDS)

#define BROKER_HOST_FIELDS(F) F(STR, host, BROKER_HOST_MAX)
MESSAGE_DECLARE(broker_host, BROKER_HOST_FIELDS)

/* line: what the broker sends to the agent when the host is dialled, without '\n', e.g. {"service":"http","domain":...}.
 * id may be empty: an exposure without a machine behind it (an app that sleeps). Exposures of a VM end with it,
 * except those with keep != 0, whose id becomes empty. org: whose visitors share the gateway's places at the broker. */
#define BROKER_EXPOSE_FIELDS(F)           \
	F(STR, host, BROKER_HOST_MAX)     \
	F(STR, id, BROKER_ID_MAX)         \
	F(STR, org, BROKER_ORG_MAX)       \
	F(STR, line, BROKER_LINE_MAX)     \
	F(U32, keep, 0)
MESSAGE_DECLARE(broker_expose, BROKER_EXPOSE_FIELDS)
#define BROKER_EXPOSED_FIELDS(F) F(STR, host, BROKER_HOST_MAX) F(STR, org, BROKER_ORG_MAX)
MESSAGE_DECLARE(broker_exposed, BROKER_EXPOSED_FIELDS)
#define BROKER_EXPOSE_LIST_FIELDS(F) F(U32, n, 0) F(BLOB, rows, MESSAGE_MAX) /* rows of broker_exposed */
MESSAGE_DECLARE(broker_expose_list, BROKER_EXPOSE_LIST_FIELDS)

/* key: SHA-256 of the name that the client was given, 64 hex digits. Ends with its VM, at most LOGINS_MAX of each. */
#define BROKER_LOGIN_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(STR, key, BROKER_LOGIN_KEY_MAX)
MESSAGE_DECLARE(broker_login, BROKER_LOGIN_FIELDS)
/* connect: 0 only asks whether there is such a login. RC_ABSENT: no. */
#define BROKER_LOGIN_DIAL_FIELDS(F) F(STR, key, BROKER_LOGIN_KEY_MAX) F(U32, connect, 0)
MESSAGE_DECLARE(broker_login_dial, BROKER_LOGIN_DIAL_FIELDS)
#define BROKER_LOGIN_KEY_FIELDS(F) F(STR, key, BROKER_LOGIN_KEY_MAX)
MESSAGE_DECLARE(broker_login_key, BROKER_LOGIN_KEY_FIELDS)

#define BROKER_VM_POLICY_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(BLOB, policy, BROKER_POLICY_MAX)
MESSAGE_DECLARE(broker_vm_policy, BROKER_VM_POLICY_FIELDS)
/* env: "NAME=value\0" repeated, added to what processes of the sandbox are given from now on. */
#define BROKER_VM_POLICY_SET_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(BLOB, policy, BROKER_POLICY_MAX) F(BLOB, env, BROKER_ENV_MAX)
MESSAGE_DECLARE(broker_vm_policy_set, BROKER_VM_POLICY_SET_FIELDS)

/*
 * Children of a running machine without volumes. children: n rows of broker_fork_child, encoded one after the other; env
 * replaces the parent's for what the child starts from now on. The answer has a row for each, in the same order.
 */
#define BROKER_VM_FORK_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(U32, n, 0) F(BLOB, children, BROKER_CHILDREN_MAX)
MESSAGE_DECLARE(broker_vm_fork, BROKER_VM_FORK_FIELDS)
#define BROKER_FORK_CHILD_FIELDS(F)                                                                      \
	F(STR, id, BROKER_ID_MAX)                                                                        \
	F(U64, stop_at_ms, 0)                                                                            \
	F(STR, hostname, 64)                                                                             \
	F(BLOB, env, BROKER_ENV_MAX)                                                                     \
	F(BLOB, policy, BROKER_POLICY_MAX)
MESSAGE_DECLARE(broker_fork_child, BROKER_FORK_CHILD_FIELDS)
#define BROKER_VM_FORKED_FIELDS(F)                                                                       \
	F(U32, pause_us, 0)      /* how long the parent stood still */                                   \
	F(U64, private_bytes, 0) /* memory that had to be copied */                                      \
	F(U32, n, 0)                                                                                     \
	F(BLOB, children, 4096)  /* rows of broker_fork_row */
MESSAGE_DECLARE(broker_vm_forked, BROKER_VM_FORKED_FIELDS)
/* ready_us: from the request until the child had taken its identity. */
#define BROKER_FORK_ROW_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(U32, state, 0) F(U32, ready_us, 0)
MESSAGE_DECLARE(broker_fork_row, BROKER_FORK_ROW_FIELDS)

/* A running machine without volumes, with its memory and disk, below a name; one of that name before is replaced. The
 * machine goes on, also when this fails. */
#define BROKER_VM_CAPTURE_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(STR, name, BROKER_CAPTURE_MAX)
MESSAGE_DECLARE(broker_vm_capture, BROKER_VM_CAPTURE_FIELDS)
#define BROKER_VM_CAPTURED_FIELDS(F) F(U32, pause_us, 0) F(U64, bytes, 0)
MESSAGE_DECLARE(broker_vm_captured, BROKER_VM_CAPTURED_FIELDS)
#define BROKER_CAPTURE_NAME_FIELDS(F) F(STR, name, BROKER_CAPTURE_MAX)
MESSAGE_DECLARE(broker_capture_name, BROKER_CAPTURE_NAME_FIELDS)
/* bytes: what it takes on disk. last_used_ms: the last machine made from it, 0: none. */
#define BROKER_CAPTURE_ROW_FIELDS(F)                                                                     \
	F(STR, name, BROKER_CAPTURE_MAX) F(U64, bytes, 0) F(U64, created_ms, 0) F(U64, last_used_ms, 0)  \
	F(U32, memory_mib, 0)
MESSAGE_DECLARE(broker_capture_row, BROKER_CAPTURE_ROW_FIELDS)
/* n rows of broker_capture_row. Fewer than BROKER_LIST_MAX: the end. */
#define BROKER_CAPTURE_LIST_FIELDS(F) F(U32, n, 0) F(BLOB, rows, MESSAGE_MAX)
MESSAGE_DECLARE(broker_capture_list, BROKER_CAPTURE_LIST_FIELDS)

/* from: empty: an empty ext4; "image:<name>": bootable; "snapshot:<name>". */
#define BROKER_VOLUME_CREATE_FIELDS(F) \
	F(STR, name, BROKER_NAME_MAX) F(U64, bytes, 0) F(STR, from, BROKER_NAME_MAX)
MESSAGE_DECLARE(broker_volume_create, BROKER_VOLUME_CREATE_FIELDS)
#define BROKER_VOLUME_NAME_FIELDS(F) F(STR, name, BROKER_NAME_MAX)
MESSAGE_DECLARE(broker_volume_name, BROKER_VOLUME_NAME_FIELDS)
#define BROKER_VOLUME_SNAPSHOT_FIELDS(F) F(STR, name, BROKER_NAME_MAX) F(STR, snapshot, BROKER_NAME_MAX)
MESSAGE_DECLARE(broker_volume_snapshot, BROKER_VOLUME_SNAPSHOT_FIELDS)
#define BROKER_VOLUME_FIELDS(F)                                                   \
	F(U64, bytes, 0) F(U64, used_bytes, 0) F(U64, own_bytes, 0) /* without what is shared */                         \
	F(U32, bootable, 0) F(STR, used_by, BROKER_ID_MAX)
MESSAGE_DECLARE(broker_volume, BROKER_VOLUME_FIELDS)

#define BROKER_NODE_FIELDS(F)                                                     \
	F(U32, vms, 0) F(U32, vms_max, 0) F(U64, memory_mib_used, 0) F(U64, memory_mib_max, 0) F(U64, disk_free, 0)                    \
	F(STR, templates, BROKER_REASON_MAX) /* "1280 MiB ready, ..."; cut if there are many */
MESSAGE_DECLARE(broker_node, BROKER_NODE_FIELDS)

/* Events. */
#define BROKER_VM_EVENT_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(U32, state, 0) F(STR, reason, BROKER_REASON_MAX)
MESSAGE_DECLARE(broker_vm_event, BROKER_VM_EVENT_FIELDS)
#define BROKER_EXPOSE_EVENT_FIELDS(F) F(STR, host, BROKER_HOST_MAX) F(STR, org, BROKER_ORG_MAX) F(U32, present, 0)
MESSAGE_DECLARE(broker_expose_event, BROKER_EXPOSE_EVENT_FIELDS)
#define BROKER_EGRESS_VM_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(BLOB, policy, BROKER_POLICY_MAX)
MESSAGE_DECLARE(broker_egress_vm, BROKER_EGRESS_VM_FIELDS)
/* pem: what the machine has to trust for the hosts that its secrets are bound to; empty if it has no secrets. */
#define BROKER_EGRESS_CA_FIELDS(F) F(STR, id, BROKER_ID_MAX) F(STR, pem, BROKER_CA_MAX)
MESSAGE_DECLARE(broker_egress_ca, BROKER_EGRESS_CA_FIELDS)

#endif

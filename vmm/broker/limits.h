/* SPDX-License-Identifier: Apache-2.0 */
/* Every bound of the broker. Times in milliseconds. doc/limits.md lists them with the tests that enforce them. */
#ifndef NB_BROKER_LIMITS_H
#define NB_BROKER_LIMITS_H

/* Peers */
#define PEERS_MAX 256             /* connections in all */
#define PEER_REQUESTS_MAX 64      /* of one connection, unanswered */
#define PEER_QUEUE_MAX 512        /* packets that one connection has not taken yet; beyond: it is closed */
#define PEER_QUEUE_BYTES (4u << 20)

/* Machines */
#define VM_PIDS_MAX 128            /* threads of a VM process */
#define BACKGROUND_WEIGHT 25      /* of 100: a template that nobody waits for */
#define VM_INTERNAL 4             /* uid slots beyond vm_max, for templates in the making */
#define DISK_RESERVE_MIB 1024     /* no machine is made when the file system has less */
#define GONE_KEPT 1024            /* ended machines whose reason is remembered */
#define CONSOLE_MAX (1u << 20)    /* bytes of a console log before its older part is dropped */
#define CONSOLE_KEPT (128u << 10)
#define CONSOLE_CHECK_MS 2000
#define CGROUP_REMOVE_TRIES 50    /* a cgroup is busy until the kernel has let go of a reaped process */
#define CGROUP_REMOVE_MS 10
#define CLOSE_MS 3000             /* what is half made may take this long to go when the broker ends */
#define CLOSE_CHECK_MS 10
#define RECORD_MAX 16384

/* Volumes */
#define VOLUME_BYTES_MIN (16ull << 20)
#define VOLUME_BYTES_MAX (1024ull << 30)
#define VOLUME_OPS_MAX 16         /* creates and snapshots under way */
#define VERIFY_MAX 4               /* snapshots that are read at once against their checksums */
#define SETTLE_MS 5000            /* a machine that ends may take this long to flush its volumes */
#define THAW_TRIES 3

/* Captures and forks */
#define COPY_QUICK_BYTES (16u << 20) /* a disk with more data is copied by a program of its own */
#define CAPTURES_OPEN_MAX 32      /* kept open for the next start */
#define CAPTURE_IDLE_MS 60000     /* ... for this long after the last one */

/* Agents */
#define DIAL_MS 3000              /* deadline of a connection to an agent */
#define DIAL_ATTEMPT_MS 500       /* of one connect(2): a guest that just started may miss the first packet */
#define DIAL_RETRY_MS 25
#define EGRESS_POLICY_MS 5000      /* wait for the proxy to take a machine's new policy */
#define EGRESS_CA_MS 1000          /* wait for the proxy's certificate of a new machine */
#define AGENT_JSON_DEPTH 16

/* Exposures */
#define EXPOSE_MAX 16384

/* Logins */
#define LOGINS_MAX 8              /* names of one machine */

/* Templates */
#define TEMPLATE_TRIES 3
#define TEMPLATE_BOOT_MS 180000   /* cold boot to the agent's answer, on a busy host without virtualization */
#define TEMPLATE_STEP_MS 120000   /* any other step */
#define TEMPLATE_RETRY_MS 60000   /* a template that could not be made is tried again after this */
#define TEMPLATE_WAITERS_MAX 256
#define TEMPLATES_MAX 64
#define IMAGE_JSON_MAX 65536
#define KERNEL_LOGS_KEPT 8

#endif

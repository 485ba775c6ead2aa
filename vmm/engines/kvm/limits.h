/* SPDX-License-Identifier: Apache-2.0 */
/* Bounds of nestbox-vmm. doc/limits.md names the test of each. */
#ifndef NB_VMM_LIMITS_H
#define NB_VMM_LIMITS_H

#define VMM_CPUS_MAX 16
#define VMM_MEMORY_MIB_MIN 64u
#define VMM_MEMORY_MIB_MAX (1024u * 1024u)
#define VMM_DISKS_MAX 8
#define VMM_NICS_MAX 2
#define VMM_DEVICES_MAX (VMM_DISKS_MAX + VMM_NICS_MAX + 2) /* and rng, balloon */
#define VMM_CMDLINE_MAX 2048
#define VMM_QUEUES_MAX 3
#define VMM_QUEUE_SIZE 256        /* descriptors; what a driver may choose at most */
#define VMM_CHAIN_MAX 128         /* descriptors of one request, then the device stops */
#define VMM_BLK_QUEUE_SIZE 512    /* the same of a disk's, where a request of 1 MiB in pages of their own is one of 258 descriptors */
#define VMM_BLK_CHAIN_MAX 512     /* of one request, whether in the ring or in a table beside it (indirect) */
#define VMM_BLK_BATCH_MAX 32      /* disk requests that the driver is told of together */
#define VMM_BLK_BATCH_US 200      /* and for how long the first of them waits for that at most, but for the last one's own time */
#define VMM_BLK_REQUEST_MAX (4u << 20) /* bytes of one disk request */
#define VMM_NET_FRAME_MAX 65550   /* a TSO frame, its vnet header not counted */
#define VMM_SERIAL_BYTES_PER_S 262144 /* what the log takes; the rest is dropped and counted */
#define VMM_RNG_REQUEST_MAX 4096
#define VMM_BALLOON_PFNS_MAX 16384 /* page numbers of one request that are looked at: 64 MiB of memory */
#define VMM_RATE_BURST_MS 1000    /* what a rate limit lets pass at once, in time */
#define VMM_RATE_MAX (1u << 31)   /* operations or bytes a second; a limit above it is that */

#endif
